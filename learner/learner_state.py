"""What state.json of a learner's state says, and whether the files it names are there. Read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.files import read_file

FORMAT = 1
_MOST_BYTES = 2**28
STATE_FILE = "state.json"
SHARED = "run.root must be on a file system all nodes see"


class StateError(RuntimeError):
    """The learner's state cannot be written or taken up; names the file and what is wrong with it."""


class LayerFile(BaseModel):
    """name: inside the folder. size, crc32: of its bytes. shapes: of the parameters in it, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # of a file in this folder, not of one elsewhere
    size: int = Field(ge=0)
    crc32: int
    shapes: Mapping[str, tuple[int, ...]]


class LearnerState(BaseModel):
    """state.json. version: updates done. steps: optimizer steps, fewer or more where some were skipped or repeated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    version: int = Field(ge=0)
    steps: int = Field(ge=0)
    layers: tuple[LayerFile, ...]


def read_learner_state(path: Path) -> LearnerState:
    """Raises StateError when the file is missing, damaged or of another format."""
    try:
        state = LearnerState.model_validate_json(read_file(path, _MOST_BYTES))
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise StateError(f"{path}: not the state of a learner: {problem['msg']}") from error
    if state.format != FORMAT:
        raise StateError(f"{path}: format {state.format}, this version reads format {FORMAT}")
    return state


def check_there(folder: Path) -> None:
    """Raises StateError unless this node sees all that the ranks wrote: names and sizes; bytes are not read again."""
    if not (folder / STATE_FILE).is_file():
        raise StateError(f"{folder / STATE_FILE} was written by the learner but is not here: {SHARED}")
    for layer in read_learner_state(folder / STATE_FILE).layers:
        path = folder / layer.name
        size = path.stat().st_size if path.is_file() else None
        if size != layer.size:
            here = "is not here" if size is None else f"has {size} bytes here"
            raise StateError(f"{path} was written by the learner with {layer.size} bytes but {here}: {SHARED}")
