"""Selection: which sites the caller lets a policy write.

Knows sites and globs of their names.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch_initpolicy.errors import PolicyError, nearest
from torch_initpolicy.policy.matchers import Name
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.facts import Facts

Globs = Sequence[str] | str | None
"""One glob of canonical names, or several."""


Keeping: TypeAlias = Literal["meant", "nothing"]
"""What a policy leaves as the author of a model meant it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A frozen record of which sites may be written, whatever a policy says.

    Attributes:
        only: Globs of the sites that may be written; None for all.
        skip: Globs of the sites that may not.
        frozen: Whether sites that require no gradient may be written.
        keep: Whether what the author of a model meant may be overwritten by presets.
        strict: Whether a rule that decides about no site is an error.

    Examples:
        >>> Selection.of(only="head.*")
        Selection(only=('head.*',), skip=(), frozen=False, keep='meant', strict=True)
    """

    only: tuple[str, ...] | None = None
    skip: tuple[str, ...] = ()
    frozen: bool = False
    keep: Keeping = "meant"
    strict: bool = True

    @classmethod
    def of(
        cls,
        only: Globs = None,
        skip: Globs = None,
        *,
        frozen: bool = False,
        keep: Keeping = "meant",
        strict: bool = True,
    ) -> "Selection":
        """Take the arguments as all verbs do.

        Raises:
            PolicyError: A glob is malformed, or an argument of a wrong kind.
        """
        for name, given in ("frozen", frozen), ("strict", strict):
            if not isinstance(given, bool):
                raise PolicyError(f"{name} is True or False, got {given!r}")
        if not (isinstance(keep, str) and keep in get_args(Keeping)):
            raise PolicyError(f"keep is one of {get_args(Keeping)}, got {keep!r}")
        chosen = None if only is None else _globs("only", only)
        return cls(chosen, _globs("skip", skip), frozen, keep, strict)

    def kept(self, site: Site) -> tuple[str, str] | None:
        """Say why a site is left alone: the argument and a sentence; None if it is not."""
        skipped = next((glob for glob in self.skip if _fits(glob, site)), None)
        if skipped is not None:
            return "skip", f"kept: skip={skipped!r}"
        if self.only is not None and not any(_fits(glob, site) for glob in self.only):
            return "only", "kept: not among only=..."
        if not (site.requires_grad or self.frozen):
            return "frozen", "kept: frozen (requires_grad=False)"
        return None

    def idle(self, found: Sequence[Site]) -> Iterator[str]:
        """Yield the globs that match no site."""
        for argument, globs in ("only", self.only or ()), ("skip", self.skip):
            for glob in globs:
                if not any(_fits(glob, site) for site in found):
                    yield f"{argument}={glob!r} matches nothing{nearest(glob, patterns(found))}"


def _globs(argument: str, globs: Globs) -> tuple[str, ...]:
    if isinstance(globs, str):
        globs = (globs,)
    if not isinstance(globs, Iterable | None):
        raise PolicyError(f"{argument} is a glob of names or several, got {globs!r}")
    try:
        each = () if globs is None else tuple(globs)
    except TypeError as error:  # a tensor of no dimension
        raise PolicyError(f"{argument} is a glob of names or several: {error}") from error
    return Name(each).globs if each else ()


def _fits(glob: str, site: Site) -> bool:
    return Name((glob,)).matches(site, _UNKNOWN)


_UNKNOWN = Facts("unknown")


def patterns(found: Iterable[Site]) -> set[str]:
    """Return what a glob that matches nothing may have been: names, and `module.*` for modules."""
    names = {name for site in found for name in site.names}
    parts = [name.split(".") for name in names]
    return names | {".".join([*part[:end], "*"]) for part in parts for end in range(1, len(part))}
