"""`pageray serve` with paced engines: python -m tests.benchmarks.paced.serve PORT"""

import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

from rich.console import Console

from deployments import cli
from deployments.args import AppArgs, ModelArgs
from deployments.launch_options import LaunchOptions

ROOT = Path(__file__).parents[3]


def main(port: int) -> None:
    """Serve until SIGINT."""
    model = ModelArgs(model="smollm2", device="cpu")
    args = AppArgs(models=(model,), cache_dir=cli.default_cache_dir(os.environ))
    start = LaunchOptions(host="127.0.0.1", port=port)
    os.environ["PYTHONPATH"] = str(ROOT)  # for the processes that Ray starts
    with tempfile.TemporaryDirectory(prefix="pageray-", dir="/tmp") as folder:
        os.environ.update(cli._ray_environment(args, start, Path(folder)))
        # Ray reads its environment when it is imported, so these come only now.
        import deployments.app
        from deployments.launch import serve_until_interrupted
        from tests.benchmarks.paced.worker import PacedReplicaDeployment

        with mock.patch.object(deployments.app, "ReplicaDeployment", PacedReplicaDeployment):
            serve_until_interrupted(args, start, Console())


if __name__ == "__main__":
    main(int(sys.argv[1]))
