"""Rules that presets share: what they say of everything that is no weight of a layer.

- Biases start at zero, but for the forget gates of an LSTM, which start at one in total;
- normalisations start as the identity: scale 1 in total, shift 0;
- rows of embeddings start as large as what reads them asks for (see `EmbeddingScale`), the padding
  row at zero;
- positions, tokens, tables, gates, scales and other raw parameters keep the constructor's value;
- what the author of a model meant stays.
"""

from dataclasses import replace

from torch_initpolicy.policy.match import Matcher, kind, meets, name, role
from torch_initpolicy.policy.recipes import EmbeddingScale, Recipe, UnitScale
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.tensors import initializers as init


def rule(
    matcher: Matcher,
    initializer: init.Initializer | Recipe,
    note: str = "",
    *,
    keeps_meant: bool = True,
) -> Rule:
    """Make a rule of a preset, which need not match anything in every model.

    It lets stay what the author of a model meant, unless that is what the preset is about.
    """
    return Rule(matcher, initializer, note, optional=True, keeps_meant=keeps_meant)


_LSTM = kind("torch.nn.LSTM", "torch.nn.LSTMCell")
_OPEN = init.Blocks((init.Zeros(), init.Ones(), init.Zeros(), init.Zeros()))

REST = (
    # Gers, Schmidhuber and Cummins 2000; Jozefowicz, Zaremba and Sutskever 2015, section 3.1. Torch
    # adds two biases: one of them opens the gate.
    rule(_LSTM & name(regex=r"(.*\.)?bias_ih[^.]*"), _OPEN, "forget gate open"),
    rule(role("bias", "norm_bias"), init.Zeros()),
    rule(role("norm_weight"), UnitScale()),
)
"""Biases and normalisations."""

EMBEDDINGS = rule(role("embedding"), EmbeddingScale())

RECURRENT = (
    rule(kind("torch.nn.RNNBase", "torch.nn.RNNCellBase") & role("weight"), init.xavier_normal()),
    rule(role("recurrent"), init.Orthogonal()),
)

KEPT = rule(
    role("gate", "scale", "spread", "position", "token", "table", "unknown"),
    init.Keep(),
    "the constructor's value stays",
)

WEIGHT = role("weight")
MATRIX = role("weight", "recurrent")
RECTIFIED = WEIGHT & meets("rectifier")


def layers(*rules: Rule, embeddings: init.Initializer | None = None) -> InitPolicy:
    """Make a preset that says something of the layers' weights, and perhaps of embeddings."""
    tables = EMBEDDINGS if embeddings is None else rule(role("embedding"), embeddings)
    return InitPolicy((*REST, tables, *RECURRENT, KEPT, *rules))


def everywhere(initializer: init.Initializer, *, keeps_meant: bool = True) -> InitPolicy:
    """Make a preset that fills every weight alike, embeddings and recurrent ones too."""
    rules = (*REST, KEPT, rule(role("weight", "recurrent", "embedding"), initializer))
    return InitPolicy(replace(each, keeps_meant=keeps_meant) for each in rules)
