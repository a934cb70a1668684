"""Regular expressions: what `re` says, but for those that might not come to an end."""

import pytest

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.policy.regex import compiled


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        (r"(.*\.)?bias_ih[^.]*", "lstm.bias_ih_l0", True),
        (r"(.*[._])?(critic|value|vf)([._].*)?", "net.value_head.weight", True),
        (
            r".*\.layers\.\d+\.(self_attn|mlp)\..*_proj\.weight",
            "m.layers.3.mlp.up_proj.weight",
            True,
        ),
        (r"(?i)(?=.*head)[a-z.]*", "Head.weight", True),
        (r"(\w+)\.\1", "fc.fc", True),
        (r"(?:ab){3}(c|d)+", "abababcdc", True),
        (r"blocks\.\d+", "blocks.0.weight", False),
    ],
)
def test_what_names_need(pattern, name, fits):
    """Expressions as one writes them for names are matched, references back and all."""
    assert bool(compiled(pattern).fullmatch(name)) == fits


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|aa)+$",
        "(.*a){20}$",
        "(x+x+)+y",
        r"(\w+\s?)*",
        "a?" * 40 + "a" * 40,
        "(a|a)" * 40 + "c",
        ".*" * 8 + "=.*",
        "(?=(a+)+$)a*b",
        "((a*)*)*b",
        "(?:(?:ab|c)*a(?:a|b){12})*c",
        "((a{900}){900})*(b*){900}",
    ],
)
def test_too_many_ways(pattern):
    """What takes `re` exponential time, or time to a high power, is refused."""
    with pytest.raises(PolicyError, match=r"too many ways.*use globs"):
        compiled(pattern)


@pytest.mark.parametrize(
    "pattern", ["(", "[", "*a", "a" * 2000, "(" * 900 + ")" * 900, 3], ids=lambda p: str(p)[:12]
)
def test_no_expression(pattern):
    """What is no expression is an error of ours."""
    with pytest.raises(PolicyError, match=r"no regular expression|at most 1000"):
        compiled(pattern)


@pytest.mark.parametrize("repeated", ["a*", ".*", "a?", "(a|ab)", "[ab]+", "a{1,9}"])
def test_what_is_matched_ends(repeated):
    """The longest row of repetitions that is let through ends on a name of 64 letters."""
    rows = [repeated * times + "c" for times in range(1, 30)]
    matched = [row for row in rows if not is_refused(row)]

    assert len(matched) >= 3
    assert compiled(matched[-1]).fullmatch("a" * 64) is None


def is_refused(pattern):
    """Say whether an expression has too many ways."""
    try:
        compiled(pattern)
    except PolicyError:
        return True
    return False
