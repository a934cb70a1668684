"""Values to JSON and TOML and back: class name and fields, nothing that could run.

Knows frozen dataclasses of numbers, words and one another, not policies. Decoding
calls the constructors of the classes it is given and nothing else: it imports, evaluates and
unpickles nothing. The notation is the same in both languages:

===============================  =================================================================
a value of class `C`             an object, `{"class": "C", field: value, ...}`
None                             left out where it is the default, else null; `{}` in TOML
tuple                            array
infinite float                   `{"float": "inf"}`; any other number is itself, to the last digit
dtype                            `{"dtype": "float32"}`
function of `torch.nn.init`      `{"function": "torch.nn.init.xavier_uniform_"}`
===============================  =================================================================
"""

import collections.abc
import dataclasses
import functools
import hashlib
import importlib
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, get_args, get_origin

import torch
from torch import nn

from torch_initpolicy.errors import MissingExtraError, PolicyError, UnknownNameError, brief, nearest
from torch_initpolicy.tensors.base import dtype_name
from torch_initpolicy.tensors.initializers import From

Data: TypeAlias = "bool | int | float | str | list[Data] | dict[str, Data] | None"
"""What JSON can say."""

Classes: TypeAlias = Mapping[str, type]
"""The classes that may occur in a file, by name."""

Substitute: TypeAlias = Callable[[object], object] | None

FUNCTIONS: Mapping[str, Callable[..., object]] = types.MappingProxyType({
    f"torch.nn.init.{name}": function
    for name, function in vars(nn.init).items()
    if isinstance(function, types.FunctionType) and name.endswith("_") and name[0] != "_"
})  # fmt: skip
"""The functions that a file may name: those of `torch.nn.init` that fill a tensor in place."""

LONGEST = 2_000_000
"""Characters up to which a policy is read: some ten thousand rules."""

DEEPEST = 64
"""Objects and arrays within one another up to which data is read."""

# Values to data


def encode(value: object, classes: Classes, substitute: Substitute = None) -> Data:
    """Turn a value into what JSON can say; `substitute` replaces what has no notation."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, tuple):
        return [encode(item, classes, substitute) for item in value]
    return _object(value, classes, substitute)


def _object(value: object, classes: Classes, substitute: Substitute) -> Data:
    """Turn a value into an object of JSON; fields that are None by default are left out."""
    name = type(value).__name__
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if classes.get(name) is type(value):
        stated = {key: encode(item, classes, substitute) for key, item in _stated(value)}
        return {"class": name, **stated}
    for path, known in FUNCTIONS.items():
        if known is value:
            return {"function": path}
    if substitute is not None:
        return encode(substitute(value), classes)
    raise PolicyError(
        f"{value!r} cannot be written to a file, which holds matchers, initializers, tuples, "
        "numbers, words and functions of torch.nn.init; keep such a policy in Python"
    )


def _stated(value: Any) -> Iterator[tuple[str, object]]:
    """Yield the fields of a dataclass, but for those that are None by default."""
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        if held is not None or field.default is not None:
            yield field.name, held


# Data to values


def decode(data: Data, classes: Classes, where: str = "file") -> Any:
    """Turn data back into the value it stands for, arrays into tuples."""
    if isinstance(data, list):
        return tuple(decode(item, classes, f"{where}[{i}]") for i, item in enumerate(data))
    if not isinstance(data, dict):
        return data
    if "class" in data:
        return _instance(data, classes, where)
    if not data:
        return None
    tag, content = next(iter(data.items()))
    if len(data) > 1 or tag not in _TAGS:
        raise PolicyError(
            f'{where}: an object needs a "class", got the fields {brief(sorted(data))}'
        )
    return _look_up(where, tag, content, _TAGS[tag])


_TAGS: Mapping[str, Mapping[str, object]] = types.MappingProxyType({
    "float": {repr(value): value for value in (math.inf, -math.inf)},
    "dtype": {
        dtype_name(value): value
        for value in vars(torch).values()
        if isinstance(value, torch.dtype)
    },
    "function": FUNCTIONS,
})  # fmt: skip
"""What an object of a single field stands for, by the name of the field and its content."""


def _look_up(where: str, what: str, word: Data, known: Mapping[str, Any]) -> Any:
    if not isinstance(word, str) or word not in known:
        hint = nearest(word, known) if isinstance(word, str) else ""
        raise UnknownNameError(f"{where}: no {what} is called {brief(word)}{hint}")
    return known[word]


def _instance(data: dict[str, Data], classes: Classes, where: str) -> object:
    """Construct the instance of a class that an object describes."""
    kind = _look_up(where, "class", data["class"], classes)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    values = {}
    for key, content in data.items():
        if key == "class":
            continue
        _look_up(where, f"field of {kind.__name__}", key, fields)
        values[key] = decode(content, classes, f"{where}.{key}")
        if not fits_annotation(values[key], hints[key]):
            raise PolicyError(f"{where}.{key} must be {spelt(hints[key])}, got {brief(content)}")
    absent = dataclasses.MISSING
    needed = {f.name for f in fields.values() if f.default is f.default_factory is absent}
    missing = needed - values.keys()
    if missing:
        raise PolicyError(f"{where}: {kind.__name__} needs the fields {sorted(missing)}")
    if kind is From:  # its constructor takes the arguments of the function by name
        values |= dict(values.pop("arguments", ()))
    try:
        return kind(**values)
    except UnknownNameError as error:
        raise UnknownNameError(f"{where}: {error}") from error
    except (ValueError, TypeError) as error:
        raise PolicyError(f"{where}: {error}") from error


def fits_annotation(value: object, hint: Any) -> bool:
    """Say whether a value can be what an annotation asks for; those not known here fit."""
    check = _CHECKS.get(get_origin(hint))
    return check(value, get_args(hint)) if check else _is_a(value, hint)


def spelt(hint: Any) -> str:
    """Write an annotation as source code has it.

    Examples:
        >>> spelt(float), spelt(tuple[int, ...]), spelt(str | None)
        ('float', 'tuple[int, ...]', 'str | None')
    """
    plain = isinstance(hint, type) and not get_args(hint)
    return hint.__name__ if plain else re.sub(r"[\w.]+\.(?=\w)", "", str(hint))


def _is_a(value: object, hint: Any) -> bool:
    if hint is float or hint is int:
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if getattr(hint, "_is_protocol", False):
        return dataclasses.is_dataclass(value)
    if isinstance(hint, type) and issubclass(hint, tuple):  # a named one; files hold plain ones
        return isinstance(value, tuple) and len(value) == len(typing.get_type_hints(hint))
    return hint is Any or isinstance(value, hint)


def _is_tuple(value: object, hints: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple):
        return False
    if hints[-1:] == (Ellipsis,):
        return all(fits_annotation(item, hints[0]) for item in value)
    return len(value) == len(hints) and all(map(fits_annotation, value, hints))


_CHECKS: Mapping[Any, Callable[[object, tuple[Any, ...]], bool]] = types.MappingProxyType({
    Literal: lambda value, words: isinstance(value, str) and value in words,
    typing.Union: lambda value, hints: any(fits_annotation(value, hint) for hint in hints),
    types.UnionType: lambda value, hints: any(fits_annotation(value, hint) for hint in hints),
    tuple: _is_tuple,
    collections.abc.Callable: lambda value, _: callable(value),
})  # fmt: skip
"""How a value is checked against an annotation with arguments, by the annotation's origin."""


# Data to text, and to a number that stands for it


def digest(data: Data) -> str:
    """Hash data: 32 hex digits, equal for equal values in every process and on every machine."""
    canonical = json.dumps(_plain(data), sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def _plain(data: Data) -> Data:
    """Write whole numbers as floats where these are equal: `1 == 1.0` must have one hash."""
    if isinstance(data, int) and not isinstance(data, bool) and abs(data) < 2**53:
        return float(data)
    plain: Data = _mapped(_plain, data)
    return plain


def _mapped(change: Callable[[Data], Any], data: Data) -> Any:
    """Change everything right within an object or an array."""
    if isinstance(data, dict):
        return {key: change(item) for key, item in data.items()}
    return [change(item) for item in data] if isinstance(data, list) else data


def write_json(data: Data) -> str:
    """Write data as indented JSON, in words of any language, but for what UTF-8 does not hold."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    holds = text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
    return text if holds else json.dumps(data, indent=2, allow_nan=False)


def read_json(text: str, *, longest: int | None = LONGEST) -> Data:
    """Read JSON of at most `longest` characters; None for any number."""
    return _read("JSON", functools.partial(json.loads, parse_constant=_no_constant), text, longest)


def _no_constant(word: str) -> None:
    raise ValueError(f'{word} is not JSON; write {{"float": "inf"}} for infinity')


def write_toml(data: Data) -> str:
    """Write an object as TOML, which has `{}` for null."""
    if not isinstance(data, dict):
        raise PolicyError(f"a TOML file is one object, got {data!r}")
    text: str = _toml("writing TOML", "tomli_w").dumps(_without_null(data))
    return text


def _without_null(data: Data) -> Any:
    return {} if data is None else _mapped(_without_null, data)


def read_toml(text: str) -> Data:
    """Read TOML."""
    module = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    return _read("TOML", _toml("reading TOML", module).loads, text, LONGEST)


def _toml(what: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(what, "toml") from error


def _read(language: str, loads: Callable[[str], Data], text: str, longest: int | None) -> Data:
    """Parse a text, and refuse what would take memory by the hundred megabytes."""
    if not isinstance(text, (str, bytes)):
        raise PolicyError(f"{language} is text, got {text!r:.80}")
    if longest is not None and len(text) > longest:
        raise PolicyError(
            f"a policy has at most {longest:,} characters, this one has {len(text):,}"
        )
    try:
        data = loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise PolicyError(f"this is no {language}: {brief(str(error))}") from error
    _check_depth(data)
    return data


def _check_depth(data: Data) -> None:
    """Refuse data that is nested so deep that Python could not compare or print its value."""
    level = [data]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise PolicyError(f"objects and arrays are nested more than {DEEPEST} deep")


def _within(data: Data) -> Iterator[Data]:
    items = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return (item for item in items if isinstance(item, (dict, list)))
