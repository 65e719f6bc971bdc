"""What lies in a bucket, and the memory that buckets share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.distributed.weight_transfer import WeightTransferEngineFactory

from actors.weight_receiver import (
    BucketMemory,
    GlooUpdateInfo,
    GlooWeightTransferEngine,
    Parameter,
    register,
    unpacked,
)

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8])
SHAPES = st.lists(st.integers(0, 6), max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(DTYPES, SHAPES), max_size=8))
def test_parameters_come_out_as_they_were_packed(kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    """Any dtypes in any order: those that begin at an odd byte too."""
    bucket = [Parameter(str(i), dtype, shape) for i, (dtype, shape) in enumerate(kinds)]
    tensors = [torch.randint(0, 100, p.shape).to(p.dtype) for p in bucket]
    packed = torch.cat([torch.empty(0, dtype=torch.uint8), *(t.flatten().view(torch.uint8) for t in tensors)])
    found = unpacked(packed, bucket)
    assert [name for name, _ in found] == [p.name for p in bucket]
    assert all(torch.equal(tensor, own) for (_, tensor), own in zip(found, tensors, strict=True))


def test_parameters_are_cut_by_the_senders_counts() -> None:
    info = GlooUpdateInfo(
        names=["a", "b", "c"], dtype_names=["float32", "bfloat16", "float32"], shapes=[[2], [3], []], counts=[2, 1]
    )
    [first, second] = info.buckets()
    assert first == [Parameter("a", torch.float32, [2]), Parameter("b", torch.bfloat16, [3])]
    assert second == [Parameter("c", torch.float32, [])]
    assert [p.size_bytes for p in (*first, *second)] == [8, 6, 4]


def test_memory_is_used_again_once_nothing_looks_into_it() -> None:
    memory = BucketMemory()
    first = memory.take(8)
    address, kept = first.data_ptr(), first[4:].view(torch.float32)
    del first
    assert memory.take(8).data_ptr() != address, "a layer still waits for the rest of its parameters"
    del kept
    assert memory.take(6).data_ptr() == address
    assert len(memory.take(9)) == 9


def test_vllm_knows_the_backend_once() -> None:
    register()
    register()
    assert WeightTransferEngineFactory._registry["gloo"]() is GlooWeightTransferEngine


def test_a_message_with_a_missing_entry_is_refused() -> None:
    engine = GlooWeightTransferEngine.__new__(GlooWeightTransferEngine)
    with pytest.raises(ValueError, match="shapes"):
        engine.parse_update_info({"names": ["a"], "dtype_names": ["float32"], "shapes": [], "counts": [1]})
