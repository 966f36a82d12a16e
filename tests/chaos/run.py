"""One chaos run: the undisturbed answers, then load and faults together, then the books."""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from tests.chaos.answer import Answer
from tests.chaos.books import Leaks, leaks
from tests.chaos.cluster import Cluster
from tests.chaos.load import Load, undisturbed
from tests.chaos.model import MODEL_NAME
from tests.chaos.requests import mix
from tests.chaos.schedule import Fault, FaultKind, schedule
from tests.chaos.strike import Blow, NoVictim, strike
from tests.chaos.tally import Tally

MEND_TIMEOUT_S = 90.0
"""For a cluster to become whole again."""
IDLE_TIMEOUT_S = 20.0
"""For the books to be empty once the last answer has ended."""
LAST_ANSWER_TIMEOUT_S = 150.0
POLL_S = 0.2
FOLLOW_PERIOD_S = 1.0

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does; a pure function of the seed, but for time."""

    seed: int
    duration_s: float = float("inf")
    """Of load and faults together: no fault begins later."""
    max_faults: int | None = None
    num_distinct: int = 48
    """Requests in the mix."""
    num_clients: int = 12
    rate: float | None = None
    """Requests a second in an open loop in place of the clients."""
    kinds: Collection[FaultKind] | None = None
    """None: all that the cluster knows."""


@dataclass(slots=True)
class ChaosRun:
    """One run on a cluster that is whole."""

    cluster: Cluster
    plan: Plan
    report: Report
    blows: list[Blow] = field(default_factory=list)
    _missing: str = ""
    """What the cluster was last waited for."""

    async def run(self) -> Tally:
        """Do it all; the tally tells what came of it."""
        plan, urls = self.plan, self.cluster.urls
        requests = mix(plan.seed, plan.num_distinct, MODEL_NAME)
        began_s = time.monotonic()
        expected = await undisturbed(urls[0], requests)
        self.report(
            f"{len(requests)} requests, undisturbed: {time.monotonic() - began_s:.1f} s for all"
        )
        load = Load(urls, requests, expected, seed=plan.seed, is_disturbed=self._is_disturbed)
        task = asyncio.create_task(
            load.run_closed(plan.num_clients) if plan.rate is None else load.run_open(plan.rate)
        )
        following = asyncio.create_task(self._follow_frontends(load))
        problem = await self._strike_until_over(load)
        load.finish()
        following.cancel()
        await asyncio.wait_for(task, LAST_ANSWER_TIMEOUT_S)
        tally = Tally(load.outcomes, self.blows)
        for blow in self.blows:
            self.report(tally.blow_line(blow))
        for failure in tally.failures():
            self.report(failure)
        return Tally(load.outcomes, self.blows, await self._leaks(problem))

    async def _strike_until_over(self, load: Load) -> str:
        """Return why it ended early, if it did."""
        kinds = self.plan.kinds or self.cluster.kinds
        ends_s = time.monotonic() + self.plan.duration_s
        for fault in schedule(self.plan.seed, kinds):
            is_last = time.monotonic() > ends_s or len(self.blows) == self.plan.max_faults
            if is_last or not fault.is_hasty:
                try:
                    await self._wait_whole(load)
                except TimeoutError:
                    kind = self.blows[-1].kind.value
                    return f"not whole {MEND_TIMEOUT_S:g} s after {kind}: {self._missing}"
            if is_last:
                return ""
            await asyncio.sleep(fault.pause_s)
            await self._strike(fault, load)
        raise AssertionError("schedules have no end")

    async def _strike(self, fault: Fault, load: Load) -> None:
        num_open = load.num_open
        # Seen while it lasts: an answer may end before the fault does.
        ongoing = Blow(fault, "under way", time.monotonic())
        self.blows.append(ongoing)
        try:
            blow = await asyncio.to_thread(strike, fault, self.cluster)
        except NoVictim as error:
            self.blows.remove(ongoing)
            self.report(f"{fault.kind.value}: {error}")
            return
        self.blows[-1] = blow
        self.report(
            f"fault {len(self.blows)}: {blow.kind.value} ({blow.victim}), {num_open} requests "
            f"open, {len(load.outcomes)} answers so far"
        )

    async def _wait_whole(self, load: Load) -> None:
        felt = [blow for blow in self.blows if blow.mended_s is None]
        if not felt:
            return
        async with asyncio.timeout(MEND_TIMEOUT_S):
            while found := await asyncio.to_thread(self.cluster.missing):
                self._missing = found
                await asyncio.sleep(POLL_S)
        for blow in felt:
            blow.mended_s = time.monotonic()
        took_s = time.monotonic() - felt[-1].struck_s
        self.report(f"  whole {took_s:.1f} s later; last: {self._missing or 'nothing missing'}")
        self._missing = ""

    async def _follow_frontends(self, load: Load) -> None:
        """Tell the load where frontends are: those that Serve starts anew are elsewhere."""
        while True:
            load.frontend_urls = await asyncio.to_thread(self.cluster.frontend_urls)
            await asyncio.sleep(FOLLOW_PERIOD_S)

    def _is_disturbed(self, answer: Answer) -> bool:
        return any(answer.started_s < blow.struck_s < answer.ended_s for blow in self.blows)

    async def _leaks(self, problem: str) -> Leaks:
        """What is left, after some time for the last to go."""
        ends_s = time.monotonic() + IDLE_TIMEOUT_S
        while True:
            statuses = await asyncio.to_thread(self.cluster.statuses)
            found = leaks(statuses, num_frontends=self.cluster.num_frontends, problem=problem)
            if not found or time.monotonic() > ends_s:
                return found
            await asyncio.sleep(POLL_S)
