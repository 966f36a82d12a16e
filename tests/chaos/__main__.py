"""A seeded run of faults against a live cluster.

    make chaos SEED=7 MINUTES=10
    python -m tests.chaos --seed 7 --minutes 10 [--clients 12] [--loopback | --local]

Prints the seed, a line for each fault and, last, the tally. Exits with 1 if a client of a living
frontend did not get its one whole right answer, or if something is left in the books.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from deployments.cli import default_cache_dir
from engine.model_store import DEFAULT_MODEL, resolve_model
from tests.chaos.hosts_cluster import HostsCluster
from tests.chaos.local_cluster import LocalCluster
from tests.chaos.loopback_hosts import LoopbackHosts
from tests.chaos.model import make_model
from tests.chaos.namespace_hosts import NamespaceHosts, can_make_hosts
from tests.chaos.run import ChaosRun, Plan
from tests.chaos.schedule import FaultKind

_KINDS = {kind.value.replace(" ", "-"): kind for kind in FaultKind}


def main() -> int:
    """Run; return the exit code."""
    options = _parse()
    for number in (signal.SIGINT, signal.SIGTERM):  # whatever ends it, it leaves nothing behind
        signal.signal(number, signal.default_int_handler)
    _report(f"seed {options.seed}")
    tokenizer_folder = resolve_model(
        DEFAULT_MODEL,
        cache_dir=default_cache_dir(os.environ),
        report=lambda *_: None,
    )
    plan = Plan(
        seed=options.seed,
        duration_s=60 * options.minutes,
        num_clients=options.clients,
        num_distinct=options.distinct,
        rate=options.rate,
        kinds=[_KINDS[name] for name in options.kinds] if options.kinds else None,
    )
    with tempfile.TemporaryDirectory(prefix="pr-", dir="/tmp") as folder:
        model = make_model(Path(folder) / "tiny", tokenizer_folder)
        log = options.log or Path(folder) / "log"
        with _cluster(options, model, log) as cluster:
            tally = asyncio.run(ChaosRun(cluster, plan, _report).run())
    _report(tally.line())
    return 0 if tally.is_clean else 1


def _cluster(options: argparse.Namespace, model: Path, log: Path) -> LocalCluster | HostsCluster:
    if options.local:
        return LocalCluster(
            model,
            log,
            num_replicas=options.replicas,
            num_frontends=options.frontends,
            tensor_parallel_size=options.ranks,
        )
    make_hosts = NamespaceHosts if can_make_hosts() and not options.loopback else LoopbackHosts
    return HostsCluster(model, num_hosts=options.hosts, make_hosts=make_hosts)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--clients", "--streams", type=int, default=12)
    parser.add_argument("--rate", type=float, help="requests a second, in place of clients")
    parser.add_argument("--distinct", type=int, default=48, help="requests in the mix")
    parser.add_argument("--hosts", type=int, default=2, help="each with a replica and a frontend")
    parser.add_argument(
        "--loopback", action="store_true", help="hosts without root, of which none can be cut off"
    )
    parser.add_argument("--local", action="store_true", help="`pageray serve` in place of hosts")
    parser.add_argument("--replicas", type=int, default=2, help="with --local")
    parser.add_argument("--frontends", type=int, default=2, help="with --local")
    parser.add_argument("--ranks", type=int, default=1, help="of a replica, with --local")
    parser.add_argument("--kinds", nargs="+", choices=sorted(_KINDS), help="of faults; all of them")
    parser.add_argument("--log", type=Path, help="where the log of a --local service goes")
    return parser.parse_args()


def _report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
