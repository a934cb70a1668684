"""What many small objects cost Python's garbage collector, and how not to pay for it.

Changes when memory is looked through and never what is in it.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Let Python look for garbage later, in all threads: what is made here lives until it is used.

    A graph and a plan have so many small parts that they set off collections of everything there
    is, which with the objects of torch and of libraries of models take a tenth of a second each.

    Examples:
        >>> with collection_paused():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
