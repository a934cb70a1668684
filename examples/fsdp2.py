"""Train an FSDP2 model from scratch: build it on meta, shard it, materialise it.

    torchrun --nproc-per-node 2 examples/fsdp2.py

Each process draws only the shards it owns, and the model is the same for any number of processes:
the losses below do not depend on it, but for the order in which a collective adds up.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from torch_initpolicy import materialize


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    vocabulary: int = 101
    width: int = 48
    heads: int = 3
    hidden: int = 130
    layers: int = 4
    length: int = 16


class Rotary(nn.Module):
    """Turn queries and keys by their position; the angles are a buffer that no checkpoint holds."""

    def __init__(self, size: int, length: int, base: float = 1e4) -> None:
        super().__init__()
        rates = base ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(length), rates)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., length, size)` to the same shape."""
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Block(nn.Module):
    """Attention and a gated MLP, each behind a norm and around a residual path."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = (nn.RMSNorm(config.width) for _ in range(2))
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)
        self.rotary = Rotary(config.width // config.heads, config.length)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, length, width)` to the same shape."""
        parts = self.qkv(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(
            self.rotary(q), self.rotary(k), v, is_causal=True
        )
        x = x + self.proj(mixed.transpose(1, 2).flatten(-2))
        gated = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(gated)) * self.up(gated))


class Net(nn.Module):
    """A small language model whose head is tied to its embedding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map `(batch, length)` to the logits of what follows, `(batch, length, vocabulary)`."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def build() -> nn.Module:
    """Three lines: build on meta, shard, materialise."""
    with torch.device("meta"):
        model = Net(Config())
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    materialize(model, "auto", seed=0)
    return model


def batch(step: int) -> Tensor:
    """Return this process' share of eight sequences that count up, modulo the vocabulary."""
    config = Config()
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(config.vocabulary, (8, 1), generator=generator)
    tokens = (starts + torch.arange(config.length + 1)) % config.vocabulary
    return tokens.chunk(distributed.get_world_size())[distributed.get_rank()]


def mean_over_ranks(loss: Tensor) -> float:
    """Average a loss over all processes."""
    total = loss.detach().double()
    distributed.all_reduce(total)
    return total.item() / distributed.get_world_size()


def main(steps: int = 5) -> list[float]:
    """Train for a few steps and return the loss of each."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        tokens = batch(step)
        logits = model(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean_over_ranks(loss))
        if distributed.get_rank() == 0:
            print(f"step {step}: loss {losses[-1]:.12f}", flush=True)
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = {"cuda": "nccl", "cpu": "gloo"}[device]
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(backend, timeout=timedelta(minutes=2))
    main(parser.parse_args().steps)
    distributed.destroy_process_group()
    if backend == "gloo":
        # Gloo's threads outlive the group, and one that lets go of a tensor while Python is being
        # torn down aborts the process: https://github.com/pytorch/pytorch/issues/190489
        sys.stdout.flush()
        os._exit(0)
