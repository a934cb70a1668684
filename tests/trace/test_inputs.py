"""Inputs that a model declares come before those that its first layer has the shape for."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.inputs import as_call, candidates
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.stand_ins import random_call
from torch_initpolicy.trace.trees import Call

transformers = pytest.importorskip("transformers")


def shapes(call: Call) -> list[tuple[int, ...]]:
    """Return the shapes of all inputs of a call."""
    return [tuple(tensor.shape) for tensor in (*call.args, *call.kwargs.values())]


class TestDeclared:
    def test_timm(self):
        """`pretrained_cfg` says how large images are, to a program that has imported timm."""
        pytest.importorskip("timm")
        model = nn.Sequential(nn.Conv2d(3, 4, 3))
        model.pretrained_cfg = {"input_size": (3, 300, 200)}

        assert shapes(next(candidates(model))) == [(2, 3, 300, 200)]

    def test_lightning(self):
        """`example_input_array` is taken as it is."""
        model = nn.Linear(4, 4)
        model.example_input_array = torch.zeros(7, 4)

        assert shapes(next(candidates(model))) == [(7, 4)]

    def test_an_image_size_comes_before_guesses(self):
        """A model with fixed patches says its size."""
        model = nn.Sequential(nn.Conv2d(3, 4, 16))
        model.image_size = 48

        assert shapes(next(candidates(model))) == [(2, 3, 48, 48)]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_features_have_the_dtype_of_the_weights(self, dtype):
        """A model in another precision refuses float32, whatever it declares."""
        model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(dtype)
        model.pretrained_cfg = {"input_size": (3, 32, 32)}

        assert {call.args[0].dtype for call in candidates(model)} == {dtype}

    def test_indices_stay_indices(self):
        """Precision is no concern of what looks rows up."""
        (call, *_) = candidates(nn.Embedding(4, 4).half())

        assert call.args[0].dtype == torch.int64

    def test_transformers(self):
        """The main input's name and the configuration say what a model takes."""

        class Audio(nn.Module):
            main_input_name = "input_features"
            config = SimpleNamespace(num_mel_bins=20, max_source_positions=30)

            def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> None:
                """Do nothing."""

        call = next(candidates(Audio()))

        assert list(call.kwargs) == ["input_features"]
        assert shapes(call) == [(2, 20, 60)]


SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
WORDS = {**SMALL, "vocab_size": 50}

MODELS = {
    "bert": lambda t: t.BertModel(t.BertConfig(**WORDS)),
    "gpt2": lambda t: t.GPT2LMHeadModel(
        t.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    ),
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**WORDS, num_key_value_heads=1)),
    "mixtral": lambda t: t.MixtralForCausalLM(
        t.MixtralConfig(**WORDS, num_key_value_heads=1, num_local_experts=3, eos_token_id=1)
    ),
    "mamba": lambda t: t.MambaModel(
        t.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50)
    ),
    "t5": lambda t: t.T5Model(
        t.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
    ),
    "vit": lambda t: t.ViTModel(t.ViTConfig(**SMALL, image_size=32)),
    "clip": lambda t: t.CLIPModel(
        t.CLIPConfig(
            text_config={**WORDS, "eos_token_id": 2},
            vision_config={**SMALL, "image_size": 32, "patch_size": 16},
        )
    ),
    "wav2vec2": lambda t: t.Wav2Vec2Model(t.Wav2Vec2Config(**SMALL)),
    "whisper": lambda t: t.WhisperModel(
        t.WhisperConfig(
            d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, vocab_size=50, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")  # what transformers says of itself
def test_models_of_transformers_are_traced_with_inputs_they_declare(name):
    """Text, images, sound and pairs of them: every parameter is seen on meta."""
    model = MODELS[name](transformers)
    found = read(model, sites(model))

    unseen = [name for name, facts in found.facts.items() if not facts.used]

    assert found.evidence == "traced"
    assert unseen in ([], ["masked_spec_embed"])  # which speech models use in training only
    assert dict(found.unknown_operators) == {}


class _Scaled(nn.Module):
    """A model whose first parameter passes for one of a single feature: it broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1, 6))
        self.mix = nn.Parameter(torch.eye(6))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale.exp()) @ self.mix


class TestShapesOfInputs:
    def test_a_size_that_broadcasts_comes_last(self):
        """One feature runs through anything, and makes all that read it alike."""
        reading = read(_Scaled(), sites(_Scaled()))

        assert reading.call is not None
        assert reading.call.args[0].shape[1] == 6

    def test_examples_are_understood(self):
        """A mapping is keywords, a tuple or list positions, anything else the only argument."""
        x = torch.zeros(1)

        assert as_call(x) == as_call((x,)) == as_call([x]) == Call((x,))
        assert as_call({"x": x}) == Call((), {"x": x})

    def test_real_inputs_are_small(self):
        """Images are cropped, indices drawn in range, and numbers that have a meaning stay."""
        image, indices = torch.empty(2, 3, 224, 224), torch.empty(4, 8, dtype=torch.int64)
        call = Call((image.to("meta"),), {"i": indices.to("meta"), "grid": torch.tensor([1, 4])})
        small = random_call(call, 7, edge=64)

        assert shapes(small) == [(2, 3, 64, 64), (4, 8), (2,)]
        assert set(small.kwargs["i"].flatten().tolist()) == set(range(7))
        assert small.kwargs["grid"].tolist() == [1, 4]


class Masked(nn.Module):
    """Asks a mask of its own whether anything is hidden, wherever the mask and its buffer lie."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("kinds", torch.zeros(1, 2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Ask a mask made on the device of `x`, after it was moved there once more."""
        mask = torch.ones(x.shape[:1], device=x.device).to(device=x.device, dtype=torch.bool)
        kinds = self.kinds.to(torch.arange(2).device).expand(2, -1)
        return self.linear(x) + kinds.sum() if mask.all() else x


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_masks_of_ones_hold_numbers(device):
    """A forward pass may ask a mask that it makes; a buffer without numbers cannot be moved."""
    with torch.device(device):
        model = Masked()
    found = read(model, sites(model))

    assert (found.evidence, found.unused) == ("traced", set())


def test_texts_hold_a_token_for_each_feature_of_their_images():
    """Vision towers are reached: texts and images that belong together are tried first."""
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**WORDS),
        image_token_index=49,
    )
    with torch.device("meta"):
        model = transformers.LlavaModel(config)
    found = read(model, sites(model))

    assert found.evidence == "traced"
    assert not {name for name in found.unused if "post_layernorm" not in name}
