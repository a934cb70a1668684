"""Model-wide weight initialisation policies for PyTorch."""

from torch_initpolicy.api import apply_policy, materialize, plan_policy
from torch_initpolicy.decorator import init_policy
from torch_initpolicy.engine.plan import Plan, Receipt
from torch_initpolicy.engine.skip import skip_init
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.tensors import initializers

__all__ = [
    "InitPolicy",
    "Plan",
    "Receipt",
    "Rule",
    "apply_policy",
    "init_policy",
    "initializers",
    "match",
    "materialize",
    "plan_policy",
    "presets",
    "skip_init",
]
