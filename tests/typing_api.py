"""Ordinary uses of the package, which must pass `mypy --strict` as they stand.

Never run; `test_typing.py` has it type-checked.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from torch_initpolicy import (
    Audit,
    InitPolicy,
    Plan,
    Receipt,
    Repair,
    Rule,
    Step,
    apply_policy,
    audit_model,
    init_policy,
    initializers,
    match,
    plan_policy,
    presets,
)


@init_policy
class Bare(nn.Module):
    """Keeps its type and its constructor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)


@init_policy("he", seed=0, skip=["head.*"])
class Configured(Bare):
    """Likewise with options."""


@init_policy(presets.xavier(), example_inputs=(torch.zeros(1, 3),))
class WithPolicy(nn.Linear):
    """Likewise with a policy and inputs."""


bare: Bare = Bare(3)
layer: nn.Linear = Configured(4).layer
decorated: type[nn.Linear] = init_policy("he")(nn.Linear)


def half(tensor: Tensor) -> None:
    """Fill in place: an initializer of one's own."""
    tensor.fill_(0.5)


policy: InitPolicy = InitPolicy(
    [
        Rule(match.name("head.*"), initializers.Zeros()),
        Rule(match.kind(nn.Conv2d) & match.meets("relu"), initializers.he_normal()),
        Rule(match.role("weight") | ~match.role("bias"), initializers.Normal(0.02)),
        Rule(match.name("odd"), nn.init.xavier_uniform_),
        Rule(match.name("even"), half),
    ]
).otherwise(presets.auto())
text: str = policy.to_json()
again: InitPolicy = InitPolicy.from_json(text)
loaded: InitPolicy = InitPolicy.load("policy.toml")
loaded_from_path: InitPolicy = InitPolicy.load(Path("policy.json"))

plan: Plan = plan_policy(bare, "auto", example_inputs=(torch.zeros(1, 3),), strict=False)
plan_with_mapping: Plan = plan_policy(bare, policy, example_inputs={"x": torch.zeros(1, 3)})
first: Step = plan.steps[0]
name: str = first.name
shape: tuple[int, ...] = first.shape
meets: str | None = first.meets
std: float | tuple[float, ...] | None = first.std

receipt: Receipt = apply_policy(bare, "he", seed=0, only=["layer.*"], skip=["head.*"])
receipt_of_plan: Receipt = plan.apply(seed=0)
receipt_text: str = receipt.to_json()
receipt_again: Receipt = Receipt.from_json(receipt_text)
plan.verify(bare)

audit: Audit = audit_model(bare, torch.zeros(4, 3), suggest=["he"], budget=10, tell=print)
best: Repair | None = audit.recommended
calls: list[str] = [repair.call for repair in audit.repairs if repair.works]
audit.write(Path("report.html"))
