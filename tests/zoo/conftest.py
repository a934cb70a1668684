"""Reads each model of the zoo once, for all tests of it."""

import pytest

from tests.zoo.catalogue import selected
from tests.zoo.reading import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a `subject` on every model that `--zoo` selects."""
    if "subject" in metafunc.fixturenames:
        models = selected(metafunc.config.getoption("zoo"))
        metafunc.parametrize("subject", models, indirect=True, scope="module")


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    """Build a model and read its data flow."""
    return Subject.of(request.param)
