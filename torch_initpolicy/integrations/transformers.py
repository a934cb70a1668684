"""transformers: what its models take; knows their configurations, imports none of their code."""

import inspect
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.integrations.checkpoints import initialize_missing
from torch_initpolicy.trace.inputs import BATCH
from torch_initpolicy.trace.trees import Call

__all__ = ["declared_inputs", "initialize_missing", "known_arguments"]


def declared_inputs(model: nn.Module) -> Iterator[Call]:
    """Yield the main input of a model with all that its forward requires, then further ones."""
    known = known_arguments(model)
    if not known:
        return
    taken = inspect.signature(model.forward).parameters
    required = [n for n, p in taken.items() if p.default is p.empty and p.kind in _NAMED]
    main = str(model.main_input_name)
    choices = ((main,), (main, "decoder_input_ids"), (), *(("input_ids", n) for n in _OTHER))
    all_wanted = (tuple(dict.fromkeys((*required, *(n for n in c if n in taken)))) for c in choices)
    if {"input_ids", "pixel_values"} <= taken.keys():
        yield from _texts_with_images(model.config, known, taken)
    for wanted in dict.fromkeys(all_wanted):
        if wanted and known.keys() >= set(wanted):
            combined = itertools.product(*(known[name] for name in wanted))
            for tensors in itertools.islice(combined, _VARIANTS):
                yield Call((), dict(zip(wanted, tensors, strict=True)))
    dummies = getattr(model, "dummy_inputs", None)
    if isinstance(dummies, Mapping):
        yield Call((), dict(dummies))


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_OTHER = ("pixel_values", "input_features", "input_values", "pixel_values_videos")
"""Inputs that may be required beside a text, though their default is None."""

_VARIANTS = 6
"""How many combinations of shapes are tried where arguments may have several."""

_LENGTH = 8
"""How many tokens a text has."""


def known_arguments(model: nn.Module) -> Mapping[str, Sequence[Tensor]]:
    """Return tensors for the arguments that models of transformers know, by name.

    Each may have several shapes, the likeliest first, as the configuration says. Tensors on meta
    stand for any numbers of their shape.
    """
    config = getattr(model, "config", None)
    if config is None or not isinstance(getattr(model, "main_input_name", None), str):
        return {}
    sound = _part(config, "audio_config", "encoder_config", "speech_config")
    return {**_text(_part(config, "text_config")), **_images(config), **_sound(sound)}


def _texts_with_images(
    config: Any, known: Mapping[str, Sequence[Tensor]], taken: Collection[str]
) -> Iterator[Call]:
    """Yield images, with texts that have a token for each of the features that they may become."""
    token = _number(config, -1, "image_token_id", "image_token_index")
    grids = {"image_grid_thw": known["image_grid_thw"][0]} if "image_grid_thw" in taken else {}
    images = known["pixel_values"][0]
    for count in _image_tokens(config) if token >= 0 else ():
        ids = torch.tensor([[*[token] * count, *range(_LENGTH)]] * BATCH)
        kinds = {"mm_token_type_ids": (ids == token).long()} if "mm_token_type_ids" in taken else {}
        yield Call((), {"input_ids": ids, "pixel_values": images, **grids, **kinds})


def _image_tokens(config: Any) -> Sequence[int]:
    """Return how many features an image may become: all patches, or those that are merged."""
    vision = _part(config, "vision_config", "vision_tower_config", "backbone_config")
    if "spatial_merge_size" in dir(vision):
        return (2,)  # the patches of one small image, over both texts
    patches = math.prod(edge // _number(vision, 14, "patch_size") for edge in _edges(vision))
    declared = (_number(c, 0, "mm_tokens_per_image", "image_seq_length") for c in (config, vision))
    counts = (*declared, patches, patches // 4, patches // 16, patches + 1)
    return tuple(count for count in dict.fromkeys(counts) if 0 < count <= _MOST_TOKENS)


_MOST_TOKENS = 2048
"""Tokens of an image up to which a text with as many is tried."""


def _part(config: Any, *names: str) -> Any:
    """Return the first part of a configuration that there is, else the whole."""
    parts = (getattr(config, name, None) for name in names)
    return next((part for part in parts if part is not None), config)


def _number(config: Any, default: int, *names: str) -> int:
    """Return the first whole number that a configuration has under one of some names."""
    found = (getattr(config, name, None) for name in names)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), default)


def _text(config: Any) -> dict[str, Sequence[Tensor]]:
    width = _number(config, 16, "hidden_size", "d_model", "n_embd", "dim")
    ids, features = _indices(BATCH, _LENGTH), _floats(BATCH, _LENGTH, width)
    same = dict.fromkeys(
        ("input_ids", "decoder_input_ids", "qformer_input_ids", "classes_input_ids"), (ids,)
    )
    hidden = dict.fromkeys(
        ("inputs_embeds", "hidden_states", "query_embeds", "encoder_hidden_states"), (features,)
    )
    boxes = torch.zeros(BATCH, _LENGTH, 4, dtype=torch.int64)
    several = _indices(BATCH, 2, _LENGTH)
    return {**same, **hidden, "bbox": (boxes,), "input_ids": (ids, several)}


def _images(config: Any) -> dict[str, Sequence[Tensor]]:
    config = _part(config, "vision_config", "vision_tower_config", "backbone_config")
    channels = _number(config, 3, "num_channels", "in_channels", "in_chans")
    edges = _edges(config)
    image = _floats(BATCH, channels, *edges)
    frames = _number(config, 8, "num_frames", "frames_per_clip", "num_image_views")
    clip = _floats(BATCH, frames, channels, *edges)
    patch = _number(config, 14, "patch_size")
    cells = 2 * _number(config, 2, "spatial_merge_size")
    depth = _number(config, 1, "temporal_patch_size")
    patches = _floats(cells**2, channels * depth * patch**2)
    grid = torch.tensor([[1, cells, cells]])
    grids = dict.fromkeys(("grid_thw", "image_grid_thw", "video_grid_thw", "grid_thws"), (grid,))
    pictures = (patches, image) if "spatial_merge_size" in dir(config) else (image, clip, patches)
    return {
        **grids,
        "pixel_values": pictures,
        "pixel_values_videos": (clip, patches),
        "pixel_values_images": (image,),
        "flattened_patches": (_floats(BATCH, 16, 2 + channels * patch**2),),
        "image_sizes": (torch.tensor([edges] * BATCH),),
        "bool_masked_pos": (torch.zeros(BATCH, (edges[0] // patch) ** 2, dtype=torch.bool),),
        **({"hidden_states": (patches,)} if "spatial_merge_size" in dir(config) else {}),
    }


def _edges(config: Any) -> tuple[int, int]:
    """Return height and width of the images that a configuration is for."""
    edge = getattr(config, "image_size", None) or getattr(config, "img_size", None) or 224
    if isinstance(edge, Mapping):
        edge = tuple(edge.values())[:2]
    sizes = tuple(edge) if isinstance(edge, (tuple, list)) else (edge, edge)
    return (int(sizes[0]), int(sizes[-1]))


def _sound(config: Any) -> dict[str, Sequence[Tensor]]:
    bins = _number(config, 80, "num_mel_bins", "input_dim", "feature_size", "mel_bins")
    frames = 2 * _number(config, 64, "max_source_positions")
    wave = _floats(BATCH, 1, 16000)
    spectrum = _floats(BATCH, _number(config, 1024, "max_length"), bins)
    by_frame, by_bin = _floats(BATCH, frames, bins), _floats(BATCH, bins, frames)
    past = _number(config, 64, "context_length", "lags") + 8
    series = _floats(BATCH, past, _number(config, 1, "num_input_channels"))
    mask = torch.ones(BATCH, frames, dtype=torch.bool)
    return {
        "input_values": (wave[:, 0], wave, spectrum),
        "input_features": (by_bin, by_frame),
        "spectrogram": (by_frame,),
        "audio_values": (wave,),
        "input_features_mask": (mask,),
        "past_values": (series, series[..., 0]),
        "audio_codes": (_indices(BATCH, _number(config, 8, "num_quantizers"), _LENGTH),),
    }


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _indices(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")
