"""Runs a model on copies of its parameters, to see what gradients they get.

Knows how to run a model without touching it and which part of a gradient is rounding;
neither units nor verdicts.
"""

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.symmetry.batches import Batches
from torch_initpolicy.symmetry.units import ByParameter, equal_rows
from torch_initpolicy.trace.borrow import Lent, borrowed, cuda_devices
from torch_initpolicy.trace.stand_ins import lazily_copied
from torch_initpolicy.trace.trees import tensors_in
from torch_initpolicy.writing.crew import cores_restored
from torch_initpolicy.writing.shards import full

Loss = Callable[[Any], Tensor]
"""What the model returned, to a scalar."""


def scalar(loss: object) -> Tensor:
    """Return what a loss function made, and refuse what is no single number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        raise TraceError(f"loss_fn returns a real scalar tensor, got {_described(loss)}")
    return loss.squeeze()


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"one of shape {tuple(value.shape)} and {value.dtype}"


@contextlib.contextmanager
def prepared(model: nn.Module) -> Iterator[Lent]:
    """Borrow a model for gradients in full precision, whatever modes the caller is in."""
    devices = {p.device.type for p in model.parameters()} | {"cpu"}
    with contextlib.ExitStack() as stack:
        lent = stack.enter_context(borrowed(model))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for device in devices - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        if sum(p.numel() for p in model.parameters()) < _SMALL:
            stack.enter_context(cores_restored())
            torch.set_num_threads(1)
        yield lent


_SMALL = 4_000_000
"""Parameters of a model up to which several cores cost more than they give."""


class Precision(NamedTuple):
    """What rounding does in one dtype; all relative.

    Attributes:
        nudge: Change of all parameters that rerolls rounding and changes little else.
        doubtful: Gradients smaller than this are looked at twice.
        real: A gradient is real where the nudge changes it by less than this,
        floor: and where it is larger than this, beside the largest of its parameter.
        same: Gradients are equal where they differ by less than this.
    """

    nudge: float
    doubtful: float
    real: float
    floor: float
    same: float


PRECISIONS: Mapping[torch.dtype, Precision] = {
    torch.float64: Precision(nudge=1e-11, doubtful=1e-8, real=1e-5, floor=1e-12, same=1e-7),
    torch.float32: Precision(nudge=1e-4, doubtful=1e-5, real=3e-2, floor=1e-6, same=1e-3),
}


class Unfit(Exception):  # noqa: N818 - what it says is a reason, and no error of anybody's
    """A run from which nothing can be learnt."""


class Replica:
    """Copies of a model's parameters, in a dtype of their own, and the gradients they get.

    Attributes:
        values: What the parameters are now; `starts`, what they were at the start.
        trained: Those that get gradients.
        noisy: Whether a forward pass has drawn random numbers (dropout, stochastic depth).
        connected: Whether the loss has depended on a trained parameter.
    """

    def __init__(self, lent: Lent, batches: Batches, loss: Loss | None = None) -> None:
        self.lent = lent
        self.batches = batches
        self.loss = loss
        self.precision = PRECISIONS[batches.dtype]
        self.starts: ByParameter = {
            parameter: self._cast(parameter) for parameter in lent.parameters
        }
        self.values = dict(self.starts)
        self.buffers = {id(buffer): self._cast(buffer) for buffer in lent.buffers}
        self.trained: tuple[nn.Parameter, ...] = ()
        self.shared_targets = False
        self.noisy = False
        self.connected = False

    def _cast(self, tensor: Tensor) -> Tensor:
        """Copy: a forward pass may write to what it is given."""
        value, dtype = full(tensor).detach(), tensor.dtype
        if dtype.is_complex:
            dtype = torch.promote_types(self.batches.dtype, torch.complex64)
        elif dtype.is_floating_point:
            dtype = self.batches.dtype
        return value.to(self.batches.device, dtype, copy=True)

    def training(
        self, parameters: tuple[nn.Parameter, ...], *, shared_targets: bool = False
    ) -> "Replica":
        """Return the same model at its start, with other parameters to be trained.

        With `shared_targets` equal outputs have equal targets.
        """
        again = copy.copy(self)
        again.values, again.trained = dict(self.starts), parameters
        again.shared_targets = shared_targets
        return again

    def gradients(self, step: int) -> ByParameter:
        """Return the gradients at the inputs and the noise of one step, cleaned of rounding.

        Where any are so small that they may be nothing but rounding, they are taken again, of a
        third of the loss and with all parameters and inputs larger by a nudge. What then comes out
        different is zero, but for the order in which a computer adds.
        """
        raw = self._gradients(step, nudge=0.0, share=1.0)
        if not self._may_be_rounding(raw.values()):
            return raw
        again = self._gradients(step, nudge=self.precision.nudge, share=1 / 3)
        return {p: _without_rounding(g, again[p], self.precision) for p, g in raw.items()}

    def _may_be_rounding(self, gradients: Iterable[Tensor]) -> bool:
        """Whether some gradient, or some slice of one, is smaller than rounding could make it."""
        found = [(size, g) for g in gradients if (size := largest(g))]
        if self.loss is not None:
            return bool(found)
        most = max([1.0, *(size for size, _ in found)])  # every output weighs about one
        limit = self.precision.doubtful * most
        return any(_smallest_slice(g) < limit for _, g in found)

    def _gradients(self, step: int, *, nudge: float, share: float) -> ByParameter:
        # Parameters again: lists of parameters, which a forward pass may slice, wrap all else anew.
        values = {parameter: lazily_copied(value) for parameter, value in self.values.items()}
        values |= {p: values[p] * (1 + nudge) for p in self.trained if nudge}
        leaves = {p: nn.Parameter(value, requires_grad=False) for p, value in values.items()}
        for parameter in self.trained:
            leaves[parameter].requires_grad_()
        buffers = {key: buffer.clone() for key, buffer in self.buffers.items()}
        self.lent.swap({id(p): leaf for p, leaf in leaves.items()} | buffers)
        loss = self.loss or _Targets(step, shared=self.shared_targets)
        with self._seeded(step):
            call = self.batches.draw(step, nudge)
            value = share * scalar(loss(self.lent.model(*call.args, **call.kwargs)))
            trained = [leaves[parameter] for parameter in self.trained]
            found: Sequence[Tensor | None] = [None] * len(trained)
            if value.requires_grad:
                self.connected = True
                found = torch.autograd.grad(value, trained, allow_unused=True)
        gradients = (
            torch.zeros_like(leaf) if g is None else dense(g) / share
            for leaf, g in zip(trained, found, strict=True)
        )
        return dict(zip(self.trained, gradients, strict=True))

    @contextlib.contextmanager
    def _seeded(self, step: int) -> Iterator[None]:
        """Start all random generators at a state of this step; note whether one was used."""
        cuda = [torch.cuda.default_generators[index] for index in cuda_devices(self.lent.model)]
        random.seed(step)
        started = [(g, g.manual_seed(step).get_state()) for g in (self.lent.generator, *cuda)]
        yield
        self.noisy |= any(not torch.equal(g.get_state(), state) for g, state in started)

    def descend(self, gradients: ByParameter) -> None:
        """Take one step of plain gradient descent, so long that some parameter moves by a tenth.

        One step length for all: only then does the step commute with every exchange of units.
        """
        ratios = [size_of(g) / self._usual_size(p) for p, g in gradients.items()]
        largest = max(ratios, default=0.0)
        if largest > 0:
            self.values = self.values | {
                p: self.values[p] - g * (STRIDE / largest) for p, g in gradients.items()
            }

    def _usual_size(self, parameter: nn.Parameter) -> float:
        """Return a parameter's size at the start; that of zeros is what is usual for the shape."""
        start = self.starts[parameter]
        return size_of(start) or math.sqrt(
            max(len(start), 1) / max(start.numel(), 1) if start.ndim else 1
        )


STRIDE = 0.1
"""Length of a step, relative to the size of the parameter that it moves most."""


def size_of(tensor: Tensor) -> float:
    """Return the root of the mean square."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    wide = None if tensor.device.type == "mps" else torch.float64
    norm = float(torch.linalg.vector_norm(plain, dtype=wide))
    return norm / math.sqrt(max(tensor.numel(), 1))


def largest(gradient: Tensor) -> float:
    """Return the largest size of an element; infinite, or no number, where any is."""
    return float(_extent(gradient.flatten(), 0)) if gradient.numel() else 0.0


def _extent(gradient: Tensor, axis: int) -> Tensor:
    """Return the largest size of an element along an axis; much faster than a norm."""
    if gradient.is_complex():
        return gradient.abs().amax(axis)
    return torch.maximum(gradient.amax(axis), -gradient.amin(axis))


def _smallest_slice(gradient: Tensor) -> float:
    """Return the largest element of the slice, along either of the first axes, where it is least.

    Slices of zeros do not count.
    """
    rows = gradient.flatten(1) if gradient.ndim > 1 else gradient.reshape(1, -1)
    found = [_extent(rows, axis) for axis in range(min(gradient.ndim, 2))] or [gradient.abs()]
    return min((float(s[s > 0].amin()) for s in found if bool(s.any())), default=math.inf)


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient without its graph, its sparsity or its sharding."""
    plain = full(gradient)
    return plain.to_dense() if plain.layout != torch.strided else plain


def _without_rounding(gradient: Tensor, again: Tensor, precision: Precision) -> Tensor:
    """Set to zero what did not come out the same the second time, or is too small to tell."""
    apart, size = (gradient - again).abs(), gradient.abs()
    if not bool(size.any()) or bool(apart.sum() > 0.3 * size.sum()):
        return torch.zeros_like(gradient)
    is_real = (apart <= precision.real * size) & (size > precision.floor * size.amax())
    return torch.where(is_real, gradient, 0.0)


# A loss that is generic


@dataclass(frozen=True, slots=True)
class _Targets:
    """A loss in which every element of the output has a random weight of its own.

    With `shared`, outputs that are copies of one another (of copied critics, of the members of an
    ensemble) have their weights in common, as they have their targets in common.
    """

    step: int
    shared: bool = False

    def __call__(self, output: Any) -> Tensor:
        """Return the weighted sum of all floating-point outputs."""
        outputs = [t for t in tensors_in(output) if t.requires_grad]
        weights = [self._weights(number, tensor) for number, tensor in enumerate(outputs)]
        if self.shared:
            weights = list(_shared(outputs, weights))
        parts = ((t * w).sum().real for t, w in zip(outputs, weights, strict=True))
        return sum(parts, torch.zeros(()))

    def _weights(self, number: int, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1009 * self.step + number)
        dtype = torch.complex128 if like.is_complex() else torch.float64
        return torch.randn(like.shape, generator=generator, dtype=dtype).to(like)


def _shared(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Give equal outputs, and equal slices of one output, equal weights."""
    for number, output in enumerate(outputs):
        same = (n for n in range(number) if _is_copy(outputs[n], output))
        weight = weights[next(same, number)]
        for axis in range(output.ndim):
            rows = output.detach().movedim(axis, 0).flatten(1) if output.ndim > 1 else output
            if rows.ndim > 1 and min(rows.shape) > 1 and not rows.is_complex():
                weight = weight.index_select(axis, equal_rows(rows)[0].to(weight.device))
        yield weight


def _is_copy(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)
