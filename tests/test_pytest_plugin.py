"""The fixtures hand out the assertions of `testing`."""

import pytest

from torch_initpolicy import testing

pytest_plugins = ["torch_initpolicy.pytest_plugin"]


@pytest.mark.parametrize("name", ["assert_initialized", "assert_no_symmetry", "assert_untouched"])
def test_fixtures(name, request):
    """A suite that opts in gets each assertion by its name."""
    assert request.getfixturevalue(name) is getattr(testing, name)
