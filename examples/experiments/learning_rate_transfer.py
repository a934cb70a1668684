"""Tune small, train large: the best learning rate drifts with width, and under muP it does not.

Six kinds of models, none of them written for it: GPT-2, Llama and Mamba of transformers on the text
of Python's own help, ViT and ConvNeXt of timm on digits, and an MLP-mixer of our own. Each is
trained at several widths over a grid of learning rates, once under one learning rate for all
parameters and once under `presets.mup` and its `param_groups`; then one kind at several depths
under `presets.complete_p`.

Reference:
    Yang et al., *Tensor Programs V*, 2022, arXiv:2203.03466, figure 1; Dey et al., *CompleteP*,
    2025, arXiv:2505.01618, figure 1.
"""

import math
import pydoc_data.topics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from common import Data, digits, options, report, table
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from torch_initpolicy import (
    InitPolicy,
    Rule,
    apply_policy,
    check_scaling,
    initializers,
    match,
    presets,
)

LENGTH = 16
Build = Callable[[int], nn.Module]
Losses = dict[int, dict[float, float]]
"""The loss at the end, by size and learning rate."""


class Task(NamedTuple):
    """A kind of model, what it learns from, the learning rates to try, inputs a step, and steps."""

    build: Build
    data: Data
    rates: Sequence[float]
    batch: int = 8
    steps: int = 120


#
# Models
#


def gpt2(width: int, depth: int = 1) -> nn.Module:
    """GPT-2 with heads of size 16 and a head of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - an extra

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=128, n_positions=LENGTH, n_embd=width, n_layer=depth, n_head=width // 16,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
            bos_token_id=0, eos_token_id=0, use_cache=False,
        )
    )  # fmt: skip


def llama(width: int) -> nn.Module:
    """Llama with heads of size 16."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - an extra

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=1,
            num_attention_heads=width // 16, num_key_value_heads=width // 16, use_cache=False,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def mamba(width: int) -> nn.Module:
    """Mamba with a head of its own."""
    from transformers import MambaConfig, MambaForCausalLM  # noqa: PLC0415 - an extra

    return MambaForCausalLM(
        MambaConfig(
            vocab_size=128, hidden_size=width, num_hidden_layers=1, state_size=8, use_cache=False,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def vit(width: int) -> nn.Module:
    """A vision transformer for images of 8 x 8 pixels."""
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415 - an extra

    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=width, depth=1,
        num_heads=width // 16,
    )  # fmt: skip


def convnext(width: int) -> nn.Module:
    """A ConvNeXt for images of 8 x 8 pixels."""
    from timm.models.convnext import ConvNeXt  # noqa: PLC0415 - an extra

    return ConvNeXt(
        in_chans=1, num_classes=10, depths=(1, 1, 1, 1), dims=(width,) * 4, patch_size=1,
        kernel_sizes=3, ls_init_value=None,
    )  # fmt: skip


class Mixer(nn.Module):
    """Blocks that mix positions and then channels, and add what they have mixed."""

    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.ModuleList(self._mlp(16, 32) for _ in range(depth))
        self.channels = nn.ModuleList(self._mlp(width, 2 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    @staticmethod
    def _mlp(size: int, inner: int) -> nn.Module:
        return nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, size)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        x = self.stem(images).flatten(2).mT
        for positions, channels in zip(self.positions, self.channels, strict=True):
            x = x + positions(x.mT).mT
            x = x + channels(x)
        return self.head(self.norm(x).mean(1))


def text() -> Data:
    """Cut the text of Python's help into lines of characters, each to be told from those before."""
    letters = "".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")
    codes = torch.tensor(list(letters), dtype=torch.int64)
    codes = codes[: len(codes) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    return Data(codes[:, :-1], codes[:, 1:])


def tasks() -> Mapping[str, Task]:
    """Return the kinds of models with their data."""
    words, images = text(), digits()
    rates = _powers(-12, -3)
    return {
        "GPT-2": Task(gpt2, words, rates),
        "Llama": Task(llama, words, rates),
        "Mamba": Task(mamba, words, rates),
        "ViT": Task(vit, images, rates, batch=32),
        "ConvNeXt": Task(convnext, images, _powers(-10, -3), steps=40),
        "Mixer": Task(Mixer, images, rates, batch=32),
    }


def _powers(low: int, high: int) -> Sequence[float]:
    return [2.0**power for power in range(low, high + 1)]


#
# Training
#


def train(
    model: nn.Module, task: Task, groups: list[dict[str, object]], steps: int, seed: int = 0
) -> float:
    """Train by AdamW; return the mean loss of the last fifth of the steps."""
    data = task.data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(data.targets), (task.batch,), generator=generator)
        output = model(data.inputs[chosen])
        logits = output if isinstance(output, Tensor) else output.logits
        loss = F.cross_entropy(logits.flatten(0, -2), data.targets[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    last = losses[-max(steps // 5, 1) :]
    return sum(last) / len(last)


def sweep(
    task: Task,
    sizes: Sequence[int],
    policy: InitPolicy | str,
    rates: Sequence[float],
    steps: int,
    *,
    seeds: int = 1,
) -> Losses:
    """Train at each size and learning rate; a policy that does not scale has one rate for all."""

    def loss(size: int, rate: float, seed: int) -> float:
        torch.manual_seed(seed)
        model = task.build(size)
        receipt = apply_policy(model, policy, seed=seed, example_inputs=task.data.inputs[:2])
        return train(model, task, receipt.param_groups(lr=rate), steps, seed)

    return {
        size: {rate: sum(loss(size, rate, seed) for seed in range(seeds)) / seeds for rate in rates}
        for size in sizes
    }


def best(losses: Mapping[float, float]) -> float:
    """Return the learning rate of the least loss: of the parabola through it and its neighbours."""
    known = sorted((math.log2(rate), loss) for rate, loss in losses.items() if math.isfinite(loss))
    at = min(range(len(known)), key=lambda i: known[i][1])
    if at in (0, len(known) - 1):
        return 2.0 ** known[at][0]
    (_, left), (middle, lowest), (_, right) = known[at - 1 : at + 2]
    curvature = left - 2 * lowest + right
    return 2.0 ** (middle + 0.5 * (left - right) / curvature if curvature > 0 else middle)


def drift(losses: Losses) -> float:
    """Return by which factor the best learning rate moves from the smallest to the largest size."""
    ends = [best(losses[size]) for size in (min(losses), max(losses))]
    return max(ends) / min(ends)


HEADS = Rule(match.name("*head.weight", "head.fc.weight"), initializers.Zeros())


def flat(task: Task, widths: Sequence[int]) -> float:
    """Return the share of layers whose change goes with width by a power of at most 0.05.

    The head starts at zero, as Tensor Programs V advises (appendix D.2): what a random one makes of
    the features' change fades as one over the root of the width, and hides the slope of the rest.
    """
    policy = presets.mup(base=task.build(widths[0]), policy=presets.auto().override(HEADS))
    check = check_scaling(
        task.build, widths, policy=policy, lr=2.0**-8, seeds=3, steps=3,
        example_inputs=task.data.inputs[:8],
    )  # fmt: skip
    return sum(abs(layer.change_slope) <= 0.05 for layer in check.layers) / len(check.layers)


def picture(panels: Mapping[str, tuple[Losses, Losses]]) -> object:
    """Draw loss against learning rate: the standard start on the left, the scaled one right."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    figure = Figure(figsize=(8, 2.6 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 2, sharey="row", squeeze=False)
    for axes, (name, sweeps) in zip(rows, panels.items(), strict=True):
        for axis, losses, title in zip(axes, sweeps, ("one learning rate", "scaled"), strict=True):
            for size, by_rate in losses.items():
                axis.plot(by_rate.keys(), by_rate.values(), marker=".", label=str(size))
            axis.set_xscale("log", base=2)
            axis.set_title(f"{name}, {title}", loc="left", fontsize="medium")
            axis.grid(visible=True, alpha=0.3)
        lowest = [min(losses.values()) for by_size in sweeps for losses in by_size.values()]
        axes[0].set_ylim(min(lowest) * 0.9, max(lowest) * 1.7)
        axes[0].legend(frameon=False, fontsize="small")
    return figure


def main(*, smoke: bool = False, out: Path | None = None) -> dict[str, tuple[Losses, Losses]]:
    """Sweep every kind over widths, and the mixer over depths."""
    warnings.simplefilter("ignore")  # the libraries' remarks about their defaults
    widths, depths = ((16, 32), (2, 4)) if smoke else ((16, 64, 256), (2, 8, 32))
    results, rows = {}, []
    for name, task in tasks().items():
        rates, steps = (task.rates[::7], 2) if smoke else (task.rates, task.steps)
        scaled = presets.mup(base=task.build(widths[0]))
        pair = (
            sweep(task, widths, "auto", rates, steps),
            sweep(task, widths, scaled, rates, steps),
        )
        share = "" if smoke else flat(task, (256, 512, 1024))
        results[name] = pair
        rows.append((name, *map(drift, pair), *(min(p[widths[-1]].values()) for p in pair), share))
    drawn = picture(results) if out else None
    task = Task(lambda depth: Mixer(32, depth), digits(), _powers(-9, -4), batch=32, steps=40)
    deep = [kind(base=task.build(depths[0])) for kind in (presets.mup, presets.complete_p)]
    rates, steps, seeds = (task.rates[::5], 2, 1) if smoke else (task.rates, task.steps, 3)
    pair = tuple(sweep(task, depths, policy, rates, steps, seeds=seeds) for policy in deep)
    results["Mixer by depth"] = pair
    rows.append(
        ("Mixer by depth", *map(drift, pair), *(min(p[depths[-1]].values()) for p in pair), "")
    )
    head = (
        *("model", "best rate moves by", "under muP by", "loss at the widest", "under muP"),
        "flat layers",
    )
    text = table(head, rows)
    report("learning_rate_transfer", text, out, drawn)
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(**vars(options(__doc__)))
