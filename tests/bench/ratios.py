"""Ratios of two ways to do the same, measured in turns so that a noisy machine disturbs both."""

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest


class Row(NamedTuple):
    """One line of the table."""

    what: str
    found: str
    reach: str
    how: str


ROWS: list[Row] = []
"""What the benchmarks of this run have measured."""


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ratio(
    what: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    reach: float,
    rounds: int = 7,
) -> float:
    """Median time of one action over that of another, which take turns; noted in the table."""
    for action in (theirs, ours):
        action()
    gc.collect()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    how = f"{mine * 1e3:.1f} ms over {other * 1e3:.1f} ms, median of {rounds}"
    ROWS.append(Row(what, f"{mine / other:.2f}", f"<= {reach:g}", how))
    return mine / other


def peak(what: str, action: Callable[[], object], reach: float) -> float:
    """Resident memory that an action takes for a while, in MiB; noted in the table."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("needs Linux to ask for the peak of resident memory")
    action()
    gc.collect()
    clear.write_text("5")
    before = _peak()
    action()
    found = (_peak() - before) / 1024
    ROWS.append(Row(what, f"{found:.1f} MiB", f"<= {reach:g}", "resident memory"))
    return found


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def table() -> str:
    """Everything that was measured, in columns."""
    rows = [Row("what", "found", "reach", "how"), *ROWS]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
