"""Presets: named policies, each one expression, and the one place where a name becomes a policy.

Presets keep what the author of a model meant, but for those that are about overwriting it: `zeros`,
`ones`, `constant`, `constructor` and `torch_default` fill what they name, and the rules that close
residual branches close them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from torch_initpolicy.policy.presets.critical import critical, delta_orthogonal
from torch_initpolicy.policy.presets.everywhere import (
    constant,
    constructor,
    normal,
    ones,
    torch_default,
    uniform,
    zeros,
)
from torch_initpolicy.policy.presets.layers import auto, he, lecun, orthogonal, signal, xavier
from torch_initpolicy.policy.presets.published import chrono, gpt2, nanochat, ppo, siren, timm_vit
from torch_initpolicy.policy.presets.residual import (
    deepnorm,
    depth_scaled,
    fixup,
    rezero,
    t_fixup,
    zero_residual,
)
from torch_initpolicy.policy.presets.scaled import complete_p, mup, spectral
from torch_initpolicy.policy.rules import Filler, InitPolicy, Rule, policy_named

__all__ = [
    "auto", "chrono", "complete_p", "constant", "constructor", "critical", "deepnorm",
    "delta_orthogonal", "depth_scaled", "fixup", "gpt2", "he", "lecun", "mup", "nanochat", "normal",
    "ones", "orthogonal", "ppo", "rezero", "signal", "siren", "spectral", "t_fixup", "timm_vit",
    "torch_default", "uniform", "xavier", "zero_residual", "zeros",
]  # fmt: skip

Policyish: TypeAlias = InitPolicy | Rule | Iterable[Rule] | Filler | str | Path
"""What may stand for a policy: one, rules, an initializer, a preset's name, or a file's path."""


def policy(given: Policyish) -> InitPolicy:
    """Return the policy that somebody means.

    Args:
        given: A policy, rules, one initializer for everything, the name of a preset, or the path
            of a `.json` or `.toml` file.

    Raises:
        UnknownNameError: There is no preset of that name.
        PolicyError: This is no policy.

    Examples:
        >>> policy("he") == he()
        True
    """
    if isinstance(given, (InitPolicy, str, Path)):
        return policy_named(given)
    if isinstance(given, Rule):
        return InitPolicy([given])
    return InitPolicy(given) if isinstance(given, Iterable) else InitPolicy().otherwise(given)
