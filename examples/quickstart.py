"""Initialise a real model: plan, read the plan, apply it, check it, see the difference."""

import timm
import torch
from torch import Tensor, nn

from torch_initpolicy import Receipt, plan_policy

SHOWN = ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "stages.0.blocks.0.mlp.fc1.weight")


def stds(model: nn.Module) -> dict[str, Tensor]:
    """Measure the standard deviation of every weight that is a matrix or more."""
    return {
        name: parameter.detach().std()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
    }


def main() -> Receipt:
    """Run the five steps on a small ConvNeXt."""
    model = timm.create_model("convnext_atto")
    before = stds(model)

    plan = plan_policy(model)  # a dry run: nothing is written
    print(plan)

    receipt = plan.apply(seed=0)  # the only step that writes
    plan.verify(model)  # measures every tensor against its step; raises where one is off

    print(f"\n{'weight':40}{'before':>10}{'after':>10}{'planned':>10}")
    after = stds(model)
    steps = {step.name: step for step in plan.steps}
    for name in before:
        if name in SHOWN:
            planned = steps[name].std
            print(f"{name:40}{before[name]:>10.4f}{after[name]:>10.4f}{planned:>10.4f}")

    again = timm.create_model("convnext_atto")
    plan_policy(again).apply(seed=0)
    same = all(map(torch.equal, model.parameters(), again.parameters()))
    print(f"\nanother model, the same seed, the same weights: {same}")
    return receipt


if __name__ == "__main__":
    main()
