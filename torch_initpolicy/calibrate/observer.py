"""Scales the weights of each operator of a forward pass right after it has run."""

from typing import Any

from torch import Tensor, nn

from torch_initpolicy.calibrate.handlers import HANDLERS
from torch_initpolicy.calibrate.scaler import Operand, Scaler, Settings
from torch_initpolicy.errors import InitPolicyError
from torch_initpolicy.trace.composed import Composed
from torch_initpolicy.trace.consumers import Uses, advance
from torch_initpolicy.trace.failures import refusal
from torch_initpolicy.trace.functorch import is_wrapped
from torch_initpolicy.trace.inputs import as_call
from torch_initpolicy.trace.record import observe, with_grad_if_asked
from torch_initpolicy.trace.recorder import Ran
from torch_initpolicy.trace.scalars import Scalars
from torch_initpolicy.trace.trees import tensors_in


def scaled_in_one_pass(model: nn.Module, inputs: Any, settings: Settings) -> Uses | None:
    """Run one forward pass, and return what its operators did; None where none ran."""
    call = as_call(inputs)
    names = {id(p): site.name for site in settings.copies.sites.values() for p in site.parameters}

    def run(*, with_grad: bool) -> Uses | None:
        settings.scales.begin()
        observer = ScalingObserver(settings)
        observe(model, call, observer, names=names, with_grad=with_grad)
        return observer.scaler.flow if observer.scaler else None

    try:
        return with_grad_if_asked(run)
    except InitPolicyError:
        raise
    except Exception as error:
        raise refusal(model, call, error) from error


class ScalingObserver:
    """Scales what each operator applies, and its output, in one forward pass by its `scaler`."""

    def __init__(self, settings: Settings) -> None:
        self.scaler: Scaler | None = None
        self._settings = settings

    def stand_in(self, name: str, parameter: Tensor) -> Tensor:
        return self._settings.copies.of(parameter)

    def end(self, results: Any) -> None:
        """Nothing is left to do when the model returns."""

    def see(self, ran: Ran) -> None:
        if self.scaler is None:
            flow = Uses(ran.graph)
            self.scaler = Scaler(self._settings, flow, Composed(Scalars(flow, {})))
        advance(self.scaler.flow, ran.node)
        self.scaler.composed.advance(ran.node)
        if ran.node.index in self.scaler.flow.weighers:
            _scale(self.scaler, ran)


def _scale(scaler: Scaler, ran: Ran) -> None:
    handler = HANDLERS.get(scaler.flow.role(ran.node))
    if handler is None:
        return
    tensors = tensors_in((ran.args, ran.kwargs))
    read = zip(scaler.flow.slots(ran.node), tensors, strict=True)
    operands = tuple(Operand(*place, tensor) for place, tensor in read)
    if not any(map(is_wrapped, (*tensors, *ran.outputs))):
        handler(scaler, ran, operands)
        return
    for operand in (operand for operand in operands if operand.slot != "bias"):
        scaler.leave_operand(operand, "its operator runs inside torch.vmap or torch.func.grad")
