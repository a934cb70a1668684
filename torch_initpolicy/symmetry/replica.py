"""Runs a model on copies of its parameters, to see what gradients they get.

Knows how to run a model without touching it and which part of a gradient is rounding;
neither units nor verdicts.
"""

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.symmetry.units import equal_rows
from torch_initpolicy.tensors.base import dtype_name
from torch_initpolicy.trace.borrow import borrowed
from torch_initpolicy.trace.stand_ins import copied
from torch_initpolicy.trace.trees import Call, tensors_in
from torch_initpolicy.writing.crew import cores_restored
from torch_initpolicy.writing.shards import full, is_sharded

Loss = Callable[[Any], Tensor]
"""What the model returned, to a scalar."""

Values = dict[str, Tensor]
"""Tensors by the name of the parameter they stand for, as `named_parameters()` has it."""

#
# Inputs that are generic and new at every step
#


@dataclass(frozen=True)
class Batches:
    """Draws inputs like given ones.

    Attributes:
        like: Inputs of the right shapes; on the meta device where only shapes are known.
        style: `"fresh"`, all numbers new; `"near"`, the given numbers with noise of a tenth;
            `"given"`, the given numbers.
        dtype: Of floating-point inputs.
        vocabulary: How many indices are valid where the given ones do not say.
    """

    like: Call
    style: str
    dtype: torch.dtype
    device: torch.device
    vocabulary: int

    def draw(self, step: int, nudge: float = 0.0) -> Call:
        """Return the inputs of one step, larger by a nudge where they are numbers."""
        generator = torch.Generator().manual_seed(977 * step + 1)

        def one(tensor: Tensor) -> Tensor:
            drawn = self._one(tensor, generator).to(self.device)
            return drawn * (1 + nudge) if nudge and drawn.is_floating_point() else drawn

        return self.like.mapped(one)

    def _one(self, like: Tensor, generator: torch.Generator) -> Tensor:
        if like.is_complex():
            parts = self._one(torch.view_as_real(like), generator)
            return torch.view_as_complex(parts.contiguous())
        if like.is_meta:
            return self._from_shape(like, generator)
        if not like.is_floating_point():
            return self._indices(like, generator)
        given = like.detach().to("cpu", self.dtype)
        if self.style == "given" or not bool(given.isfinite().all()) or _is_mask(given):
            return given
        if self.style == "near":
            return given * (1 + 0.1 * self._normal(given.shape, generator))
        return self._fresh(given, generator)

    def _normal(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=self.dtype)

    def _from_shape(self, like: Tensor, generator: torch.Generator) -> Tensor:
        if like.is_floating_point():
            return self._normal(like.shape, generator)
        if like.dtype == torch.bool:
            return torch.ones(like.shape, dtype=torch.bool)
        drawn = torch.randint(self.vocabulary, like.shape, generator=generator)
        return drawn.to(like.dtype)

    def _fresh(self, given: Tensor, generator: torch.Generator) -> Tensor:
        """Draw from the range of the given numbers, so that what must be positive stays so."""
        low, high = given.aminmax() if given.numel() else (given.sum(), given.sum())
        if bool(low == high):
            return low + self._normal(given.shape, generator) * (low.abs() / 3 if low else 1.0)
        if bool(low < 0):
            std, mean = torch.std_mean(given)
            return mean + std * self._normal(given.shape, generator)
        drawn = torch.rand(given.shape, generator=generator, dtype=self.dtype)
        return low + (high - low) * drawn

    def _indices(self, like: Tensor, generator: torch.Generator) -> Tensor:
        given = like.detach().cpu()
        if self.style != "fresh" or given.dtype == torch.bool or not given.numel():
            return given
        low, high = int(given.min()), int(given.max())
        if (low, high) == (0, 0):
            high = self.vocabulary - 1
        elif high in (1, low):  # a mask, or a length
            return given
        return torch.randint(low, high + 1, given.shape, generator=generator).to(given.dtype)


def _is_mask(given: Tensor) -> bool:
    return given.numel() > 1 and bool(((given == 0) | (given == 1)).all()) and bool(given.any())


def vocabulary(model: nn.Module) -> int:
    """Return how many indices every table of a model holds, so that any of them may be meant."""
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return min((count for count in rows if count > 2), default=2)


#
# Gradients
#


def scalar(loss: object) -> Tensor:
    """Return what a loss function made, and refuse what is no single number.

    Raises:
        TraceError: It is none.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        raise TraceError(f"loss_fn returns a real scalar tensor, got {_described(loss)}")
    return loss.squeeze()


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"one of shape {tuple(value.shape)}, {dtype_name(value.dtype)}"


class _Pass(nn.Module):
    """A model whose forward pass returns the gradients of its loss.

    The backward pass runs inside the forward's, while the stand-ins are still in place: gradient
    checkpointing runs parts of the model again.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, call: Call, loss: Loss, leaves: Sequence[Tensor]
    ) -> tuple[Tensor | None, ...] | None:
        """Run the model and differentiate; None where its loss depends on no leaf."""
        value = loss(self.model(*call.args, **call.kwargs))
        if not value.requires_grad:
            return None
        return torch.autograd.grad(value, leaves, allow_unused=True)


class Precision(NamedTuple):
    """What rounding does in one dtype.

    Attributes:
        nudge: Relative change of all parameters that rerolls rounding and changes little else.
        real: A gradient is real where the nudge changes it by less than this, relatively,
        floor: and where it is larger than this, relative to the largest of its parameter.
        same: Gradients are equal where they differ by less than this, relatively.
    """

    nudge: float
    real: float
    floor: float
    same: float


PRECISIONS: Mapping[torch.dtype, Precision] = {
    torch.float64: Precision(nudge=1e-11, real=1e-5, floor=1e-12, same=1e-7),
    torch.float32: Precision(nudge=1e-4, real=3e-2, floor=1e-6, same=1e-3),
}


class Replica:
    """Copies of a model's parameters, in a dtype of their own, and the gradients they get.

    To be used within `replica()`, which keeps the model as it was.

    Attributes:
        values: What the parameters are now.
        starts: What they were at the start.
        trained: Names of those that get gradients.
        noisy: Whether a forward pass has drawn random numbers (dropout, stochastic depth).
        connected: Whether the loss has depended on a trained parameter.
    """

    def __init__(self, model: nn.Module, batches: Batches, loss: Loss | None) -> None:
        self.model = _Pass(model)
        self.batches = batches
        self.loss = loss
        self.precision = PRECISIONS[batches.dtype]
        self.values = {name: self._cast(p) for name, p in model.named_parameters()}
        self.starts = dict(self.values)
        self.buffers = {name: self._cast(b) for name, b in model.named_buffers()}
        self.trained: tuple[str, ...] = ()
        self._last: tuple[tuple[object, ...], Values] | None = None
        self.noisy = False
        self.connected = False
        self.shared_targets = False

    def _cast(self, tensor: Tensor) -> Tensor:
        """Copy: a forward pass may write to what it is given."""
        value = (full(tensor) if is_sharded(tensor) else tensor).detach()
        kinds = {True: torch.promote_types(self.batches.dtype, torch.complex64)}
        if not (value.is_floating_point() or value.is_complex()):
            return copied(value)
        dtype = kinds.get(value.is_complex(), self.batches.dtype)
        return copied(value).to(self.batches.device, dtype)

    def gradients(self, step: int) -> Values:
        """Return the gradients at the inputs and the noise of one step, cleaned of rounding.

        Where any are so small that they may be nothing but rounding, they are taken again, of a
        third of the loss and with all parameters and inputs larger by a nudge. What then comes out
        different is zero, but for the order in which a computer adds.
        """
        asked = (step, self.trained, self.values, self.shared_targets)
        if self._last is None or any(a is not b for a, b in zip(asked, self._last[0], strict=True)):
            self._last = asked, self._clean(step)
        return dict(self._last[1])

    def _clean(self, step: int) -> Values:
        raw = self._gradients(step, nudge=0.0, share=1.0)
        if not self._may_be_rounding(raw):
            return raw
        again = self._gradients(step, nudge=self.precision.nudge, share=1 / 3)
        return {name: _real(g, again[name], self.precision) for name, g in raw.items()}

    def _may_be_rounding(self, gradients: Values) -> bool:
        """Whether some gradient, or some slice of one, is smaller than rounding could make it."""
        found = [g.abs() for g in gradients.values() if bool(g.any())]
        if not found:
            return False
        if self.loss is not None or self.batches.dtype != torch.float64:
            return True
        largest = max(1.0, *(float(g.amax()) for g in found))  # every output weighs about one
        return any(_smallest_slice(g) < _DOUBTFUL * largest for g in found)

    def _gradients(self, step: int, *, nudge: float, share: float) -> Values:
        values = {name: self._leaf(name, nudge) for name in self.values}
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        state = {f"model.{name}": tensor for name, tensor in (values | buffers).items()}
        leaves = [values[name] for name in self.trained]
        loss = self.loss or _Targets(step, shared=self.shared_targets)
        with _seeded(step) as drew_noise:
            call = self.batches.draw(step, nudge)
            arguments = (call, lambda output: share * scalar(loss(output)), leaves)
            found = torch.func.functional_call(self.model, state, arguments)
        self.noisy |= drew_noise()
        self.connected |= found is not None
        pairs = zip(leaves, found or [None] * len(leaves), strict=True)
        gradients = (torch.zeros_like(p) if g is None else dense(g) / share for p, g in pairs)
        return dict(zip(self.trained, gradients, strict=True))

    def training(self, keys: tuple[str, ...], *, shared_targets: bool = False) -> "Replica":
        """Return the same model at its start, with other parameters to be trained.

        Args:
            keys: Names of those that get gradients.
            shared_targets: Whether equal outputs have equal targets.
        """
        again = copy.copy(self)
        again.values, again.trained = dict(self.starts), keys
        again.shared_targets, again._last = shared_targets, None  # noqa: SLF001 - our own
        return again

    def descend(self, gradients: Values) -> None:
        """Take one step of plain gradient descent, so long that some parameter moves by a tenth.

        One step length for all: only then does the step commute with every exchange of units.
        """
        ratios = [_size(g) / self._sizes(name) for name, g in gradients.items()]
        largest = max(ratios, default=0.0)
        if largest > 0:
            self.values = self.values | {
                name: self.values[name] - g * (STRIDE / largest) for name, g in gradients.items()
            }

    def _sizes(self, name: str) -> float:
        """Return a parameter's size at the start; that of zeros is what is usual for the shape."""
        start = self.starts[name]
        usual = float(max(start.shape[0], 1) / max(start.numel(), 1)) ** 0.5 if start.ndim else 1.0
        return _size(start) or usual

    def _leaf(self, name: str, nudge: float) -> Tensor:
        value = copied(self.values[name])
        if name not in self.trained or not (value.is_floating_point() or value.is_complex()):
            return value
        return (value * (1 + nudge) if nudge else value).requires_grad_()


STRIDE = 0.1
"""Length of a step, relative to the size of the parameter that it moves most."""


def _size(tensor: Tensor) -> float:
    """Return the root of the mean square."""
    return float(tensor.abs().double().pow(2).mean().sqrt()) if tensor.numel() else 0.0


_DOUBTFUL = 1e-8
"""Gradients smaller than this, relative to the largest, are looked at twice."""


def _smallest_slice(size: Tensor) -> float:
    """Return the largest element of the slice, along either of the first axes, where it is least.

    Slices of zeros do not count.
    """
    slices = [size.flatten(1).amax(1), size.flatten(1).amax(0)] if size.ndim > 1 else [size]
    return min((float(s[s > 0].amin()) for s in slices if bool(s.any())), default=math.inf)


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient without its graph, its sparsity or its sharding."""
    plain = full(gradient) if is_sharded(gradient) else gradient.detach()
    return plain.to_dense() if plain.layout != torch.strided else plain


def _real(gradient: Tensor, again: Tensor, precision: Precision) -> Tensor:
    """Set to zero what did not come out the same the second time, or is too small to tell."""
    apart, size = (gradient - again).abs(), gradient.abs()
    if not bool(size.any()) or bool(apart.sum() > 0.3 * size.sum()):
        return torch.zeros_like(gradient)
    is_real = (apart <= precision.real * size) & (size > precision.floor * size.amax())
    return torch.where(is_real, gradient, 0.0)


@dataclass(frozen=True)
class _Targets:
    """A loss in which every element of the output has a random weight of its own.

    With `shared`, outputs that are copies of one another (of copies critics, of the members of an
    ensemble) have their weights in common, as they have their targets in common.
    """

    step: int
    shared: bool = False

    def __call__(self, output: Any) -> Tensor:
        """Return the weighted sum of all floating-point outputs."""
        outputs = [t for t in tensors_in(output) if t.requires_grad]
        if not outputs:
            return torch.zeros(())
        weights = [self._weights(number, tensor) for number, tensor in enumerate(outputs)]
        if self.shared:
            weights = list(_shared(outputs, weights))
        parts = [(t * w).sum().real for t, w in zip(outputs, weights, strict=True)]
        return sum(parts[1:], parts[0])

    def _weights(self, number: int, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1009 * self.step + number)
        dtype = torch.complex128 if like.is_complex() else torch.float64
        return torch.randn(like.shape, generator=generator, dtype=dtype).to(like)


def _shared(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Give equal outputs, and equal slices of one output, equal weights."""
    for number, (output, own) in enumerate(zip(outputs, weights, strict=True)):
        copies = next((n for n in range(number) if _copies(outputs[n], output)), number)
        weight = weights[copies] if copies != number else own
        for axis in range(output.ndim):
            weight = _shared_along(output.detach(), weight, axis)
        yield weight


def _copies(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def _shared_along(output: Tensor, weight: Tensor, axis: int) -> Tensor:
    rows = output.movedim(axis, 0).flatten(1) if output.ndim > 1 else output[:, None]
    if rows.is_complex() or rows.shape[0] < 2 or rows.shape[1] < 2:
        return weight
    labels, _ = equal_rows(lambda: [rows])
    return weight.index_select(axis, labels)


#
# Surroundings
#


@contextlib.contextmanager
def _seeded(step: int) -> Iterator[Callable[[], bool]]:
    """Start all random generators at a state of this step; say afterwards whether one was used."""
    torch.manual_seed(step)
    random.seed(step)
    before = random_states()
    yield lambda: any(not torch.equal(a, b) for a, b in zip(before, random_states(), strict=True))


def random_states() -> list[Tensor]:
    """Return the states of torch's generators."""
    states = [torch.random.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return states


@contextlib.contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """Keep a model, and the process' modes, as they were while it is run on stand-ins."""
    devices = {p.device.type for p in model.parameters()} | {"cpu"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(borrowed(model))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for device in devices - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        if sum(p.numel() for p in model.parameters()) < _SMALL:
            stack.enter_context(cores_restored())
            torch.set_num_threads(1)
        yield


_SMALL = 4_000_000
"""Parameters of a model up to which several cores cost more than they give."""
