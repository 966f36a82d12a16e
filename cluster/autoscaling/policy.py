"""The rules by which replicas come and go.

Up: when more are wanted than serve or start, twice in a row, or much more once. Down: to the
highest wanted number of the last minutes, one at a time. To zero: when nobody asks any more.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from cluster.autoscaling.decision import Reason, ScalingDecision
from cluster.autoscaling.demand import ScalingInput
from cluster.autoscaling.history import ScalingState
from cluster.autoscaling.load import Load

PANIC: Final = 1.5
"""So many times as many asked for as there are: not to wait for a second look."""
TTFT_GOAL: Final = 0.95
"""Share of the requests whose first token should come in time."""
TTFT_WINDOW_S: Final = 60.0
"""Over which that share is taken: it tells of a new replica's work only so much later."""
TTFT_LEAST_LOAD: Final = 0.5
"""Share of the replicas that must be asked for: the lateness of less is not mended by more."""
LATE_LOAD_SHARE: Final = 0.8
"""What late first tokens brought goes only when less than this share of the load is left at which
they came late: else it would come and go for ever."""
KV_SHARE_AFTER_REMOVAL: Final = 0.6
DEAD_BAND: Final = 0.1
COLD_STARTS_IN_WINDOW: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSettings:
    """Periods of the policy. Those of production; tests may take shorter ones."""

    evaluation_period_s: float = 2.0
    low_window_s: float = 300.0
    """A replica goes only if it was not wanted for so long, or for three cold starts."""
    removal_interval_s: float = 30.0
    """Between two that go."""
    scale_to_zero_delay_s: float = 300.0
    """The last one goes so long after the last request."""
    cold_start_s: float = 60.0
    """Where no replica has told how long its start took."""


def decide(
    given: ScalingInput, settings: ScalingSettings, state: ScalingState | None
) -> tuple[ScalingDecision, ScalingState]:
    """Return how many replicas there should be, and the state for the next call.

    `state` is that of the last call; None: there was none.
    """
    # After a step back of the clock nothing that is remembered has a time.
    if state is None or given.now_s < state.evaluated_s:
        state = ScalingState.new(given.now_s)
    rates = state.rates.advanced(given)
    load = Load.of(given, rates)
    has_grown = given.num_serving > state.num_serving
    is_active = given.has_requests or rates.has_risen
    state = replace(
        state,
        evaluated_s=given.now_s,
        active_s=given.now_s if is_active else state.active_s,
        grown_s=given.now_s if has_grown else state.grown_s,
        num_serving=given.num_serving,
        cold_start_s=given.cold_start_s or state.cold_start_s,
        rates=rates,
        trend=state.trend.added(given.now_s, load.num_replicas),
    )
    return _Evaluation(given, settings, state, load).run()


class _Evaluation:
    """One evaluation: the numbers first, then the rules in their order."""

    def __init__(
        self, given: ScalingInput, settings: ScalingSettings, state: ScalingState, load: Load
    ) -> None:
        self._given = given
        self._settings = settings
        self._load = load
        self._cold_start_s = state.cold_start_s or settings.cold_start_s
        self._window_s = max(settings.low_window_s, COLD_STARTS_IN_WINDOW * self._cold_start_s)
        wanted = max(1, math.ceil(load.num_replicas))
        late_wanted = self._wanted_for_late_tokens(state)
        self._is_late = late_wanted > wanted
        self._wanted = max(wanted, late_wanted)
        self._forecast = state.trend.forecast(given.now_s + self._cold_start_s)
        is_above = self._wanted > given.num_target
        self._state = replace(
            state,
            num_above=state.num_above + 1 if is_above else 0,
            peaks=state.peaks.added(given.now_s, self._wanted, self._window_s),
        )

    def run(self) -> tuple[ScalingDecision, ScalingState]:
        given, state = self._given, self._state
        num_target, reason = self._choose()
        if reason is Reason.REMOVAL:
            state = replace(state, removed_s=given.now_s)
        elif reason is Reason.LATE_TOKENS and num_target > given.num_target:
            state = replace(state, late_target=num_target, late_load=self._load.num_replicas)
        decision = ScalingDecision(
            num_before=given.num_target,
            num_target=num_target,
            reason=reason,
            num_wanted=self._wanted,
            peak=state.peaks.highest,
            forecast=self._forecast,
            load=self._load,
            num_serving=given.num_serving,
            num_starting=given.num_starting,
            num_held_requests=given.num_held_requests,
            prefill_tokens_per_s=state.rates.prefill_per_s,
            decode_tokens_per_s=state.rates.decode_per_s,
            ttft_attainment=given.ttft_attainment,
            cold_start_s=self._cold_start_s,
            idle_s=given.now_s - state.active_s,
        )
        return decision, state

    def _choose(self) -> tuple[int, Reason]:
        given, target = self._given, self._given.num_target
        within = max(given.min_replicas, min(given.max_replicas, target))
        if within != target:
            return within, Reason.BOUNDS
        if target == 0:
            return (1, Reason.WAKE) if given.num_held_requests else (0, Reason.ASLEEP)
        if self._wanted > target:
            return self._more()
        if target == 1 and given.min_replicas == 0:
            return self._last()
        if target <= max(1, given.min_replicas):
            return target, Reason.STEADY
        refusal = self._why_none_may_go()
        return (target - 1, Reason.REMOVAL) if refusal is None else (target, refusal)

    def _wanted_for_late_tokens(self, state: ScalingState) -> int:
        """Replicas wanted because first tokens come late; 0 if they do not."""
        given, num_serving = self._given, self._given.num_serving
        if given.ttft_attainment >= TTFT_GOAL or num_serving == 0:
            return 0
        # The share does not tell yet whether the newest replica was enough.
        if given.now_s - state.grown_s < TTFT_WINDOW_S:
            return 0
        if self._load.num_replicas < TTFT_LEAST_LOAD * num_serving:
            return 0
        return num_serving + math.ceil(max(1.0, 0.1 * num_serving))

    def _more(self) -> tuple[int, Reason]:
        target, most = self._given.num_target, self._given.max_replicas
        if target >= most:
            return target, Reason.AT_MOST
        # Whole replicas would make a panic of every step of a small deployment.
        is_panic = self._load.num_replicas >= PANIC * target
        if self._state.num_above < 2 and not is_panic:
            return target, Reason.UNCONFIRMED
        step = max(2, target // 2)
        reason = Reason.PANIC if is_panic else Reason.DEMAND
        reason = Reason.LATE_TOKENS if self._is_late else reason
        return min(self._wanted, target + step, most), reason

    def _last(self) -> tuple[int, Reason]:
        given, state = self._given, self._state
        if len(given.known) < given.num_serving:
            return 1, Reason.UNREPORTED
        # One that was woken and has just begun to serve is given the same time.
        idle_s = given.now_s - max(state.active_s, state.grown_s)
        if given.num_starting or idle_s < self._settings.scale_to_zero_delay_s:
            return 1, Reason.STEADY
        return (1, Reason.RECENT_REMOVAL) if self._has_just_removed() else (0, Reason.IDLE)

    def _why_none_may_go(self) -> Reason | None:
        """The first rule that keeps all replicas; None if one is to go."""
        given, state = self._given, self._state
        target, peak = given.num_target, state.peaks.highest
        rules = {
            Reason.STEADY: self._wanted >= target,
            Reason.RECENT_PEAK: peak >= target,
            # What is missing in the reports may be busy.
            Reason.UNREPORTED: len(given.known) < given.num_serving,
            Reason.YOUNG: given.now_s - state.began_s < self._window_s,
            Reason.DEAD_BAND: peak > (1 - DEAD_BAND) * target,
            Reason.RECENT_REMOVAL: self._has_just_removed(),
            Reason.KV: self._load.kv_share(target - 1) > KV_SHARE_AFTER_REMOVAL,
            Reason.LATE_TOKENS: target <= state.late_target
            and state.trend.highest > LATE_LOAD_SHARE * state.late_load,
            Reason.FORECAST: math.ceil(self._forecast) > target - 1,
        }
        return next((reason for reason, holds in rules.items() if holds), None)

    def _has_just_removed(self) -> bool:
        removed_s = self._state.removed_s
        if removed_s is None:
            return False
        return self._given.now_s - removed_s < self._settings.removal_interval_s
