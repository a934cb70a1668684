"""How numbers are drawn: the seed, the threads and the device, as one value."""

from dataclasses import dataclass

import torch

from torch_initpolicy.errors import ApplyError

SEED_BITS = 64


@dataclass(frozen=True, slots=True)
class Drawing:
    """How numbers are drawn.

    Attributes:
        seed: Seed of the random streams, 64 bits, signed or unsigned; None takes one from torch's
            global generator.
        threads: Threads that draw on the CPU; None: as many as torch computes with.
        draw_on: Device that draws, `"cpu"` for the same bits on every device; None: the device
            that each tensor lives on.
    """

    seed: int | None = None
    threads: int | None = None
    draw_on: torch.device | str | None = None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ApplyError: The seed is no integer of 64 bits, the threads are no number from 1 on, or
                the device is none, is not there, or holds no numbers (`"meta"`).
        """
        if self.seed is not None:
            check_seed(self.seed)
        threads = self.threads
        if threads is not None and (not _is_integer(threads) or threads < 1):
            raise ApplyError(
                "threads is a number from 1 on, or None for as many as torch computes with; "
                f"got {threads!r}"
            )
        if self.draw_on is not None:
            _check_device(self.draw_on)

    def settled(self) -> int:
        """Return the seed, or a fresh one, by which torch's global generator moves one draw."""
        if self.seed is not None:
            return self.seed
        return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def _is_integer(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def check_seed(seed: int) -> None:
    """Refuse a seed that is no integer of 64 bits."""
    if not _is_integer(seed):
        raise ApplyError(f"seed must be an int, got {seed!r} ({type(seed).__name__})")
    if not -(1 << SEED_BITS - 1) <= seed < 1 << SEED_BITS:
        raise ApplyError(f"seed {seed} does not fit into 64 bits; pass one in [-2**63, 2**64)")


def _check_device(device: torch.device | str) -> None:
    try:
        torch.Generator(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise ApplyError(
            f"draw_on={str(device)!r} is no device that can draw here: {why}; use 'cpu', or None "
            "for the device that each tensor lives on"
        ) from error
