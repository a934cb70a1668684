"""Makes the inputs that words of the command line mean: `2,3,224,224`, `mask=bool:2,8`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_initpolicy.errors import InitPolicyError, nearest
from torch_initpolicy.sites import sites, unwrapped
from torch_initpolicy.trace.real_inputs import real_inputs
from torch_initpolicy.trace.stand_ins import vocabulary_size
from torch_initpolicy.trace.trees import Call

__all__ = ["KINDS", "NOTATION", "Input", "batches", "drawn", "require_distinct"]

KINDS = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "complex": torch.complex64,
    "int": torch.int64,
    "bool": torch.bool,
}
"""What an input may be made of."""

NOTATION = "[NAME=][KIND:]SHAPE, such as 2,3,224,224 or int:2,16 or mask=bool:2,8"

_WORD = re.compile(
    r"(?:(?P<name>[^\W\d]\w*)=)?(?:(?P<kind>\w+):)?(?P<shape>[1-9][0-9]*(?:,[1-9][0-9]*)*)"
)


@dataclass(frozen=True, slots=True)
class Input:
    """One argument of a forward pass.

    Attributes:
        shape: Its shape, with the axis of samples.
        kind: What it is made of, a key of `KINDS`.
        name: The argument's name; None for one that goes by its place.
    """

    shape: tuple[int, ...]
    kind: str = "float"
    name: str | None = None

    @classmethod
    def parse(cls, word: str) -> "Input":
        """Read `[NAME=][KIND:]SHAPE`.

        Raises:
            InitPolicyError: It is not written so, or there is no such kind.

        Examples:
            >>> Input.parse("2,3,224,224")
            Input(shape=(2, 3, 224, 224), kind='float', name=None)
            >>> Input.parse("input_ids=int:2,16")
            Input(shape=(2, 16), kind='int', name='input_ids')
        """
        read = _WORD.fullmatch(word)
        if read is None:
            raise InitPolicyError(f"{word!r} is no input; write {NOTATION}")
        kind = read["kind"] or "float"
        if kind not in KINDS:
            known = f"; known are {', '.join(KINDS)}"
            raise InitPolicyError(f"no input is of kind {kind!r}{nearest(kind, KINDS) or known}")
        return cls(tuple(map(int, read["shape"].split(","))), kind, read["name"])

    def draw(self, indices: int, generator: torch.Generator) -> Tensor:
        """Draw numbers: standard normals, integers below `indices`, or truth everywhere."""
        dtype = KINDS[self.kind]
        if self.kind == "bool":
            return torch.ones(self.shape, dtype=dtype)
        if self.kind == "int":
            return torch.randint(indices, self.shape, generator=generator)
        return torch.randn(self.shape, dtype=dtype, generator=generator)


def require_distinct(inputs: Sequence[Input]) -> None:
    """Raise where two inputs have the same name."""
    names = [asked.name for asked in inputs if asked.name is not None]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InitPolicyError(f"{names.count(repeated)} inputs are named {repeated!r}, give one")


def batches(inputs: Sequence[Input] | None, model: nn.Module) -> Iterator[Call]:
    """Yield arguments to run a model with for real, the likeliest first; what was asked for is all.

    Raises:
        TraceError: Nothing was asked for and nothing can be found.

    Examples:
        >>> [call.args[0].shape[1] for call in batches(None, nn.Linear(6, 4))]
        [6, 6]
    """
    inner = unwrapped(model)
    return real_inputs(inner, sites(model), drawn(inputs, model))


def drawn(inputs: Sequence[Input] | None, model: nn.Module) -> Call | None:
    """Draw the arguments of a forward pass, always the same, on the device of a model.

    Integers are indices that every `nn.Embedding` of the model holds. None where nothing was asked
    for.

    Examples:
        >>> call = drawn([Input((2, 3)), Input((2, 5), "int", "ids")], nn.Embedding(7, 4))
        >>> call.args[0].shape, call.kwargs["ids"].max().item() < 7
        (torch.Size([2, 3]), True)
    """
    if not inputs:
        return None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    generator, indices = torch.Generator().manual_seed(0), vocabulary_size(model)
    tensors = [(asked.name, asked.draw(indices, generator).to(device)) for asked in inputs]
    return Call(
        tuple(tensor for name, tensor in tensors if name is None),
        {name: tensor for name, tensor in tensors if name is not None},
    )
