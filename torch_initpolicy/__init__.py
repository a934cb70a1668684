"""Model-wide weight initialisation policies for PyTorch."""

from torch_initpolicy.api import apply_policy, materialize, plan_policy
from torch_initpolicy.checks.signal import audit_signal
from torch_initpolicy.checks.symmetry import find_symmetry
from torch_initpolicy.checks.watch import warn_on_symmetry
from torch_initpolicy.decorator import init_policy
from torch_initpolicy.engine.lsuv import lsuv_
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
    "audit_signal",
    "find_symmetry",
    "init_policy",
    "initializers",
    "lsuv_",
    "match",
    "materialize",
    "plan_policy",
    "presets",
    "skip_init",
    "warn_on_symmetry",
]
