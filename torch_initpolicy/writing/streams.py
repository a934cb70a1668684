"""Random streams, contract v1: which bits every block of a parameter is made of.

The logical tensor, flattened in C order, is cut into blocks of 2^16 elements. Each block has a
64-bit key, a blake2b of the seed, the canonical name and the block's number, and a generator of
its own that starts at that key. So the bits of a parameter depend on nothing else: not on other
parameters, the order of the modules, the threads or the processes that draw them.
"""

import functools
import hashlib
import random
import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.tensors.isolation import drawing_from
from torch_initpolicy.writing.drawing import SEED_BITS

CONTRACT = 1
"""Version of the contract; another number means other bits for the same seed."""

BLOCK = 1 << 16
"""Elements of the flattened logical tensor that one generator draws."""

Seek = Callable[[int], torch.Generator]
"""Turns a key into a generator that starts there; the same object every time."""

_NATIVE = frozenset({"cpu", "cuda", "xpu"})
_WORDS = 624  # state words of the 32-bit Mersenne twister
_FIRST = 3  # the int64 of `get_state()` that holds the first of them


def keys(seed: int, name: str, *, salt: int = 0) -> Callable[[int], int]:
    """Return the function from the numbers of a parameter's blocks to their 64-bit keys.

    The seed has 64 bits, signed or unsigned: `-1` is `2**64 - 1`. A parameter has a stream for each
    salt.
    """
    # The name stands between fields of fixed width, which makes the encoding unambiguous.
    prefix = hashlib.blake2b(
        struct.pack("<QQ", seed % (1 << SEED_BITS), salt) + name.encode(errors="surrogatepass"),
        digest_size=8,
        salt=b"streams v1",
        person=b"torch-initpolicy",
    )

    def key(block: int) -> int:
        hashed = prefix.copy()
        hashed.update(block.to_bytes(8, "little"))
        return int.from_bytes(hashed.digest(), "little")

    return key


def key(seed: int, name: str, block: int, *, salt: int = 0) -> int:
    """Return the key of a single block; see `keys`."""
    return keys(seed, name, salt=salt)(block)


def draws_on(device: torch.device) -> torch.device:
    """Return a device itself where its generator keeps all 64 bits of a seed, else the CPU."""
    return device if device.type in _NATIVE else torch.device("cpu")


def seeker(device: torch.device) -> Seek:
    """Return a function that moves one generator on `device` to the start of any key's stream.

    The generator is reused, so each thread needs a seeker of its own.

    Raises:
        ApplyError: This torch keeps the state of its CPU generator in an unknown layout.
    """
    generator = torch.Generator(device)
    if device.type != "cpu":
        return generator.manual_seed
    _check_layout()
    return _twister(generator)


def _twister(generator: torch.Generator) -> Seek:
    """Return a seeker that sets all words of a Mersenne twister.

    `manual_seed` will not do: on the CPU it keeps 32 bits of the seed, so that of 10^5 blocks two
    would be expected to be equal.
    """
    state = generator.manual_seed(0).get_state()
    words = state.view(torch.int64)[_FIRST : _FIRST + _WORDS]
    buffer = bytearray(4 * _WORDS)
    fresh = torch.frombuffer(buffer, dtype=torch.uint32)

    def seek(key: int) -> torch.Generator:
        buffer[:] = _expand(key)
        words.copy_(fresh)
        return generator.set_state(state)

    return seek


def _expand(key: int) -> bytes:
    """Stretch a key to the state of a Mersenne twister."""
    return hashlib.shake_128(key.to_bytes(8, "little")).digest(4 * _WORDS)


@functools.cache
def _check_layout() -> None:
    """Compare torch's twister, once per process, with the one in the standard library.

    Both start from the same words; 1,300 draws cross the recurrence twice.
    """
    draws = 1300
    expected = _library_draws(struct.unpack(f"<{_WORDS}I", _expand(1)), draws)
    try:
        generator = _twister(torch.Generator("cpu"))(1)
        found = torch.empty(draws, dtype=torch.int32, device="cpu").random_(generator=generator)
    except RuntimeError as error:
        raise _unknown_layout() from error
    if found.tolist() != expected:
        raise _unknown_layout()


def _library_draws(words: Sequence[int], count: int) -> list[int]:
    """Draw the low 31 bits of the twister's outputs, as `Tensor.random_` does for int32."""
    twister = random.Random()  # noqa: S311 - a reference, not a secret
    twister.setstate((3, (*words, _WORDS), None))
    return [twister.getrandbits(32) & 0x7FFFFFFF for _ in range(count)]


def _unknown_layout() -> ApplyError:
    return ApplyError(
        f"torch {torch.__version__} keeps the state of its CPU generator in a layout that random "
        f"streams contract v{CONTRACT} does not know; expected {_WORDS} words from int64 {_FIRST} "
        "of get_state() on. Nothing was written. Use an older torch, or report this."
    )


def isolated(device: torch.device, key: int) -> AbstractContextManager[None]:
    """Let code that draws from torch's global generators draw from a stream of its own.

    Within the block what this thread draws on the CPU and on `device` comes from streams that
    start at `key`; the global generators are neither read nor moved.
    """
    places = {torch.device("cpu"), draws_on(device)}
    return drawing_from({place.type: seeker(place)(key) for place in places})
