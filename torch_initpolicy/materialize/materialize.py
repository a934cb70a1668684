"""A model built on the meta device becomes a real one.

Everything that nobody can tell is found before the first byte is allocated, and raised at once.
Then memory is allocated, sharded parameters their part only; ties are tied again; buffers and kept
parameters get what their constructor computes; and the steps of a plan are applied.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from torch_initpolicy.deferred.undrawn import remembered
from torch_initpolicy.errors import MaterializeError, counted, listing
from torch_initpolicy.materialize.held import held_by, nested_of, tensors_of
from torch_initpolicy.materialize.rebuild import class_of
from torch_initpolicy.materialize.restore import origins
from torch_initpolicy.materialize.search import Build, Lost, Origin
from torch_initpolicy.sites import Site, canonical_modules, sites
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.layers import buffers_of
from torch_initpolicy.writing.apply import Written, apply_steps
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.shards import is_sharded, pieces


@contextmanager
def revealed(
    model: nn.Module, drawing: Drawing, *, rebuild: Build | None = None
) -> Iterator[dict[str, Origin]]:
    """Let a meta-built model be planned with what its constructor computes in its place.

    Within the block buffers, plain tensors and constant parameters hold their values, and of
    parameters that are drawn `pending_of` tells how; what nothing tells stays on meta. A plan is
    then the same as that of a model that was built for real.

    Yields what was found out, by canonical name.
    """
    drawing.check()
    lost = list(_lost(model, ()))
    found = origins(model, lost, rebuild=rebuild, seed=drawing.seed or 0)
    known = [(held_by(t.owner, t.attribute), found[t.name]) for t in lost if t.name in found]
    values = {id(tensor): _as_kind(tensor, o.value) for tensor, o in known if o.value is not None}
    pending = [(tensor, o.pending) for tensor, o in known if o.pending is not None]
    with remembered(pending), _replaced(model, values):
        yield found


def _as_kind(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a value as a tensor of the kind that it stands in for."""
    cast = value.to(tensor.dtype)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(cast, requires_grad=tensor.requires_grad) if is_parameter else cast


@contextmanager
def _replaced(model: nn.Module, values: Mapping[int, Tensor]) -> Iterator[None]:
    """Let a model hold other tensors for some, which are given by their identities.

    Sharded tensors stay, and so do those of recurrent layers, which keep lists of them.
    """
    kinds = (Tensor, nn.Parameter, nn.Buffer)
    places = [
        (held, name, tensor)
        for module in model.modules()
        if not isinstance(module, nn.RNNBase)
        for held in (vars(module)["_parameters"], vars(module)["_buffers"], vars(module))
        for name, tensor in held.items()
        if type(tensor) in kinds and id(tensor) in values
    ]
    for held, name, tensor in places:
        held[name] = values[id(tensor)]
    try:
        yield
    finally:
        for held, name, tensor in places:
            held[name] = tensor


def materialize_steps(
    pairs: Sequence[tuple[Site, Step]],
    model: nn.Module,
    found: Mapping[str, Origin],
    drawing: Drawing,
    device: torch.device | str | None = None,
) -> tuple[tuple[Step, ...], Written]:
    """Allocate a meta-built model, restore what its constructor computes, and apply steps.

    What of the model is not on meta keeps its values.

    Without a `device` it lives on that of its mesh if it is sharded, else on the CPU.

    Returns:
        The steps as they were carried out, where a kept parameter has become what its constructor
        draws, and what was written.

    Raises:
        MaterializeError: Lists every tensor that nobody can tell the values of. The model is as it
            was.
        ApplyError: A step cannot be carried out. The model is as it was.
    """
    lost = list(_lost(model, pairs))
    _require(lost, found, {step.name for _, step in pairs})
    constants = list(_constants(model))
    steps = tuple(_settled(step, found) for _, step in pairs)
    with _undone_on_error(model):
        allocate(model, _home(model) if device is None else _existing(device))
        _restore(lost, found, constants)
        places = {site.name: site for site in sites(model)}
        chosen = [(places[step.name], step) for step in steps]
        written = apply_steps(chosen, drawing, model=model)
    return steps, written


def _lost(model: nn.Module, pairs: Iterable[tuple[Site, Step]]) -> Iterator[Lost]:
    """Yield the tensors on meta that no step fills, each under its first name."""
    filled = {id(p) for site, step in pairs if not step.keeps for p in _written(site, step)}
    for name, module in _modules(model):
        known = buffers_of(module)
        for attribute, tensor in tensors_of(module):
            seen = id(tensor) in filled or attribute in known or _is_derived(module, attribute)
            if tensor.is_meta and not seen:
                filled.add(id(tensor))
                yield Lost(name, module, attribute, tensor.shape)


def _written(site: Site, step: Step) -> list[nn.Parameter]:
    """Return the parameters behind a site that a step writes."""
    if not step.frozen:
        return list(site.parameters)
    parts = zip(site.parts, site.parameters, strict=True)
    return [parameter for name, parameter in parts if name not in step.frozen]


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return every module once, with its first name."""
    named = reversed(list(canonical_modules(model)))
    return list({id(module): (name, module) for name, module in named}.values())[::-1]


def _is_derived(module: nn.Module, attribute: str) -> bool:
    """Say whether a plain attribute is computed anew in each forward pass, from parameters."""
    return any(f"{attribute}_{part}" in vars(module)["_parameters"] for part in ("g", "orig"))


def _require(lost: Iterable[Lost], found: Mapping[str, Origin], names: Collection[str]) -> None:
    """Raise one error for all that is lost for good; a draw is made up for at sites alone."""
    drawn = {name for name, origin in found.items() if origin.value is None}
    cases = [
        f"{tensor.name!r} ({class_of(tensor.owner).__name__}, shape {tuple(tensor.shape)})"
        for tensor in lost
        if tensor.name not in found
        or _is_fixed(tensor)
        or (tensor.name in drawn and tensor.name not in names)
    ]
    if cases:
        raise MaterializeError(
            f"{counted(len(cases), 'tensor')} of a model built on the meta device with values that "
            f"only its constructor computes:\n{listing(cases)}\n"
            "pass rebuild=..., a function that builds the model once more (it runs on the CPU and "
            "draws no weights), or register a function that computes them with "
            "torch_initpolicy.restore.register; a parameter may also get a Rule"
        )


def _is_fixed(lost: Lost) -> bool:
    """Say whether a tensor is in a tuple, which cannot be given another."""
    nested = dict(nested_of(lost.owner)) if lost.attribute.endswith("]") else {}
    place = nested.get(lost.attribute)
    return place is not None and isinstance(place.holder, tuple)


def _constants(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Yield the buffers on meta that start at a known constant, with it."""
    for _, module in _modules(model):
        for name, value in buffers_of(module).items():
            if module.get_buffer(name).is_meta:
                yield module, name, value


def _settled(step: Step, found: Mapping[str, Origin]) -> Step:
    """Say in the step of a kept parameter what it becomes."""
    origin = found.get(step.name)
    if origin is None or not step.keeps:
        return step
    return replace(step, reason=f"{step.reason}; the value given by {origin.source}")


def _home(model: nn.Module) -> torch.device:
    """Return where a model belongs: on the device of its mesh, or on the CPU."""
    sharded = next(filter(is_sharded, model.parameters()), None)
    return torch.device("cpu" if sharded is None else sharded.device_mesh.device_type)


def _existing(device: torch.device | str) -> torch.device:
    """Return a device that holds values, or raise."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        what = f"device={device!r:.80} is no device of this machine"
        raise MaterializeError(f"{what}: {why}") from error


def allocate(model: nn.Module, device: torch.device) -> None:
    """Give memory to all that is on meta, and move the rest; what is tied stays tied."""
    places = _holders(model)
    with torch.no_grad():
        _each_tensor(model, lambda tensor: _allocated(tensor, device))
    for tensor, holders in places:
        if len(holders) == 1 and not vars(tensor):
            continue
        first = held_by(*holders[0])
        vars(first).update({k: v for k, v in vars(tensor).items() if k not in vars(first)})
        for module, name in holders[1:]:
            setattr(module, name, first)


def _each_tensor(model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
    """Replace every tensor of a model; sharding and recurrent modules listen to this call."""
    model._apply(function)  # type: ignore[no-untyped-call]  # noqa: SLF001 - as `to_empty` does


def _allocated(tensor: Tensor, device: torch.device) -> Tensor:
    if not tensor.is_meta:
        return tensor.to(device)
    if type(tensor) in (Tensor, nn.Parameter) and tensor.is_contiguous():
        # Torch works out in Python, ten times as slowly, what is like a tensor on meta.
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return torch.empty_like(tensor, device=device)


def _holders(model: nn.Module) -> list[tuple[Tensor, list[tuple[nn.Module, str]]]]:
    """Return all parameters and buffers, each with the places where it hangs."""
    places: dict[int, tuple[Tensor, list[tuple[nn.Module, str]]]] = {}
    for module in model.modules():
        held = {**vars(module)["_parameters"], **vars(module)["_buffers"]}
        for name, tensor in held.items():
            if tensor is not None:
                places.setdefault(id(tensor), (tensor, []))[1].append((module, name))
    return list(places.values())


@torch.no_grad()
def _restore(
    lost: Iterable[Lost],
    found: Mapping[str, Origin],
    constants: Iterable[tuple[nn.Module, str, float]],
) -> None:
    for module, name, constant in constants:
        module.get_buffer(name).fill_(constant)
    for tensor in lost:
        value = found[tensor.name].value
        if value is not None:
            _give(tensor, value)


def _give(lost: Lost, value: Tensor) -> None:
    tensor = held_by(lost.owner, lost.attribute)
    if tensor.is_meta:  # a plain attribute, which `Module._apply` does not know
        place = dict(nested_of(lost.owner)).get(lost.attribute)
        holder, key = (vars(lost.owner), lost.attribute) if place is None else place[:2]
        holder[key] = value.to(dtype=tensor.dtype)
        return
    for piece in pieces(tensor):
        piece.tensor.copy_(piece.part_of(value))


@contextmanager
def _undone_on_error(model: nn.Module) -> Iterator[None]:
    """Put every tensor of a model back if something goes wrong."""
    before = [(module, _attributes(module)) for module in model.modules()]
    nested = [place for module in model.modules() for _, place in nested_of(module)]
    try:
        yield
    except BaseException:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
        for holder, key, tensor in nested:
            if not isinstance(holder, tuple):
                holder[key] = tensor
        _each_tensor(model, lambda tensor: tensor)  # modules look at their tensors again
        raise


def _attributes(module: nn.Module) -> dict[str, object]:
    tensors = ("_parameters", "_buffers")
    return {k: dict(v) if k in tensors else v for k, v in vars(module).items()}
