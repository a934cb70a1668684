"""Every word that a policy can be written with is listed, each with what it does."""

import io

from rich.console import Console

from torch_initpolicy import initializers, match, presets
from torch_initpolicy.cli.vocabulary import vocabulary, words_table
from torch_initpolicy.policy.rules import PRESETS


def test_all_words_are_there():
    """Presets, matchers and initializers are those that Python offers, with a line on each."""
    words = vocabulary()

    assert set(words["presets"]) >= set(PRESETS)
    assert set(words["presets"]) <= set(presets.__all__)
    assert set(words["matchers"]) == set(match.__all__)
    assert (
        {"he_normal", "Zeros", "register"}
        <= set(words["initializers"])
        <= set(initializers.__all__)
    )
    assert {"weight", "bias", "norm_weight"} <= set(words["roles"])
    assert all(line for kind in ("presets", "matchers") for line in words[kind].values())


def test_the_table_holds_each_word():
    """Whatever the width, no word is lost."""
    for width in (60, 160):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(words_table(vocabulary()))
        text = console.export_text()
        assert all(word in text for words in vocabulary().values() for word in words)
