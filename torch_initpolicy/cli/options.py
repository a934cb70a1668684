"""The options of the command line: what each is called, what it says, and what it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from torch_initpolicy.cli.console import QUIET
from torch_initpolicy.errors import InitPolicyError
from torch_initpolicy.integrations.inputs import Input, require_distinct
from torch_initpolicy.planning.selection import Keeping
from torch_initpolicy.policy.presets import policy as policy_of
from torch_initpolicy.writing.streams import as_seed


def _in_a_folder(path: Path | None) -> Path | None:
    """Find out before the work, not after it, where its result cannot be put."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path


def _writable(path: Path | None) -> Path | None:
    """Find out likewise where its result would have another format than its name says."""
    if path is not None and path.suffix != ".safetensors":
        raise typer.BadParameter(f"{path} does not end with .safetensors")
    return _in_a_folder(path)


def _page(path: Path | None) -> Path | None:
    """Find out likewise where a page would not open in a browser."""
    if path is not None and path.suffix not in {".html", ".htm"}:
        raise typer.BadParameter(f"{path} does not end with .html")
    return _in_a_folder(path)


@contextmanager
def _as_usage() -> Iterator[None]:
    """Say which option holds what is refused, before the work and not after it."""
    try:
        yield
    except InitPolicyError as error:
        raise typer.BadParameter(str(error)) from error


@_as_usage()
def _seed(seed: int) -> int:
    return as_seed(seed)


@_as_usage()
def _policy(name: str) -> str:
    policy_of(name)
    return name


def _start(name: str | None) -> str | None:
    return None if name is None else _policy(name)


def _start_seed(seed: int | None) -> int | None:
    return None if seed is None else _seed(seed)


def _policies(names: list[str] | None) -> list[str] | None:
    return [_policy(name) for name in names] if names else None


@_as_usage()
def _input(word: str) -> Input:
    return Input.parse(word)


@_as_usage()
def _inputs(inputs: list[Input] | None) -> list[Input] | None:
    require_distinct(inputs or ())
    return inputs


Model = Annotated[
    str,
    typer.Argument(help="timm:resnet50, torchvision:resnet50 or package.module:callable."),
]
Policy = Annotated[
    str,
    typer.Option(
        "--policy", "-p", help="Name of a preset, or a .json or .toml file.", callback=_policy
    ),
]
Seed = Annotated[
    int, typer.Option(help="Seed of the random streams, up to 64 bits.", callback=_seed)
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Then scale each weight so that its output has standard deviation 1, on the inputs "
        "that --input gives or that are found.",
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--policy",
        "-p",
        help="Look at the model as this policy starts it, not as its constructor does: a preset, "
        "or a .json or .toml file.",
        callback=_start,
    ),
]
StartSeed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Seed of the policy, 0 unless given; without one that of the constructor's own draws.",
        callback=_start_seed,
    ),
]
Inputs = Annotated[
    list[Input] | None,
    typer.Option(
        "--input",
        "-i",
        parser=_input,
        callback=_inputs,
        metavar="[NAME=][KIND:]SHAPE",
        help="An input of the model, else they are looked for: 2,3,224,224 for floats, int:2,16 "
        "for indices, mask=bool:2,8 for a named one. Repeatable.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Save the weights here, as FILE.safetensors.", callback=_writable),
]
Only = Annotated[
    list[str] | None, typer.Option(help="Only sites of such names: 'head.*'. Repeatable.")
]
Skip = Annotated[
    list[str] | None, typer.Option(help="No sites of such names: 'encoder.*'. Repeatable.")
]
Frozen = Annotated[bool, typer.Option("--frozen", help="Also parameters that require no gradient.")]
Keep = Annotated[
    Keeping,
    typer.Option(
        help="What stays: the constructor's closed branches, priors and computed kernels, or "
        "nothing but what an option names."
    ),
]
Strict = Annotated[
    bool, typer.Option(help="Whether a rule that matches nothing is an error, or a warning.")
]
Html = Annotated[
    Path | None,
    typer.Option(
        help="Write the report to this .html file: what the signal does, what repairs it, a plan, "
        "symmetric starts.",
        callback=_page,
    ),
]
Suggest = Annotated[
    list[str] | None,
    typer.Option(
        help="Policies to try on a copy; else those that the verdicts ask for. Repeatable.",
        callback=_policies,
    ),
]
Budget = Annotated[
    float,
    typer.Option(
        min=0, metavar="SECONDS", help="After so long nothing further is tried on a copy."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Check the weights in this .safetensors file, not the constructor's.",
        exists=True,
        dir_okay=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL|FILE",
        help="Scale from this smaller or larger model of the same family, or from the .json file "
        "of its plan, by --policy mup (the default then) or complete_p.",
    ),
]
Optimizer = Annotated[str, typer.Option(help="Name of an optimizer: adamw, sgd, lion, muon, ...")]
Rate = Annotated[float, typer.Option("--lr", min=0, help="Learning rate, of the base if given.")]
Decay = Annotated[float, typer.Option("--weight-decay", min=0, help="Likewise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _quiet(quiet: bool) -> bool:
    QUIET.set(quiet)
    return quiet


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Show results and errors alone.", is_eager=True, callback=_quiet
    ),
]
