"""The options of the command line: what each is called, what it says, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from torch_initpolicy.cli.console import QUIET
from torch_initpolicy.errors import InitPolicyError
from torch_initpolicy.integrations.inputs import Input, require_distinct
from torch_initpolicy.planning.selection import Keeping
from torch_initpolicy.policy.presets import policy as policy_of
from torch_initpolicy.writing.drawing import check_seed


def _checked(check: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Refuse what `check` raises at, before the work and not after it, naming the option."""

    def callback(value: Any) -> Any:
        try:
            if value is not None:
                check(value)
        except InitPolicyError as error:
            raise typer.BadParameter(str(error)) from error
        return value

    return callback


def _policies(names: list[str]) -> None:
    for name in names:
        policy_of(name)


def _file(*suffixes: str) -> Callable[[Path | None], Path | None]:
    """Find out before the work where its result cannot be put, or would be of another format."""

    def callback(path: Path | None) -> Path | None:
        if path is not None and path.suffix not in suffixes:
            raise typer.BadParameter(f"{path} does not end with {suffixes[0]}")
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}")
        return path

    return callback


def _quiet(quiet: bool) -> bool:
    QUIET.set(quiet)
    return quiet


def _input(word: str) -> Input:
    try:
        return Input.parse(word)
    except InitPolicyError as error:
        raise typer.BadParameter(str(error)) from error


Model = Annotated[
    str, typer.Argument(help="timm:resnet50, torchvision:resnet50 or package.module:callable.")
]
Policy = Annotated[
    str, typer.Option("--policy", "-p", help="Name of a preset, or a .json or .toml file.")
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL|FILE",
        help="Scale from this smaller or larger model of the same family, or from the .json file "
        "of its plan: by --policy complete_p, or by mup with the policy named.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(help="Seed of the random streams, up to 64 bits.", callback=_checked(check_seed)),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Then scale each weight so that its output has standard deviation 1, on the inputs "
        "that --input gives or that are found.",
    ),
]
StartFrom = Annotated[
    str | None,
    typer.Option(
        "--policy",
        "-p",
        help="Look at the model as this preset or file starts it, not as its constructor does.",
        callback=_checked(policy_of),
    ),
]
StartSeed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="Seed of the policy, 0 unless given; without one that of the constructor's own draws.",
        callback=_checked(check_seed),
    ),
]
Inputs = Annotated[
    list[Input] | None,
    typer.Option(
        "--input",
        "-i",
        parser=_input,
        callback=_checked(require_distinct),
        metavar="[NAME=][KIND:]SHAPE",
        help="An input of the model, else they are looked for: 2,3,224,224 for floats, int:2,16 "
        "for indices, mask=bool:2,8 for a named one. Repeatable.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Save the weights here.", callback=_file(".safetensors"))
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Only sites named so: 'head.*'; others as constructed. Repeatable."),
]
Skip = Annotated[list[str] | None, typer.Option(help="No sites named so: 'body.*'. Repeatable.")]
Frozen = Annotated[bool, typer.Option("--frozen", help="Also parameters that require no gradient.")]
KeepWhat = Annotated[
    Keeping,
    typer.Option(
        help="What stays: the constructor's closed branches, priors and computed kernels, or "
        "nothing but what an option names."
    ),
]
Strict = Annotated[bool, typer.Option(help="Whether a rule that matches nothing is an error.")]
Html = Annotated[
    Path | None, typer.Option(help="Write a page of the report.", callback=_file(".html", ".htm"))
]
Suggest = Annotated[
    list[str] | None,
    typer.Option(
        help="Policies to try, else by verdict. Repeatable.", callback=_checked(_policies)
    ),
]
TrialBudget = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="When to stop trying repairs on copies.")
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Check the weights of this .safetensors file.", exists=True, dir_okay=False),
]
OptimizerName = Annotated[
    str, typer.Option(help="Name of an optimizer: adamw, sgd, lion, muon, ...")
]
Rate = Annotated[float, typer.Option("--lr", min=0, help="Learning rate, of the base if given.")]
Decay = Annotated[float, typer.Option("--weight-decay", min=0, help="Likewise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show results and errors alone.", callback=_quiet)
]
