"""Plans for modules that hold a part of the model, under names of their own.

A pipeline stage has some of the layers, a process of expert parallelism some of the experts. What
is drawn depends on the names in the whole model, so each part has to say what it holds.
"""

from collections.abc import Iterable
from dataclasses import replace

from torch_initpolicy.errors import PlanError, VerifyError, listing
from torch_initpolicy.planning.plan import Receipt


def joined(receipts: Iterable[Receipt]) -> Receipt:
    """Return the receipt of a model of which each receipt is of a part, as pipeline stages are.

    Tensors that several parts hold, as tied ones, must have the same bits in all of them. The
    fingerprint is then that of the model in one process.

    Args:
        receipts: The receipts of all parts, of one seed.

    Raises:
        PlanError: There is no receipt, or the parts were drawn from different seeds.
        VerifyError: Parts hold other bits of the same tensor; lists every one.
    """
    parts = list(receipts)
    if len({part.seed for part in parts}) != 1:
        raise PlanError(f"parts of one model have one seed, got {[part.seed for part in parts]}")
    prints: dict[str, str] = {}
    pairs = [pair for part in parts for pair in part.fingerprints]
    wrong = {name for name, found in pairs if prints.setdefault(name, found) != found}
    if wrong:
        cases = listing(sorted(map(repr, wrong)))
        raise VerifyError(f"parts of the model hold other bits of:\n{cases}")
    steps = {step.name: step for part in parts for step in part.plan}
    return replace(
        parts[0],
        plan=replace(parts[0].plan, steps=tuple(steps.values()), model=None, names=None),
        devices=tuple(sorted({device for part in parts for device in part.devices})),
        seconds=max(part.seconds for part in parts),
        fingerprints=tuple(prints.items()),
    )
