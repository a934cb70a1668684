"""Build a model without drawing its random weights: what each call means within a constructor.

The bookkeeping is `deferred.ledger`, what guards the weights afterwards is `deferred.undrawn`.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from torch_initpolicy.deferred.ledger import (
    DeferredDraw,
    Ledger,
    MatrixDraw,
    NormalDraw,
    UniformDraw,
    covers_storage,
    same_storage,
)
from torch_initpolicy.deferred.undrawn import (
    HARMLESS,
    OVERWRITES,
    VIEWS,
    TorchCall,
    TorchFunction,
    getter,
    guard,
    pending_of,
    setter,
    unguarded,
)
from torch_initpolicy.tensors.axes import conventional, fans
from torch_initpolicy.tensors.initializers import Orthogonal, Sparse
from torch_initpolicy.trace.trees import tensors_in


@contextmanager
def skip_init() -> Iterator[None]:
    """Run constructors without their random draws.

    Inside the block everything a constructor does is real, except that random fills (`uniform_`,
    `normal_`, every function of `torch.nn.init`, timm's truncated normal and other hand-written
    ones, a bare `torch.randn`) leave their tensor undrawn. What was skipped is remembered:
    arithmetic in place that follows (`weight.mul_(0.5)`) is applied to what is remembered, a
    constant written over all of it replaces it, and whatever else reads the tensor
    (`weight.norm()`, `2 * weight`, `copy.deepcopy`) has it drawn first, so that no value is ever
    wrong. What is no parameter in the end is drawn when the block ends.

    After the block the undrawn parameters refuse to be used or saved, with a
    [`SkippedInitError`][torch_initpolicy.errors.SkippedInitError] that lists them, until
    `apply_policy`, `load_state_dict`, a copy or any other fill has given them values. Where the
    policy says `Keep()`, `apply_policy` draws what the constructor would have drawn, from the
    parameter's own random stream.

    Other threads are not concerned, nor are models built outside the block, nor anything after
    it; nothing of torch is replaced. On the meta device, where fills do nothing but take time, they
    are left out and not remembered: `with torch.device("meta"), skip_init(): ...` is the fastest
    way to a model for `materialize`.

    Examples:
        >>> with skip_init():
        ...     layer = nn.Linear(1024, 1024)
        >>> layer.weight
        Parameter skipped: Uniform(low=-0.03125, high=0.03125), shape (1024, 1024)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> layer.weight.sum().item()
        0.0
    """
    if any(not mode.paused for mode in _active_modes()):
        yield
        return
    ledger = Ledger()
    try:
        with recording(ledger), _noting_modules(ledger):
            yield
    finally:
        guard(ledger.close(), ledger.modules)


@contextmanager
def _noting_modules(ledger: Ledger) -> Iterator[None]:
    """Note the modules that this thread builds, by torch's hooks for what is registered in one."""

    def note(module: nn.Module, name: str, registered: object) -> None:
        if any(mode.ledger is ledger for mode in _active_modes()):
            ledger.modules.add(module)

    with (
        register_module_parameter_registration_hook(note),
        register_module_module_registration_hook(note),
    ):
        yield


@contextmanager
def opened(held: nn.Module | Iterable[Tensor]) -> Iterator[None]:
    """Let a model, or some of its parameters, be planned and written, whatever is skipped.

    Within the block the skipped parameters are plain ones, about which `pending_of` still tells;
    those that are not marked as filled are guarded again when it ends. Nothing is skipped in it,
    so that weights can be drawn also within a `skip_init` block.
    """
    parameters = list(held.parameters() if isinstance(held, nn.Module) else held)
    modes = _active_modes()
    before = [mode.paused for mode in modes]
    for mode in modes:
        mode.paused = True
    try:
        for mode in modes:
            guard(
                mode.ledger.take(p for p in parameters if pending_of(p) is None),
                mode.ledger.modules,
            )
        with unguarded(parameters):
            yield
    finally:
        for mode, paused in zip(modes, before, strict=True):
            mode.paused = paused


class recording(TorchFunctionMode):  # noqa: N801 - used as a function, like torch's own modes
    """Note random fills in a ledger instead of carrying them out, each call by its rule."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.paused = False

    def __torch_function__(
        self,
        func: TorchFunction,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        arguments = args, dict(kwargs or {})
        if self.paused:
            return TorchCall(func, *arguments).run()
        call = TorchCall(_original(func), *arguments)
        return RULES.get(call.func, _draw_and_run)(self.ledger, call)


def _original(func: TorchFunction) -> TorchFunction:
    """Return the function of `torch.nn.init` in whose place transformers has put one of its own."""
    name = getattr(func, "__name__", "")
    replaced = name in _FILLERS and getattr(nn.init, name) is func
    return _FILLERS[name] if replaced else func


_FILLERS: Mapping[str, TorchFunction] = {
    name: function for name, function in vars(nn.init).items() if name.endswith("_")
}


def _active_modes() -> list[recording]:
    # Torch has no public view of the stack of modes.
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]  # noqa: SLF001
    return [mode for mode in modes if isinstance(mode, recording)]


# What each kind of call means for tensors whose fill has been put off


def _draw_and_run(ledger: Ledger, call: TorchCall) -> Any:
    """Draw whatever the call could read, then run it."""
    for tensor in tensors_in(call.arguments):
        ledger.settle(tensor)
    return call.run()


def _note_home(ledger: Ledger, call: TorchCall) -> Any:
    """Note where a parameter lives: a module registers it, or it is given other bytes."""
    result = call.run()
    ledger.see(call.target)
    return result


def _view(ledger: Ledger, call: TorchCall) -> Any:
    """Let views through, they share the entry; a copy reads."""
    result = call.run()
    if ledger.find(call.target) is None:
        return result
    if all(same_storage(view, call.target) for view in tensors_in(result)):
        return result
    return _draw_and_run(ledger, call)


def _put_off_fill(ledger: Ledger, call: TorchCall) -> Any:
    """Put off a random fill of a whole storage; what has no memory is not filled at all."""
    target, kwargs = call.target, call.kwargs.copy()
    if target.is_meta:
        return target
    if not _can_wait(target):
        return _overwrite(ledger, call)
    generator = kwargs.pop("generator", None)
    draw = FILLS[call.func](*call.args, **{_OF_UNIFORM.get(k, k): v for k, v in kwargs.items()})
    if draw is None:
        return _overwrite(ledger, call)
    ledger.put_off(target, draw, generator)
    return target


def _allocate(ledger: Ledger, call: TorchCall) -> Any:
    """Put off the draw of a tensor that is allocated and filled in one."""
    kwargs = {name: value for name, value in call.kwargs.items() if name != "generator"}
    if kwargs.get("out") is not None:
        return _draw_and_run(ledger, call)
    made = ALLOCATED[call.func](*call.args, **kwargs)
    if made is None or made[0].requires_grad or not _can_wait(made[0]):
        return _draw_and_run(ledger, call)
    ledger.put_off(*made, call.kwargs.get("generator"))
    return made[0]


def _can_wait(tensor: Tensor) -> bool:
    """Say whether a tensor is an ordinary one that can be filled at any time later."""
    is_ordinary = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
    is_number = tensor.is_floating_point() or tensor.is_complex()
    return is_ordinary and is_number and tensor.numel() > 0 and covers_storage(tensor)


def _overwrite(ledger: Ledger, call: TorchCall) -> Any:
    """Run a call that writes all of its first argument without reading it."""
    for source in tensors_in(call.arguments[1:]):
        ledger.settle(source)
    if covers_storage(call.target):
        ledger.forget(call.target)
    return _draw_and_run(ledger, call)


def _fill_constant(ledger: Ledger, call: TorchCall) -> Any:
    """Run a constant fill; a row of an undrawn table that becomes zero does so after the draw."""
    target, value = call.target, (*call.arguments[1:], 0.0)[0]
    if target.is_meta:
        return target
    entry = ledger.find(target)
    if entry is None or covers_storage(target) or isinstance(value, Tensor) or value != 0:
        return _overwrite(ledger, call)
    row = entry.row(target)
    if row is None or entry.padding not in (None, row):
        return _overwrite(ledger, call)
    entry.padding = row
    return call.run()


def _set_item(ledger: Ledger, call: TorchCall) -> Any:
    """Read `tensor[index] = value` as a fill of the view `tensor[index]`, where it is one."""
    target, index, value = call.args
    entry = ledger.find(target)
    if entry is None or isinstance(value, Tensor):
        return _draw_and_run(ledger, call)
    if isinstance(entry.draw, NormalDraw) and (sparse := _locals_of("sparse_")) is not None:
        entry.draw = MatrixDraw(Sparse(sparse["sparsity"], entry.draw.std))
    if isinstance(entry.draw.initializer, Sparse):
        return None
    view = target[index]
    if not same_storage(view, target):
        return _draw_and_run(ledger, call)
    return _fill_constant(ledger, TorchCall(Tensor.fill_, (view, value), {}))


def _transform(ledger: Ledger, call: TorchCall) -> Any:
    """Apply scalar arithmetic in place to what is remembered, where it can be said."""
    target, operands = call.target, call.arguments[1:]
    if target.is_meta:
        return target
    entry = ledger.find(target)
    if entry is None or entry.padding is not None or not covers_storage(target):
        return _draw_and_run(ledger, call)
    if (
        isinstance(entry.draw, MatrixDraw)
        and isinstance(operands[0], Tensor)
        and _locals_of("orthogonal_")
    ):
        return target
    if not all(isinstance(operand, (int, float, NoneType)) for operand in operands):
        return _draw_and_run(ledger, call)
    draw = TRANSFORMS[call.func](entry.draw, *call.args[1:], **call.kwargs)
    if draw is None:
        return _draw_and_run(ledger, call)
    entry.draw = draw
    ledger.see(target)
    return target


# What torch.nn.init does after its draw; where torch changes this, the tensor is read and drawn


def _reject(ledger: Ledger, call: TorchCall) -> Any:
    """Take the comparisons of `trunc_normal_` as its bounds, and say that all values lie within."""
    target, bounds = call.target, call.arguments[1:]
    entry = ledger.find(target)
    if entry is None or _locals_of("_no_grad_trunc_normal_") is None:
        return _draw_and_run(ledger, call)
    bound = float(bounds[0])
    limits = (bound, math.inf) if call.func is Tensor.lt else (-math.inf, bound)
    draw = entry.draw.rejected(*limits)
    if draw is None:
        return _draw_and_run(ledger, call)
    entry.draw = draw
    return torch.zeros((), dtype=torch.bool, device=target.device)


def _factorise(ledger: Ledger, call: TorchCall) -> Any:
    """Take the factorisation within `orthogonal_` as the draw of its orthogonal factor."""
    matrix = call.target
    if ledger.find(matrix) is None or _locals_of("orthogonal_") is None:
        return _draw_and_run(ledger, call)
    ledger.forget(matrix)
    factor = matrix.new_empty(matrix.shape)
    ledger.put_off(factor, MatrixDraw(Orthogonal()))
    return factor, matrix.new_zeros(()).expand(matrix.shape[1], matrix.shape[1])


def _copy_over(ledger: Ledger, call: TorchCall) -> Any:
    """Hand an orthogonal factor on to the tensor it was made for; any other copy overwrites."""
    target, source = call.target, tensors_in(call.arguments[1:])[0]
    entry = ledger.find(source)
    if entry is None or _locals_of("orthogonal_") is None or not covers_storage(target):
        return _overwrite(ledger, call)
    ledger.forget(source)
    ledger.put_off(target, entry.draw, entry.generator)
    return target


def _locals_of(name: str) -> Mapping[str, Any] | None:
    """Return the local variables of `torch.nn.init.<name>` if it made the call at hand."""
    frame = sys._getframe(3)  # noqa: SLF001 - itself, the rule, the mode, the caller
    is_called = frame.f_code.co_name == name and frame.f_globals["__name__"] == nn.init.__name__
    return frame.f_locals if is_called else None


# The fills, as distributions; None where torch itself would raise

_OF_UNIFORM = {"from": "a", "to": "b"}
"""Names of `Tensor.uniform_`, of which one is a keyword, to those of `torch.nn.init`."""


def _uniform(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> DeferredDraw | None:
    return UniformDraw(float(a), float(b)) if a <= b else None


def _normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> DeferredDraw | None:
    return NormalDraw(float(mean), float(std)) if std > 0 else None


def _kaiming_uniform(tensor: Tensor, *arguments: Any, **kwargs: Any) -> DeferredDraw | None:
    std = _kaiming_std(tensor, *arguments, **kwargs)
    return UniformDraw(-math.sqrt(3.0) * std, math.sqrt(3.0) * std) if std else None


def _kaiming_normal(tensor: Tensor, *arguments: Any, **kwargs: Any) -> DeferredDraw | None:
    std = _kaiming_std(tensor, *arguments, **kwargs)
    return NormalDraw(0.0, std) if std else None


def _kaiming_std(
    tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: Any = "leaky_relu"
) -> float | None:
    if tensor.dim() < 2:
        return None
    fan_in, fan_out = fans(tensor.shape, conventional(tensor.shape))
    fan = {"fan_in": fan_in, "fan_out": fan_out}.get(mode.lower())
    return nn.init.calculate_gain(nonlinearity, a) / math.sqrt(fan) if fan else None


FILLS: Mapping[TorchFunction, Callable[..., DeferredDraw | None]] = {
    Tensor.uniform_: _uniform,
    Tensor.normal_: _normal,
    nn.init.uniform_: _uniform,
    nn.init.normal_: _normal,
    nn.init.kaiming_uniform_: _kaiming_uniform,
    nn.init.kaiming_normal_: _kaiming_normal,
}
"""The fills at the bottom of every initialiser: all other functions of `torch.nn.init` and of
timm arrive here."""


def _normals(
    mean: Any, std: Any = 1.0, size: Any = None, **options: Any
) -> tuple[Tensor, DeferredDraw] | None:
    is_plain = size is not None and not any(isinstance(each, Tensor) for each in (mean, std))
    draw = _normal(torch.empty(0), mean, std) if is_plain else None
    return None if draw is None else (torch.empty(size, **options), draw)


ALLOCATED: Mapping[TorchFunction, Callable[..., tuple[Tensor, DeferredDraw] | None]] = {
    torch.randn: lambda *sizes, **options: (torch.empty(*sizes, **options), NormalDraw()),
    torch.rand: lambda *sizes, **options: (torch.empty(*sizes, **options), UniformDraw()),
    torch.randn_like: lambda other, **options: (torch.empty_like(other, **options), NormalDraw()),
    torch.rand_like: lambda other, **options: (torch.empty_like(other, **options), UniformDraw()),
    torch.normal: _normals,
}
"""What is allocated and filled in one: the memory, and what it is filled with."""


# Arithmetic in place


def _divide(draw: DeferredDraw, other: float) -> DeferredDraw | None:
    return draw.scaled(1 / other) if other else None


def _clamp(
    draw: DeferredDraw,
    min: float | None = None,  # noqa: A002 - torch calls it so
    max: float | None = None,  # noqa: A002
) -> DeferredDraw | None:
    return draw.clamped(-math.inf if min is None else min, math.inf if max is None else max)


TRANSFORMS: Mapping[TorchFunction, Callable[..., DeferredDraw | None]] = {
    Tensor.mul_: lambda draw, other: draw.scaled(other),
    Tensor.multiply_: lambda draw, other: draw.scaled(other),
    Tensor.div_: _divide,
    Tensor.divide_: _divide,
    Tensor.true_divide_: _divide,
    Tensor.add_: lambda draw, other, *, alpha=1: draw.shifted(alpha * other),
    Tensor.sub_: lambda draw, other, *, alpha=1: draw.shifted(-alpha * other),
    Tensor.neg_: lambda draw: draw.scaled(-1.0),
    Tensor.erfinv_: lambda draw: draw.erfinv(),
    Tensor.clamp_: _clamp,
    Tensor.clip_: _clamp,
}
"""What happens to a distribution when its tensor is changed in place."""


RULES: Mapping[TorchFunction, Callable[[Ledger, TorchCall], Any]] = {
    **dict.fromkeys(HARMLESS, lambda _, call: call.run()),
    **dict.fromkeys(OVERWRITES, _overwrite),
    **dict.fromkeys(VIEWS, _view),
    **dict.fromkeys(FILLS, _put_off_fill),
    **dict.fromkeys(ALLOCATED, _allocate),
    **dict.fromkeys(TRANSFORMS, _transform),
    **dict.fromkeys((Tensor.zero_, Tensor.fill_, nn.init.constant_), _fill_constant),
    **dict.fromkeys((Tensor.lt, Tensor.gt), _reject),
    Tensor.__setitem__: _set_item,
    Tensor.copy_: _copy_over,
    torch.linalg.qr: _factorise,
    setter("data"): _note_home,
    getter("grad_fn"): _note_home,  # what a module asks for when it registers a parameter
}
"""What each function of torch means here; all others read their arguments."""
