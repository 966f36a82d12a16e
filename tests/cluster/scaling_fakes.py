"""A deployment that the autoscaler's tests play: it tells, asks the policy and obeys."""

import pickle
from dataclasses import replace

from cluster.autoscaling.decision import Reason, ScalingDecision
from cluster.autoscaling.demand import ReplicaDemand, ScalingInput
from cluster.autoscaling.history import ScalingState
from cluster.autoscaling.policy import ScalingSettings, decide

SETTINGS = ScalingSettings(cold_start_s=10.0)
WINDOW_S = SETTINGS.low_window_s


def demand(used: float = 0, **numbers: float) -> ReplicaDemand:
    plain = ReplicaDemand(
        block_size=16, num_blocks=100, num_used_blocks=used, num_running=1 if used else 0
    )
    return replace(plain, **numbers)


class Deployment:
    """Asks the policy as Serve would and obeys it; what is ordered serves at once."""

    def __init__(
        self,
        num_replicas: int = 1,
        bounds: tuple[int, int] = (1, 10),
        settings: ScalingSettings = SETTINGS,
    ) -> None:
        self.num_target = num_replicas
        self.num_serving = num_replicas
        self.bounds = bounds
        self.settings = settings
        self.now_s = 1000.0
        self.state: ScalingState | None = None
        self.decisions: list[ScalingDecision] = []

    def decide(self, *demands: ReplicaDemand, after_s: float = 2.0, queued: float = 0) -> int:
        """Evaluate once, so many seconds later; return the number of replicas."""
        self.now_s += after_s
        given = ScalingInput(
            now_s=self.now_s,
            replicas={str(i): one for i, one in enumerate(demands)},
            num_serving=self.num_serving,
            num_target=self.num_target,
            min_replicas=self.bounds[0],
            max_replicas=self.bounds[1],
            num_queued_requests=queued,
        )
        decision, self.state = decide(given, self.settings, self.state)
        self.state = pickle.loads(pickle.dumps(self.state))  # noqa: S301  as Serve may keep it
        self.decisions.append(decision)
        self.num_target = self.num_serving = decision.num_target
        return self.num_target

    def alike(self, one: ReplicaDemand, *, seconds: float, after_s: float = 2.0) -> int:
        """Let every replica tell the same for so long."""
        for _ in range(int(seconds / after_s)):
            self.decide(*[one] * self.num_serving, after_s=after_s)
        return self.num_target

    def reason(self) -> Reason:
        """Why there are as many as there are."""
        return self.decisions[-1].reason
