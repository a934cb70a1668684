"""A gallery of audits: what is said of some thirty small nets before they train, and the pictures.

    python examples/experiments/gallery.py --out docs/gallery

Most nets are those of `doctor.py`, which trains them: one for each fault. Some structures more are
here, started as people start them.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from common import options, report, table
from doctor import FAULTS, MEANT, batch, built, loss_with, task_of
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from torch_initpolicy import Audit, audit_model


class Contrastive(nn.Module):
    """Cosines of two towers times a learned factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.images, self.texts = (
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 32)) for width in (48, 32)
        )
        self.scale = nn.Parameter(torch.tensor(factor).log())

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the logits of all pairs."""
        sides = self.images(images), self.texts(texts)
        left, right = (F.normalize(side, dim=-1) for side in sides)
        return self.scale.exp() * left @ right.mT


class Hyper(nn.Module):
    """A layer whose weights another layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Embedding(4, 16)
        self.first, self.second = nn.Linear(16, 64 * 32), nn.Linear(16, 64 * 10)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """Classify."""
        code = self.code(task)
        hidden = F.linear(x, self.first(code).view(64, 32)).relu()
        return F.linear(hidden, self.second(code).view(10, 64))


class Experts(nn.Module):
    """The two best of four experts, all of them copies of one."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.head = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(32, 10)
        self.up = nn.Parameter(torch.randn(1, 32, 64).repeat(4, 1, 1) * 0.2)
        self.down = nn.Parameter(torch.randn(1, 64, 32).repeat(4, 1, 1) * 0.2)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.enter(x)
        best, which = self.gate(x).softmax(-1).topk(2, -1)
        shares = x.new_zeros(len(x), 4).scatter(-1, which, best)
        made = torch.einsum("bd,edh->beh", x, self.up).relu()
        return self.head(x + torch.einsum("beh,ehd,be->bd", made, self.down, shares))


class Cell(nn.Module):
    """A recurrent cell written as a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.keep, self.head = nn.Linear(8, 48), nn.Linear(48, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a sequence by its end."""
        state = x.new_zeros(len(x), 48)
        for step in x.unbind(1):
            state = torch.tanh(self.read(step) + self.keep(state))
        return self.head(state)


def generator() -> nn.Module:
    """Build a DCGAN's generator, started as its paper says."""
    widths = (64, 64, 32, 16)
    layers: list[nn.Module] = [nn.Unflatten(1, (64, 1, 1))]
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        stride, padding = (1, 0) if place == 0 else (2, 1)
        layers += [nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
                   nn.BatchNorm2d(after), nn.ReLU()]  # fmt: skip
    net = nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh())
    for module in net.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
    return net


class Structure(NamedTuple):
    """A net and what it is called with."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Sequence[Tensor]]


STRUCTURES: Mapping[str, Structure] = {
    "temperature of 1,000": Structure(
        lambda: Contrastive(1000.0), lambda: (torch.randn(32, 48), torch.randn(32, 32))
    ),
    "CLIP's temperature": Structure(
        lambda: Contrastive(1 / 0.07), lambda: (torch.randn(32, 48), torch.randn(32, 32))
    ),
    "a hypernetwork as torch starts it": Structure(
        Hyper, lambda: (torch.randn(32, 32), torch.tensor(1))
    ),
    "experts that are copies": Structure(Experts, lambda: (torch.randn(64, 16),)),
    "a recurrent cell over 40 steps": Structure(Cell, lambda: (torch.randn(16, 40, 8),)),
    "DCGAN's generator": Structure(generator, lambda: (torch.randn(16, 64),)),
}  # fmt: skip


def audits(kinds: Sequence[str]) -> Iterator[tuple[str, Audit]]:
    """Audit one net of each kind; faults have the seed of their place."""
    for kind in kinds:
        if kind in STRUCTURES:
            torch.manual_seed(0)
            net, inputs = STRUCTURES[kind].build(), tuple(STRUCTURES[kind].inputs())
            yield kind, audit_model(net, inputs)
            continue
        family, net, _ = built(kind, {**FAULTS, **MEANT}[kind], 11)
        task = task_of(family)
        data, targets = batch(task, 0)
        loss = functools.partial(loss_with, task, targets)
        audit = audit_model(net, data, loss_fn=loss, optimizer="adam", lr=task.rate)
        yield f"{kind} ({family})", audit


def shown(kind: str, audit: Audit, out: Path | None) -> str:
    """Write what is said of a net, and its picture beside it."""
    call = "" if audit.recommended is None else audit.recommended.call
    lines = [f"## {kind}", audit.headline.replace(call, f"`{call}`") if call else audit.headline]
    if out is not None:
        name = re.sub(r"\W+", "-", kind.lower()).strip("-")
        out.mkdir(parents=True, exist_ok=True)
        audit.plot().savefig(out / f"{name}.png", dpi=96, facecolor="white")
        with Image.open(out / f"{name}.png") as picture:
            picture.convert("RGB").quantize(64).save(out / f"{name}.png", optimize=True)
        lines.append(f"![gradients, histograms of activations, dead and tied units]({name}.png)")
    return "\n\n".join(lines)


def main(*, smoke: bool = False, out: Path | None = None) -> list[str]:
    """Audit all nets; write one page, and a picture of each."""
    kinds = [*FAULTS, *MEANT, *STRUCTURES]
    kinds = [kinds[0], kinds[-1]] if smoke else kinds
    found = list(audits(kinds))
    rows = [(kind, verdict(audit)) for kind, audit in found]
    pages = [shown(kind, audit, out) for kind, audit in found]
    summary = table(("net", "what is said of it"), rows)
    report("audits", "\n\n".join((f"# Gallery of audits\n\n{_HEAD}", summary, *pages)), out)
    return pages


def verdict(audit: Audit) -> str:
    """Return the first sentence of what an audit says."""
    return audit.headline.partition(". ")[0].rstrip(".")


LEGEND = (
    "weights and activations in order of execution, each the histogram of its absolute values;\n"
    "above them gradients, below them shares of dead and of tied units; left the net as it is,\n"
    "right after the line that repairs it."
)
"""What the columns of a picture are."""

_HEAD = (
    "`python examples/experiments/gallery.py --out docs/gallery` makes this page. Columns are\n"
    f"{LEGEND}"
)


if __name__ == "__main__":
    main(**vars(options(__doc__)))
