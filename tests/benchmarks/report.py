"""Everything that one comparison found, as JSON."""

import datetime
import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.benchmarks import cpu
from tests.benchmarks.figures import Figures, median
from tests.benchmarks.floor import Floor
from tests.benchmarks.systems.system import Mode
from tests.benchmarks.workload import WORKLOADS

OURS = "pageray"


@dataclass(frozen=True, slots=True)
class Entry:
    """One system in one dtype."""

    name: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}"


@dataclass(slots=True)
class Cell:
    """What one system did on one workload, repetition by repetition."""

    mode: Mode
    workload: str
    entry: Entry
    runs: list[Figures] = field(default_factory=list)
    skipped: str = ""
    """Why there are no figures, or no more."""

    @property
    def median(self) -> Figures | None:
        """None without a run."""
        return median(self.runs) if self.runs else None


@dataclass(slots=True)
class Report:
    """All cells, in the order of the table."""

    repeats: int
    versions: dict[str, str] = field(default_factory=dict)
    floors: list[Floor] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    """Output tokens/s of each workload that the floor allows."""
    cells: list[Cell] = field(default_factory=list)

    def cell(self, mode: Mode, workload: str, entry: Entry) -> Cell:
        """Return the cell, made at first use."""
        for cell in self.cells:
            if (cell.mode, cell.workload, cell.entry) == (mode, workload, entry):
                return cell
        self.cells.append(Cell(mode, workload, entry))
        return self.cells[-1]

    @property
    def floor(self) -> Floor:
        """The best that was seen, since whatever disturbs only slows."""
        return Floor(
            max(floor.gflop_per_s for floor in self.floors),
            max(floor.gb_per_s for floor in self.floors),
        )

    def ratio(self, cell: Cell) -> float | None:
        """PageRay's tokens/s over this cell's."""
        ours = self._ours(cell)
        return ours.tokens_per_s / cell.median.tokens_per_s if ours and cell.median else None

    def of_limit(self, cell: Cell) -> float | None:
        """Share of what the floor allows."""
        return cell.median.tokens_per_s / self.limits[cell.workload] if cell.median else None

    def _ours(self, cell: Cell) -> Figures | None:
        for other in self.cells:
            same = (other.mode, other.workload) == (cell.mode, cell.workload)
            if same and other.entry.name == OURS:
                return other.median
        return None

    def write(self, path: Path) -> None:
        """Write it."""
        document = {
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "processor": cpu.describe(),
            "repeats": self.repeats,
            "versions": self.versions,
            "floor": asdict(self.floor),
            "floors": [asdict(floor) for floor in self.floors],
            "limit_tokens_per_s": self.limits,
            "workloads": {name: asdict(WORKLOADS[name]) for name in self.limits},
            "cells": [self._of(cell) for cell in self.cells],
        }
        path.write_text(json.dumps(document, indent=1) + "\n")

    def _of(self, cell: Cell) -> dict[str, object]:
        return {
            "mode": cell.mode,
            "workload": cell.workload,
            "system": cell.entry.name,
            "dtype": cell.entry.dtype,
            "skipped": cell.skipped,
            "pageray_over_this": self.ratio(cell),
            "share_of_limit": self.of_limit(cell),
            "median": asdict(cell.median) if cell.median else None,
            "runs": [asdict(run) for run in cell.runs],
        }


def ordered(cells: Iterable[Cell]) -> list[Cell]:
    """By mode and workload, systems in the order in which they ran."""
    return sorted(cells, key=lambda cell: (cell.mode, list(WORKLOADS).index(cell.workload)))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
