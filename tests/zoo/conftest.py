"""Reads each model of the zoo once, for all tests of it."""

import pytest

from tests.zoo.catalogue import constructed, representatives, selected
from tests.zoo.reading import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that ask for a `subject` or a `representative` on what `--zoo` selects."""
    option = metafunc.config.getoption("zoo")
    if "subject" in metafunc.fixturenames:
        metafunc.parametrize("subject", selected(option), indirect=True, scope="module")
    if "representative" in metafunc.fixturenames:
        metafunc.parametrize("representative", representatives(option))
    if "constructed" in metafunc.fixturenames:
        metafunc.parametrize("constructed", constructed(option))


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    """Build a model and read its data flow."""
    return Subject.of(request.param)
