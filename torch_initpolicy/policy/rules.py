"""Rules and policies: what the user wants, as values.

Knows matchers, initializers and the files a policy is kept in, not a model.
"""

import functools
import inspect
import types
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ParamSpec, TypeAlias

from torch import Tensor

from torch_initpolicy.errors import PolicyError, UnknownNameError, brief, nearest
from torch_initpolicy.files import write_text
from torch_initpolicy.policy import codec, matchers
from torch_initpolicy.policy.matchers import Anything, Matcher
from torch_initpolicy.policy.recipes import RECIPES, Recipe
from torch_initpolicy.policy.scaling import SCALINGS, Scaling
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.initializer import REGISTERED
from torch_initpolicy.tensors.initializers import From, Initializer
from torch_initpolicy.trace.facts import Facts

Filler: TypeAlias = Initializer | Recipe | Callable[[Tensor], object]
"""What a rule takes: an initializer, a recipe, or any function that fills a tensor in place."""

FORMAT = 1
"""Version of the layout of policy files."""


@dataclass(frozen=True, slots=True, init=False)
class Rule:
    """A matcher, and the initializer for the sites that it matches.

    Attributes:
        matcher: Says which sites the rule is meant for.
        initializer: Fills them. A function of `torch.nn.init`, or any other that fills a tensor in
            place, becomes `From(function)`.
        note: Why, for people; it appears in the plan.
        optional: Whether the rule may match nothing; otherwise that is an error of the plan.
        keeps_meant: Whether the rule lets stay what the author of a model meant, as those of
            presets do; a rule of your own is obeyed to the letter.

    Raises:
        PolicyError: The matcher is none, or the initializer is no filled-in value.

    Examples:
        >>> from torch_initpolicy.policy import match
        >>> from torch_initpolicy.tensors.initializers import Zeros
        >>> Rule(match.name("head.*"), Zeros())
        Rule(name('head.*'), Zeros())
    """

    matcher: Matcher
    initializer: Initializer | Recipe
    note: str = ""
    optional: bool = False
    keeps_meant: bool = False

    def __init__(
        self,
        matcher: Matcher,
        initializer: Filler,
        note: str = "",
        *,
        optional: bool = False,
        keeps_meant: bool = False,
    ) -> None:
        if not isinstance(matcher, Matcher):
            raise PolicyError(f"a rule starts with a matcher like name('head.*'), got {matcher!r}")
        values = (matcher, filling(initializer), note, optional, keeps_meant)
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    def __repr__(self) -> str:
        words = [repr(self.matcher), repr(self.initializer)]
        words += [repr(self.note)] if self.note else []
        words += [f"{name}=True" for name in _OPTIONS[1:] if getattr(self, name)]
        return f"Rule({', '.join(words)})"


_OPTIONS = ("note", "optional", "keeps_meant")


def filling(filler: object) -> Initializer | Recipe:
    """Return what a rule holds as an initializer or a recipe."""
    name = getattr(filler, "__name__", "")
    is_maker = getattr(filler, "__module__", "").startswith("torch_initpolicy.") and name
    if isinstance(filler, type) or is_maker:
        raise PolicyError(f"{name} makes initializers, it is none; call it: {name}(...)")
    if isinstance(filler, (Initializer, Recipe)):
        return filler
    if not callable(filler):
        meant = f"; write Constant({filler})" if isinstance(filler, (int, float)) else ""
        raise PolicyError(f"a rule needs an initializer such as Zeros(), got {filler!r}{meant}")
    return From(filler)


@dataclass(frozen=True, slots=True, init=False)
class InitPolicy:
    """Rules in order; for each site the first that matches decides.

    Where matrices packed into one weight meet different things (the halves of a SwiGLU), the first
    rule that matches decides for each of them, as if they were weights of their own.

    Attributes:
        rules: The rules.
        name: What it is called in plans and receipts, or None.
        scaling: How what the rules give a base model is carried over to another size; None where
            the rules are all there is.

    Raises:
        PolicyError: Something among the rules is none.

    Examples:
        >>> from torch_initpolicy.policy import match
        >>> from torch_initpolicy.tensors.initializers import Normal, Zeros
        >>> policy = InitPolicy([Rule(match.role("bias"), Zeros())]).otherwise(Normal(0.02))
        >>> policy
        InitPolicy([
            Rule(role('bias'), Zeros()),
            Rule(anything(), Normal(std=0.02, mean=0.0), optional=True),
        ])
        >>> InitPolicy.from_json(policy.to_json()) == policy
        True
    """

    rules: tuple[Rule, ...]
    name: str | None = None
    scaling: Scaling | None = None

    def __init__(
        self, rules: Iterable[Rule] = (), name: str | None = None, scaling: Scaling | None = None
    ) -> None:
        is_listed = isinstance(rules, Iterable) and not isinstance(rules, Tensor)
        given = tuple(rules) if is_listed else (rules,)
        for rule in given:
            if not isinstance(rule, Rule):
                raise PolicyError(
                    f"a policy is made of rules, Rule(matcher, initializer), not of {brief(rule)}; "
                    "a plan is applied by plan.apply(seed=...)"
                )
        object.__setattr__(self, "rules", given)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "scaling", scaling)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __repr__(self) -> str:
        rules = "".join(f"    {rule!r},\n" for rule in self.rules)
        name = f", name={self.name!r}" if self.name else ""
        name += f", scaling={self.scaling!r}" if self.scaling else ""
        return f"InitPolicy([\n{rules}]{name})" if rules else f"InitPolicy([]{name})"

    def first(self, site: Site, facts: Facts) -> Rule | None:
        """Return the rule that decides for a site, or None where none matches."""
        return next((rule for rule in self.rules if rule.matcher.matches(site, facts)), None)

    def otherwise(self, rest: "InitPolicy | Filler") -> "InitPolicy":
        """Return this policy with another, or one initializer, for what no rule matches."""
        rules = (*self.rules, *_rules_of(rest, "otherwise"))
        return InitPolicy(rules, self.name, _scaling_of(self, rest))

    def override(self, front: "InitPolicy | Rule") -> "InitPolicy":
        """Return this policy with other rules before its own."""
        rules = (front,) if isinstance(front, Rule) else _rules_of(front, "override")
        return InitPolicy((*rules, *self.rules), self.name, _scaling_of(self, front))

    def renamed(self, name: str | None) -> "InitPolicy":
        """Return this policy under another name."""
        return InitPolicy(self.rules, name, self.scaling)

    @property
    def hash(self) -> str:
        """What identifies the policy in every process and on every machine, 32 hex digits.

        Raises:
            PolicyError: The policy holds functions of your own, which no text identifies.
        """
        return codec.digest(_data(self))

    def to_json(self) -> str:
        """Write the policy as JSON.

        Raises:
            PolicyError: The policy holds functions of your own, which no file can hold.
        """
        return codec.write_json(_data(self))

    def to_toml(self) -> str:
        """Write the policy as TOML; this needs the extra `torch-initpolicy[toml]`.

        Raises:
            PolicyError: The policy holds functions of your own, which no file can hold.
            MissingExtraError: `tomli_w` is not installed.
        """
        return codec.write_toml(_data(self))

    def save(self, path: str | Path) -> None:
        """Write the policy to a `.json` or `.toml` file.

        Raises:
            PolicyError: The file has another ending; or the policy holds functions of your own.
            InitPolicyError: The file cannot be written; an old one is as it was.
        """
        write, _ = _language(path)
        write_text(path, write(_data(self)))

    @classmethod
    def from_json(cls, text: str) -> "InitPolicy":
        """Read a policy from JSON; nothing in the text can run.

        Raises:
            UnknownNameError: A class, field, preset or version does not exist.
            PolicyError: The text is no policy.
        """
        return _policy(codec.read_json(text))

    @classmethod
    def from_toml(cls, text: str) -> "InitPolicy":
        """Read a policy from TOML, as `from_json` does from JSON."""
        return _policy(codec.read_toml(text))

    @classmethod
    def load(cls, path: str | Path) -> "InitPolicy":
        """Read a policy from a `.json` or `.toml` file; nothing in the file can run.

        Raises:
            UnknownNameError: A class, field, preset or version does not exist.
            PolicyError: The file is not there, or is no policy.
        """
        _, read = _language(path)
        try:
            return _policy(read(Path(path).read_text(encoding="utf-8")))
        except PolicyError as error:
            raise type(error)(f"{path}: {error}") from error
        except (OSError, ValueError) as error:  # text of another encoding, or a name with a NUL
            raise PolicyError(f"{path!r} cannot be read: {error}") from error


def _rules_of(policy: "InitPolicy | Rule | Filler | str", verb: str) -> tuple[Rule, ...]:
    """Return the rules of a policy; one initializer is a rule for everything."""
    if isinstance(policy, InitPolicy):
        return policy.rules
    if isinstance(policy, (str, Rule)):
        meant = f"presets.{policy}()" if isinstance(policy, str) else f"InitPolicy([{policy!r}])"
        raise PolicyError(f"{verb}() takes a policy or an initializer; write {verb}({meant})")
    return (Rule(Anything(), policy, optional=True),)


def _scaling_of(policy: InitPolicy, other: object) -> Scaling | None:
    """Return the one scaling that two policies have between them."""
    beside = other.scaling if isinstance(other, InitPolicy) else None
    if policy.scaling is not None and beside not in (None, policy.scaling):
        raise PolicyError(
            f"both policies scale, by {policy.scaling.kind} and {beside.kind}; "
            "give one of them as policy=... to the other"
        )
    return policy.scaling or beside


# Presets, by name

Arguments = ParamSpec("Arguments")

PRESETS: dict[str, Callable[..., InitPolicy]] = {}
"""The functions of `torch_initpolicy.policy.presets`, which `preset` puts here under their names;
they live above the policies they make, and files, which may name them, are read here."""


def preset(function: Callable[Arguments, InitPolicy]) -> Callable[Arguments, InitPolicy]:
    """Make a function known under its name to whoever reads a name, and name its policy."""
    name = function.__name__
    if name in PRESETS:
        raise PolicyError(f"there is a preset {name!r} already")

    @functools.wraps(function)
    def named(*args: Arguments.args, **kwargs: Arguments.kwargs) -> InitPolicy:
        return function(*args, **kwargs).renamed(name)

    PRESETS[name] = named
    return named


def preset_named(name: str, arguments: Mapping[str, object] | None = None) -> InitPolicy:
    """Make the policy of a preset."""
    if name not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise UnknownNameError(
            f"no preset is called {brief(name)}{nearest(name, PRESETS)}; there are {known}"
        )
    try:
        return PRESETS[name](**(arguments or {}))
    except TypeError as error:
        taken = inspect.signature(PRESETS[name]).replace(return_annotation=inspect.Signature.empty)
        raise PolicyError(
            f"preset {name!r}: {error}; in Python write presets.{name}{taken}, in a file "
            f'{{"preset": "{name}", ...}}'
        ) from error


def policy_named(policy: InitPolicy | str | Path) -> InitPolicy:
    """Return a policy, the preset of a name, or what a `.json` or `.toml` file holds."""
    if isinstance(policy, InitPolicy):
        return policy
    is_file = Path(policy).suffix in _LANGUAGES
    return InitPolicy.load(policy) if is_file else preset_named(str(policy))


# Files

CLASSES: ChainMap[str, type] = ChainMap(
    {kind.__name__: kind for kind in (*matchers.SERIALISABLE, *RECIPES, *SCALINGS, Rule)},
    REGISTERED,
)
"""The classes that a policy file may name: registered initializers, matchers, recipes and rules."""

Language: TypeAlias = tuple[Callable[[codec.Data], str], Callable[[str], codec.Data]]
"""How data becomes text, and text data."""

_LANGUAGES: Mapping[str, Language] = types.MappingProxyType({
    ".json": (codec.write_json, codec.read_json),
    ".toml": (codec.write_toml, codec.read_toml),
})  # fmt: skip


def _language(path: str | Path) -> Language:
    suffix = Path(path).suffix if isinstance(path, (str, Path)) else ""
    if suffix not in _LANGUAGES:
        raise PolicyError(f"a policy file ends with {' or '.join(_LANGUAGES)}, got {str(path)!r}")
    return _LANGUAGES[suffix]


def _data(policy: InitPolicy) -> codec.Data:
    """Write a policy as an object: `format`, `name`, `rules` and `scaling`."""
    data: dict[str, codec.Data] = {"format": FORMAT}
    if policy.name:
        data["name"] = policy.name
    data["rules"] = list(map(_rule_data, policy.rules))
    if policy.scaling is not None:
        data["scaling"] = codec.encode(policy.scaling, CLASSES)
    return data


def _rule_data(rule: Rule) -> codec.Data:
    """Write a rule as an object, whose class is understood, without what is as usual."""
    written = ("matcher", "initializer", *(name for name in _OPTIONS if getattr(rule, name)))
    return {name: codec.encode(getattr(rule, name), CLASSES) for name in written}


def _policy(data: codec.Data) -> InitPolicy:
    """Read the object that `_data` writes; `otherwise` may name a preset for what is left."""
    found = data.get("format") if isinstance(data, dict) else data
    if not isinstance(data, dict) or found != FORMAT:
        raise PolicyError(
            f"a policy file holds an object with format = {FORMAT}, rules, and perhaps a name, "
            f"otherwise and scaling; this one has format = {brief(found)}"
        )
    held = {key: content for key, content in data.items() if key not in ("format", "otherwise")}
    rules = held.get("rules", [])
    if isinstance(rules, list):
        rules = [{"class": "Rule", **rule} if isinstance(rule, dict) else rule for rule in rules]
    whole: codec.Data = {**held, "rules": rules, "class": "InitPolicy"}
    policy: InitPolicy = codec.decode(
        whole, CLASSES.new_child({"InitPolicy": InitPolicy}), "policy"
    )
    return policy.otherwise(_rest(data["otherwise"])) if "otherwise" in data else policy


def _rest(data: codec.Data) -> "InitPolicy | Initializer":
    """Read what `otherwise` holds: a preset's name, one with arguments, or an initializer."""
    preset = {"preset": data} if isinstance(data, str) else data
    if isinstance(preset, dict) and "preset" in preset:
        return preset_named(str(preset.pop("preset")), preset)
    rest: Initializer = codec.decode(data, CLASSES, "otherwise")
    return rest


WEIGHTS_ONLY = (
    "give an initializer for weights only weights: "
    "InitPolicy([Rule(match.role('weight'), ...)]).otherwise(presets.auto())"
)
"""The remedy where something that needs inputs and outputs was to fill biases too."""


def is_blanket(rule: str, role: str) -> bool:
    """Tell whether a rule for everything, as steps write it, has met a parameter that is no weight.

    Examples:
        >>> is_blanket("anything()", "bias"), is_blanket("anything()", "weight")
        (True, False)
    """
    return rule == repr(Anything()) and role not in ("weight", "recurrent")
