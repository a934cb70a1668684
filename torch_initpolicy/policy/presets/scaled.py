"""Presets that say how a model is initialised, and learns, at another size than its base model."""

from torch_initpolicy.policy.bases import Base, base_family
from torch_initpolicy.policy.match import role
from torch_initpolicy.policy.rules import InitPolicy, Rule, policy_named, preset
from torch_initpolicy.policy.scaling import Parametrisation, Scaling
from torch_initpolicy.tensors.initializers import he_normal


@preset
def mup(
    *, base: Base, policy: InitPolicy | str = "auto", forward_multipliers: bool = False
) -> InitPolicy:
    """Tune a small model, train a large one: standard deviations and learning rates go with width.

    Each dimension that differs from the base model's is a width. Hidden matrices are drawn
    `sqrt` of the ratio of their fans narrower than the base's and, under Adam, learn slower by the
    ratio; weights into a fixed number of outputs are drawn narrower by the ratio itself; all that
    reads a fixed number of inputs, and every vector, stays as in the base. At the base's own size
    nothing changes. The learning rates are in `plan.param_groups`.

    Args:
        base: A smaller or larger model of the same family, its plan, the shapes of its parameters
            by name, or a JSON file of a plan, a receipt or such shapes.
        policy: What gives the base model its values.
        forward_multipliers: Whether a multiplier that no parameter can take over (of a head that
            is tied to an embedding, of attention whose heads grow) is left to a hook of the forward
            pass, in place of an error.

    Raises:
        PolicyError: `base` is no base model.

    Reference:
        Yang et al., *Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter
        Transfer*, 2022, arXiv:2203.03466, tables 3 and 8.

    Examples:
        >>> from torch import nn
        >>> from torch_initpolicy import plan_policy
        >>> def build(width):
        ...     return nn.Sequential(
        ...         nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        ...         nn.Linear(width, 4),
        ...     )
        >>> plan = plan_policy(build(256), mup(base=build(64)))
        >>> plan["2.weight"].multipliers.std, plan["2.weight"].multipliers.lr("adamw")
        (0.5, 0.25)
        >>> print(plan["2.weight"].multipliers.reason)
        sums 4 times as many inputs as in the base: std x 0.5, Adam's learning rate x 0.25
    """
    return _scaled("mup", base, policy, forward_multipliers=forward_multipliers)


@preset
def complete_p(
    *, base: Base, policy: InitPolicy | str = "auto", forward_multipliers: bool = False
) -> InitPolicy:
    """Let standard deviations and learning rates go with width as under `mup`, and with depth.

    Each residual branch is multiplied by one over the ratio of their number to the base model's;
    the multiplier is folded into the parameters that close the branch.

    Args:
        base: A smaller or larger model of the same family, of another depth too, its plan, the
            shapes of its parameters by name, or a JSON file of one of these.
        policy: What gives the base model its values.
        forward_multipliers: Whether a multiplier that no parameter can take over is left to a hook
            of the forward pass, in place of an error.

    Raises:
        PolicyError: `base` is no base model.

    Reference:
        Dey et al., *Don't be lazy: CompleteP enables compute-efficient deep transformers*, 2025,
        arXiv:2505.01618, table 1 with alpha = 1.

    Examples:
        >>> complete_p(base={"weight": (64, 64)}).scaling.kind
        'complete_p'
    """
    return _scaled("complete_p", base, policy, forward_multipliers=forward_multipliers)


@preset
def spectral(*, policy: InitPolicy | str | None = None) -> InitPolicy:
    """Keep the spectral norm of each weight, and of its changes, at sqrt(fan_out / fan_in).

    No base model is needed: the learning rate given to `plan.param_groups` is divided by `fan_in`
    for Adam and multiplied by `fan_out / fan_in` for SGD, so it is a number of its own.

    Args:
        policy: What gives weights a standard deviation of about `1 / sqrt(fan_in)`; None for He's
            normal with the gain of the activation that is met, and `auto` for all else.

    Reference:
        Yang, Simon and Bernstein, *A Spectral Condition for Feature Learning*, 2023,
        arXiv:2310.17813, parametrization 1.

    Examples:
        >>> from torch import nn
        >>> from torch_initpolicy import plan_policy
        >>> plan = plan_policy(nn.Sequential(nn.Linear(64, 16)), spectral())
        >>> round(plan["0.weight"].std, 6) == (16 / 64) ** 0.5 / 64**0.5
        True
    """
    fills = Rule(role("weight"), he_normal("meets"), optional=True)
    given = policy_named("auto").override(fills) if policy is None else policy_named(policy)
    return InitPolicy(given.rules, scaling=Scaling("spectral"))


def _scaled(
    kind: Parametrisation, base: Base, policy: InitPolicy | str, *, forward_multipliers: bool
) -> InitPolicy:
    given = policy_named(policy)
    scaling = Scaling(kind, base_family(base, given), forward_multipliers)
    return InitPolicy(given.rules, scaling=scaling)
