"""Measures what one operator has made, as soon as it has run. Judges nothing."""

import inspect
import math
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from torch_initpolicy.signal import statistics
from torch_initpolicy.signal.hidden import scores
from torch_initpolicy.signal.points import Point
from torch_initpolicy.signal.recurrence import look_into
from torch_initpolicy.trace.functorch import bare
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole, argument
from torch_initpolicy.trace.recorder import Ran


def measured_point(
    ran: Ran, role: OpRole, inputs: int, *, site: str | None, source: str | None
) -> Point:
    """Measure the first output of an operator; names are as a `Point` has them."""
    node, output = ran.node, bare(ran.outputs[0]).detach()
    activates = role in (OpRole.ACTIVATES, OpRole.GATES)
    silences = activates and "softm" not in node.op and output.ndim > 0
    shape = tuple(output.shape)
    within = look_into(node.op, node.function, ran.args)
    return Point(
        index=node.index,
        module=node.module,
        op=node.op,
        site=site,
        activates=activates,
        shape=shape,
        dead=statistics.dead_units(output, _unit_axis(output)) if silences else None,
        saturated=_saturated(ran, output) if within is None else within.flat,
        early=None if within is None else within.early,
        over=_taken_together(node, shape),
        source=source,
        line=_line_of_model(),
        **statistics.sketch(output, inputs),
    )


def _saturated(ran: Ran, output: Tensor) -> float | None:
    op = ran.node.op
    attended = scores(op, ran.args, ran.kwargs)
    if attended is not None:
        return statistics.one_sided(*attended)
    if op == "softmax":
        axis = argument(ran.node, 1, "dim", -1)
        read = bare(ran.args[0]) if ran.args else output
        return statistics.one_sided(read.movedim(axis if isinstance(axis, int) else -1, -1))
    if op in ("sin", "cos") and output.ndim and ran.args:
        return statistics.turned_share(bare(ran.args[0]), _unit_axis(output))
    return statistics.flat_share(op, output)


def _taken_together(node: Node, shape: Sequence[int]) -> int | None:
    """Return how many elements a softmax or a normalisation takes together."""
    if node.op in ("softmax", "log_softmax"):
        axis = argument(node, 1, "dim", -1)
        return shape[axis] if isinstance(axis, int) and shape else None
    if node.op in ("layer_norm", "rms_norm"):
        return int(math.prod(argument(node, 1, "normalized_shape", shape)))
    if node.op == "group_norm":
        return math.prod(shape[1:]) // int(argument(node, 1, "num_groups", 1))
    return math.prod(shape[2:]) if node.op == "instance_norm" else None


def _unit_axis(output: Tensor) -> int:
    """Return the axis of the units: channels of images and videos, else the last one."""
    return 1 if output.ndim in (4, 5) else -1


_HERE = str(Path(__file__).parent.parent)
_TORCH = str(Path(torch.__file__).parent)


def _line_of_model() -> str:
    """Return the line of the model's code that is running; empty where only torch's is."""
    left = False
    for frame, line in traceback.walk_stack(inspect.currentframe()):
        file = frame.f_code.co_filename
        if file.startswith(_HERE):
            if left:
                return ""
        else:
            left = True
            if not file.startswith(_TORCH):
                return f"{Path(file).name}:{line}"
    return ""
