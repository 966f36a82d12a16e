"""Environment that Ray Serve reads when its processes start, on every node.

Ray offers no other way to set these. Facts and measurements behind the choices: HAProxy in place
of the Python proxy takes about a fifth of the CPU per token; the throughput mode keeps request
router and user code on one event loop and lets replicas talk gRPC.
"""

from pathlib import Path
from typing import Final

LONGEST_STREAM_S: Final = 86_400
"""HAProxy starts anew whenever frontends come or go, and the old process keeps its streams. Kept
so long, none is cut off; it leaves with the last of them."""


def serve_environment() -> dict[str, str]:
    """What every node of a cluster that serves PageRay needs before Ray starts there."""
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # That mode keeps a thousand records back. Ours are few, and of what goes wrong.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(LONGEST_STREAM_S),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Serve's 0.1 s cost 3 % of a core, in the controller and in what it asks of Ray, even with
        # nothing to do. Health checks and autoscaling have periods of a second.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
        # Every process writes its metrics out ten times a second; nobody reads them so often.
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        # Three failed looks at a dead HAProxy start a new one. At one every ten seconds its host
        # would be without a door for half a minute.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # A frontend that stands still gets no new clients after a second or two.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # A client that stops in the middle of its head, or never begins, would keep its connection
        # for an hour, and a host has 4096 of them. Longer than our own limits for bodies and for
        # streams that nobody reads; who only waits for an answer is not meant.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "150",
        # A replica that fails its health checks has nothing to drain: its streams are elsewhere.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def haproxy_environment(
    folder: Path, metrics_port: int, stats_port: int, fallback_port: int
) -> dict[str, str]:
    """Files and ports of HAProxy, so that several clusters can share one machine.

    Where no frontend answers, HAProxy turns to Serve's own proxy at the fallback port. That proxy
    shares its port with whoever wants it, too: of two clusters with the same port, either would
    now and then answer for the other.
    """
    return {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
    }
