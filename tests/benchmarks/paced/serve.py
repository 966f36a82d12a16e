"""`pageray serve` with paced engines: python -m tests.benchmarks.paced.serve PORT PACE [...]"""

import argparse
import os
import tempfile
from pathlib import Path
from unittest import mock

from rich.console import Console

from cluster.policy_name import DEFAULT_POLICY
from deployments import cli
from deployments.args import AppArgs
from deployments.cli_ray_environment import ray_environment
from deployments.launch_options import LaunchOptions

ROOT = Path(__file__).parents[3]


def main() -> None:
    """Serve until SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("pace", help="of MODELS in engine.py; the model is served under this name")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--policy", default=DEFAULT_POLICY)
    parser.add_argument("--api-key", action="append", default=[])
    options = parser.parse_args()
    args = AppArgs.model_validate(
        {
            "model": "smollm2",
            "served_model_name": options.pace,
            "device": "cpu",
            "cache_dir": cli.default_cache_dir(os.environ),
            "replicas_min": options.replicas,
            "replicas_max": options.replicas,
            "router_policy": options.policy,
            "api_keys": options.api_key,
        }
    )
    start = LaunchOptions(host="127.0.0.1", port=options.port)
    os.environ["PYTHONPATH"] = str(ROOT)  # for the processes that Ray starts
    with tempfile.TemporaryDirectory(prefix="pageray-", dir="/tmp") as folder:
        os.environ.update(ray_environment(start, Path(folder)))
        # Ray reads its environment when it is imported, so these come only now.
        import deployments.app
        from deployments.launch import serve_until_interrupted
        from tests.benchmarks.paced.worker import PacedReplicaDeployment

        with mock.patch.object(deployments.app, "ReplicaDeployment", PacedReplicaDeployment):
            serve_until_interrupted(args, start, Console())


if __name__ == "__main__":
    main()
