"""The receiver cuts the stream of weights where the sender does, or a broadcast waits for ever."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.packed_tensor import pack_tensors

from actors.weight_receiver import GlooWeightTransferEngine, Parameter, buckets, register

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8])
SHAPES = st.lists(st.integers(0, 6), max_size=3)


def sent(parameters: list[Parameter], limit_bytes: int) -> list[list[str]]:
    """The names of each bucket that vLLM packs."""
    pairs = iter([(p.name, torch.zeros(p.shape, dtype=p.dtype)) for p in parameters])
    result = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM warns of a parameter larger than a bucket
        while (chunk := pack_tensors(pairs, lambda item: item[1], limit_bytes)) is not None:
            result.append(chunk.names)
    return result


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(DTYPES, SHAPES), max_size=12), st.integers(0, 300))
def test_both_ends_cut_alike(kinds: list[tuple[torch.dtype, list[int]]], limit_bytes: int) -> None:
    parameters = [Parameter(f"p{i}", dtype, shape) for i, (dtype, shape) in enumerate(kinds)]
    received = [[p.name for p in bucket] for bucket in buckets(parameters, limit_bytes)]
    assert received == sent(parameters, limit_bytes)


@pytest.mark.parametrize(
    ("limit_bytes", "expected"),
    [(0, [[0], [1], [2]]), (7, [[0], [1], [2]]), (8, [[0, 1], [2]]), (15, [[0, 1], [2]]), (16, [[0, 1, 2]])],
)
def test_a_bucket_closes_with_the_parameter_that_exceeds_it(limit_bytes: int, expected: list[list[int]]) -> None:
    """Three parameters of 8 bytes each: the limit may be reached, and one parameter goes over it."""
    parameters = [Parameter(str(i), torch.float32, [2]) for i in range(3)]
    assert [[int(p.name) for p in bucket] for bucket in buckets(parameters, limit_bytes)] == expected


def test_a_scalar_is_one_element() -> None:
    assert Parameter("scale", torch.bfloat16, []).size_bytes == 2
    assert Parameter("w", torch.float32, [3, 5]).size_bytes == 60


def test_the_backend_is_known_to_vllm_and_can_be_registered_twice() -> None:
    register()
    register()
    assert WeightTransferEngineFactory._registry["gloo"]() is GlooWeightTransferEngine
