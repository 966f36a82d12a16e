"""The figures of one measurement, and their medians."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from tests.benchmarks.load import Timing


@dataclass(frozen=True, slots=True)
class Figures:
    """What one system did on one workload. Latencies are None where nobody watched the tokens."""

    tokens_per_s: float
    """Output tokens."""
    start_s: float
    """From the command to the first answer of a server, or to a model that can compute."""
    peak_bytes: float
    """Of all its processes; pages they share count once."""
    cpu_s_per_token: float
    client_cpu_s_per_token: float | None = None
    """Of the load generator, which shares the cores."""
    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p99_s: float | None = None
    itl_p99_s: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a load cost on either side."""

    start_s: float
    peak_bytes: int
    server_cpu_s: float
    client_cpu_s: float


def of_load(timings: Sequence[Timing], wall_s: float, usage: Usage) -> Figures:
    """Figures of one load over HTTP."""
    num_tokens = sum(timing.num_tokens for timing in timings)
    ttfts = [timing.ttft_s for timing in timings]
    tpots = [timing.tpot_s for timing in timings]
    return Figures(
        tokens_per_s=num_tokens / wall_s,
        start_s=usage.start_s,
        peak_bytes=usage.peak_bytes,
        cpu_s_per_token=usage.server_cpu_s / num_tokens,
        client_cpu_s_per_token=usage.client_cpu_s / num_tokens,
        ttft_p50_s=quantile(ttfts, 0.5),
        ttft_p99_s=quantile(ttfts, 0.99),
        tpot_p50_s=quantile(tpots, 0.5),
        tpot_p99_s=quantile(tpots, 0.99),
        itl_p99_s=quantile([gap for timing in timings for gap in timing.gaps_s], 0.99),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def median(runs: Sequence[Figures]) -> Figures:
    """Each figure's median over repetitions."""
    columns = {}
    for name in (field.name for field in fields(Figures)):
        values = [value for run in runs if (value := asdict(run)[name]) is not None]
        columns[name] = statistics.median(values) if values else None
    return Figures(**columns)  # type: ignore[arg-type]  # none is None that may not be
