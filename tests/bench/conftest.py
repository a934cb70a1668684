"""Benchmarks run when they are asked for (`pytest tests/bench -m bench`) and print one table."""

import pytest

from tests.bench import ratios


def pytest_collection_modifyitems(config, items):
    """Leave the benchmarks out of the suite."""
    if "bench" in config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="a benchmark: pytest tests/bench -m bench")
    for item in items:
        if item.get_closest_marker("bench"):
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter):
    """Print what was measured."""
    if ratios.ROWS:
        terminalreporter.section("ratios, each measured in one run")
        terminalreporter.write_line(ratios.table())
