"""A run's folder: reserved before anything starts, filled by atomic renames, removed again if the start fails."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

from configs.files import read_file
from configs.schema import RunSettings
from configs.shown import one_line
from learner.durable import partial_of, rename_durably, replace_durably, sync

_CHECKPOINT = re.compile(r"step-[0-9]{6,12}")


class RunFolderError(ValueError):
    """The run's folder cannot be used; names the key and the folder."""


class RunFolder:
    """Paths of the run-folder contract. One process at a time works in a folder: it holds the folder's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.summary = path / "summary.json"
        self.ledger = path / "ledger.sqlite"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.policy = path / "policy"
        self.nonfinite = path / "nonfinite"
        self.stacks = path / "stacks"
        self.tensorboard = path / "tensorboard"
        self.surroundings = path / "surroundings.json"
        self._lock: int | None = None

    @classmethod
    def reserve(cls, settings: RunSettings, config_name: str) -> RunFolder:
        """Make the folder. Raises RunFolderError when it exists or cannot be written."""
        name = settings.name or f"{config_name}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            path = Path(settings.root).expanduser().resolve() / name
        except (RuntimeError, ValueError, OSError) as error:  # links in a circle, nobody's home, a null character
            raise RunFolderError(f"run.root: {one_line(settings.root)} is no folder: {one_line(error)}") from None
        try:
            path.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            raise RunFolderError(
                f"run.name: {path} exists already: choose another name or remove it, or go on with it by --resume"
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"run.root: {path} cannot be made: {error.strerror}: choose a folder you can write"
            ) from None
        folder = cls(path)
        folder.samples.mkdir()
        folder.checkpoints.mkdir()
        folder.lock()
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """A folder that a run has left. Raises RunFolderError when it is none, or another process works in it."""
        try:
            folder = cls(path.expanduser().resolve())
            if not folder.config.is_file():
                raise RunFolderError(f"--resume: {folder.path} is no run's folder: it has no config.yaml")
            folder.lock()
        except RunFolderError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            raise RunFolderError(f"--resume: {one_line(path)} cannot be used: {one_line(error)}") from None
        return folder

    def lock(self) -> None:
        """Held until the process ends, however it ends. Raises RunFolderError when another process holds it."""
        path = self.path / ".lock"
        # Never through a link: what it leads to would be emptied below.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            raise RunFolderError(
                f"{self.path} is in use by {holder or 'another process'}: wait for it or stop it"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            # A file system without locks: the run goes on without this protection.
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._lock = handle

    def release(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Take the folder back: the run never began."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def publish(self, partial: Path, final: Path) -> None:
        """Rename a finished folder into place: whoever reads `final` finds all of it or nothing."""
        for folder, _, files in os.walk(partial):
            for name in files:
                sync(Path(folder) / name)
            sync(Path(folder))
        self.remove(final)
        rename_durably(partial, final)

    def partial(self, final: Path) -> Path:
        """An empty folder beside `final` to write into."""
        partial = partial_of(final)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def remove(self, folder: Path) -> None:
        """Take a folder away, its name first: nobody finds a part of it, nor writes into it any more.

        Raises OSError when the name cannot be taken; what else cannot be removed lies under the name of a partial.
        """
        gone = folder.with_name(f".{folder.name.lstrip('.')}.removed.partial")
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            rename_durably(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def sweep_checkpoints(self) -> None:
        """Remove what checkpoints that failed, and old ones that were removed, may have left."""
        for partial in self.checkpoints.glob(".step-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole; None before the first. Raises OSError; RunFolderError for no name."""
        latest = self.checkpoints / "latest"
        try:
            name = read_file(latest, 100).decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        if not _CHECKPOINT.fullmatch(name):
            raise RunFolderError(f"{latest} names no checkpoint but {one_line(name)!r}: write one such as step-000100")
        return self.checkpoints / name

    def point_to(self, checkpoint: Path) -> None:
        """`latest` names this checkpoint from now on."""
        replace_durably(self.checkpoints / "latest", f"{checkpoint.name}\n".encode())

    def keep_checkpoints(self, keep: int, best: int | None = None) -> None:
        """Remove all checkpoints but the newest `keep`, the one of update `best`, and the one `latest` names."""
        steps = sorted(self.checkpoints.glob("step-*"))
        kept = {*steps[-keep:], self.latest_checkpoint()}
        if best is not None:
            kept.add(self.checkpoint(best))
        for old in steps:
            if old not in kept:
                with suppress(OSError):  # tried again at the next checkpoint
                    self.remove(old)

    def checkpoint(self, update: int) -> Path:
        return self.checkpoints / f"step-{update:06d}"

    def remove_leftovers(self, update: int) -> None:
        """Remove what a crash left unfinished, and what was made after `update`."""
        for folder in (self.path, self.checkpoints, self.samples, self.nonfinite):
            for partial in folder.glob(".*.partial"):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        for step in self.checkpoints.glob("step-*"):
            if step > self.checkpoint(update):
                self.remove(step)
        for kept in (*self.samples.glob("update-*"), *self.nonfinite.glob("update-*")):
            if kept.stem > f"update-{update:06d}":
                kept.unlink()
        self.summary.unlink(missing_ok=True)
