"""ZeRO-3 ranks that train, save and load: processes of their own, since a process joins one group of ranks.

`run_ranks(N, scenario, ...)` starts N processes that call a function of this module by its name and waits for them.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "lora": {"model": {"lora": {"rank": 3}}},
    "offload": {"deepspeed": {"offload": "all"}},
}
ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 240


def settings_of(variant: str, ranks: int) -> RunConfig:
    parts = VARIANTS[variant]
    deepspeed = {"ranks": ranks, "packing": False, "timeout_s": 60} | parts.get("deepspeed", {})
    optim = {"lr": 1e-2, "weight_decay": 0.1}
    return RunConfig.model_validate({**parts, "deepspeed": deepspeed, "optim": optim})


def run_ranks(ranks: int, scenario: str, *arguments: object) -> None:
    """Raises AssertionError with a rank's own last words when one of them fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = [sys.executable, "-m", "tests.learner.checkpoint_ranks", str(port), str(ranks)]
    processes = [
        subprocess.Popen(
            [*program, str(rank), scenario, *map(str, arguments)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"rank {rank} of {ranks}:\n{said[rank][-3000:]}"


class Ranks:
    """What a scenario works with on its own rank."""

    def __init__(self, port: int, ranks: int, rank: int) -> None:
        self.ranks, self.rank = ranks, rank
        from learner.zero3 import join_ranks

        join_ranks(settings_of("float32", ranks), rank, "127.0.0.1", port)

    def engine(self, variant: str, policy: str) -> Any:
        import torch

        from learner.models import load_policy
        from learner.zero3 import zero3_engine

        config = settings_of(variant, self.ranks)
        torch.manual_seed(0)  # adapters start at random
        return zero3_engine(config, load_policy(config, policy))[0]


def save_in(engine: Any, folder: Path, version: int) -> None:
    """Save into a folder made before, as the driver makes it."""
    from learner.checkpoint import save_state

    folder.mkdir(parents=True, exist_ok=True)
    save_state(engine, folder, version)


def step(engine: Any, number: int) -> None:
    """Update `number`, the same on all ranks: its data depends on nothing else."""
    engine.set_gradient_accumulation_boundary(True)
    engine.backward(loss_of(engine, number))
    engine.step()


def loss_of(module: Any, number: int) -> Any:
    import torch

    ids = torch.randint(0, 131, (2, 12), generator=torch.Generator().manual_seed(number))
    return module(input_ids=ids, labels=ids).loss


def saving(ranks: Ranks, policy: str, root: str) -> None:
    """For each variant: straight/0, straight/3 and straight/5; and the same again from a loaded state."""
    from learner.checkpoint import load_state

    for variant in VARIANTS:
        folder = Path(root) / variant
        engine = ranks.engine(variant, policy)
        save_in(engine, folder / "straight" / "0", 0)
        for number in range(5):
            step(engine, number)
            if number in (2, 4):
                save_in(engine, folder / "straight" / str(number + 1), number + 1)
        assert load_state(engine, folder / "straight" / "0") == 0  # back to before the first step
        for number in range(3):
            step(engine, number)
        save_in(engine, folder / "rewound" / "3", 3)
        going_on(ranks, variant, policy, root, "resumed")


def loading(ranks: Ranks, policy: str, root: str) -> None:
    for variant in VARIANTS:
        going_on(ranks, variant, policy, root, f"on-{ranks.ranks}")


def going_on(ranks: Ranks, variant: str, policy: str, root: str, name: str) -> None:
    """A new engine takes up straight/3, is saved as NAME/3, does two more updates and is saved as NAME/5."""
    import deepspeed
    import torch
    from deepspeed.utils import safe_get_full_fp32_param

    from learner.checkpoint import load_state

    folder = Path(root) / variant
    engine = ranks.engine(variant, policy)
    with torch.no_grad():
        loss_of(engine, 9)  # leaves whole parameters behind, which the loaded ones must replace
    assert load_state(engine, folder / "straight" / "3") == 3
    save_in(engine, folder / name / "3", 3)
    dtype = getattr(torch, settings_of(variant, ranks.ranks).model.dtype)
    for n, parameter in engine.module.named_parameters():
        if parameter.requires_grad:  # what a forward sees is the optimizer's weight, rounded
            master = safe_get_full_fp32_param(parameter)
            with deepspeed.zero.GatheredParameters([parameter]):
                assert torch.equal(parameter.detach(), master.to(dtype)), n
    for number in (3, 4):
        step(engine, number)
    save_in(engine, folder / name / "5", 5)


def disk_full(ranks: Ranks, policy: str, root: str) -> None:
    """One rank's disk is full: all ranks say so, none waits for another, and the next save works."""
    import errno

    from learner import checkpoint
    from learner.learner_state import STATE_FILE, StateError

    engine = ranks.engine("float32", policy)
    real = checkpoint.write_durably

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    checkpoint.write_durably = full if ranks.rank == 1 else real
    with pytest.raises(StateError, match=r"layer-00001.*cannot be written: No space left on device"):
        save_in(engine, Path(root) / "full", 0)
    assert not (Path(root) / "full" / STATE_FILE).exists()
    checkpoint.write_durably = real
    save_in(engine, Path(root) / "later", 0)


def folder_gone(ranks: Ranks, policy: str, root: str) -> None:
    """A folder that is not there, or not there any more, is said by all ranks and not made."""
    from learner.checkpoint import save_state
    from learner.learner_state import StateError, check_there

    engine = ranks.engine("float32", policy)
    gone = Path(root) / "gone" / "learner"
    with pytest.raises(StateError, match=r"layer-0000.*No such file or directory: run\.root must be on a file system"):
        save_state(engine, gone, 0)
    assert not gone.parent.exists()
    save_in(engine, Path(root) / "there", 0)
    check_there(Path(root) / "there")


def refusals(ranks: Ranks, policy: str, root: str) -> None:
    """What must not be taken up, each named in one line; refused.txt says what was."""
    import shutil

    from learner.checkpoint import load_state
    from learner.learner_state import StateError

    engine = ranks.engine("float32", policy)
    good = Path(root) / "good"
    save_in(engine, good, 7)

    def refused(what: str, change: Any) -> None:
        bad = Path(root) / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        change(bad)
        with pytest.raises(StateError, match=re.escape(what)) as caught:
            load_state(engine, bad)
        assert "\n" not in str(caught.value)
        with (Path(root) / "refused.txt").open("a") as file:
            file.write(f"{what}\n")

    def swap(path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)

    layer, state = "layer-00001.safetensors", "state.json"
    refused("state.json: cannot be read: No such file", lambda bad: (bad / state).unlink())
    refused("state.json: not the state of a learner", lambda bad: (bad / state).write_text("{"))
    refused("state.json: format 9", lambda bad: swap(bad / state, '"format": 1', '"format": 9'))
    refused(f"{layer}: cannot be read: No such file", lambda bad: (bad / layer).unlink())
    refused(f"{layer}: damaged", lambda bad: flip(bad / layer))
    refused(f"{layer}: damaged", lambda bad: (bad / layer).write_bytes((bad / layer).read_bytes()[:-100]))
    refused(f"{layer}: damaged", lambda bad: (bad / layer).write_bytes(b""))
    refused(
        "model.norm.weight is (63,) there, (64,) in",
        lambda bad: swap(bad / state, '"model.norm.weight": [\n     64', '"model.norm.weight": [\n     63'),
    )
    refused(
        "model.norm.weight is missing there, (64,) in", lambda bad: swap(bad / state, "model.norm.weight", "x.weight")
    )
    refused("a.weight is (64,) there, not trained in", lambda bad: swap(bad / state, "model.norm.weight", "a.weight"))
    assert load_state(engine, good) == 7


if __name__ == "__main__":
    port, ranks, rank = map(int, sys.argv[1:4])
    globals()[sys.argv[4]](Ranks(port, ranks, rank), *sys.argv[5:])
    sys.stdout.flush()
    # Another rank that ends first breaks the threads of gloo that are left here, and with them the process.
    os._exit(0)
