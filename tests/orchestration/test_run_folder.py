"""A run's folder: taken once, left whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from configs.schema import RunSettings
from orchestration.run_folder import RunFolder, RunFolderError


def settings(root: Path, name: str | None = "one") -> RunSettings:
    return RunSettings(root=str(root), name=name)


def test_the_folder_is_made_with_its_places(tmp_path: Path) -> None:
    folder = RunFolder.reserve(settings(tmp_path / "deep" / "runs"), "quickstart")
    assert folder.path == tmp_path / "deep" / "runs" / "one"
    assert sorted(p.name for p in folder.path.iterdir()) == [".lock", "checkpoints", "samples"]
    paths = (
        folder.config,
        folder.metrics,
        folder.summary,
        folder.ledger,
        folder.samples,
        folder.checkpoints,
        folder.policy,
    )
    assert [p.relative_to(folder.path).as_posix() for p in paths] == [
        *("config.yaml", "metrics.jsonl", "summary.json", "ledger.sqlite", "samples", "checkpoints", "policy"),
    ]


def test_a_run_without_a_name_is_called_after_its_config(tmp_path: Path) -> None:
    assert RunFolder.reserve(settings(tmp_path, None), "quickstart").path.name.startswith("quickstart-20")


def test_the_path_does_not_depend_on_where_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunFolder.reserve(settings(Path("runs")), "x").path == tmp_path / "runs" / "one"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.reserve(settings(Path("~/mine")), "x").path == tmp_path / "mine" / "one"


def refused(root: Path) -> str:
    with pytest.raises(RunFolderError) as caught:
        RunFolder.reserve(settings(root), "x")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_name_that_is_taken_is_refused_and_left_alone(tmp_path: Path) -> None:
    RunFolder.reserve(settings(tmp_path), "x").config.write_text("kept")
    assert refused(tmp_path).startswith(f"run.name: {tmp_path}/one exists already")
    assert (tmp_path / "one" / "config.yaml").read_text() == "kept"


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    message = refused(tmp_path / "runs")
    assert message.startswith("run.root: ")
    assert str(tmp_path / "runs") in message
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_name_that_is_a_file_is_not_blamed_on_the_root(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("a file")
    assert refused(tmp_path).startswith(f"run.name: {tmp_path}/one exists already")


def test_discarding_leaves_nothing(tmp_path: Path) -> None:
    folder = RunFolder.reserve(settings(tmp_path), "x")
    (folder.samples / "group.msgpack").write_bytes(b"x")
    folder.discard()
    assert list(tmp_path.iterdir()) == []
    folder.discard()
    RunFolder.reserve(settings(tmp_path), "x")


def test_what_is_published_appears_whole_in_place_of_the_old(tmp_path: Path) -> None:
    folder = RunFolder.reserve(settings(tmp_path), "x")
    for content, others in (("old", ["b"]), ("new", [])):
        partial = folder.partial(folder.policy)
        assert list(partial.iterdir()) == []
        (partial / "a").write_text(content)
        for other in others:
            (partial / other).write_text(content)
        before = (folder.policy / "a").read_text() if folder.policy.exists() else None
        assert before == (None if content == "old" else "old")  # not seen before it is published
        folder.publish(partial, folder.policy)
    assert [(p.name, p.read_text()) for p in folder.policy.iterdir()] == [("a", "new")]
    assert sorted(p.name for p in folder.path.iterdir()) == [".lock", "checkpoints", "policy", "samples"]


def test_what_was_left_unfinished_is_not_published_later(tmp_path: Path) -> None:
    folder = RunFolder.reserve(settings(tmp_path), "x")
    (folder.partial(folder.policy) / "half").write_text("x")
    again = folder.partial(folder.policy)
    assert list(again.iterdir()) == []
    assert again.parent == folder.policy.parent  # else the rename is a copy


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder.reserve(settings(tmp_path), "x")
    for step in (2, 10, 4, 100):
        (folder.checkpoints / f"step-{step:06d}").mkdir()
    (folder.checkpoints / "latest").write_text("step-000100\n")
    folder.partial(folder.checkpoints / "step-000001")
    folder.keep_checkpoints(2)
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == [
        *(".step-000001.partial", "latest", "step-000010", "step-000100"),
    ]
    folder.keep_checkpoints(5)
    assert len(list(folder.checkpoints.glob("step-*"))) == 2


def test_an_old_checkpoint_is_gone_at_once_or_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while it is removed leaves no part of it under its name."""
    folder = RunFolder.reserve(settings(tmp_path), "x")
    for step in (1, 2):
        folder.checkpoint(step).mkdir()
        (folder.checkpoint(step) / "run.json").write_text("x")
    folder.point_to(folder.checkpoint(2))

    def crash(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            folder.keep_checkpoints(1)
    there = {".step-000001.removed.partial", "latest", "step-000002"}
    assert {p.name for p in folder.checkpoints.iterdir()} == there
    folder.sweep_checkpoints()
    assert {p.name for p in folder.checkpoints.iterdir()} == {"latest", "step-000002"}


def test_an_old_checkpoint_that_cannot_be_removed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.reserve(settings(tmp_path), "x")
    for step in (1, 2):
        folder.checkpoint(step).mkdir()
    folder.point_to(folder.checkpoint(2))

    def full(old: Path, new: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", full)
        folder.keep_checkpoints(1)
    assert folder.checkpoint(1).is_dir()
    folder.keep_checkpoints(1)
    assert {p.name for p in folder.checkpoints.iterdir()} == {"latest", "step-000002"}


def test_the_best_checkpoint_and_the_latest_are_kept_too(tmp_path: Path) -> None:
    folder = RunFolder.reserve(settings(tmp_path), "x")
    assert folder.latest_checkpoint() is None
    for step in range(1, 7):
        folder.checkpoint(step).mkdir()
    folder.point_to(folder.checkpoint(4))
    folder.keep_checkpoints(1, best=2)
    assert [p.name for p in sorted(folder.checkpoints.glob("step-*"))] == ["step-000002", "step-000004", "step-000006"]
    assert folder.latest_checkpoint() == folder.checkpoint(4)


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    folder = RunFolder.reserve(settings(tmp_path), "x")
    folder.config.write_text("run: {}")
    with pytest.raises(RunFolderError, match=rf"one is in use by process {os.getpid()} on \S+: wait for it or stop it"):
        RunFolder.reopen(folder.path)
    folder.release()
    again = RunFolder.reopen(folder.path)
    again.release()


def test_a_folder_without_a_run_is_not_reopened(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is no run's folder: it has no config\.yaml"):
        RunFolder.reopen(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_and_what_came_later_are_removed(tmp_path: Path) -> None:
    folder = RunFolder.reserve(settings(tmp_path), "x")
    for step in (4, 5, 12):
        folder.checkpoint(step).mkdir()
        for kept in (folder.samples, folder.nonfinite):
            kept.mkdir(exist_ok=True)
            (kept / f"update-{step:06d}.msgpack").write_text("x")
    (folder.samples / ".update-000005.msgpack.partial").write_text("x")
    (folder.nonfinite / ".update-000005.msgpack.partial").write_text("x")
    folder.partial(folder.checkpoint(6))
    folder.partial(folder.policy)
    folder.summary.write_text("{}")
    folder.policy.mkdir()
    folder.remove_leftovers(5)
    assert sorted(p.relative_to(folder.path).as_posix() for p in folder.path.rglob("*")) == [
        *(".lock", "checkpoints", "checkpoints/step-000004", "checkpoints/step-000005"),
        *("nonfinite", "nonfinite/update-000004.msgpack", "nonfinite/update-000005.msgpack", "policy", "samples"),
        *("samples/update-000004.msgpack", "samples/update-000005.msgpack"),
    ]
