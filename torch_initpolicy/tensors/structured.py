"""Initializers that need the whole tensor at once; random numbers come as standard normals."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors.axes import Axes, conventional
from torch_initpolicy.tensors.base import (
    Context,
    Gain,
    Normals,
    Spread,
    fitting,
    joined_blocks,
    known,
    merged_spreads,
    parts,
    take_gain,
    take_number,
)
from torch_initpolicy.tensors.initializer import Initializer, register
from torch_initpolicy.tensors.maps import Maps, maps
from torch_initpolicy.tensors.samplers import Joint
from torch_initpolicy.tensors.standards import haar


def _built_by_block(
    shape: Sequence[int],
    axes: Axes | None,
    write_: Callable[[Maps, Normals], None],
    gain: float,
    normal: Normals,
) -> Tensor:
    """Build a tensor, starting from zeros, by writing the linear maps of each packed block."""
    layout = conventional(shape) if axes is None else axes
    blocks = []
    for block_shape, block_axes in parts(shape, layout):
        block = normal((0,)).new_zeros(block_shape)
        if block.numel():
            write_(maps(block, block_axes), normal)
        blocks.append(block)
    return joined_blocks(shape, layout, blocks).mul_(gain)


def _metas(owner: object, shape: Sequence[int], axes: Axes | None) -> Iterator[Maps]:
    """Yield the linear maps of each packed block without their numbers, to look at their sizes."""
    for block_shape, block_axes in parts(shape, fitting(owner, shape, axes)):
        yield maps(torch.empty(block_shape, device="meta"), block_axes)


@register
@dataclass(frozen=True, slots=True)
class Orthogonal(Initializer):
    """Draw a random orthogonal matrix, uniform (Haar) among all such, times `gain`.

    Each packed block, each group and each copy is a matrix of its own, `(out, in * kernel)`. Its
    rows are orthonormal if it is wide, its columns if it is tall. Complex tensors become unitary;
    half precision is rounded from float32. For a convolution this is orthogonal as a matrix but
    keeps no norms; `DeltaOrthogonal` does.

    Args:
        gain: Multiplies the matrix; `"meets"` or `"fed_by"` for that of an activation.

    Reference:
        Saxe, McClelland and Ganguli, *Exact solutions to the nonlinear dynamics of learning in
        deep linear neural networks*, 2013, arXiv:1312.6120.

    Examples:
        >>> weight = torch.empty(3, 5)
        >>> Orthogonal()(weight)
        >>> torch.allclose(weight @ weight.mT, torch.eye(3), atol=1e-6)
        True
    """

    sizes = ("gain",)

    gain: Gain = 1.0

    def __post_init__(self) -> None:
        take_gain(self, self.gain)

    def resolve(self, context: Context) -> "Orthogonal":
        factors = context.shared.factors if context.shared else 1
        return Orthogonal(math.pow(context.gain(self.gain), 1 / factors))

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Joint:
        """Draw matrices; their elements are normal, almost, but for tiny ones."""
        gain = known(self.gain)
        longest = (max(_matrix_sizes(each)[1:]) for each in _metas(self, shape, axes))
        spreads = [Spread(0.0, gain / math.sqrt(n) if n else 0.0) for n in longest]
        return Joint(partial(_built_by_block, shape, axes, _haar_, gain), merged_spreads(spreads))


def _matrix_sizes(each: Maps) -> tuple[int, int, int]:
    """Return count, rows and columns of the maps as matrices `(out, in * kernel)`."""
    count, outputs, inputs = each.sizes
    return count, outputs, inputs * math.prod(each.kernel)


def _orthonormal(normal: Normals, count: int, rows: int, columns: int) -> Tensor:
    matrices = haar(normal((count, min(rows, columns), max(rows, columns))))
    return matrices if rows <= columns else matrices.mT


def _haar_(each: Maps, normal: Normals) -> None:
    each.view.copy_(_orthonormal(normal, *_matrix_sizes(each)).reshape(each.view.shape))


@register
@dataclass(frozen=True, slots=True)
class DeltaOrthogonal(Initializer):
    """Put a random orthogonal matrix at the middle of a kernel of zeros, times `gain`.

    A convolution so initialised keeps the norm of its input. It needs at least as many outputs as
    inputs, and a kernel of odd extents, which has a middle.

    Reference:
        Xiao et al., *Dynamical Isometry and a Mean Field Theory of CNNs*, 2018, arXiv:1806.05393
        (delta-orthogonal kernels).

    Examples:
        >>> kernel = torch.empty(4, 4, 3, 3)
        >>> DeltaOrthogonal()(kernel)
        >>> middle = kernel[:, :, 1, 1]
        >>> torch.allclose(middle @ middle.mT, torch.eye(4), atol=1e-6)
        True
    """

    sizes = ("gain",)

    gain: Gain = 1.0

    def __post_init__(self) -> None:
        take_gain(self, self.gain)

    def resolve(self, context: Context) -> "DeltaOrthogonal":
        return DeltaOrthogonal(context.gain(self.gain))

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Joint:
        """Draw matrices; the spread counts the zeros around them."""
        spreads = [self._spread(each) for each in _metas(self, shape, axes)]
        build = partial(_built_by_block, shape, axes, _haar_at_centre_, known(self.gain))
        return Joint(build, merged_spreads(spreads))

    def _spread(self, each: Maps) -> Spread:
        _, outputs, inputs = each.sizes
        taps = math.prod(each.kernel)
        if inputs > outputs:
            raise PolicyError(
                f"{self} needs as many outputs as inputs, got {inputs} inputs and {outputs} "
                "outputs; use Orthogonal()"
            )
        if any(extent % 2 == 0 for extent in each.kernel):
            raise PolicyError(f"{self} needs odd extents, got {each.kernel}; use Orthogonal()")
        std = known(self.gain) / math.sqrt(outputs * taps) if outputs else 0.0
        return Spread(0.0, std, kurtosis=3.0 * taps)


def _haar_at_centre_(each: Maps, normal: Normals) -> None:
    each.centre.copy_(_orthonormal(normal, *each.sizes).reshape(each.centre.shape))


def _eye_(each: Maps, normal: Normals) -> None:
    """Write identities at the middle tap; surplus rows or columns stay zero."""
    _, outputs, inputs = each.sizes
    eye = torch.eye(outputs, inputs, dtype=each.view.dtype, device=each.view.device)
    shape = each.centre.shape[each.batch :]
    each.centre.copy_(eye.reshape(shape).expand(each.centre.shape))


@dataclass(frozen=True, slots=True)
class _Copying(Initializer):
    """Base of what lets a map copy its inputs, times `gain`."""

    sizes = ("gain",)

    gain: float = 1.0

    def __post_init__(self) -> None:
        take_number(self, "gain")

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Joint:
        """Write ones and zeros, of which a variance says nothing."""
        for each in _metas(self, shape, axes):
            self._check(each.kernel)
        return Joint(partial(_built_by_block, shape, axes, _eye_, self.gain))

    @abstractmethod
    def _check(self, kernel: tuple[int, ...]) -> None:
        """Raise where a map with such a kernel cannot copy its inputs so."""


@register
@dataclass(frozen=True, slots=True)
class Dirac(_Copying):
    """Let a convolution copy its inputs: an identity at the middle of a kernel of zeros.

    Each group, copy and packed block copies its own inputs, times `gain`. Outputs beyond their
    number are zero, and behind a ReLU without a bias they stay so for ever.

    Reference:
        Zagoruyko and Komodakis, *DiracNets*, 2017, arXiv:1706.00388.

    Examples:
        >>> conv = torch.nn.Conv2d(2, 2, 3, padding=1, bias=False)
        >>> Dirac()(conv.weight)
        >>> image = torch.ones(1, 2, 5, 5)
        >>> torch.equal(conv(image), image)
        True
    """

    def _check(self, kernel: tuple[int, ...]) -> None:
        if not kernel:
            raise PolicyError(f"{self} needs a kernel, got a matrix; use Identity()")


@register
@dataclass(frozen=True, slots=True)
class Identity(_Copying):
    """Let a linear map copy its inputs: ones on the diagonal, zeros elsewhere.

    Each copy and packed block is an identity of its own, times `gain`.

    Reference:
        Le, Jaitly and Hinton, *A Simple Way to Initialize Recurrent Networks of Rectified Linear
        Units*, 2015, arXiv:1504.00941.

    Examples:
        >>> weight = torch.empty(2, 3)
        >>> Identity()(weight)
        >>> weight
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """

    def _check(self, kernel: tuple[int, ...]) -> None:
        if math.prod(kernel) > 1:
            raise PolicyError(f"{self} needs a matrix, got a {kernel} kernel; use Dirac()")


@register
@dataclass(frozen=True, slots=True)
class Sparse(Initializer):
    """Connect each output unit to the same number of inputs, chosen at random, the rest by zeros.

    The incoming connections are limited, as in the paper; `torch.nn.init.sparse_` limits the
    outgoing ones of `(out, in)` weights, which leaves some units with hardly any input.

    Args:
        sparsity: Share of each unit's incoming weights that is zero, from 0 to 1; the number of
            zeros is rounded up.
        std: Standard deviation of the weights that are not zero.

    Reference:
        Martens, *Deep learning via Hessian-free optimization*, 2010 (sparse initialization).

    Examples:
        >>> weight = torch.empty(8, 10)
        >>> Sparse(0.7)(weight)
        >>> weight.count_nonzero(dim=1).tolist()
        [3, 3, 3, 3, 3, 3, 3, 3]
    """

    sizes = ("std",)

    sparsity: float
    std: float = 0.01

    def __post_init__(self) -> None:
        take_number(self, "sparsity", 0.0)
        take_number(self, "std", 0.0)
        if self.sparsity > 1:
            raise PolicyError(f"Sparse: sparsity is a share from 0 to 1, got {self.sparsity}")

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Joint:
        """Draw weights and which of them are zero; the spread counts the zeros."""
        spreads = [self._spread(_matrix_sizes(each)[2]) for each in _metas(self, shape, axes)]
        build = partial(_built_by_block, shape, axes, self._scatter_, self.std)
        return Joint(build, merged_spreads(spreads))

    def _spread(self, incoming: int) -> Spread:
        kept = 1 - math.ceil(self.sparsity * incoming) / incoming if incoming else 0.0
        return Spread(0.0, self.std * math.sqrt(kept), kurtosis=3 / kept if kept else 1.0)

    def _scatter_(self, each: Maps, normal: Normals) -> None:
        sizes = _matrix_sizes(each)
        count = math.ceil(self.sparsity * sizes[2])
        zeros = normal(sizes).real.topk(count, dim=-1, sorted=False).indices
        values = normal(sizes).scatter_(-1, zeros, 0.0)
        each.view.copy_(values.reshape(each.view.shape))
