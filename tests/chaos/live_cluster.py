"""PageRay on a Ray cluster of several hosts, and the faults that can be done to it.

Started as the README says for a cluster of one's own: `ray start` on every host with the
environment that Serve needs and a token, then the file that `pageray config` prints.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx2
import psutil

from deployments.serve_environment import haproxy_environment
from tests.chaos.hosts import Hosts
from tests.chaos.namespace_hosts import NamespaceHosts
from tests.chaos.redis_server import RedisServer
from tests.chaos.roles import Role, listening_ports, select
from tests.integration.serving import free_port, wait_until

ROOT = Path(__file__).parents[2]
HEAD = 1
INGRESS_PORTS = range(30000, 31001)
"""Serve's for frontends, behind HAProxy."""
COMMAND_TIMEOUT_S = 120.0
READY_TIMEOUT_S = 120.0
STATUS_TIMEOUT_S = 5.0
HEALTH_SETTINGS = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""A host that is cut off is dead after some 5 s."""
NAMESPACE = "pageray"
"""Of this cluster's keys in Redis."""
RECONNECT_TIMEOUT_S = 120
"""How long the rest of Ray waits for a head that keeps its state in Redis."""


class LiveCluster:
    """Hosts 1 to N, the head being host 1; a context manager."""

    def __init__(
        self,
        model: Path,
        *options: str,
        num_hosts: int = 2,
        num_replicas: int = 2,
        num_frontends: int = 1,
        num_cpus: int | Sequence[int] = 2,
        num_joined: int | None = None,
        num_ready: int | None = None,
        drain_timeout_s: float = 20.0,
        has_redis: bool = False,
        has_dashboard: bool = False,
        make_hosts: Callable[[int, int], Hosts] = NamespaceHosts,
    ) -> None:
        """Take what to serve.

        Args:
            model: folder of the model.
            options: more options of `pageray config`; `{machine}` is this machine's address.
            num_cpus: of Ray's tokens, on each host. A replica takes 0.1 and 1 for each rank, a
                frontend 0.5: with 2 every host has room for one of each.
            num_joined: hosts that are there from the start, all unless given; others may `rejoin`.
            num_ready: replicas to wait for at the start, all unless given.
            drain_timeout_s: the application's.
            has_redis: whether the head keeps its state in Redis, so that its GCS may die.
            has_dashboard: whether the head has one, to which the application is then deployed.
            make_hosts: makes so many hosts, and so many others.
        """
        self._options = [str(model), *options, "--replicas", str(num_replicas)]
        self._options += ["--num-frontends", str(num_frontends)]
        self._options += ["--drain-timeout", f"{drain_timeout_s:g}"]
        self._num_hosts = num_hosts
        self._num_ready = num_replicas if num_ready is None else num_ready
        self._num_frontends = num_frontends
        given = [num_cpus] * num_hosts if isinstance(num_cpus, int) else num_cpus
        self._num_cpus = dict(enumerate(given, 1))
        self._num_joined = num_hosts if num_joined is None else num_joined
        self._has_redis = has_redis
        self._has_dashboard = has_dashboard
        self._make_hosts = make_hosts
        self._redis: RedisServer | None = None
        self._restarted: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start Ray on every host and PageRay on Ray, and wait for all replicas."""
        self.hosts: Hosts = self._make_hosts(self._num_hosts, int(self._has_redis))
        self._client = httpx2.Client(timeout=STATUS_TIMEOUT_S, trust_env=False)
        try:
            self._environment = {
                **os.environ,
                **HEALTH_SETTINGS,
                "PYTHONPATH": str(ROOT),
                "TMPDIR": str(self.hosts.private_folder),
                **haproxy_environment(self.hosts.private_folder, *(free_port() for _ in range(3))),
            }
            if self._has_redis:
                self._redis = RedisServer(self.hosts, self._num_hosts + 1)
                timeout = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_TIMEOUT_S)}
                self._environment.update(timeout)
            self._node_file.write_text(self._pageray("node-env"))
            self.start_ray([HEAD])
            self.start_ray(range(HEAD + 1, self._num_joined + 1))
            self._deploy()
            self.wait_ready(self._num_ready)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything and remove the hosts."""
        self._client.close()
        if self._redis is not None:
            self._redis.stop()
        self.hosts.close()
        for process in self._restarted:  # they have ended with their hosts
            process.wait()

    @property
    def urls(self) -> list[str]:
        """Endpoints, of every host that has one of its own."""
        return list(self.hosts.endpoints.values())

    @property
    def dashboard_url(self) -> str:
        """Of the head's dashboard; it asks for `token`."""
        return f"http://{self.hosts.address(HEAD)}:8265"

    @property
    def token(self) -> str:
        """What the cluster asks everybody for."""
        return self._node_file.read_text().partition("RAY_AUTH_TOKEN=")[2].split()[0]

    def url(self, host: int) -> str:
        """The endpoint on a host."""
        return self.hosts.endpoints[host]

    def processes(self, role: Role | str, host: int | None = None) -> list[psutil.Process]:
        """Processes of this cluster with a role, on one host or all."""
        hosts = self.hosts if host is None else [host]
        return [
            process for each in hosts for process in select(self.hosts.processes(each), Role(role))
        ]

    def kill(self, process: psutil.Process) -> None:
        """SIGKILL, and wait for its end."""
        process.kill()
        process.wait(10)

    def stop_process(self, process: psutil.Process) -> None:
        """SIGSTOP: it lives and does nothing."""
        process.send_signal(signal.SIGSTOP)

    def continue_process(self, process: psutil.Process) -> None:
        """SIGCONT."""
        process.send_signal(signal.SIGCONT)

    def cut(self, host: int) -> None:
        """Take a host off the net."""
        self.hosts.cut(host)

    def heal(self, host: int) -> None:
        """Put it back. If it was taken for dead, its raylet ends itself then: see `rejoin`."""
        self.hosts.heal(host)

    def rejoin(self, host: int) -> None:
        """Start Ray on a host that was not there yet, or anew where the raylet has died or will
        because the head gave it up."""
        self.hosts.end_processes(host)
        self.start_ray([host])

    def kill_gcs(self) -> Callable[[], None]:
        """SIGKILL the head's GCS, which Ray starts no second time; return what starts it again, by
        the old command line and environment, and waits until it listens."""
        [gcs] = self.processes(Role.GCS)
        command, environment = gcs.cmdline(), gcs.environ()
        self.kill(gcs)

        def start() -> None:
            quiet = subprocess.DEVNULL
            process = self.hosts.start(HEAD, command, environment, stdout=quiet, stderr=quiet)
            self._restarted.append(process)
            found = psutil.Process(process.pid)
            port = self.hosts.ray_port
            wait_until(lambda: port in listening_ports(found), COMMAND_TIMEOUT_S, "the GCS")

        return start

    def drain(self, host: int) -> None:
        """Empty a host as a pod on Kubernetes is, and wait for it: what Serve has there starts
        elsewhere first."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {"PATH": path, "RAY_ADDRESS": self._ray_address}
        command = ["sh", "-c", '. "$0" && exec "$@"', str(self._node_file), str(ROOT / "k8s/drain")]
        self.hosts.run(host, command, {**self._environment, **settings}, COMMAND_TIMEOUT_S)

    def start_ray(self, hosts: Iterable[int]) -> None:
        """Start Ray on hosts, the head or workers, all at once."""
        starting: list[tuple[int, subprocess.Popen[str]]] = []
        for host in hosts:
            # A file, no pipe: what `ray start` leaves running would hold it open.
            with self._ray_log(host).open("w") as log:
                process = self.hosts.start(
                    host,
                    self._ray_command(host),
                    self._ray_environment(host),
                    stdout=log,
                    stderr=log,
                )
            starting.append((host, process))
        for host, process in starting:
            assert process.wait(COMMAND_TIMEOUT_S) == 0, self._ray_log(host).read_text()

    def wait_ready(self, num_replicas: int, hosts: Iterable[int] | None = None) -> float:
        """Wait until every frontend has so many replicas and the endpoints of these hosts answer;
        return the seconds it took. Unless given, those are the hosts with a frontend or a replica:
        Serve opens no endpoint on others."""
        given = None if hosts is None else list(hosts)

        def is_ready() -> bool:
            seen = self.status()
            return (
                len(seen) == self._num_frontends
                and all(_num_connected(status) == num_replicas for status in seen)
                and all(map(self._is_open, given or self.serving_hosts()))
            )

        try:
            return wait_until(is_ready, READY_TIMEOUT_S, f"{num_replicas} replicas")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.controller_log()[-4000:]}") from error

    def serving_hosts(self) -> list[int]:
        """Hosts with an endpoint, and a frontend or a replica."""
        return [
            host
            for host in self.hosts.endpoints
            if self.processes(Role.FRONTEND, host) or self.processes(Role.REPLICA, host)
        ]

    def status(self) -> list[dict[str, Any]]:
        """What /status of every frontend says that can be reached."""
        found = []
        for url in self.frontend_urls():
            with suppress(httpx2.TransportError):
                response = self._client.get(f"{url}/status")
                if response.is_success:
                    found.append(response.json())
        return found

    def frontend_urls(self) -> list[str]:
        """Each frontend's own address, past HAProxy."""
        return [
            f"http://{self.hosts.address(host)}:{port}"
            for host in self.hosts
            for frontend in self.processes(Role.FRONTEND, host)
            for port in listening_ports(frontend)
            if port in INGRESS_PORTS
        ]

    def replicas(self) -> list[dict[str, Any]]:
        """What each frontend says of each replica that it is connected to."""
        return [replica for status in self.status() for replica in _connected(status)]

    def num_used_blocks(self) -> int:
        """Blocks held by requests, added up over replicas and frontends: 0 when all are free."""
        return sum(
            replica["num_blocks"] - replica["num_free_blocks"] - replica["num_evictable_blocks"]
            for replica in self.replicas()
        )

    def num_requests(self) -> int:
        """Sequences that run or wait, added up over replicas and frontends."""
        return sum(replica["num_running"] + replica["num_waiting"] for replica in self.replicas())

    def num_placed_requests(self) -> int:
        """Entries in the ledgers of all frontends."""
        return self._sum_of_admission("num_placed_requests")

    def num_held_requests(self) -> int:
        """Requests that wait in frontends for a replica."""
        return self._sum_of_admission("num_held_requests")

    def is_idle(self) -> bool:
        """Whether every frontend answers, and no block, request or ledger entry is left."""
        waiting = self.num_held_requests, self.num_placed_requests
        counts = (*waiting, self.num_requests, self.num_used_blocks)
        return len(self.status()) == self._num_frontends and not any(count() for count in counts)

    def controller_log(self) -> str:
        """What Serve's controllers have logged, and the building of the application."""
        logs = [
            path
            for host in self.hosts
            for path in self.hosts.folder_of(host).glob("ray/session_2*/logs/serve/controller_*")
        ]
        return "\n".join(path.read_text() for path in logs)

    def run(self, host: int, *command: str) -> str:
        """Run a program of this Python's on a host, as on a node; return its output."""
        return self.hosts.run(host, self._on_node(*command), self._environment, COMMAND_TIMEOUT_S)

    def _pageray(self, *command: str) -> str:
        """What a command prints, wherever it runs."""
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli", *command],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    def _on_node(self, program: str, *arguments: str) -> list[str]:
        """A command, with the environment that `pageray node-env` prints."""
        path = str(Path(sys.executable).with_name(program))
        return ["sh", "-c", '. "$0" && exec "$@"', str(self._node_file), path, *arguments]

    @property
    def _node_file(self) -> Path:
        return self.hosts.folder / "node.env"  # seen by all hosts

    def _sum_of_admission(self, field: str) -> int:
        return sum(
            model["admission"][field] for status in self.status() for model in status["models"]
        )

    def _ray_command(self, host: int) -> list[str]:
        command = [f"--node-ip-address={self.hosts.address(host)}"]
        command += [f"--num-cpus={self._num_cpus[host]}", "--labels", f"host=host-{host}"]
        command += ["--include-log-monitor=false"]  # it forwards logs to drivers; there is none
        command += self.hosts.ray_options(host)
        if host == HEAD:
            command += ["--head", f"--port={self.hosts.ray_port}", "--dashboard-host=0.0.0.0"]
            command += [f"--include-dashboard={str(self._has_dashboard).lower()}"]
        else:
            command += [f"--address={self._ray_address}"]
        return self._on_node("ray", "start", *command)

    def _ray_environment(self, host: int) -> dict[str, str]:
        if host != HEAD or self._redis is None:
            return self._environment
        redis = {"RAY_REDIS_ADDRESS": self._redis.address}
        return {**self._environment, **redis, "RAY_external_storage_namespace": NAMESPACE}

    def _deploy(self) -> None:
        file = self.hosts.folder / "app.yaml"
        listening = ("--host", self.hosts.listen_address, "--port", str(self.hosts.http_port))
        config = self._pageray("config", *self._options, *listening)
        config = config.replace("{machine}", self.hosts.address(0))
        if len(self.hosts.endpoints) == 1:
            config = config.replace("proxy_location: EveryNode", "proxy_location: HeadOnly")
        file.write_text(config)
        deploy = ["run", "--non-blocking", "--address", self._ray_address]
        if self._has_dashboard:
            deploy = ["deploy", "--address", self.dashboard_url]
        self.run(HEAD, "serve", *deploy, str(file))

    @property
    def _ray_address(self) -> str:
        return f"{self.hosts.address(HEAD)}:{self.hosts.ray_port}"

    def _ray_log(self, host: int) -> Path:
        return self.hosts.folder_of(host) / "ray-start.log"

    def _is_open(self, host: int) -> bool:
        try:
            return self._client.get(f"{self.url(host)}/ready").is_success
        except httpx2.TransportError:
            return False


def _connected(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        replica
        for model in status["models"]
        for replica in model["replicas"]
        if replica["connected"]
    ]


def _num_connected(status: dict[str, Any]) -> int:
    return len(_connected(status))
