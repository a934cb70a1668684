"""Selection: which sites the caller lets a policy write.

Knows sites and globs of their names.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import torch

from torch_initpolicy.errors import PolicyError, nearest
from torch_initpolicy.policy.matchers import Name
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.facts import Facts

if TYPE_CHECKING:
    from typing_extensions import Unpack

Globs: TypeAlias = Sequence[str] | str | None
"""One glob of canonical names, or several."""

Keeping: TypeAlias = Literal["meant", "nothing"]
"""What a policy leaves as the author of a model meant it."""


class Selecting(TypedDict, total=False):
    """The keyword arguments, shared by all verbs, that say which parameters a policy may write.

    Attributes:
        only: Globs of canonical names; other parameters are kept. None, the default, for all, an
            empty sequence for none.
        skip: Globs of canonical names; these parameters are kept.
        frozen: Whether parameters that require no gradient are written too; off by default.
        keep: `"meant"`, the default, lets stay what the layers' own random draws could not have
            left, under the rules of presets: zeros that close a branch or are one factor of a
            product, biases with a purpose, computed kernels, what `transformers` has loaded from a
            checkpoint. Of parameters on the meta device, behind a parametrisation or sharded
            nothing is known. `"nothing"` lets the policy overwrite them. Rules of your own are
            obeyed to the letter.
        strict: Whether a rule that decides about no parameter is an error, as by default, or a
            warning.
    """

    only: Globs
    skip: Globs
    frozen: bool
    keep: Keeping
    strict: bool


class Options(Selecting, total=False):
    """The keyword arguments of `apply_policy`, as what calls it later takes them."""

    seed: int | None
    example_inputs: Any
    calibrate: Any
    threads: int | None
    draw_on: torch.device | str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The values of `Selecting`, complete and checked.

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
    def of(cls, **given: "Unpack[Selecting]") -> "Selection":
        """Check what a verb was given.

        Raises:
            TypeError: There is no such argument.
            PolicyError: A glob is malformed, or an argument of a wrong kind.
        """
        require_known(given, Selecting.__optional_keys__)
        for name in "frozen", "strict":
            if not isinstance(given.get(name, True), bool):
                raise PolicyError(f"{name} is True or False, got {given.get(name)!r}")
        keep = given.get("keep", "meant")
        if not (isinstance(keep, str) and keep in get_args(Keeping)):
            raise PolicyError(f"keep is one of {get_args(Keeping)}, got {keep!r}")
        only, skip = given.get("only"), given.get("skip")
        return cls(
            only=None if only is None else _globs("only", only),
            skip=_globs("skip", skip),
            frozen=given.get("frozen", False),
            keep=keep,
            strict=given.get("strict", True),
        )

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


def require_known(given: Iterable[str], known: Iterable[str] = Options.__optional_keys__) -> None:
    """Raise where a keyword argument is not among those that there are, as Python does."""
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        meant = nearest(unknown, Options.__optional_keys__)
        raise TypeError(
            f"there is no argument {unknown!r}{meant or f'; there are {sorted(known)}'}"
        )


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
