"""The ranks other than 0: run whatever step rank 0 sends, until it sends no more."""

from engine.build import build_runner
from engine.config import EngineConfig
from engine.model_runner import ModelRunner
from engine.parallel import TensorParallel
from engine.step_channel import StepChannel


def run_follower(config: EngineConfig, group: TensorParallel) -> None:
    """Load this rank's share and follow rank 0; returns when rank 0 says stop.

    A dead rank 0 or a failed step raises: a group lives and dies as one.
    """
    runner, _ = build_runner(config, group)
    follow(runner, group)


def follow(runner: ModelRunner, group: TensorParallel) -> None:
    """Do so with a runner that is there."""
    channel = StepChannel(group)
    while (step := channel.receive()) is not None:
        runner.forward(step)
        if runner.leaves_tokens:
            runner.keep_tokens(None)
    runner.drop_graphs()
    group.close()
