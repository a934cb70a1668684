"""Model-wide weight initialisation policies for PyTorch."""

from torch_initpolicy.api import apply_policy, materialize, plan_policy
from torch_initpolicy.calibrate.calibration import Calibration
from torch_initpolicy.calibrate.lsuv import lsuv_
from torch_initpolicy.compare.compare import Comparison, compare_inits
from torch_initpolicy.decorator import init_policy
from torch_initpolicy.deferred.skip import skip_init
from torch_initpolicy.materialize.restore import restore
from torch_initpolicy.planning.plan import Plan, Receipt
from torch_initpolicy.planning.versions import __version__ as __version__
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.report.audit import Audit, audit_model
from torch_initpolicy.report.repairs import Repair
from torch_initpolicy.scaling.check import check_scaling
from torch_initpolicy.scaling.slopes import ScalingCheck
from torch_initpolicy.signal.run import audit_signal
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.sites import Site
from torch_initpolicy.steps import Step
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.symmetry.findings import Finding, Report
from torch_initpolicy.symmetry.watch import Watch, warn_on_symmetry
from torch_initpolicy.tensors import initializers
from torch_initpolicy.trace import operators
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.writing.verify import Verification

__all__ = [
    "Audit", "Calibration", "Comparison", "Facts", "Finding", "InitPolicy", "Plan", "Receipt",
    "Repair", "Report", "Rule", "ScalingCheck", "Signal", "Site", "Step", "Verification", "Watch",
    "apply_policy", "audit_model", "audit_signal", "check_scaling", "compare_inits",
    "find_symmetry", "init_policy", "initializers", "lsuv_", "match", "materialize", "operators",
    "plan_policy", "presets", "restore", "skip_init", "warn_on_symmetry",
]  # fmt: skip
