"""Lightning: a callback that initialises a module before its first fit."""

from typing import TYPE_CHECKING

from torch_initpolicy.api import apply_policy
from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.planning.selection import Options, require_known
from torch_initpolicy.policy.presets import Policyish

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from torch_initpolicy.planning.plan import Receipt

try:
    from lightning import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtraError("torch_initpolicy.integrations.lightning", "lightning") from error

__all__ = ["ApplyPolicy"]


# Where lightning is not installed its classes have no type.
class ApplyPolicy(Callback):  # type: ignore[misc, unused-ignore]
    """Apply a policy when the first fit begins, and at no later one.

    It runs in `setup`, before a strategy wraps or shards the module, and before a checkpoint to
    resume from is loaded, which so has the last word. What a module builds later, in
    `configure_model`, it initialises there, with `apply_policy` or `materialize`.

    Attributes:
        receipt: The receipt, or None before the first fit.
    """

    def __init__(self, policy: Policyish = "auto", **options: "Unpack[Options]") -> None:
        """Take the arguments of `apply_policy`."""
        super().__init__()
        require_known(options)
        self.policy = policy
        self.options = options
        self.receipt: Receipt | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Initialise the module, once."""
        if stage == "fit" and self.receipt is None:
            self.receipt = apply_policy(pl_module, self.policy, **self.options)
