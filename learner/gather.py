"""Whole parameters out of a ZeRO-3 module, brought to rank 0 or to all: every rank must iterate in lockstep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from learner.merge import PlainParameter, plain_parameters

CHUNK_BYTES = 4 << 20  # gathered in one message


def gathered_parameters(
    module: nn.Module, dtype: torch.dtype, everywhere: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor in `dtype`) of every parameter of the checkpoint, adapters merged.

    On ranks above 0 nothing, unless `everywhere`. A tensor may be overwritten once the next one is asked for. Raises
    MergeError.
    """
    memory = _Memory()
    for chunk in _chunks(plain_parameters(module)):
        whole = _gathered([part for parameter in chunk for part in parameter.parts], memory, everywhere)
        if whole is None:
            continue
        for parameter in chunk:
            parts = [next(whole) for _ in parameter.parts]
            yield parameter.name, parameter.plain(parts).to(dtype)


def _chunks(parameters: Sequence[PlainParameter]) -> Iterator[list[PlainParameter]]:
    """Parameters in order, by CHUNK_BYTES: a chunk closes with the one that takes it over."""
    chunk: list[PlainParameter] = []
    size = 0
    for parameter in parameters:
        chunk.append(parameter)
        size += sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in parameter.parts)
        if size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _gathered(parameters: Sequence[Any], memory: _Memory, everywhere: bool) -> Iterator[Tensor] | None:
    """The whole parameters on rank 0 or on all, else None. Ranks hold equal slices of each; the last one is padded.

    The slices are read as they lie, not by DeepSpeed's own gather: that one brings them to every rank, and copies more.
    """
    if not hasattr(parameters[0], "ds_tensor"):
        return iter([p.detach() for p in parameters])
    group = parameters[0].ds_process_group
    slices = [p.ds_tensor.detach() for p in parameters]
    if dist.get_backend(group) == "nccl":
        slices = [s.cuda() for s in slices]  # offloaded ones lie in the host's memory
    if everywhere and dist.get_world_size(group) > 1:
        of_ranks = _of_all_ranks(slices, group, memory)
    elif dist.get_rank(group) > 0:
        dist.send(_end_to_end(slices, memory), group=group, group_dst=0)
        return None
    else:
        of_ranks = [slices, *_of_other_ranks(slices, group, memory)]
    whole = memory.take("whole", sum(s.numel() for s in slices) * len(of_ranks), slices[0])
    return _joined(parameters, zip(*of_ranks, strict=True), whole)


def _of_all_ranks(slices: Sequence[Tensor], group: Any, memory: _Memory) -> list[Sequence[Tensor]]:
    """Every rank's slices, this one's too, on every rank."""
    sent = _end_to_end(slices, memory)
    received = [memory.take(f"of rank {r}", sent.numel(), sent) for r in range(dist.get_world_size(group))]
    dist.all_gather(received, sent, group=group)
    return [part.split([s.numel() for s in slices]) for part in received]


def _of_other_ranks(slices: Sequence[Tensor], group: Any, memory: _Memory) -> list[Sequence[Tensor]]:
    """The other ranks' slices, on rank 0."""
    sizes = [s.numel() for s in slices]
    others = range(1, dist.get_world_size(group))
    received = [memory.take(f"of rank {r}", sum(sizes), slices[0]) for r in others]
    arriving = [dist.irecv(part, group=group, group_src=r) for r, part in zip(others, received, strict=True)]
    for work in arriving:
        if work is not None:
            work.wait()
    return [part.split(sizes) for part in received]


def _end_to_end(slices: Sequence[Tensor], memory: _Memory) -> Tensor:
    return torch.cat(list(slices), out=memory.take("sent", sum(s.numel() for s in slices), slices[0]))


def _joined(parameters: Sequence[Any], slices: Iterable[Sequence[Tensor]], memory: Tensor) -> Iterator[Tensor]:
    """Each parameter out of all ranks' slices of it, put together in memory one behind the other."""
    end = 0
    for parameter, pieces in zip(parameters, slices, strict=True):
        flat = pieces[0]
        if len(pieces) > 1:
            start, end = end, end + sum(piece.numel() for piece in pieces)
            flat = torch.cat(list(pieces), out=memory[start:end])
        yield flat[: parameter.ds_numel].view(parameter.ds_shape)


class _Memory:
    """Buffers by what they are for, used again and again: fresh memory costs more than what is copied into it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, use: str, count: int, like: Tensor) -> Tensor:
        """(count,) of the dtype and on the device of `like`."""
        held = self._buffers.get(use)
        if held is None or held.numel() < count or held.dtype != like.dtype:
            held = self._buffers[use] = torch.empty(count, dtype=like.dtype, device=like.device)
        return held[:count]
