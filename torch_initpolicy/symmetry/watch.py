"""Watches the first steps of a training for units that start equal and stay equal.

Uses the training's own weights and gradients; runs nothing of its own, and takes itself off as
soon as it knows.
"""

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from torch_initpolicy.errors import (
    ArgumentError,
    InitPolicyWarning,
    SymmetricInitError,
    SymmetricInitWarning,
    counted,
    listing,
    warn,
)
from torch_initpolicy.sites import require_module
from torch_initpolicy.symmetry.findings import Finding, describe
from torch_initpolicy.symmetry.followed import Followed

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

OnSymmetry = Literal["warn", "raise"]
"""What to do when symmetric units are found: give a `SymmetricInitWarning`, or raise a
`SymmetricInitError` from the optimizer's step, before it writes."""


def warn_on_symmetry(
    model: nn.Module | None = None, *, on_symmetry: OnSymmetry = "warn"
) -> "Watch":
    """Watch the first optimizer steps, and warn once if units are tied or parameters dead.

    At the first step of an optimizer the weights are scanned for equal units. Where there are
    none, that was all. Else their gradients are compared at this and the following steps; units
    whose gradients never differ are reported when that is certain: at the second step as a rule,
    later where something still waits for a zero to move, where random numbers are drawn in the
    forward pass, or where no gradient arrives at all. Then all hooks are removed.

    Gradients alone do not tell equal output units that no other weight reads (two pieces of a
    maxout, two towers that meet in a product) from classes of a zero head that the labels treat
    equally: these are not warned of, and are for `find_symmetry` to judge.

    Works with gradient accumulation, gradient scalers, closures, several optimizers, parameter
    groups, `torch.compile`, DDP and FSDP2.

    Args:
        model: The model to watch, wrapped or not; None for every model that an optimizer trains
            from now on, until the handle is removed.
        on_symmetry: What to do: `"warn"` or `"raise"`.

    Returns:
        The handle: `handle.remove()` ends the watch; in a `with` statement the end of the block
        does.

    Raises:
        ArgumentError: `on_symmetry` is neither, or `model` is no module.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> for layer in (model[0], model[2]):
        ...     _ = nn.init.constant_(layer.weight, 0.5), nn.init.zeros_(layer.bias)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with warn_on_symmetry(model, on_symmetry="raise"):
        ...     for _ in range(3):
        ...         x = torch.randn(16, 4)
        ...         (model(x) - x[:, :2]).pow(2).mean().backward()
        ...         optimizer.step()
        Traceback (most recent call last):
        torch_initpolicy.errors.SymmetricInitError: symmetry that will stay, in 2 places; the \
model learns as if it were smaller:
          - 0.weight: 8 units tied (outputs 0-7); write apply_policy(model, only=['0.weight'])
          - 2.weight: 8 units tied (inputs 0-7); write apply_policy(model, only=['2.weight'])
    """
    if on_symmetry not in ("warn", "raise"):
        raise ArgumentError(f'on_symmetry is "warn" or "raise", got {on_symmetry!r}')
    return Watch(None if model is None else require_module(model), on_symmetry)


class Watch:
    """A running watch; `remove()` ends it, and so does leaving its `with` block.

    It holds no model: what is known of one lives in the hooks on that model, and goes with it.
    """

    def __init__(self, model: nn.Module | None, on_symmetry: OnSymmetry) -> None:
        self._on_symmetry = on_symmetry
        self._lock = threading.RLock()  # optimizers may step in several threads
        self._run: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._known: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._followed: list[weakref.ref[Followed]] = []
        self._watches_all = model is None
        self._handles: list[RemovableHandle] = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        if model is None:
            self._handles.append(register_module_forward_pre_hook(self._note_run))
        else:
            self._followed.append(weakref.ref(Followed(model)))

    def remove(self) -> None:
        """End the watch and take all hooks off."""
        with self._lock:
            for followed in self._living():
                followed.remove()
            for handle in self._handles:
                handle.remove()
            self._followed, self._handles = [], []

    def __enter__(self) -> "Watch":  # noqa: PYI034 - `Self` is newer than Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _living(self) -> list["Followed"]:
        return [followed for ref in self._followed if (followed := ref()) is not None]

    def _note_run(self, module: nn.Module, args: Any) -> None:
        """Remember which modules run: an optimizer knows no modules."""
        if not torch.compiler.is_compiling():
            with self._lock:
                self._run.add(module)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not _has_closure(args, kwargs):
            self._look(optimizer)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if _has_closure(args, kwargs):  # which computes the gradients, within the step
            self._look(optimizer)

    def _look(self, optimizer: Optimizer) -> None:
        """Show all who wait for it what an optimizer is about to do; never fail its step."""
        try:
            with self._lock:
                found = [finding for each in self._looked(optimizer) for finding in each]
        except Exception as error:  # noqa: BLE001 - a watch must not end the training it watches
            self.remove()
            warn(
                f"the watch for symmetric units ended: {type(error).__name__}: {error}; "
                "find_symmetry(model) looks at the model without its training",
                InitPolicyWarning,
                through=("torch",),
            )
            return
        if found and self._on_symmetry == "raise":
            raise SymmetricInitError(message(found))
        if found:
            warn(message(found), SymmetricInitWarning, through=("torch",))

    def _looked(self, optimizer: Optimizer) -> Iterator[tuple[Finding, ...]]:
        """Yield what is certain now of each model that the optimizer trains."""
        if self._watches_all and optimizer not in self._known:
            self._follow_models_of(optimizer)
        for followed in self._living():
            if followed.look(optimizer):
                followed.remove()
                yield followed.found
        self._followed = [weakref.ref(each) for each in self._living() if not each.is_done]
        if not (self._followed or self._watches_all):
            self.remove()

    def _follow_models_of(self, optimizer: Optimizer) -> None:
        """Follow the outermost modules that have run and hold what the optimizer trains."""
        roots = list(_roots(optimizer, self._run))
        if roots:
            self._known.add(optimizer)
        known = {id(followed.model) for followed in self._living()}
        self._followed += [weakref.ref(Followed(r)) for r in roots if id(r) not in known]


def _has_closure(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    given = [*args, *kwargs.values()]
    return any(callable(value) and not isinstance(value, Optimizer) for value in given)


def message(found: Sequence[Finding]) -> str:
    """Write findings as the text of a warning or an error."""
    cases = [
        f"{f.name}: {f.count} units {f.verdict} ({describe(f.units, f.along)})"
        + (f"; write {f.remedy}" if f.remedy else "")
        for f in found
    ]
    return (
        f"symmetry that will stay, in {counted(len(cases), 'place')}; the model learns as if it "
        f"were smaller:\n{listing(cases)}"
    )


def _roots(optimizer: Optimizer, run: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield the outermost modules among those that have run that hold what an optimizer trains."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    holding = [module for module in run if any(id(p) in trained for p in module.parameters())]
    inner = {id(child) for module in holding for child in module.modules() if child is not module}
    yield from (module for module in holding if id(module) not in inner)
