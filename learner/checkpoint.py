"""The learner's state on disk, the same whatever the number of ranks.

    save_state(engine, folder, version) -> None      load_state(engine, folder) -> int (the version)

Both are called on all ranks in step. The folder holds one safetensors file a layer with `NAME:weight`, `NAME:exp_avg`
and `NAME:exp_avg_sq` of each trained parameter, whole and in float32, and `state.json`, written last. The moments are
missing before the first step. Frozen parameters are not kept: they are those of `model.path`. No random state is kept:
every draw is derived from the run's seed, an index and a purpose.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from learner.durable import sync, write_durably
from learner.learner_state import (
    FORMAT,
    SHARED,
    STATE_FILE,
    LayerFile,
    LearnerState,
    StateError,
    read_learner_state,
)

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
_CHUNK = 1 << 24  # bytes read at once while a checksum is made


def save_state(engine: Any, folder: Path | str, version: int) -> None:
    """Write the state of a ZeRO-3 engine; every byte is on disk when it returns. Layer n is written by rank n % ranks.

    No rank holds more than one layer. The folder must be there: a rank that is late, when the driver has given up and
    removed it, must not make it anew. Raises StateError on all ranks when one of them could not write.
    """
    folder, rank, ranks = Path(folder), dist.get_rank(), dist.get_world_size()
    steps = _steps(engine)
    written: list[LayerFile] = []
    failure = ""
    for number, layer in enumerate(_trained_layers(engine)):
        tensors: dict[str, Tensor] = {}
        for name, parameter in layer:
            for key, tensor in _whole(parameter, steps):
                if number % ranks == rank:
                    tensors[f"{name}:{key}"] = tensor.cpu()
        if tensors and not failure:
            shapes = {name: tuple(parameter.ds_shape) for name, parameter in layer}
            try:
                written.append(_write_layer(folder / f"layer-{number:05d}.safetensors", tensors, shapes))
            except OSError as error:
                failure = _cause(folder, error)  # the other ranks wait for this one's part of the layers to come
    everyone = _tell_all((written, failure))
    layers = sorted((layer for layers, _ in everyone for layer in layers), key=lambda layer: layer.name)
    failures = [cause for _, cause in everyone if cause]
    if rank == 0 and not failures:
        state = LearnerState(format=FORMAT, version=version, steps=steps, layers=tuple(layers))
        try:
            write_durably(folder / STATE_FILE, state.model_dump_json(indent=1).encode())
            sync(folder)
        except OSError as error:
            failures = [_cause(folder, error)]
    failures = _tell_all(failures)[0]
    if failures:
        raise StateError(failures[0])


def load_state(engine: Any, folder: Path | str) -> int:
    """Take up a state that any number of ranks saved; returns its version.

    Raises StateError when a file is missing or damaged, or when the parameters are others.
    """
    folder, rank, ranks = Path(folder), dist.get_rank(), dist.get_world_size()
    state = read_learner_state(folder / STATE_FILE)
    _check_parameters(state, engine, folder)
    files = {name: layer.name for layer in state.layers for name in layer.shapes}
    for layer in state.layers[rank::ranks]:
        _check_sum(folder / layer.name, layer.crc32)
    engine.empty_partition_cache()  # or whole parameters of an earlier forward would hide the new parts
    _prepare_moments(engine, state.steps)
    keys = ("weight", *MOMENTS) if state.steps else ("weight",)
    for name, parameter in (named for layer in _trained_layers(engine) for named in layer):
        path = folder / files[name]
        try:
            with safe_open(path, framework="pt") as file:
                for key in keys:
                    _set_part(parameter, key, file.get_tensor(f"{name}:{key}"), rank)
        except (OSError, SafetensorError) as error:
            raise StateError(f"{path}: damaged or missing: {error}") from error
    if persistent := engine.optimizer.persistent_parameters:
        persistent[0].all_gather(persistent)  # those ZeRO-3 keeps whole on every rank
    return state.version


def _trained_layers(engine: Any) -> list[list[tuple[str, Any]]]:
    """(name, parameter) of what is trained, by layer, in the same order on all ranks."""
    layers: dict[str, list[tuple[str, Any]]] = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            layers.setdefault(_layer_of(name), []).append((name, parameter))
    return list(layers.values())


def _layer_of(name: str) -> str:
    """A parameter's name up to the layer's number, "model.layers.3"; its module's where it is in no numbered layer."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1])


def _whole(parameter: Any, steps: int) -> list[tuple[str, Tensor]]:
    """What is kept of a parameter, gathered from all ranks, in the parameter's shape, float32."""
    kept = [("weight", safe_get_full_fp32_param(parameter))]
    if steps:
        kept += [(key, safe_get_full_optimizer_state(parameter, key)) for key in MOMENTS]
    return kept


def _set_part(parameter: Any, key: str, whole: Tensor, rank: int) -> None:
    """Put this rank's part of a whole tensor in its place.

    ZeRO-3 cuts the flattened tensor into equal parts and pads the last; DeepSpeed's setter for whole tensors does not
    pad, so the part is made here.
    """
    size = parameter.ds_tensor.numel()
    cut = whole.flatten()[rank * size : (rank + 1) * size]
    part = torch.zeros(size, dtype=torch.float32)
    part[: cut.numel()] = cut
    if key == "weight":
        safe_set_local_fp32_param(parameter, part)
        parameter.ds_tensor.data.copy_(part)  # what forwards gather; in bfloat16 it is another tensor
    else:
        safe_set_local_optimizer_state(parameter, part, key)


def _steps(engine: Any) -> int:
    """Optimizer steps made; 0 while there is no state yet."""
    states = engine.optimizer.optimizer.state
    made = [states[flat]["step"] for flat in engine.optimizer.fp32_partitioned_groups_flat if states.get(flat)]
    return int(made[0]) if made else 0


def _prepare_moments(engine: Any, steps: int) -> None:
    """Room for the moments, as AdamW itself makes it at its first step; none for a state from before that step."""
    states = engine.optimizer.optimizer.state
    for flat in engine.optimizer.fp32_partitioned_groups_flat:
        if steps:
            states[flat] = {"step": torch.tensor(float(steps)), **{key: torch.zeros_like(flat) for key in MOMENTS}}
        else:
            states.pop(flat, None)


def _check_parameters(state: LearnerState, engine: Any, folder: Path) -> None:
    """Raises StateError naming the first parameter that differs."""
    saved = {name: shape for layer in state.layers for name, shape in layer.shapes.items()}
    present = {name: tuple(p.ds_shape) for layer in _trained_layers(engine) for name, p in layer}
    for name in sorted({*saved, *present}):
        if saved.get(name) != present.get(name):
            raise StateError(
                f"{folder}: {name} is {saved.get(name, 'missing')} there, {present.get(name, 'not trained')} in the "
                "policy of this run: resume with the model it was saved with"
            )


def _write_layer(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> LayerFile:
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    write_durably(path, data)
    return LayerFile(name=path.name, size=len(data), crc32=zlib.crc32(data), shapes=shapes)


def _check_sum(path: Path, expected: int) -> None:
    crc = 0
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                crc = zlib.crc32(data, crc)
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from error
    if crc != expected:
        raise StateError(f"{path}: damaged: its checksum is not that of {STATE_FILE}")


def _tell_all(what: Any) -> list[Any]:
    """What each rank says, by rank; every rank must call."""
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, what)
    return answers


def _cause(folder: Path, error: OSError) -> str:
    why = f"{error.strerror}: {SHARED}" if error.errno == errno.ENOENT else error.strerror
    return f"{error.filename or folder}: cannot be written: {why}"
