"""Parameters that hold no values yet, and refuse to be used until they do.

A skipped parameter changes its class, as torch's own `UninitializedParameter` does: its shape,
dtype and device can be asked for, it can be moved, cast and copied over, and everything that would
read a value raises. Once filled it is a plain `nn.Parameter` again. Knows no rules of what a
constructor does; that is `deferred.skip`.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from torch_initpolicy.deferred.ledger import DeferredFill, covers_storage, same_storage
from torch_initpolicy.errors import SkippedInitError, counted, listing
from torch_initpolicy.sites import sites
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.base import Spread
from torch_initpolicy.tensors.initializer import Initializer
from torch_initpolicy.trace.trees import tensors_in

# What a call does with the values of its first argument

TorchFunction = Callable[..., Any]
"""A function or method of torch; its signature is torch's own."""


def _of(owner: object, names: str) -> Iterator[TorchFunction]:
    """Yield those members of `Tensor`, or functions of a module, that this version of torch has."""
    return (found for name in names.split() if (found := getattr(owner, name, None)) is not None)


def _getters(names: str) -> Iterator[TorchFunction]:
    return (member.__get__ for member in _of(Tensor, names))


def getter(name: str) -> TorchFunction:
    """Return the function that reads a property of `Tensor`."""
    function: TorchFunction = getattr(Tensor, name).__get__
    return function


def setter(name: str) -> TorchFunction:
    """Return the function that assigns a property of `Tensor`."""
    function: TorchFunction = getattr(Tensor, name).__set__
    return function


HARMLESS: frozenset[TorchFunction] = frozenset(
    chain(
        _getters(
            "shape device dtype layout ndim is_leaf is_meta is_cuda is_cpu is_mps is_xpu is_sparse "
            "is_quantized is_nested itemsize nbytes names requires_grad retains_grad grad grad_fn "
            "_grad _grad_fn _version _base _backward_hooks output_nr"
        ),
        map(setter, ("requires_grad", "grad")),
        _of(
            Tensor,
            "size dim ndimension numel nelement stride storage_offset element_size get_device "
            "is_contiguous is_floating_point is_complex is_signed is_inference is_same_size "
            "is_set_to is_pinned is_shared has_names requires_grad_ retain_grad register_hook "
            "register_post_accumulate_grad_hook new_empty new_zeros new_ones new_full new_tensor "
            "__len__ __hash__",
        ),
        _of(
            torch,
            "empty_like zeros_like ones_like full_like rand_like randn_like is_floating_point "
            "is_complex numel is_same_size result_type _has_compatible_shallow_copy_type",
        ),
        # How `no_grad` arrives at a function mode.
        _of(torch._C, "_set_grad_enabled"),  # noqa: SLF001
    )
)
"""Functions that ask what a tensor is and not what it holds."""

VIEWS: frozenset[TorchFunction] = frozenset(
    chain(
        _getters("data T mT H mH"),
        _of(
            Tensor,
            "detach detach_ view view_as as_strided reshape reshape_as flatten unflatten ravel "
            "select narrow unbind chunk split tensor_split diagonal t t_ transpose transpose_ "
            "permute movedim swapaxes swapdims squeeze squeeze_ unsqueeze unsqueeze_ expand "
            "expand_as contiguous __getitem__ to type type_as cpu cuda half float double bfloat16 "
            "pin_memory",
        ),
        _of(
            torch,
            "detach select narrow unbind chunk split diagonal transpose permute movedim squeeze "
            "unsqueeze flatten reshape t as_strided",
        ),
    )
)
"""Functions whose result is another view of the same bytes, or a plain copy of them."""

OVERWRITES: frozenset[TorchFunction] = frozenset(
    chain(
        _of(
            Tensor,
            "zero_ fill_ copy_ normal_ uniform_ exponential_ log_normal_ cauchy_ geometric_ "
            "bernoulli_ random_",
        ),
        _of(nn.init, "uniform_ normal_ constant_ kaiming_uniform_ kaiming_normal_"),
    )
)
"""Functions that write all of their first argument without reading it."""


class TorchCall(NamedTuple):
    """One call of torch, as `__torch_function__` sees it."""

    func: TorchFunction
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> Any:
        """Do what was asked for."""
        return self.func(*self.args, **self.kwargs)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """All arguments, however they were passed."""
        return (*self.args, *self.kwargs.values())

    @property
    def target(self) -> Any:
        """The first argument; None where there is none."""
        return next(iter(self.arguments), None)


# Guarded tensors


class Pending(NamedTuple):
    """What a constructor would have filled a parameter with, and which row of it with zeros."""

    initializer: Initializer
    padding: int | None = None
    source: str = "the constructor"


@dataclass(eq=False)
class Skipped:
    """What is remembered of one undrawn storage.

    An error looks for names in the modules that were built in the same block; the holders are all
    that is guarded because it lives on this storage.
    """

    pending: Pending
    modules: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet)
    holders: list[weakref.ref[Tensor]] = field(default_factory=list)

    @property
    def living(self) -> list[Tensor]:
        """The holders that still exist and are still guarded for this storage."""
        found = [tensor for holder in self.holders if (tensor := holder()) is not None]
        return [tensor for tensor in found if _skipped(tensor) is self]

    def hold(self, tensor: Tensor) -> None:
        """Guard a tensor until the storage is filled."""
        vars(tensor)["_skipped"] = self
        tensor.__class__ = _GUARDED[type(tensor)]
        self.holders.append(weakref.ref(tensor))

    def release(self) -> None:
        """Make plain parameters and tensors of all that is guarded."""
        for tensor in self.living:
            _unguard(tensor)


class SkippedTensor(Tensor):
    """A view or a copy of a skipped parameter."""

    @classmethod
    def __torch_function__(
        cls,
        func: TorchFunction,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer what concerns no values, let them be overwritten, and refuse the rest."""
        call = TorchCall(func, args, dict(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as torch's subclasses do
            return _answer(call)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Say what is missing."""
        return f"{_UNGUARDED[type(self)].__name__} skipped: {_description(self)}"

    def __format__(self, spec: str) -> str:
        """Say the same in a format string."""
        return format(repr(self), spec)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to be saved."""
        _refuse(self)


class SkippedParameter(nn.Parameter):
    """A parameter whose fill was skipped; once filled it is a plain parameter."""

    __torch_function__ = SkippedTensor.__torch_function__
    __reduce_ex__ = SkippedTensor.__reduce_ex__
    __format__ = SkippedTensor.__format__
    __repr__ = SkippedTensor.__repr__  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, object]) -> nn.Parameter:
        """Copy what is known; the copy is to be filled on its own."""
        copy = nn.Parameter(torch.empty_like(self), requires_grad=self.requires_grad)
        memo[id(self)] = copy
        skipped: Skipped = vars(self)["_skipped"]
        Skipped(skipped.pending, skipped.modules).hold(copy)
        return copy


_GUARDED: Mapping[type, type] = {nn.Parameter: SkippedParameter, Tensor: SkippedTensor}
_UNGUARDED: Mapping[type, type] = {plain: guarded for guarded, plain in _GUARDED.items()}


def _skipped(tensor: Any) -> Skipped | None:
    return vars(tensor).get("_skipped") if isinstance(tensor, Tensor) else None


def _unguard(tensor: Tensor) -> None:
    vars(tensor).pop("_skipped", None)
    tensor.__class__ = _UNGUARDED.get(type(tensor), type(tensor))


def _answer(call: TorchCall) -> Any:
    """Serve one call that has a guarded tensor among its arguments."""
    if call.func in HARMLESS:
        return call.run()
    target, skipped = call.target, _skipped(call.target)
    others = [other for other in tensors_in(call.arguments) if other is not target]
    if call.func == _SET_DATA:
        return _set_data(call)
    if skipped is None or any(map(_skipped, others)):
        _refuse(next(filter(_skipped, (target, *others))))
    if call.func in VIEWS:
        return _viewed(call.run(), target, skipped)
    if call.func not in OVERWRITES or not covers_storage(target):
        _refuse(target)
    result = call.run()
    skipped.release()
    return result


def _viewed(result: Any, target: Tensor, skipped: Skipped) -> Any:
    """Guard views together with the parameter, copies on their own."""
    for tensor in tensors_in(result):
        if tensor is target:
            continue
        shared = same_storage(tensor, target)
        (skipped if shared else Skipped(skipped.pending, skipped.modules)).hold(tensor)
    return result


_SET_DATA = setter("data")


def _set_data(call: TorchCall) -> None:
    """Guard a parameter if and only if the bytes it is given are guarded (`Module.to`, `half`)."""
    tensor, skipped = call.target, _skipped(call.arguments[1])
    call.run()
    _unguard(tensor)
    if skipped is not None:
        skipped.hold(tensor)


def _description(tensor: Tensor) -> str:
    return f"{vars(tensor)['_skipped'].pending.initializer}, shape {tuple(tensor.shape)}"


def _refuse(tensor: Tensor) -> NoReturn:
    """Raise the error that lists every parameter of the model that has no values yet."""
    model = _model_of(vars(tensor)["_skipped"])
    undrawn = (site for site in sites(model) if _skipped(site.parameters[0]) is not None)
    cases = [f"{site.name}: {_description(site.parameters[0])}" for site in undrawn]
    raise SkippedInitError(
        f"the model has {counted(max(len(cases), 1), 'parameter')} that skip_init has skipped, "
        "without values yet:\n"
        f"{listing(cases or [_description(tensor)])}\n"
        "fill them with apply_policy(model) or load_state_dict before the model is used or saved"
    )


def _model_of(skipped: Skipped) -> nn.Module:
    """Return the largest module of a block that holds a skipped tensor, or an empty one."""
    ids = {id(tensor) for tensor in skipped.living}
    holding = [m for m in skipped.modules if not ids.isdisjoint(map(id, m.parameters()))]
    return max(holding, key=lambda m: sum(1 for _ in m.modules()), default=nn.Module())


# For those who build, plan and write


def guard(entries: Iterable[DeferredFill], modules: weakref.WeakSet[nn.Module]) -> None:
    """Guard the parameters of the given entries; fill at once what is no plain parameter."""
    for entry in entries:
        initializer, parameters = entry.draw.initializer, entry.living
        if initializer is None or not parameters or not all(map(entry.fits, parameters)):
            entry.settle()
            continue
        skipped = Skipped(Pending(initializer, entry.padding), modules)
        for parameter in parameters:
            skipped.hold(parameter)


def pending_of(tensor: Tensor) -> Pending | None:
    """Return what a skipped parameter would have been filled with; None for any other tensor."""
    skipped = _skipped(tensor)
    return None if skipped is None else skipped.pending


@contextmanager
def remembered(draws: Iterable[tuple[Tensor, Pending]]) -> Iterator[None]:
    """Let `pending_of` tell of tensors without memory how they would be drawn, within the block."""
    known = list(draws)
    for tensor, pending in known:
        vars(tensor)["_skipped"] = Skipped(pending)
    try:
        yield
    finally:
        for tensor, _ in known:
            del vars(tensor)["_skipped"]


def as_constructed(step: Step, pending: Pending) -> Step:
    """Return the step that draws what a constructor would have drawn, where a policy says `Keep()`.

    Its axes are torch's own, which is what the constructor went by.
    """
    spread = pending.initializer.spread(step.shape, None)
    return replace(
        step,
        initializer=pending.initializer,
        std=spread.std if isinstance(spread, Spread) else None,
        torch_axes=True,
        facts=replace(step.facts, padding=pending.padding),
        reason=f"kept: what {pending.source} would have drawn, from a stream of its own",
    )


@contextmanager
def unguarded(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let skipped parameters among some tensors be read and written like any other.

    Those that are not `mark_filled` when the block ends are guarded again.
    """
    parameters = [tensor for tensor in tensors if isinstance(tensor, SkippedParameter)]
    for parameter in parameters:
        parameter.__class__ = _UNGUARDED[SkippedParameter]
    try:
        yield
    finally:
        for parameter in parameters:
            if _skipped(parameter) is not None:
                parameter.__class__ = _GUARDED[nn.Parameter]


def mark_filled(tensor: Tensor) -> None:
    """Note that a tensor has been filled; nothing remains of its having been skipped."""
    skipped = _skipped(tensor)
    if skipped is not None:
        skipped.release()
