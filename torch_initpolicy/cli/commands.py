"""The commands: each parses, calls one verb of the package, and prints its result."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import RenderableType
from rich.text import Text
from torch import nn

from torch_initpolicy.api import apply_policy, plan_policy
from torch_initpolicy.cli import options as opt
from torch_initpolicy.cli.console import advise, progress, show
from torch_initpolicy.cli.vocabulary import vocabulary, words_table
from torch_initpolicy.compare.compare import compare_inits
from torch_initpolicy.deferred.skip import skip_init
from torch_initpolicy.errors import PolicyError, TraceError, listing
from torch_initpolicy.integrations.inputs import Input, batches, drawn
from torch_initpolicy.integrations.models import build, builder
from torch_initpolicy.integrations.safetensors import load, save
from torch_initpolicy.planning.plan import Plan, Receipt
from torch_initpolicy.planning.selection import Selecting, Selection
from torch_initpolicy.planning.versions import Versions
from torch_initpolicy.policy import presets
from torch_initpolicy.policy.presets import policy as policy_of
from torch_initpolicy.policy.rules import InitPolicy, preset_named
from torch_initpolicy.report import tables
from torch_initpolicy.report.audit import BUDGET, audit_model
from torch_initpolicy.report.trial import with_remedy
from torch_initpolicy.scaling.check import check_scaling
from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.trace.trees import Call

FAILED = 1
"""Exit code where something failed or was found."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(asked: bool) -> None:
    """Print what the bits depend on, the version of the package first."""
    if asked:
        here = Versions.here()
        show(
            f"torch-initpolicy {here.torch_initpolicy} "
            f"(random streams v{here.streams}, {here.kernels}, Python {here.python})"
        )
        raise typer.Exit


@app.callback()
def _group(
    *,
    version: Annotated[
        bool,
        typer.Option(help="Print the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Initialise PyTorch models by a policy, chosen by what each layer meets in the data flow."""


@app.command(epilog="Example: torch-initpolicy plan timm:resnet50 --policy he --only 'layer4.*'")
def plan(
    model: opt.Model,
    *,
    policy: opt.Policy = "auto",
    base: opt.BaseModel = None,
    inputs: opt.Inputs = None,
    only: opt.Only = None,
    skip: opt.Skip = None,
    frozen: opt.Frozen = False,
    keep: opt.KeepWhat = "meant",
    strict: opt.Strict = True,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show what a policy would write to each parameter, and why; write nothing."""
    selecting = Selecting(only=only, skip=skip, frozen=frozen, keep=keep, strict=strict)
    wanted, built = _policy(policy, base), _built(model)
    shown = _shown(built, only, skip)
    with progress("reading the data flow"):
        result = plan_policy(built, wanted, example_inputs=drawn(inputs, built), **selecting)
    advise(guessed=_is_guessed(result))
    show(result.to_json() if as_json else tables.plan_table(result, shown))


@app.command(
    epilog="Example: torch-initpolicy apply timm:resnet50 --seed 0 --out resnet50.safetensors"
)
def apply(
    model: opt.Model,
    *,
    policy: opt.Policy = "auto",
    base: opt.BaseModel = None,
    inputs: opt.Inputs = None,
    seed: opt.Seed = 0,
    out: opt.Out = None,
    only: opt.Only = None,
    skip: opt.Skip = None,
    frozen: opt.Frozen = False,
    keep: opt.KeepWhat = "meant",
    strict: opt.Strict = True,
    calibrate: opt.Calibrate = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Initialise a model by a policy; save its weights with the receipt in their metadata."""
    selecting = Selecting(only=only, skip=skip, frozen=frozen, keep=keep, strict=strict)
    wanted, built = _policy(policy, base), _built(model)
    shown = _shown(built, only, skip)
    call = drawn(inputs, built)

    def write(batch: Call | None = None) -> Receipt:
        return apply_policy(
            built, wanted, seed=seed, example_inputs=call, calibrate=batch, **selecting
        )

    with progress("initialising"):
        receipt = _calibrated(write, batches(inputs, built)) if calibrate else write()
    if out is not None:
        with progress(f"writing {out}"):
            save(built, receipt, out)
    advise(guessed=_is_guessed(receipt.plan))
    show(receipt.to_json() if as_json else tables.receipt_table(receipt, shown))


@app.command(epilog="Example: torch-initpolicy audit package.module:build --html report.html")
def audit(
    model: opt.Model,
    *,
    policy: opt.StartFrom = None,
    seed: opt.StartSeed = None,
    inputs: opt.Inputs = None,
    html: opt.Html = None,
    suggest: opt.Suggest = None,
    budget: opt.TrialBudget = BUDGET,
    optimizer: Annotated[
        str | None,
        typer.Option(help="Also judge the first step of this optimizer: adamw, sgd, lion, ..."),
    ] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Its learning rate.")] = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Follow the signal through a model at its start; find out what repairs it."""
    if (optimizer is None) is not (lr is None):
        raise typer.BadParameter("--optimizer and --lr say together what the first step is")
    built, receipt = _started(model, policy, seed, inputs)
    with progress("following the signal") as say:
        found = audit_model(
            built,
            drawn(inputs, built),
            suggest=suggest,
            optimizer=optimizer,
            lr=lr,
            title=f"Audit of {model}" + (f" under {policy}" if policy else ""),
            budget=budget,
            receipt=receipt,
            tell=lambda call: say(f"trying {call} on a copy"),
        )
    if html is not None:
        found.write(html)
    _conclude(found, as_json=as_json)


@app.command(epilog="Example: torch-initpolicy check package.module:build --input 8,3,64,64")
def check(
    model: opt.Model,
    *,
    policy: opt.StartFrom = None,
    seed: opt.StartSeed = None,
    inputs: opt.Inputs = None,
    weights: opt.Weights = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Find units that start equal and stay equal, and parameters that can never move."""
    if weights is not None and policy is not None:
        raise typer.BadParameter("--weights and --policy both say what the weights are, give one")
    built, _ = _started(model, policy, seed, inputs)
    if weights is not None:
        load(built, weights)
    call = drawn(inputs, built)
    with progress("looking for symmetric starts") as say:
        report = with_remedy(
            built,
            call,
            find_symmetry(built, call),
            budget=BUDGET,
            tell=lambda start: say(f"trying {start} on a copy"),
        )
    advise(guessed=not inputs and bool(report.of("suspect")))
    _conclude(report, tables.symmetry_table(report), as_json=as_json)


@app.command(epilog="Example: torch-initpolicy compare package.module:mine timm:resnet50")
def compare(
    model: opt.Model,
    reference: Annotated[
        str, typer.Argument(help="What it is to start like; written as the model is.")
    ],
    *,
    seed: opt.StartSeed = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Compare how two models start, as distributions: which tensors are drawn differently."""
    with progress(f"comparing {model} with {reference}"), _seeded(seed):
        comparison = compare_inits(build(model), build(reference))
    _conclude(comparison, as_json=as_json)


@app.command(epilog="Example: torch-initpolicy groups timm:resnet50 --optimizer muon --lr 0.02")
def groups(
    model: opt.Model,
    *,
    policy: opt.Policy = "auto",
    base: opt.BaseModel = None,
    inputs: opt.Inputs = None,
    optimizer: opt.OptimizerName = "adamw",
    lr: opt.Rate = 1e-3,
    weight_decay: opt.Decay = 0.1,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show which parameters share a learning rate and a weight decay, and why."""
    wanted, built = _policy(policy, base), _built(model)
    with progress("reading the data flow"):
        result = plan_policy(built, wanted, example_inputs=drawn(inputs, built))
        found = result.param_groups(optimizer, lr=lr, weight_decay=weight_decay)
    advise(guessed=_is_guessed(result))
    show(tables.groups_json(found) if as_json else tables.groups_table(found))


@app.command(epilog="Example: torch-initpolicy scaling package.module:build --widths 32,64,128")
def scaling(
    model: Annotated[str, typer.Argument(help="package.module:callable that takes a width.")],
    *,
    widths: Annotated[str, typer.Option(help="Widths, with commas between.")] = "64,128,256,512",
    policy: Annotated[str, typer.Option("--policy", "-p", help="Preset or policy file.")] = "mup",
    optimizer: opt.OptimizerName = "adamw",
    lr: opt.Rate = 1e-2,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 5,
    inputs: opt.Inputs = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train at several widths for a few steps: do activations change as much at each of them?"""
    sizes = [int(width) for width in widths.split(",") if width.strip().isdigit()]
    if len(sizes) != widths.count(",") + 1:
        raise typer.BadParameter(f"widths are whole numbers with commas between, got {widths!r}")
    maker = builder(model)
    with progress("training at each width") as say:

        def build_at(width: int) -> nn.Module:
            say(f"training at width {width}")
            return maker(width)

        found = check_scaling(
            build_at,
            sizes,
            policy=policy,
            optimizer=optimizer,
            lr=lr,
            steps=steps,
            example_inputs=drawn(inputs, maker(sizes[0])) if inputs else None,
        )
    _conclude(found, as_json=as_json)


@app.command("presets", epilog="Example: torch-initpolicy presets --json")
def words(*, as_json: opt.AsJson = False, quiet: opt.Quiet = False) -> None:
    """List the words of policies: presets, matchers, initializers and roles."""
    found = vocabulary()
    show(json.dumps({"format": 1, **found}, indent=2) if as_json else words_table(found))


def _conclude(found: Any, table: RenderableType | None = None, *, as_json: bool) -> None:
    """Show what was found, and end with the exit code that says whether all is well."""
    show(found.to_json() if as_json else table or Text(str(found)))
    if not found.ok:
        raise typer.Exit(FAILED)


def _policy(name: str, base: str | None) -> InitPolicy:
    """Return the policy of a name, or one that scales from a base model."""
    is_scaled = name in ("mup", "complete_p")
    if base is None and is_scaled:
        raise typer.BadParameter(f"--policy {name} scales from a base model: give --base")
    if base is None:
        return policy_of(name)
    start: Any = Path(base) if Path(base).suffix == ".json" else _built(base)
    if is_scaled:
        return preset_named(name, {"base": start})
    return presets.mup(base=start, policy=name)


def _built(source: str) -> nn.Module:
    """Build the model; its constructor's own draws would be thrown away, so they are skipped."""
    with progress(f"building {source}"), skip_init():
        return build(source)


def _started(
    source: str, policy: str | None, seed: int | None, inputs: list[Input] | None
) -> tuple[nn.Module, Receipt | None]:
    """Build a model as it is to be looked at: as its constructor starts it, or as a policy does."""
    if policy is None:
        with progress(f"building {source}"), _seeded(seed):
            return build(source), None
    built = _built(source)
    with progress("initialising"):
        call = drawn(inputs, built)
        return built, apply_policy(built, policy, seed=seed or 0, example_inputs=call)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Let constructors draw from a seed, and put torch's global generator back afterwards."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


def _calibrated(write: Callable[[Call], Receipt], calls: Iterator[Call]) -> Receipt:
    """Calibrate on the first inputs that fit; those that do not are found out before a write."""
    *others, last = calls
    for call in others:
        with suppress(TraceError):
            return write(call)
    return write(last)


def _is_guessed(plan: Plan) -> bool:
    return any(step.evidence == "order" for step in plan)


def _shown(model: nn.Module, only: list[str] | None, skip: list[str] | None) -> set[str] | None:
    """Collect the names that the options ask for; None where they ask for all.

    Globs that match no parameter are a mistake of the command line and not of the plan.
    """
    asked, found = Selection.of(only=only, skip=skip, frozen=True), sites(model)
    if idle := list(asked.idle(found)):
        raise PolicyError(f"options that match no parameter:\n{listing(idle)}")
    return {site.name for site in found if asked.kept(site) is None} if only or skip else None
