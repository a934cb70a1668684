"""Scales the weights of one operator, for each kind of operator that applies weights.

Products are linear in their weight, so that one measurement settles the scale. Attention is three
products, an average, and one more. Recurrent layers feed back, and are run until they have settled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from torch_initpolicy.calibrate.recurrent import run_again, scale_recurrent
from torch_initpolicy.calibrate.response import means
from torch_initpolicy.calibrate.scaler import Operand, Scaler
from torch_initpolicy.calibrate.scales import Target
from torch_initpolicy.tensors.base import dtype_name
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.recorder import Ran


def _scale_product(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> None:
    """Scale `weight * input + bias`, whatever the product."""
    sites = map(scaler.site_behind, _applied_weights(scaler, ran, operands))
    site = next(filter(None, sites), None)
    if site is None:
        return
    output = ran.outputs[0]
    if not (output.is_floating_point() or output.is_complex()):
        what = dtype_name(output.dtype)
        scaler.leave([site.name], f"its operator's output is of {what}, not to be scaled")
        return
    biases = (operand for operand in operands if operand.slot == "bias")
    bias = next(biases, None) if ran.kwargs.get("beta", 1) else None
    target = Target((site.name,), ran.node.op, scaler.copies_of(site))
    _settle(scaler, target, output, bias, ran)


def _applied_weights(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> Iterator[Operand]:
    """Yield the operands that are weights, as the data flow has just found them."""
    found = {
        use.value.index
        for use in scaler.flow.found
        if use.node.index == ran.node.index and use.slot != "bias"
    }
    yield from (operand for operand in operands if operand.value in found)


def _settle(scaler: Scaler, target: Target, output: Tensor, bias: Operand | None, ran: Ran) -> None:
    """Scale a target and its output in place, and centre the output's units where that is wanted.

    A second tensor of the output's size would be most of what calibration adds to a forward pass.
    """
    added = None if bias is None else _as_added(bias.tensor, ran)
    offset = added if added is not None and added.count_nonzero() else None
    weighted = output if offset is None else output.sub_(offset)
    shifted = scaler.bias_to_shift(bias, output)
    if bias is None or added is None or shifted is None:
        weighted.mul_(scaler.settle(target, scaler.measure(weighted, offset)))
        if offset is not None:
            weighted.add_(offset)
        return
    shift = means(weighted, added.shape, scaler.settings.groups)
    scale = scaler.settle(target, scaler.measure(weighted.sub_(shift)))
    scaler.set_bias(shifted, bias.tensor, -scale * shift / ran.kwargs.get("beta", 1))
    weighted.mul_(scale)


def _as_added(bias: Tensor, ran: Ran) -> Tensor:
    """Return what a bias adds, in a shape that broadcasts: units before the axes of a kernel."""
    behind = int(ran.node.op[-2]) if ran.node.op.startswith("conv") else 0
    bias = bias * ran.kwargs.get("beta", 1)
    return bias.reshape(-1, *(1,) * behind) if bias.ndim == 1 else bias


def _scale_attention(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> None:
    """Scale the projections of queries, keys and values, then that of the output."""
    given = {operand.slot: operand for operand in operands}
    for index, slot in enumerate(("query", "key", "value")):
        _scale_projection(scaler, given, slot, index)
    run_again(ran, ran.args)
    site = scaler.site_behind(given["out_proj_weight"])
    if site is not None:
        target = Target((site.name,), "output", scaler.copies_of(site))
        _settle(scaler, target, ran.outputs[0], given.get("out_proj_bias"), ran)


def _scale_projection(scaler: Scaler, given: Mapping[str, Operand], slot: str, index: int) -> None:
    """Scale one of three projections, packed into one weight or with a weight each."""
    packed = given.get("in_proj_weight")
    weight = packed or given[f"{slot[0]}_proj_weight"]
    site = scaler.site_behind(weight)
    if site is None:
        return
    if packed is not None and site.storage != "plain":
        scaler.leave([site.name], "its parametrisation packs three projections into one weight")
        return

    def own(tensor: Tensor) -> Tensor:
        return tensor if packed is None else tensor.chunk(3)[index]

    bias = given.get("in_proj_bias")
    offset = bias.tensor.chunk(3)[index] if bias is not None else None
    response = scaler.measure(F.linear(given[slot].tensor, own(weight.tensor)), offset)
    parts = tuple(map(own, scaler.copies_of(site)))
    block = index if packed is not None else None
    scaler.settle(Target((site.name,), slot, parts, block), response)


def _note_lookup(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> None:
    """Leave the rows of tables alone: nothing is summed."""
    for operand in _applied_weights(scaler, ran, operands):
        scaler.leave_operand(operand, "a table whose rows are looked up")


Handler = Callable[[Scaler, Ran, Sequence[Operand]], None]
"""Scales what an operator applies; one for each role."""

HANDLERS: Mapping[OpRole, Handler] = MappingProxyType({
    OpRole.WEIGHS: _scale_product,
    OpRole.CONTRACTS: _scale_product,
    OpRole.PROJECTS_AND_ATTENDS: _scale_attention,
    OpRole.RECURS: scale_recurrent,
    OpRole.LOOKS_UP: _note_lookup,
})  # fmt: skip
"""How to scale what an operator applies, by its role."""
