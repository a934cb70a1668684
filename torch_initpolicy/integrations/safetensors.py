"""Weights in a safetensors file, with the receipt of how they came about in its metadata."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from torch_initpolicy.errors import InitPolicyError, MissingExtraError, counted, listing
from torch_initpolicy.files import replacing
from torch_initpolicy.planning.plan import Receipt

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model, save_model
except ImportError as error:
    raise MissingExtraError("reading and writing safetensors files", "cli") from error

__all__ = ["load", "receipt_in", "save"]

KEY = "torch_initpolicy.receipt"


def save(model: nn.Module, receipt: Receipt, path: str | Path) -> None:
    """Write all parameters and buffers of a model, and the receipt of its start beside them.

    Tied tensors are written once, as `safetensors.torch.load_model` expects them. The file appears
    when it is complete: a run that is interrupted leaves an old file as it was.

    Raises:
        InitPolicyError: The file cannot be written; an old one is as it was.

    Examples:
        >>> import tempfile
        >>> from torch_initpolicy.api import apply_policy
        >>> model = nn.Linear(2, 2)
        >>> receipt = apply_policy(model, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, receipt, f"{folder}/model.safetensors")
        ...     receipt_in(f"{folder}/model.safetensors") == receipt
        True
    """
    with replacing(path) as unfinished:
        try:
            save_model(model, str(unfinished), metadata={KEY: receipt.to_json()})
        except (SafetensorError, RuntimeError) as error:
            raise InitPolicyError(f"{path} cannot be written: {error}") from error


def load(model: nn.Module, path: str | Path) -> None:
    """Read all parameters and buffers of a model from a file; the file must hold no others.

    What the file holds for the model is loaded even where the rest does not fit, unless a shape
    does not.

    Raises:
        InitPolicyError: The file is no safetensors file, or is not about such a model; the message
            lists what differs.
    """
    try:
        differences = {"of another shape than the model's": list(_reshaped(model, path))}
        if not any(differences.values()):
            missing, unexpected = load_model(model, str(path), strict=False)
            differences |= {"missing from it": missing, "unknown to the model": unexpected}
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InitPolicyError(f"{path} cannot be read: {error}") from error
    cases = [
        f"{counted(len(names), 'tensor')} {kind}:\n{listing(sorted(names))}"
        for kind, names in differences.items()
        if names
    ]
    if cases:
        about = f"{path} holds no weights for this {type(model).__name__}"
        raise InitPolicyError("\n".join([f"{about}:", *cases]))


def _reshaped(model: nn.Module, path: str | Path) -> Iterator[str]:
    """Yield the tensors that have another shape in the file than in the model."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    with safe_open(str(path), framework="pt") as file:
        for name in shapes.keys() & file.keys():
            held = file.get_slice(name).get_shape()
            if held != shapes[name]:
                yield f"{name}: {held}, not {shapes[name]}"


def receipt_in(path: str | Path) -> Receipt:
    """Read the receipt that `save` put into a file.

    Raises:
        InitPolicyError: The file is no safetensors file or holds no receipt.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise InitPolicyError(f"{path} is no safetensors file: {error}") from error
    if KEY not in metadata:
        raise InitPolicyError(f"{path} holds no receipt; files written by `save` do")
    return Receipt.from_json(metadata[KEY])
