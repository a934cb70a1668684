"""The structures of the scoreboard: small models of many kinds, and what each is trained on."""

import contextlib
import functools
import io
import itertools
import math
import pydoc_data.topics
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from common import digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

Loss = Callable[[Tensor, Tensor], Tensor]


class Split(NamedTuple):
    """Inputs and targets to train with, to choose a learning rate by, and to report on."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Structure:
    """A model, its data, and the recipe that its field has for it.

    Attributes:
        build: Builds the model as its constructor starts it.
        data: Loads the data.
        loss: What is trained and reported.
        rates: Learning rates to choose from.
        recipe: The published start, a preset's name, or None.
        optimizer: Which one trains it.
        is_default: Whether the constructor's own start is torch's default.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], Split]
    loss: Loss = F.cross_entropy
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    recipe: str | None = None
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    is_default: bool = False


#
# Data
#


def split(inputs: Tensor, targets: Tensor) -> Split:
    """Shuffle, and cut into 60, 20 and 20 percent."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    ends = (0, int(0.6 * len(order)), int(0.8 * len(order)), len(order))
    parts = [order[a:b] for a, b in itertools.pairwise(ends)]
    return Split(*((inputs[part], targets[part]) for part in parts))


@functools.cache
def images(edge: int = 8) -> Split:
    """Return scikit-learn's digits, enlarged to `edge` pixels."""
    data = digits()
    enlarged = F.interpolate(data.inputs, (edge, edge), mode="bilinear")
    return split(data.inputs if edge == 8 else enlarged, data.targets)


@functools.cache
def series() -> Split:
    """Generate MNIST-1D: ten kinds of curves of 40 points."""
    from mnist1d.data import get_dataset_args, make_dataset  # noqa: PLC0415 - an extra

    arguments = get_dataset_args()
    arguments.num_samples = 2000
    with contextlib.redirect_stdout(io.StringIO()):
        made = make_dataset(arguments)
    inputs, targets = torch.tensor(made["x"]).float(), torch.tensor(made["y"]).long()
    return split(inputs / inputs.std(), targets)


@functools.cache
def text(length: int = 32) -> Split:
    """Cut Python's own documentation into lines of characters; the next one is to be told."""
    words = " ".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    codes = torch.tensor([min(ord(letter), 127) for letter in words[:200_000]])
    lines = codes[: len(codes) // (length + 1) * (length + 1)].view(-1, length + 1)
    return split(lines[:, :-1], lines[:, 1:])


@functools.cache
def picture() -> Split:
    """Return matplotlib's sample image as coordinates and colours."""
    from matplotlib import cbook, image  # noqa: PLC0415 - an extra

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        pixels = torch.tensor(image.imread(file, format="jpg")).float()[100:484:8, 60:444:8] / 127.5
    axes = [torch.linspace(-1, 1, size) for size in pixels.shape[:2]]
    where = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    return split(where, pixels.reshape(-1, 3) - 1)


@functools.cache
def scenes() -> Split:
    """Put one digit into each of many fields of 24 pixels; where, and which, is to be told."""
    data, generator = digits(), torch.Generator().manual_seed(0)
    fields = torch.zeros(len(data.inputs), 1, 24, 24)
    truth = torch.zeros(len(data.inputs), 10, 6, 6)
    for i, (image, kind) in enumerate(zip(data.inputs, data.targets, strict=True)):
        y, x = (4 * torch.randint(0, 5, (2,), generator=generator)).tolist()
        fields[i, :, y : y + 8, x : x + 8] = image
        truth[i, kind, y // 4 : y // 4 + 2, x // 4 : x // 4 + 2] = 1
    return split(fields, truth)


@functools.cache
def ratings() -> Split:
    """Rate 60 things by 80 people whose tastes have four dimensions."""
    g = torch.Generator().manual_seed(0)
    people, things = (torch.randn(count, 4, generator=g) for count in (80, 60))
    pairs = torch.cartesian_prod(torch.arange(80), torch.arange(60))
    scores = (people[pairs[:, 0]] * things[pairs[:, 1]]).sum(-1) / 2
    return split(pairs, scores + 0.1 * torch.randn(len(scores), generator=g))


@functools.cache
def noisy() -> Split:
    """Add noise to digits; the clean ones are to be told."""
    data, generator = digits(), torch.Generator().manual_seed(0)
    noise = torch.randn(data.inputs.shape, generator=generator)
    return split(data.inputs + noise, data.inputs)


NEIGHBOURS = 4


@functools.cache
def neighbourhood() -> tuple[Tensor, Tensor]:
    """Link each digit with its nearest ones: features of all nodes, and a normalised adjacency."""
    flat = digits().inputs.flatten(1)
    nearest = torch.cdist(flat, flat).topk(NEIGHBOURS + 1, largest=False).indices
    links = torch.zeros(len(flat), len(flat)).scatter_(1, nearest, 1 / (NEIGHBOURS + 1))
    return flat + torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)), links


@functools.cache
def nodes() -> Split:
    """Number the digits; the kind of a node is to be told from its neighbourhood."""
    targets = digits().targets
    return split(torch.arange(len(targets)), targets)


#
# Losses
#


def of_letters(logits: Tensor, targets: Tensor) -> Tensor:
    """Average over all letters."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Weigh what is easy less (Lin et al., 2017, arXiv:1708.02002), per object."""
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).sum() / targets.sum().clamp_min(1)


def clipped(outputs: Tensor, targets: Tensor) -> Tensor:
    """Take one step of actor and critic: an action is rewarded where it names the digit.

    The surrogate is PPO's at the policy that acts, in expectation over its actions, with its value
    loss and entropy bonus (Schulman et al., 2017, arXiv:1707.06347).
    """
    policy, value = outputs[:, :-1].log_softmax(-1), outputs[:, -1]
    reward = F.one_hot(targets, policy.shape[-1]).float()
    advantage = reward - value.detach()[:, None]
    gain = (policy.exp() * advantage).sum(-1)
    entropy = -(policy.exp() * policy).sum(-1)
    expected = (policy.exp().detach() * reward).sum(-1)
    return (-gain + 0.5 * (value - expected) ** 2 - 0.01 * entropy).mean()


#
# Models
#


class Encoder(nn.Module):
    """A transformer's encoder that tells the kind of a curve from pieces of it."""

    def __init__(self, *, first: bool, depth: int = 4, width: int = 32) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=first
        )
        self.stem = nn.Linear(4, width)
        self.position = nn.Parameter(0.02 * torch.randn(10, width))
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        return self.head(self.encoder(self.stem(x.unflatten(-1, (10, 4))) + self.position).mean(1))


class Scaled(nn.Module):
    """A language model as in the first paper of transformers: rows times the root of the width."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.rows = nn.Embedding(128, width)
        self.encoder = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, 128)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.encoder(self.rows(x) * math.sqrt(self.rows.embedding_dim), mask))


class Recurrent(nn.Module):
    """A language model of one LSTM."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.rows, self.memory = nn.Embedding(128, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 128)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        return self.head(self.memory(self.rows(x))[0])


class Logits(nn.Module):
    """A language model of transformers, whose logits are all that is wanted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        return self.model(input_ids=x, use_cache=False).logits


class Sine(nn.Module):
    """A sine of thirty times its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        return torch.sin(30 * x)


def siren() -> nn.Module:
    """Build SIREN as its code does (Sitzmann et al., 2020, arXiv:2006.09661)."""
    layers = [nn.Linear(2, 48), Sine(), nn.Linear(48, 48), Sine(), nn.Linear(48, 48), Sine()]
    net = nn.Sequential(*layers, nn.Linear(48, 3))
    for number, layer in enumerate(net):
        if isinstance(layer, nn.Linear):
            fan = layer.in_features
            bound = 1 / fan if number == 0 else math.sqrt(6 / fan) / 30
            nn.init.uniform_(layer.weight, -bound, bound)
    return net


class Detector(nn.Module):
    """A head that says for each cell of a field which digit it holds, most cells holding none."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Conv2d(32, 10, 3, 1, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.constant_(self.head.bias, -math.log(99))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        return self.head(self.trunk(x))


class Factors(nn.Module):
    """Ratings as products of rows, with a bias for each person and thing."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.people, self.things = nn.Embedding(80, width), nn.Embedding(60, width)
        self.kind, self.fame = nn.Embedding(80, 1), nn.Embedding(60, 1)
        for table in (self.people, self.things):
            nn.init.normal_(table.weight, std=0.1)
        for table in (self.kind, self.fame):
            nn.init.zeros_(table.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        person, thing = x.unbind(-1)
        both = (self.people(person) * self.things(thing)).sum(-1)
        return both + (self.kind(person) + self.fame(thing)).squeeze(-1)


class Graph(nn.Module):
    """Two layers of neighbours' averages (Kipf and Welling, 2016, arXiv:1609.02907)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        features, links = neighbourhood()
        self.register_buffer("features", features)
        self.register_buffer("links", links)
        self.first, self.second = nn.Linear(64, width), nn.Linear(width, 10)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        hidden = torch.relu(self.links @ self.first(self.features))
        return (self.links @ self.second(hidden))[x]


class ActorCritic(nn.Module):
    """A policy and a value on one trunk, in one output."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh()
        )
        self.actor, self.critic = nn.Linear(48, 10), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        hidden = self.trunk(x)
        return torch.cat([self.actor(hidden), self.critic(hidden)], -1)


class Unet(nn.Module):
    """Down, up, and across; batch-normalised."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down, self.low = self.stage(1, width), self.stage(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join, self.head = self.stage(2 * width, width), nn.Conv2d(width, 1, 1)

    @staticmethod
    def stage(fan_in: int, fan_out: int) -> nn.Module:
        """Build a convolution with its norm."""
        return nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        high = self.down(x)
        return self.head(self.join(torch.cat([high, self.up(self.low(F.max_pool2d(high, 2)))], 1)))


def plain(activation: Callable[[], nn.Module], depth: int = 16, width: int = 32) -> nn.Module:
    """Build layers in a row."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Linear(width if number else 40, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def timm_model(name: str) -> nn.Module:
    """Build one of timm's architectures, small."""
    from timm.models import convnext, mlp_mixer, nfnet, resnet, vision_transformer  # noqa: PLC0415

    common = {"num_classes": 10, "in_chans": 1}
    make: dict[str, Callable[[], nn.Module]] = {
        "vit": lambda: vision_transformer.VisionTransformer(
            img_size=8, patch_size=2, embed_dim=32, depth=4, num_heads=4, mlp_ratio=2, **common
        ),
        "mixer": lambda: mlp_mixer.MlpMixer(
            img_size=8, patch_size=2, embed_dim=32, num_blocks=4, **common
        ),
        "resnet": lambda: resnet.ResNet(
            resnet.BasicBlock, (1, 1, 1, 1), channels=(16, 16, 32, 32), stem_width=16, **common
        ),
        "convnext": lambda: convnext.ConvNeXt(
            depths=(1, 1, 2, 1), dims=(16, 16, 32, 32), patch_size=2, **common
        ),
        "nfnet": lambda: nfnet.NormFreeNet(
            nfnet.NfCfg((1, 1, 2, 1), (16, 16, 32, 32), stem_chs=16), **common
        ),
    }
    return make[name]()


class PreActivated(nn.Module):
    """A residual net whose norms come first (He et al., 2016, arXiv:1603.05027)."""

    def __init__(self, depth: int = 6, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
                nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


def language(name: str) -> nn.Module:
    """Build one of transformers' language models, small."""
    import transformers as hf  # noqa: PLC0415 - an extra

    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    if name == "gpt2":
        config = hf.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=128, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, **special,
        )  # fmt: skip
        return Logits(hf.GPT2LMHeadModel(config))
    if name == "llama":
        config = hf.LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            vocab_size=128, **special,
        )  # fmt: skip
        return Logits(hf.LlamaForCausalLM(config))
    config = hf.MambaConfig(
        hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=128, **special
    )
    return Logits(hf.MambaForCausalLM(config))


LETTERS = functools.partial(Structure, data=text, loss=of_letters, rates=(3e-3, 1e-2, 3e-2))
SGD = functools.partial(Structure, optimizer=torch.optim.SGD, rates=(1e-2, 3e-2, 1e-1))

STRUCTURES: dict[str, Structure] = {
    "plain ReLU, 16 deep": Structure(lambda: plain(nn.ReLU), series, recipe="he", is_default=True),
    "plain tanh, 16 deep": Structure(
        lambda: plain(nn.Tanh), series, recipe="critical", is_default=True
    ),
    "ViT (timm)": Structure(lambda: timm_model("vit"), images, recipe="timm_vit"),
    "Mixer (timm)": Structure(lambda: timm_model("mixer"), images),
    "ResNet (timm)": SGD(lambda: timm_model("resnet"), lambda: images(32), recipe="zero_residual"),
    "pre-activation ResNet": SGD(PreActivated, images, recipe="zero_residual", is_default=True),
    "ConvNeXt (timm)": Structure(lambda: timm_model("convnext"), lambda: images(32)),
    "NF-ResNet (timm)": SGD(lambda: timm_model("nfnet"), lambda: images(32)),
    "U-Net": Structure(Unet, noisy, F.mse_loss, is_default=True),
    "post-norm encoder": Structure(lambda: Encoder(first=False), series, recipe="xavier"),
    "pre-norm encoder, no last norm": Structure(
        lambda: Encoder(first=True), series, recipe="depth_scaled"
    ),
    "encoder LM, rows x sqrt(d)": LETTERS(Scaled),
    "GPT-2 (transformers)": LETTERS(lambda: language("gpt2"), recipe="gpt2"),
    "Llama (transformers)": LETTERS(lambda: language("llama"), recipe="normal"),
    "Mamba (transformers)": LETTERS(lambda: language("mamba")),
    "LSTM language model": LETTERS(Recurrent, is_default=True),
    "SIREN": Structure(siren, picture, F.mse_loss, recipe="siren"),
    "detector head": Structure(Detector, scenes, focal),
    "matrix factorisation": Structure(Factors, ratings, F.mse_loss, (1e-2, 3e-2, 1e-1)),
    "graph convolutions": Structure(Graph, nodes, rates=(3e-3, 1e-2, 3e-2)),
    "actor and critic": Structure(ActorCritic, images, clipped, recipe="ppo", is_default=True),
}
"""By the name that the table has for it."""
