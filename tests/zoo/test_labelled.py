"""Roles and activations of models of other libraries, labelled by hand from their sources.

Each label was written from the forward pass that the library publishes, before any plan of the
model was looked at. A library that is not installed is skipped.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read

pytestmark = pytest.mark.zoo

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32}  # fmt: skip
WORDS = {**SMALL, "vocab_size": 50}

Built = tuple[str, Callable[[Any], nn.Module]]
"""The library that a model comes from, and how it is built from it."""

CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}

MODELS: Mapping[str, Built] = {
    "bert": ("transformers", lambda t: t.BertModel(t.BertConfig(**WORDS))),
    "gpt2": (
        "transformers",
        lambda t: t.GPT2Model(t.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)),
    ),
    "llama": ("transformers", lambda t: t.LlamaForCausalLM(t.LlamaConfig(**WORDS))),
    "t5": (
        "transformers",
        lambda t: t.T5Model(
            t.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
        ),
    ),
    "wav2vec2": ("transformers", lambda t: t.Wav2Vec2Model(t.Wav2Vec2Config(**SMALL))),
    "resnet": (
        "transformers",
        lambda t: t.ResNetModel(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
        ),
    ),
    "mobilenet_v2": ("transformers", lambda t: t.MobileNetV2Model(t.MobileNetV2Config())),
    "mamba": (
        "transformers",
        lambda t: t.MambaModel(t.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50)),
    ),
    "unet2d": (
        "diffusers",
        lambda d: d.UNet2DModel(
            sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4,
            block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
        ),
    ),
    "vae": (
        "diffusers",
        lambda d: d.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16),
    ),
    "dit": (
        "diffusers",
        lambda d: d.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8,
            num_embeds_ada_norm=10,
        ),
    ),
    "gcn": ("torch_geometric.nn", lambda g: g.GCN(8, 16, num_layers=2, out_channels=4)),
    "sage": ("torch_geometric.nn", lambda g: g.GraphSAGE(8, 16, num_layers=2, out_channels=4)),
    "gat": ("torch_geometric.nn", lambda g: g.GAT(8, 16, num_layers=2, out_channels=4, heads=2)),
    "gin": ("torch_geometric.nn", lambda g: g.GIN(8, 16, num_layers=2, out_channels=4)),
    "monai_unet": (
        "monai.networks.nets",
        lambda n: n.UNet(2, 1, 2, channels=(4, 8), strides=(2,)),
    ),
    "monai_vit": (
        "monai.networks.nets",
        lambda n: n.ViT(1, (32, 32), (16, 16), 16, 32, 1, 2, spatial_dims=2),
    ),
    "densenet": ("monai.networks.nets", lambda n: n.DenseNet121(2, 1, 2)),
    "basic_unet": ("monai.networks.nets", lambda n: n.BasicUNet(2, features=(4,) * 6)),
    "segresnet": ("monai.networks.nets", lambda n: n.SegResNet(2, init_filters=8)),
    "clip": ("open_clip.model", lambda c: c.CLIP(**CLIP)),
    "decoder": (
        "x_transformers",
        lambda x: x.TransformerWrapper(
            num_tokens=50, max_seq_len=16, attn_layers=x.Decoder(dim=16, depth=1, heads=2)
        ),
    ),
    "swish_encoder": (
        "x_transformers",
        lambda x: x.ContinuousTransformerWrapper(
            max_seq_len=16, dim_in=6, dim_out=4,
            attn_layers=x.Encoder(dim=16, depth=1, heads=2, ff_swish=True),
        ),
    ),
    "smp_unet": ("segmentation_models_pytorch", lambda s: s.Unet("resnet18", encoder_weights=None)),
    "smp_fpn": ("segmentation_models_pytorch", lambda s: s.FPN("resnet18", encoder_weights=None)),
}  # fmt: skip

LABELS = """
bert          embeddings.word_embeddings.weight                        embedding
bert          embeddings.LayerNorm.weight                              norm_weight
bert          encoder.layer.0.attention.self.query.weight              weight       softmax
bert          encoder.layer.0.attention.self.value.weight              weight       -
bert          encoder.layer.0.intermediate.dense.weight                weight       gelu
bert          encoder.layer.0.intermediate.dense.bias                  bias         gelu
bert          pooler.dense.weight                                      weight       tanh
gpt2          h.0.mlp.c_fc.weight                                      weight       gelu_tanh
gpt2          h.0.mlp.c_proj.weight                                    weight       -
llama         model.layers.0.mlp.gate_proj.weight                      weight       silu
llama         model.layers.0.mlp.up_proj.weight                        weight       -
llama         model.layers.0.self_attn.k_proj.weight                   weight       softmax
llama         model.layers.0.input_layernorm.weight                    norm_weight
llama         lm_head.weight                                           weight       -
t5            encoder.block.0.layer.0.SelfAttention.q.weight           weight       softmax
t5            encoder.block.0.layer.1.DenseReluDense.wi.weight         weight       relu
t5            encoder.block.0.layer.1.DenseReluDense.wo.weight         weight       -
wav2vec2      feature_extractor.conv_layers.0.conv.weight              weight       gelu
wav2vec2      encoder.layers.0.feed_forward.intermediate_dense.weight  weight       gelu
resnet        embedder.embedder.convolution.weight                     weight       relu
resnet        embedder.embedder.normalization.weight                   norm_weight
mobilenet_v2  conv_stem.first_conv.convolution.weight                  weight       hardtanh
mobilenet_v2  conv_stem.reduce_1x1.convolution.weight                  weight       -
mamba         layers.0.mixer.conv1d.weight                             weight       silu
mamba         layers.0.mixer.dt_proj.weight                            weight       softplus
unet2d        time_embedding.linear_1.weight                           weight       silu
unet2d        down_blocks.0.resnets.0.conv1.weight                     weight       silu
unet2d        down_blocks.1.attentions.0.to_k.weight                   weight       softmax
unet2d        conv_norm_out.weight                                     norm_weight
unet2d        conv_out.weight                                          weight       -
vae           encoder.mid_block.resnets.0.conv1.weight                 weight       silu
vae           encoder.conv_out.weight                                  weight       -
vae           decoder.conv_out.weight                                  weight       -
dit           transformer_blocks.0.attn1.to_q.weight                   weight       softmax
dit           transformer_blocks.0.ff.net.0.proj.weight                weight       gelu_tanh
gcn           convs.0.lin.weight                                       weight       relu
gcn           convs.0.bias                                             bias         relu
gcn           convs.1.lin.weight                                       weight       -
sage          convs.0.lin_l.weight                                     weight       relu
sage          convs.0.lin_r.weight                                     weight       relu
gat           convs.0.att_src                                          weight       leaky_relu
gin           convs.0.nn.lins.0.weight                                 weight       relu
monai_unet    model.0.conv.weight                                      weight       prelu
monai_unet    model.0.adn.A.weight                                     scale
monai_vit     blocks.0.mlp.linear1.weight                              weight       gelu
densenet      features.conv0.weight                                    weight       relu
densenet      class_layers.out.weight                                  weight       -
basic_unet    conv_0.conv_0.conv.weight                                weight       leaky_relu
segresnet     convInit.conv.weight                                     weight       relu
segresnet     down_layers.0.1.conv1.conv.weight                        weight       relu
clip          token_embedding.weight                                   embedding
clip          visual.transformer.resblocks.0.mlp.c_fc.weight           weight       gelu
clip          text_projection                                          weight       -
clip          positional_embedding                                     position
decoder       token_emb.emb.weight                                     embedding
decoder       attn_layers.layers.0.1.to_q.weight                       weight       softmax
decoder       attn_layers.layers.1.1.ff.0.0.weight                     weight       gelu
decoder       to_logits.weight                                         weight       -
swish_encoder attn_layers.layers.1.1.ff.0.0.weight                     weight       silu
swish_encoder project_in.weight                                        weight       -
smp_unet      encoder.conv1.weight                                     weight       relu
smp_unet      decoder.blocks.0.conv1.0.weight                          weight       relu
smp_unet      segmentation_head.0.weight                               weight       -
smp_fpn       decoder.p5.weight                                        weight       -
"""
"""Model, parameter, role, and the activation that its output meets: `-` for none."""

ROWS = [tuple(line.split()) for line in LABELS.strip().splitlines()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")  # what the libraries say of themselves
def test_labels(name):
    """Inputs are found, and what is read is what the source says."""
    library, build = MODELS[name]
    pytest.importorskip(library.partition(".")[0])
    model = build(importlib.import_module(library))
    torch.manual_seed(0)
    facts = read(model, sites(model)).facts
    labelled = {parameter: label for model, parameter, *label in ROWS if model == name}
    found = {
        parameter: [facts[parameter].role, *(_met(facts[parameter]) for _ in label[1:])]
        for parameter, label in labelled.items()
    }

    assert found == labelled
    assert {facts[parameter].evidence for parameter in labelled} <= {"traced", "ran"}


def _met(facts) -> str:
    return "-" if facts.meets is None else facts.meets.name
