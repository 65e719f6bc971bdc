"""A run's folder: reserved before anything starts, filled by atomic renames, removed again if the start fails."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from configs.schema import RunSettings


class RunFolderError(ValueError):
    """The run's folder cannot be used; names the key and the folder."""


class RunFolder:
    """Paths of the run-folder contract."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.ledger = path / "ledger.sqlite"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.policy = path / "policy"

    @classmethod
    def reserve(cls, settings: RunSettings, config_name: str) -> RunFolder:
        """Make the folder. Raises RunFolderError when it exists or cannot be written."""
        name = settings.name or f"{config_name}-{time.strftime('%Y%m%d-%H%M%S')}"
        path = Path(settings.root).expanduser().resolve() / name
        try:
            path.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            raise RunFolderError(f"run.name: {path} exists already: choose another name or remove it") from None
        except OSError as error:
            raise RunFolderError(
                f"run.root: {path} cannot be made: {error.strerror}: choose a folder you can write"
            ) from None
        folder = cls(path)
        folder.samples.mkdir()
        folder.checkpoints.mkdir()
        return folder

    def discard(self) -> None:
        """Take the folder back: the run never began."""
        shutil.rmtree(self.path, ignore_errors=True)

    def publish(self, partial: Path, final: Path) -> None:
        """Rename a finished folder into place: whoever reads `final` finds all of it or nothing."""
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)

    def partial(self, final: Path) -> Path:
        """An empty folder beside `final` to write into."""
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def keep_checkpoints(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints."""
        for old in sorted(self.checkpoints.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
