"""Modules that are built once more, also below wrappers that hold them under other names."""

import pytest
import torch
from torch import nn

from tests.materialize.test_constructor import gpt2
from torch_initpolicy import plan_policy, presets
from torch_initpolicy.errors import InitPolicyWarning
from torch_initpolicy.materialize.rebuild import class_of

peft = pytest.importorskip("peft")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_below_adapters():
    """What an adapter adapts is drawn as the library's model draws it, under its new name."""
    plain = {step.name: step.initializer for step in plan_policy(gpt2(), presets.constructor())}
    config = peft.LoraConfig(target_modules=["c_attn", "c_proj"], r=4, fan_in_fan_out=True)
    with pytest.warns(InitPolicyWarning, match="lora_B"):
        plan = plan_policy(peft.get_peft_model(gpt2(), config), presets.constructor(), frozen=True)
    own = {
        step.name.removeprefix("base_model.model.").replace(".base_layer", ""): step.initializer
        for step in plan
        if "lora" not in step.name
    }

    assert own == plain
    assert all(step.keeps == ("lora_B" in step.name) for step in plan if "lora" in step.name)


def test_class_of_what_torch_has_changed():
    """A parametrised module is of the class that it was built by."""
    layer = nn.Linear(2, 2)
    torch.nn.utils.parametrizations.weight_norm(layer)

    assert class_of(layer) is nn.Linear
