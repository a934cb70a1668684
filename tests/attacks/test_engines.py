"""Engines that hold parameters in ways of their own: served, or refused in words that help."""

import enum
import tempfile
import warnings

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from torch_initpolicy import apply_policy, plan_policy
from torch_initpolicy.errors import InitPolicyError


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
