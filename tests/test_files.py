"""Files: the old one or the new one, with an error of ours."""

import stat

import pytest

from torch_initpolicy.errors import InitPolicyError
from torch_initpolicy.files import replacing, write_text


def test_write(tmp_path):
    """A new file holds the text and nothing is left beside it; an old one keeps its permissions."""
    path = tmp_path / "policy.json"
    write_text(path, "one")
    path.chmod(0o640)
    write_text(path, "two")

    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError("full"), KeyboardInterrupt(), ValueError("no")], ids=repr
)
def test_failure(tmp_path, error):
    """Where writing fails the old file is as it was, and so is a file of the user's beside it."""
    path, other = tmp_path / "policy.json", tmp_path / "policy.json.part"
    path.write_text("old")
    other.write_text("mine")

    def write():
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            raise error

    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InitPolicyError
    with pytest.raises(kind):
        write()

    assert (path.read_text(), other.read_text()) == ("old", "mine")
    assert sorted(tmp_path.iterdir()) == [path, other]


@pytest.mark.parametrize("name", ["missing/policy.json", "a\0b", "x" * 300, ""])
def test_places_that_are_none(tmp_path, name):
    """A path that cannot be written is an error of ours."""
    with pytest.raises(InitPolicyError, match="cannot be written"):
        write_text(tmp_path / name if name else tmp_path, "text")


def test_links(tmp_path):
    """A link stays one; what it leads to is replaced."""
    path, link = tmp_path / "real.json", tmp_path / "link.json"
    path.write_text("old")
    link.symlink_to(path)
    write_text(link, "new")

    assert link.is_symlink()
    assert path.read_text() == "new"
