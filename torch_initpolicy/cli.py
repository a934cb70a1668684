"""The command `torch-initpolicy`: parses, calls the verbs of the package, prints their results.

Results go to standard output, and with `--json` nothing else does; progress, warnings and errors
go to standard error. Exit codes: 0, all is well; 1, something failed or was found; 2, the command
line asks for something that does not exist, or is written wrongly.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from torch_initpolicy.api import apply_policy, plan_policy
from torch_initpolicy.compare.compare import compare_inits
from torch_initpolicy.deferred.skip import skip_init
from torch_initpolicy.errors import (
    InitPolicyError,
    MissingExtraError,
    PolicyError,
    TraceError,
    listing,
)
from torch_initpolicy.integrations.inputs import NOTATION, Input, batches, drawn, require_distinct
from torch_initpolicy.integrations.models import build, builder
from torch_initpolicy.planning.plan import Receipt
from torch_initpolicy.planning.selection import Keeping, Selection
from torch_initpolicy.planning.versions import Versions
from torch_initpolicy.policy import presets
from torch_initpolicy.policy.presets import Policyish
from torch_initpolicy.policy.presets import policy as policy_of
from torch_initpolicy.policy.rules import preset_named
from torch_initpolicy.report.audit import BUDGET, audit_model
from torch_initpolicy.scaling.check import check_scaling
from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.trace.trees import Call
from torch_initpolicy.writing.streams import as_seed

try:
    import typer
    from rich.console import Console, RenderableType
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from torch_initpolicy.integrations.safetensors import load, save
    from torch_initpolicy.report import tables
except ImportError as error:  # the first thing a script does; nobody wants a traceback there
    raise SystemExit(str(MissingExtraError("the command torch-initpolicy", "cli"))) from error

__all__ = ["main"]

FAILED, USAGE = 1, 2

USAGE_ERRORS = (PolicyError, MissingExtraError)
"""Errors that another command line would mend; any other is a failure of the work itself."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    """Print what the bits depend on, the version of the package first."""
    if asked:
        here = Versions.here()
        _print(
            f"torch-initpolicy {here.torch_initpolicy} "
            f"(random streams v{here.streams}, {here.kernels}, Python {here.python})"
        )
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", help="Print the version and exit.", is_eager=True, callback=_show_version
    ),
]


@app.callback()
def _group(*, version: Version = False) -> None:
    """Initialise PyTorch models by a policy, chosen by what each layer meets in the data flow."""


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
        callback=_in_a_folder,
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


@app.command()
def plan(
    model: Model,
    *,
    policy: Policy = "auto",
    inputs: Inputs = None,
    only: Only = None,
    skip: Skip = None,
    frozen: Frozen = False,
    keep: Keep = "meant",
    strict: Strict = True,
    as_json: AsJson = False,
) -> None:
    """Show what a policy would write to each parameter, and why; write nothing."""
    built = _built(model)
    _require_matches(built, only, skip)
    with _progress("reading the data flow"):
        result = plan_policy(
            built,
            policy,
            example_inputs=drawn(inputs, built),
            only=only,
            skip=skip,
            frozen=frozen,
            keep=keep,
            strict=strict,
        )
    _advise(guessed=any(step.evidence == "order" for step in result))
    _print(result.to_json() if as_json else tables.plan_table(result))


@app.command()
def apply(
    model: Model,
    *,
    policy: Policy = "auto",
    inputs: Inputs = None,
    seed: Seed = 0,
    out: Out = None,
    only: Only = None,
    skip: Skip = None,
    frozen: Frozen = False,
    keep: Keep = "meant",
    strict: Strict = True,
    calibrate: Calibrate = False,
    as_json: AsJson = False,
) -> None:
    """Initialise a model by a policy; save its weights with the receipt in their metadata."""
    built = _built(model)
    _require_matches(built, only, skip)
    write = partial(
        apply_policy,
        built,
        policy,
        seed=seed,
        example_inputs=drawn(inputs, built),
        only=only,
        skip=skip,
        frozen=frozen,
        keep=keep,
        strict=strict,
    )
    with _progress("initialising"):
        receipt = _calibrated(write, batches(inputs, built)) if calibrate else write()
    if out is not None:
        with _progress(f"writing {out}"):
            save(built, receipt, out)
    _advise(guessed=any(step.evidence == "order" for step in receipt.plan))
    _print(receipt.to_json() if as_json else tables.receipt_table(receipt))


@app.command()
def audit(
    model: Model,
    *,
    policy: Start = None,
    seed: StartSeed = None,
    inputs: Inputs = None,
    html: Html = None,
    suggest: Suggest = None,
    budget: Budget = BUDGET,
    as_json: AsJson = False,
) -> None:
    """Follow the signal through a model at its start; find out what repairs it."""
    built, receipt = _started(model, policy, seed, inputs)
    with _progress("following the signal") as say:
        found = audit_model(
            built,
            drawn(inputs, built),
            suggest=suggest,
            title=f"Audit of {model}" + (f" under {policy}" if policy else ""),
            budget=budget,
            receipt=receipt,
            tell=lambda call: say(f"trying {call} on a copy"),
        )
    if html is not None:
        found.write(html)
    _print(found.to_json() if as_json else str(found))
    if not found.ok:
        raise typer.Exit(FAILED)


@app.command()
def check(
    model: Model,
    *,
    policy: Start = None,
    seed: StartSeed = None,
    inputs: Inputs = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Find units that start equal and stay equal, and parameters that can never move."""
    if weights is not None and policy is not None:
        raise typer.BadParameter("--weights and --policy both say what the weights are, give one")
    built, _ = _started(model, policy, seed, inputs)
    if weights is not None:
        load(built, weights)
    with _progress("looking for symmetric starts"):
        report = find_symmetry(built, drawn(inputs, built))
    _advise(guessed=not inputs and bool(report.of("suspect")))
    _print(report.to_json() if as_json else tables.symmetry_table(report))
    if not report.ok:
        raise typer.Exit(FAILED)


@app.command()
def compare(
    model: Model,
    reference: Annotated[
        str, typer.Argument(help="What it is to start like; written as the model is.")
    ],
    *,
    seed: StartSeed = None,
    as_json: AsJson = False,
) -> None:
    """Compare how two models start, as distributions: which tensors are drawn differently."""
    with _progress(f"building {model} and {reference}"), _seeded(seed):
        built = build(model), build(reference)
    with _progress("comparing"):
        comparison = compare_inits(*built)
    _print(comparison.to_json() if as_json else str(comparison))
    if not comparison.ok:
        raise typer.Exit(FAILED)


@app.command()
def groups(
    model: Model,
    *,
    policy: Annotated[str | None, typer.Option("--policy", "-p", help="As for plan.")] = None,
    base: Base = None,
    inputs: Inputs = None,
    optimizer: Optimizer = "adamw",
    lr: Rate = 1e-3,
    weight_decay: Decay = 0.1,
    as_json: AsJson = False,
) -> None:
    """Show which parameters share a learning rate and a weight decay, and why."""
    built = _built(model)
    with _progress("reading the data flow"):
        result = plan_policy(built, _scaling(policy, base), example_inputs=drawn(inputs, built))
        found = result.param_groups(optimizer, lr=lr, weight_decay=weight_decay)
    _advise(guessed=any(step.evidence == "order" for step in result))
    _print(tables.groups_json(found) if as_json else tables.groups_table(found))


@app.command()
def scaling(
    model: Annotated[str, typer.Argument(help="package.module:callable that takes a width.")],
    *,
    widths: Annotated[str, typer.Option(help="Widths, with commas between.")] = "64,128,256,512",
    policy: Annotated[str, typer.Option("--policy", "-p", help="As for plan, or mup.")] = "mup",
    optimizer: Optimizer = "adamw",
    lr: Rate = 1e-2,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 5,
    inputs: Inputs = None,
    as_json: AsJson = False,
) -> None:
    """Train at several widths for a few steps: do activations change as much at each of them?"""
    sizes = [int(width) for width in widths.split(",") if width.strip().isdigit()]
    if len(sizes) != widths.count(",") + 1:
        raise typer.BadParameter(f"widths are whole numbers with commas between, got {widths!r}")
    maker = builder(model)
    with _progress("training at each width"):
        found = check_scaling(
            maker,
            sizes,
            policy=policy,
            optimizer=optimizer,
            lr=lr,
            steps=steps,
            example_inputs=drawn(inputs, maker(sizes[0])) if inputs else None,
        )
    _print(found.to_json() if as_json else str(found))
    if not found.ok:
        raise typer.Exit(FAILED)


def _scaling(policy: str | None, base: str | None) -> Policyish:
    """Return the policy of a name, or one that scales from a base model."""
    if base is None:
        return policy_of(policy or "auto")
    start: Any = Path(base) if Path(base).suffix == ".json" else _built(base)
    name = policy or "mup"
    if name in ("mup", "complete_p"):
        return preset_named(name, {"base": start})
    return presets.mup(base=start, policy=name)


def _built(source: str) -> nn.Module:
    """Build the model; its constructor's own draws would be thrown away, so they are skipped."""
    with _progress(f"building {source}"), skip_init():
        return build(source)


def _started(
    source: str, policy: str | None, seed: int | None, inputs: list[Input] | None
) -> tuple[nn.Module, Receipt | None]:
    """Build a model as it is to be looked at: as its constructor starts it, or as a policy does."""
    if policy is None:
        with _progress(f"building {source}"), _seeded(seed):
            return build(source), None
    built = _built(source)
    with _progress("initialising"):
        return built, apply_policy(
            built, policy, seed=seed or 0, example_inputs=drawn(inputs, built)
        )


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Let constructors draw from a seed, and put torch's global generator back afterwards."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


def _calibrated(write: Callable[..., Receipt], calls: Iterator[Call]) -> Receipt:
    """Calibrate on the first inputs that fit; those that do not are found out before a write."""
    *others, last = calls
    for call in others:
        with suppress(TraceError):
            return write(calibrate=call)
    return write(calibrate=last)


def _require_matches(model: nn.Module, only: list[str] | None, skip: list[str] | None) -> None:
    """Refuse globs that match no site, as a mistake of the command line and not of the plan."""
    if idle := list(Selection.of(only, skip).idle(sites(model))):
        raise PolicyError(f"options that match no parameter:\n{listing(idle)}")


#
# What the user sees
#


def _console(*, stderr: bool = False) -> Console:
    """Open a console; a file or a pipe gets wide lines, not a terminal's 80 columns."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    return console


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done and for how long, where somebody watches; yield what says more."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = _console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(escape(what), total=None)
        yield lambda more: progress.update(task, description=escape(more))


def _print(result: RenderableType) -> None:
    console = _console()
    if isinstance(result, str):
        console.out(result)
    else:
        console.print(result)


def _say(kind: str, style: str, message: object) -> None:
    _console(stderr=True).print(f"[{style}]{kind}:[/] {escape(str(message))}")


def _advise(*, guessed: bool) -> None:
    """Name the option that would have told what could only be guessed without inputs."""
    if guessed:
        _say("advice", "bold", f"give inputs by --input {NOTATION}")


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show warnings without the line of code that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say("warning", "bold yellow", message)
        yield


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: What was typed after `torch-initpolicy`; None takes it from the process.

    Raises:
        SystemExit: Always; 0 if all is well, 1 if something failed or was found, 2 if the command
            line asks for what does not exist.

    Examples:
        >>> main(["plan", "torch.nn:Lineal"])
        Traceback (most recent call last):
        SystemExit: 2
    """
    try:
        with _short_warnings():
            app(args=arguments, prog_name="torch-initpolicy")
    except InitPolicyError as error:
        _say("error", "bold red", error)
        _advise(guessed=isinstance(error, TraceError))
        raise SystemExit(USAGE if isinstance(error, USAGE_ERRORS) else FAILED) from error
    except Exception as error:  # the model's own code may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        _say("error", "bold red", f"{type(error).__name__}: {error} ({where})")
        raise SystemExit(FAILED) from error
