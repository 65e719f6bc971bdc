"""CUDA IPC without CUDA: one process's buffer is a file that the other one maps, as it would map the memory of its GPU.

What vLLM's transfer engine asks of torch is answered here; everything else is its own code.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.multiprocessing import reductions
from vllm.distributed.weight_transfer import base, ipc_engine, packed_tensor


def pretend(folder: Path, gpu: str) -> None:
    """From now on this process is on a GPU of that name."""
    stand_in: Any = _Torch(folder, gpu)
    for module in (base, ipc_engine, packed_tensor):
        module.torch = stand_in
    packed_tensor.reduce_tensor = stand_in.exported
    reductions.rebuild_cuda_tensor = _mapped


class _Torch:
    """torch, but for what needs a GPU."""

    def __init__(self, folder: Path, gpu: str) -> None:
        self._folder, self._numbers = folder, count()
        self._files: dict[int, Path] = {}

        def nothing() -> None: ...

        self.accelerator = SimpleNamespace(current_device_index=lambda: 0, synchronize=nothing)
        self.cuda = SimpleNamespace(
            get_device_properties=lambda _: SimpleNamespace(uuid=gpu),
            current_stream=lambda: SimpleNamespace(synchronize=nothing),
            synchronize=nothing, ipc_collect=nothing,
        )  # fmt: skip
        self._gpu = gpu

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, size: int, *, dtype: torch.dtype, device: str) -> torch.Tensor:
        assert (dtype, device) == (torch.uint8, "cuda")
        path = self._folder / f"{self._gpu} {next(self._numbers)}"
        path.write_bytes(bytes(size))
        tensor = _mapped(str(path))
        self._files[tensor.data_ptr()] = path
        return tensor

    def exported(self, tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
        return None, (str(self._files[tensor.data_ptr()]), *[None] * 6)


def _mapped(path: str, *_: Any) -> torch.Tensor:
    return torch.from_numpy(np.memmap(path, np.uint8, "r+"))
