"""Engines that hold parameters in ways of their own: served, or refused in words that help."""

import enum
import functools
import importlib
import importlib.util
import os
import tempfile
import warnings

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from tests.processes import everywhere
from torch_initpolicy import (
    apply_policy,
    audit_signal,
    compare_inits,
    find_symmetry,
    lsuv_,
    materialize,
    plan_policy,
    warn_on_symmetry,
)
from torch_initpolicy.errors import InitPolicyError, InitPolicyWarning


class Status(enum.Enum):
    """DeepSpeed's names for where a parameter's values are."""

    AVAILABLE = 1
    NOT_AVAILABLE = 2


@pytest.mark.parametrize("verb", [apply_policy, plan_policy], ids=lambda verb: verb.__name__)
def test_partitioned_parameters(verb):
    """What ZeRO-3 has partitioned is never skipped in silence; gathered, it is written."""
    model = nn.Linear(4, 4)
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.ds_status = Status.NOT_AVAILABLE
        parameter.data = torch.empty(0)
    with pytest.raises(InitPolicyError, match=r"ZeRO-3.*\n.*weight.*\n.*\n.*GatheredParameters"):
        verb(model)
    for name, parameter in model.named_parameters():
        parameter.data = whole[name]
        parameter.ds_status = Status.AVAILABLE
    verb(model)


def test_watching_partitions():
    """A watch gives up on what ZeRO-3 has partitioned, with a warning: training goes on."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.ds_status = Status.NOT_AVAILABLE
    model(torch.randn(2, 4)).sum().backward()
    with warn_on_symmetry(model), pytest.warns(InitPolicyWarning, match="not watched: .*ZeRO-3"):
        optimizer.step()


def _small(dtype=torch.float32):
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(dtype)


INPUT = torch.zeros(2, 8)

LOOKING = (
    plan_policy,
    apply_policy,
    find_symmetry,
    lambda model: audit_signal(model, INPUT),
    lambda model: lsuv_(model, INPUT),
    lambda model: compare_inits(model, _small()),
)


def _deepspeed():
    """Say how DeepSpeed's partitions are refused, and what is left of what is written in them."""
    os.environ["LOCAL_RANK"] = os.environ["RANK"] = str(distributed.get_rank())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "is_initialized", lambda: False)  # it would compile at once
        import deepspeed

    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    deepspeed.init_distributed("gloo", verbose=False)
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = _small()
    refused = []
    for verb in LOOKING:
        with pytest.raises(InitPolicyError, match="GatheredParameters"):
            verb(model)
        refused.append(all(parameter.numel() == 0 for parameter in model.parameters()))
    gathered = functools.partial(deepspeed.zero.GatheredParameters, list(model.parameters()))
    with gathered(modifier_rank=0):
        receipt = apply_policy(model, "he", seed=0)
    reference = _small(model[0].weight.dtype)
    expected = apply_policy(reference, "he", seed=0)
    with gathered():
        kept = all(map(torch.equal, model.parameters(), reference.parameters()))
    return {"refused": refused, "kept": kept, "same": receipt.fingerprint == expected.fingerprint}


@pytest.mark.distributed
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
def test_deepspeed(monkeypatch, request):
    """Each verb refuses DeepSpeed's own partitions in words; what is written to the whole stays."""
    world = min(request.config.getoption("--attacks"), 4)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    expected = {"refused": [True] * len(LOOKING), "kept": True, "same": True}

    assert everywhere(_deepspeed, world) == [expected] * world


@pytest.mark.parametrize("buffers", [True, False])
def test_accelerate(buffers):
    """What accelerate builds without memory becomes what is written to a model that has it."""
    accelerate = pytest.importorskip("accelerate")

    def made():
        layers = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 16)
        model = nn.Sequential(*layers)
        model[4].weight = model[0].weight
        return model

    with accelerate.init_empty_weights(include_buffers=buffers):
        model = made()
    with pytest.raises(InitPolicyError, match="materialize"):
        apply_policy(model, seed=0)
    model[4].weight = model[0].weight  # accelerate makes each parameter anew, and its ties two
    receipt = materialize(model, seed=0, device="cpu")
    reference = made()
    expected = apply_policy(reference, seed=0)

    assert receipt.fingerprint == expected.fingerprint
    assert model[4].weight is model[0].weight
    held, wanted = model.state_dict(), reference.state_dict()
    assert all(torch.equal(held[name], wanted[name]) for name in wanted)


@pytest.mark.distributed
@pytest.mark.parametrize("original", [True, False])
def test_flat_parameters(original):
    """FSDP1's flat pieces are refused with what to call, and nothing is written."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{folder}/store"
        distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = FullyShardedDataParallel(
                    nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
                    use_orig_params=original,
                    device_id=torch.device("cpu"),
                )
            before = [parameter.detach().clone() for parameter in model.parameters()]
            with pytest.raises(InitPolicyError, match="summon_full_params"):
                apply_policy(model, seed=0)

            assert all(map(torch.equal, before, model.parameters()))
        finally:
            distributed.destroy_process_group()
