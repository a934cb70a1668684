"""Model-wide weight initialisation policies for PyTorch."""

from torch_initpolicy.api import apply_policy, materialize, plan_policy
from torch_initpolicy.audit import Audit, audit_model
from torch_initpolicy.checks.findings import Finding, Report
from torch_initpolicy.checks.repairs import Repair
from torch_initpolicy.checks.signal import Signal, audit_signal
from torch_initpolicy.checks.symmetry import find_symmetry
from torch_initpolicy.checks.watch import Watch, warn_on_symmetry
from torch_initpolicy.decorator import init_policy
from torch_initpolicy.engine.lsuv import Calibration, lsuv_
from torch_initpolicy.engine.origins import restore
from torch_initpolicy.engine.plan import Plan, Receipt
from torch_initpolicy.engine.skip import skip_init
from torch_initpolicy.engine.steps import Step
from torch_initpolicy.engine.verify import Verification
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors import initializers
from torch_initpolicy.trace import operators
from torch_initpolicy.trace.facts import Facts

__all__ = [
    "Audit",
    "Calibration",
    "Facts",
    "Finding",
    "InitPolicy",
    "Plan",
    "Receipt",
    "Repair",
    "Report",
    "Rule",
    "Signal",
    "Site",
    "Step",
    "Verification",
    "Watch",
    "apply_policy",
    "audit_model",
    "audit_signal",
    "find_symmetry",
    "init_policy",
    "initializers",
    "lsuv_",
    "match",
    "materialize",
    "operators",
    "plan_policy",
    "presets",
    "restore",
    "skip_init",
    "warn_on_symmetry",
]
