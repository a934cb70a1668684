"""Operators: what each of them does, and what those of your own compute.

A table gives the role of every operator of torch, and the names of its arguments. An operator that
is not in it (a custom kernel, mostly) hides what lies behind it, until `register` says what it
computes in operators of torch: these are read in its place, whatever they are.
"""

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch_initpolicy.errors import ArgumentError
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.graph import Node, Value

__all__ = ["register"]


class OpRole(enum.Enum):
    """What an operator does to the signal that goes through it."""

    __hash__ = object.__hash__  # members are single; `Enum` hashes their names, in Python
    WEIGHS = "a linear map of its input by a weight"
    CONTRACTS = "a product summed over an axis: by a weight, or of two signals"
    RECURS = "a recurrent layer"
    LOOKS_UP = "rows of a table, by index"
    ATTENDS = "softmax attention of query, key and value"
    PROJECTS_AND_ATTENDS = "attention together with its input and output projections"
    ACTIVATES = "an activation function"
    GATES = "one half of the input times an activation of the other half"
    COMPUTES = "an element-wise function that is no activation by name"
    MULTIPLIES = "an element-wise product or quotient"
    ADDS = "an element-wise sum or difference"
    NORMALISES = "normalisation, with or without an affine map"
    CASTS = "the same numbers, in another type or place"
    MOVES = "the same numbers, in other positions"
    PICKS = "some of the numbers, by slice or index"
    MIXES = "weighted sums, maxima or selections of the input"
    JOINS = "several inputs side by side"
    SUMMARISES = "a statistic of the input"
    CREATES = "new numbers, which do not depend on those of the input"
    UNKNOWN = "not in the table"


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator: its role and the names of its positional arguments; others are `"input"`."""

    role: OpRole
    slots: tuple[str, ...] = ()


def _each(names: str, role: OpRole, *slots: str) -> dict[str, Operator]:
    return dict.fromkeys(names.split(), Operator(role, slots))


class _Operators(dict[str, Operator]):
    """A table that goes by its name: it is a default, and `help` would print all of it."""

    def __repr__(self) -> str:
        return "OPS"


OPS: Mapping[str, Operator] = MappingProxyType(_Operators(
    _each("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
          OpRole.WEIGHS, "input", "weight", "bias")
    | {"deform_conv2d": Operator(OpRole.WEIGHS, ("input", "weight", "input", "input", "bias"))}
    | _each("bilinear", OpRole.WEIGHS, "input", "input", "weight", "bias")
    | _each("matmul mm bmm mv dot inner tensordot chain_matmul grouped_mm sparse_mm smm",
            OpRole.CONTRACTS, "left", "right", "index")
    | _each("einsum", OpRole.CONTRACTS, "equation")
    | _each("addmm baddbmm addbmm addmv sparse_addmm", OpRole.CONTRACTS, "bias", "left", "right")
    | _each("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
            OpRole.RECURS, "input", "initial")
    | _each("embedding embedding_bag", OpRole.LOOKS_UP, "index", "weight")
    | _each("scaled_dot_product_attention flex_attention", OpRole.ATTENDS,
            "query", "key", "value", "mask")
    | _each("multi_head_attention_forward", OpRole.PROJECTS_AND_ATTENDS,
            "query", "key", "value", "size", "heads", "in_proj_weight", "in_proj_bias",
            "bias_k", "bias_v", "add_zero", "dropout", "out_proj_weight", "out_proj_bias")
    | _each("relu relu6 leaky_relu prelu rrelu elu celu selu gelu silu mish hardswish hardsigmoid "
            "hardtanh tanh sigmoid softplus softsign softmax log_softmax log_sigmoid tanhshrink "
            "softshrink hardshrink threshold softmin gumbel_softmax expit", OpRole.ACTIVATES,
            "input", "slope")
    | _each("glu", OpRole.GATES)
    | _each("exp expm1 exp2 log log1p log2 log10 pow rpow square sqrt rsqrt reciprocal abs "
            "absolute sin cos tan asin acos atan sinh cosh erf erfc erfinv sign clamp clip "
            "clamp_min clamp_max floor ceil round frac logit sinc float_power nan_to_num rdiv "
            "heaviside fix trunc angle sgn logaddexp ndtr log_ndtr erfcx i0 i0e i1 i1e lgamma "
            "digamma", OpRole.COMPUTES)
    | _each("mul multiply div divide true_divide neg negative", OpRole.MULTIPLIES)
    | _each("add sub subtract rsub", OpRole.ADDS)
    | _each("lerp", OpRole.ADDS, "input", "input", "factor")
    | _each("addcmul addcdiv", OpRole.ADDS, "input", "factor", "factor")
    | _each("normal", OpRole.ADDS, "input", "factor")  # a mean, and a deviation times noise
    | _each("batch_norm instance_norm", OpRole.NORMALISES, "input", "state", "state", "weight",
            "bias")
    | _each("layer_norm group_norm", OpRole.NORMALISES, "input", "size", "weight", "bias")
    | _each("rms_norm", OpRole.NORMALISES, "input", "size", "weight")
    | _each("normalize local_response_norm", OpRole.NORMALISES)
    | _each("to float double half bfloat16 type type_as contiguous clone detach cpu cuda data "
            "alias requires_grad dropout dropout1d dropout2d dropout3d alpha_dropout "
            "feature_alpha_dropout as_tensor tensor as_subclass int long bool real imag "
            "view_as_real view_as_complex complex positive conj conj_physical resolve_conj "
            "resolve_neg to_sparse to_sparse_coo to_sparse_csr to_dense coalesce", OpRole.CASTS,
            "input", "like")
    | _each("view reshape flatten unflatten ravel permute transpose t T mT H mH adjoint swapaxes "
            "swapdims movedim moveaxis squeeze unsqueeze expand broadcast_to unbind chunk split "
            "split_with_sizes tensor_split narrow select slice roll flip fliplr flipud rot90 "
            "pixel_shuffle pixel_unshuffle channel_shuffle unfold fold diagonal as_strided "
            "diag_embed diag tril triu atleast_1d atleast_2d atleast_3d hsplit vsplit dsplit "
            "view_as reshape_as expand_as repeat repeat_interleave tile", OpRole.MOVES, "input",
            "like")
    | _each("getitem index_select gather take take_along_dim masked_select index",
            OpRole.PICKS, "input", "index", "index", "index")
    | _each("mean sum nanmean nansum amax amin max min maximum minimum median cumsum cumprod prod "
            "logcumsumexp topk sort kthvalue "
            "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool1d lp_pool2d "
            "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
            "adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d max_unpool2d "
            "interpolate upsample upsample_nearest upsample_bilinear grid_sample "
            "pad masked_fill masked_scatter where scatter scatter_add "
            "scatter_reduce index_add index_copy index_fill index_put index_reduce setitem copy "
            "fft_fft fft_ifft fft_fft2 fft_ifft2 fft_rfft fft_irfft fft_rfft2 fft_irfft2 fft_fftn "
            "fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift affine_grid baddcmul "
            "roi_align roi_pool ps_roi_align ps_roi_pool diff cross outer kron trapz "
            "conv_tbc broadcast_tensors fill one_hot", OpRole.MIXES)
    | _each("pack_padded_sequence pad_packed_sequence", OpRole.MIXES, "input", "index")
    | _each("cat concat concatenate stack hstack vstack dstack column_stack cartesian_prod "
            "meshgrid block_diag pad_sequence", OpRole.JOINS)
    | _each("var std var_mean std_mean norm vector_norm linalg_vector_norm linalg_norm "
            "linalg_matrix_norm frobenius_norm logsumexp dist cdist pairwise_distance "
            "cosine_similarity mse_loss l1_loss cross_entropy nll_loss any all histc numel "
            "count_nonzero aminmax", OpRole.SUMMARISES)
    | _each("zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros "
            "new_ones new_empty new_full new_tensor zeros ones empty full rand randn randint "
            "arange linspace logspace eye range randperm uniform bernoulli exponential "
            "zero argmax argmin argsort nonzero eq ne lt le gt ge isnan isinf isfinite logical_and "
            "logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor "
            "and or xor nms batched_nms searchsorted bucketize unique bincount "
            "remainder fmod mod floordiv rfloordiv floor_divide lshift rshift scalar_tensor "
            "from_numpy device dtype grad cauchy geometric "
            "isin multinomial is_nonzero shape size stft_window hann_window tril_indices "
            "triu_indices equal allclose isclose set_detect_anomaly", OpRole.CREATES)
))  # fmt: skip
"""The operators whose role is known, by the name that `op_name` gives them."""

UNKNOWN = Operator(OpRole.UNKNOWN)

CARRIERS = frozenset({
    OpRole.MULTIPLIES, OpRole.ADDS, OpRole.NORMALISES, OpRole.CASTS, OpRole.MOVES, OpRole.PICKS,
    OpRole.MIXES, OpRole.JOINS,
})  # fmt: skip
"""Roles of operators that only carry the signal: what lies behind them is still met."""

RANDOM = frozenset(
    "rand randn rand_like randn_like randint randint_like randperm normal uniform bernoulli "
    "exponential multinomial cauchy geometric".split()
)
"""Operators that draw random numbers."""


def slots_of(node: Node, op: Operator) -> Iterator[tuple[str, int]]:
    """Yield each value that a node reads, with the name of the argument it stands in."""
    for position, argument in enumerate(node.args):
        slot = op.slots[position] if position < len(op.slots) else "input"
        yield from ((slot, value) for value in _refs(argument))
    for key, argument in node.kwargs.items():
        yield from ((_SLOT_OF_KEYWORD.get(key, key), value) for value in _refs(argument))


_SLOT_OF_KEYWORD = {
    "attn_mask": "mask", "mat1": "left", "mat2": "right", "batch1": "left", "batch2": "right",
    "offs": "index", "indices": "index", "other": "input", "tensors": "input",
    "running_mean": "state", "running_var": "state",
}  # fmt: skip
"""Names of slots, by the keyword that torch gives them where it differs."""


def _refs(argument: Any) -> Iterator[int]:
    if isinstance(argument, Value):
        yield argument.index
    elif isinstance(argument, (tuple, list)):
        for item in argument:
            yield from _refs(item)
    elif isinstance(argument, Mapping):
        for item in argument.values():
            yield from _refs(item)


_PARAMETER_OF: Mapping[str, tuple[str, float]] = MappingProxyType({
    "leaky_relu": ("negative_slope", 0.01),
    "elu": ("alpha", 1.0),
    "celu": ("alpha", 1.0),
    "softplus": ("beta", 1.0),
    "softshrink": ("lambd", 0.5),
    "hardshrink": ("lambd", 0.5),
})  # fmt: skip
"""The argument that shapes an activation, and its default. It is the second one."""

_OTHER_NAMES = {
    "expit": "sigmoid", "log_sigmoid": "logsigmoid", "gumbel_softmax": "softmax",
    "softmin": "softmax",
}  # fmt: skip
"""The activation that an operator is, where it goes by another name."""


SOFTMAX = Activation("softmax")


def activation_of(node: Node) -> Activation:
    """Return the activation that an activating node applies, with its own parameter.

    A bare `prelu` comes without its slope, which is a parameter of the model.
    """
    name = _OTHER_NAMES.get(node.op, node.op)
    if name == "gelu" and argument(node, 1, "approximate", "none") == "tanh":
        return Activation("gelu_tanh")
    if name == "hardtanh":
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        return Activation(name, None if (low, high) == (-1.0, 1.0) else (low, high))
    if name not in _PARAMETER_OF:
        return Activation(name)
    keyword, default = _PARAMETER_OF[name]
    parameter = argument(node, 1, keyword, default)
    standard = name != "leaky_relu" and parameter == default
    return Activation(name, None if standard else float(parameter))


def attention_scale(node: Node) -> float | None:
    """Return what attention multiplies its logits by; None for one over the root of the width."""
    scale: float | None = argument(node, 5 if node.op == "flex_attention" else 6, "scale", None)
    return scale


def argument(node: Node, position: int, keyword: str, default: Any) -> Any:
    """Return an argument of a call, however it was passed."""
    positional = node.args[position] if len(node.args) > position else default
    return node.kwargs.get(keyword, positional)


# Operators of your own

Reference = Callable[..., Any]
"""Computes what an operator does, from the same arguments, by operators of torch."""

_REFERENCES: dict[str, Reference] = {}


def register(operator: str, *, like: Reference) -> None:
    """Say what an operator of your own computes, in operators of torch.

    From then on `like` runs in place of the operator wherever a forward pass is read, audited or
    calibrated: also on meta tensors, for which the operator then needs no kernel. Training, and a
    search for symmetric starts, run the operator itself. Register an operator beside its
    definition, so that every process that has the one has the other, the command line's included.

    Args:
        operator: Its name, as warnings and plans write it: `"my_library::my_relu"`.
        like: A function of the same arguments that returns the same, and changes the same in place.

    Raises:
        ArgumentError: `operator` is no name, or is registered already, or is an operator of torch's
            own whose role is known; or `like` is no function.

    Examples:
        >>> import torch
        >>> from torch import Tensor, nn
        >>> from torch_initpolicy import operators, plan_policy
        >>> @torch.library.custom_op("docs::fast_silu", mutates_args=())
        ... def fast_silu(x: Tensor) -> Tensor:
        ...     return x / (1 + torch.exp(-x))  # or a kernel in Triton, CUDA or C++
        >>> operators.register("docs::fast_silu", like=nn.functional.silu)
        >>> class Net(nn.Sequential):
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return self[1](fast_silu(self[0](x)))
        >>> plan_policy(Net(nn.Linear(8, 8), nn.Linear(8, 8)))["0.weight"].meets
        'silu'
    """
    if not isinstance(operator, str):
        raise ArgumentError(f"operator is a name, 'library::name', got {operator!r}")
    if operator in OPS:
        raise ArgumentError(f"{operator!r} is torch's own, and known; yours is 'library::name'")
    if operator in _REFERENCES:
        raise ArgumentError(f"{operator!r} is registered already, as {_REFERENCES[operator]!r}")
    if not callable(like):
        raise ArgumentError(f"like is a function that computes what {operator} does, got {like!r}")
    _REFERENCES[operator] = like


def reference(operator: str) -> Reference | None:
    """Return what to run in place of an operator, or None where nothing is registered."""
    return _REFERENCES.get(operator)


def remedy(operator: str) -> str:
    """Return the call that makes an unknown operator known, with `function` to be filled in.

    Examples:
        >>> remedy("docs::fast_relu")
        "torch_initpolicy.operators.register('docs::fast_relu', like=function)"
    """
    return f"torch_initpolicy.operators.register({operator!r}, like=function)"
