"""Slices that lie on several ranks come together on rank 0 or on all, whatever their sizes."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from learner import gather
from learner.gather import gathered_parameters

SHAPES = [(3, 5), (1,), (7, 2, 2), (64, 3), (2,)]  # of none can three ranks hold equal shares


class Sliced(nn.Module):
    """Parameters as ZeRO-3 leaves them: empty, with a padded slice of the whole beside."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        for i, whole in enumerate(wholes()):
            parameter: Any = nn.Parameter(torch.empty(0))
            share = -(-whole.numel() // ranks)
            padded = torch.cat([whole.flatten(), torch.full((share * ranks - whole.numel(),), torch.nan)])
            parameter.ds_shape, parameter.ds_numel = whole.shape, whole.numel()
            parameter.ds_tensor = padded[rank * share : (rank + 1) * share].clone()
            parameter.ds_process_group = dist.group.WORLD
            self.register_parameter(f"p{i}", parameter)


def wholes() -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(SHAPES)]


def on_rank(rank: int, ranks: int, port: int, chunk_bytes: int, everywhere: bool, folder: Path) -> None:
    """Leaves behind the names of the whole parameters that a rank got, a line each time."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    gather.CHUNK_BYTES = chunk_bytes
    module = Sliced(rank, ranks)
    for _ in range(2):
        found = [(name, tensor.clone()) for name, tensor in gathered_parameters(module, torch.float32, everywhere)]
        whole = dict(zip((f"p{i}" for i in range(len(SHAPES))), wholes(), strict=True))
        assert all(torch.equal(tensor, whole[name]) for name, tensor in found)
        with (folder / f"rank-{rank}").open("a") as file:
            file.write(" ".join(name for name, _ in found) + "\n")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("ranks", "chunk_bytes", "everywhere"), [(1, 100, False), (3, 100, False), (3, 1 << 20, False), (3, 100, True)]
)
def test_every_parameter_comes_whole(ranks: int, chunk_bytes: int, everywhere: bool, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(on_rank, (ranks, port, chunk_bytes, everywhere, tmp_path), nprocs=ranks)
    first, *others = [(tmp_path / f"rank-{rank}").read_text().splitlines() for rank in range(ranks)]
    assert first == [" ".join(f"p{i}" for i in range(len(SHAPES)))] * 2
    assert others == [first if everywhere else ["", ""]] * (ranks - 1)
