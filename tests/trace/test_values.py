"""Values are numbered in order; what shares memory shares a storage, living or dead."""

import gc

import torch

from torch_initpolicy.trace.values import Values


def test_a_view_shares_the_storage_of_its_base():
    """Two values are views of one another where their storages have one number."""
    values, base = Values(on_meta=True), torch.empty(4, 2, device="meta")
    first, view, other = (values.add(t) for t in (base, base.t(), torch.empty(4, device="meta")))

    assert [first, view, other] == [0, 1, 2]
    assert values.all[first].storage == values.all[view].storage != values.all[other].storage
    assert (values.all[view].shape, values.all[view].stride) == ((2, 4), (1, 2))


def test_a_tensor_that_dies_leaves_its_number_behind():
    """For real, tensors are not kept: another at the same address is another value and storage."""
    values = Values(on_meta=False)
    storages = set()
    for _ in range(20):
        storages.add(values.all[values.add(torch.empty(1000))].storage)
        gc.collect()

    assert len(storages) == 20
    assert values.current == {}


def test_a_tensor_may_stand_for_a_value_that_there_is():
    """What was sent to another device goes on as the same value."""
    values, real = Values(on_meta=True), torch.zeros(3)
    index = values.add(real)
    values.share(sent := torch.empty(3, device="meta"), index)

    assert values.current[id(sent)] == index
