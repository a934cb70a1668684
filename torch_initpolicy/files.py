"""Files that are written beside and renamed: there is the old one or the new one, never half."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch_initpolicy.errors import InitPolicyError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a new file in the folder of `path`, which takes its place when the block ends.

    Where the block raises, or the disk is full, the new file is gone and an old one is as it was.
    Links are followed; what is no regular file, such as a pipe, is written to as it is.
    """
    try:
        target = Path(path).resolve()
        if target.exists() and not target.is_file():
            yield target
            return
        descriptor, name = tempfile.mkstemp(prefix=".part-", dir=target.parent)
        os.close(descriptor)
        unfinished = Path(name)
        try:
            yield unfinished
            unfinished.chmod(_mode(target))
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise InitPolicyError(f"{path} cannot be written: {error}; nothing was changed") from error


def _mode(target: Path) -> int:
    """Return the permissions of a file, or those of a new one."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_text(path: str | Path, text: str) -> None:
    """Write a text to a file, in place of an old one; see `replacing`."""
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
