"""What lies in a run's folder is untrusted when it is read again: state or one line, whatever stands there."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.load import ConfigError
from configs.schema import RunSettings
from envs.codec import CodecError
from envs.trajectory import Ticket
from learner.learner_state import STATE_FILE, StateError, check_there, read_learner_state
from orchestration.checkpoints import CheckpointError, read_pivots, read_queue, read_state
from orchestration.comparison_results import ResultError, _lines, _numbers, read_json
from orchestration.metrics import read_metrics
from orchestration.nonfinite import read_batch
from orchestration.resume import ResumeError, resume_point
from orchestration.run_folder import RunFolder, RunFolderError
from tests.orchestration.small_run import Run

READ_ERRORS = (ResumeError, RunFolderError, CheckpointError, StateError, ResultError, CodecError, ConfigError, OSError)
HOSTILE = {
    "nothing": b"",
    "binary": bytes(range(256)),
    "deep": b"[" * 10**5,
    "deep objects": b'{"update":' * 10**5,
    "a list": b"[]\n",
    "a number": b"1\n",
    "infinite": b'{"update": 1e999, "format": 1e999}\n',
    "long numbers": b'{"update": ' + b"9" * 5000 + b"}\n",
    "negative": b'{"update": -1}\n',
    "true": b'{"update": true}\n',
    "keys of many lines": b'{"a\\nb\\u2028\\u001b[2J": 1, "format": 2}\n',
    "a long key": b'{"' + b"x" * 10**5 + b'": 1}\n',
    "a long line": b'{"update": 1, "x": "' + b"x" * 2**20 + b'"}\n',
    "UTF-16": '{"update": 1}\n'.encode("utf-16"),
    "lists in lists": b"\xdd\x00\x01\x00\x00" + b"\x90" * 65536,
    "lists of lists": b"\xdc\xff\xff" * 1000,
    "a promise": b"\xc6\xff\xff\xff\xff",
}


@pytest.fixture
async def left(tmp_path: Path) -> Path:
    """The folder of a run that died behind its second update."""
    run = Run(tmp_path)
    for number in (1, 2):
        run.ledger.issue(Ticket(100 + number, "frozen_lake", 7), number)
        await run.update(number)
    run.ledger.close()
    run.folder.release()
    return run.folder.path


def refused(left: Path) -> str:
    with pytest.raises(READ_ERRORS) as caught:
        resume_point(left, [], None)
    assert all(line.isprintable() and len(line) < 1500 for line in str(caught.value).splitlines())
    return str(caught.value)


FILES = ["run.json", "queue.msgpack", "ledger.sqlite", "../latest", "../../config.yaml", "../../evaluations.jsonl"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("file", FILES)
def test_hostile_files_of_a_run_are_one_line(file: str, name: str, left: Path) -> None:
    path = (left / "checkpoints" / "step-000002" / file).resolve()
    path.write_bytes(HOSTILE[name])
    unfinished = b"\n" not in HOSTILE[name]
    if (file == "../../evaluations.jsonl" and unfinished) or (file, name) == ("../../config.yaml", "nothing"):
        resume_point(left, [], None).folder.release()  # a line that a crash cut short; all defaults
        return
    assert path.name in refused(left) or path.parent.name in refused(left)


@pytest.mark.parametrize("file", FILES)
def test_pipes_in_the_place_of_files_are_not_waited_for(file: str, left: Path) -> None:
    path = (left / "checkpoints" / "step-000002" / file).resolve()
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    assert refused(left)


@pytest.mark.parametrize("name", ["../../../elsewhere", "step-000002/../../..", "/etc", "step-2", "step-000002\nx", ""])
def test_latest_names_a_checkpoint_of_this_run(name: str, left: Path) -> None:
    (left / "checkpoints" / "latest").write_text(f"{name}\n")
    assert "latest names no checkpoint" in refused(left)


def test_the_lock_is_never_a_link(left: Path, tmp_path: Path) -> None:
    """What it leads to would be emptied."""
    treasure = tmp_path / "treasure"
    treasure.write_text("gold")
    (left / ".lock").unlink()
    (left / ".lock").symlink_to(treasure)
    assert "Too many levels of symbolic links" in refused(left)
    assert treasure.read_text() == "gold"


def test_numbers_that_point_nowhere_are_refused(left: Path) -> None:
    path = left / "checkpoints" / "step-000002" / "run.json"
    whole = json.loads(path.read_text())
    for change, said in (
        ({"update": -1}, "update: Input should be greater than or equal to 0"),
        ({"nonfinite": -1}, "nonfinite: Input should be"),
        ({"recorder": {**whole["recorder"], "metrics_bytes": -1}}, "recorder.metrics_bytes is -1"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        assert said in refused(left)


def test_a_ledger_of_other_states_is_refused(left: Path) -> None:
    path = left / "checkpoints" / "step-000002" / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("UPDATE tickets SET state = 'lost\nx' WHERE ticket = 1")
        db.commit()
    assert r"a ticket is 'lost\\nx'" in refused(left)
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE tickets")
        db.execute("CREATE TABLE tickets (ticket, state)")
        db.execute("INSERT INTO tickets VALUES (1, 7), (2, NULL)")
        db.commit()
    assert "ledger.sqlite: damaged: a ticket is" in refused(left)


def test_a_folder_of_an_odd_name_is_resumed(left: Path) -> None:
    """SQLite's address of a file gives ? and % a meaning."""
    odd = left.with_name("a%20b?mode=rwc#c")
    left.rename(odd)
    (odd / "config.yaml").write_text((odd / "config.yaml").read_text())
    point = resume_point(odd, [], None)
    point.folder.release()
    assert point.checkpoint.parent.parent == odd


@pytest.mark.parametrize("path", ["a\0b", "~nobody-of-that-name/x", "x" * 5000])
def test_odd_paths_of_runs_are_one_line(path: str) -> None:
    with pytest.raises(RunFolderError) as caught:
        RunFolder.reserve(RunSettings(root=path), "x")
    assert str(caught.value).isprintable()
    with pytest.raises(RunFolderError):
        RunFolder.reopen(Path(path))


def test_a_circle_of_links_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(RunFolderError, match=r"run\.root: .*/a is no folder: Symlink loop"):
        RunFolder.reserve(RunSettings(root=str(tmp_path / "a")), "x")
    with pytest.raises(RunFolderError, match=r"--resume: .* cannot be used"):
        RunFolder.reopen(tmp_path / "a")


# --- readers by themselves -------------------------------------------------------------------------------------------

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "state": ("run.json", lambda path: read_state(path.parent)),
    "queue": ("queue.msgpack", lambda path: read_queue(path.parent)),
    "pivots": ("sampler/pivots.json", lambda path: read_pivots(path.parent.parent)),
    "learner": (STATE_FILE, read_learner_state),
    "metrics": ("metrics.jsonl", read_metrics),
    "batch": ("batch.msgpack", read_batch),
    "summary": ("summary.json", read_json),
    "log": ("evaluations.jsonl", _lines),
}


def read(reader: str, folder: Path, data: bytes) -> str:
    """What a reader says of a file that holds this; empty where it can be read."""
    name, call = READERS[reader]
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        call(path)
    except (*READ_ERRORS, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_contents_are_one_line(reader: str, name: str, tmp_path: Path) -> None:
    said = read(reader, tmp_path, HOSTILE[name])
    assert said.isprintable()
    assert len(said) < 1500
    if reader in ("state", "queue", "pivots", "learner", "batch"):
        assert said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode() + b"\n")


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | JSON)
def test_any_bytes_are_read_or_refused(reader: str, data: bytes, tmp_path: Path) -> None:
    assert read(reader, tmp_path, data).isprintable()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name, call in READERS.values():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
        with pytest.raises((*READ_ERRORS, ValueError), match=r"(?i)is no regular file"):
            call(path)


def test_a_layer_lies_in_its_folder(tmp_path: Path) -> None:
    state = {"format": 1, "version": 1, "steps": 1, "layers": [{"name": "x", "size": 1, "crc32": 0, "shapes": {}}]}
    for name in ("../x", "/etc/passwd", "a/b", "", ".", ".."):
        state["layers"] = [{"name": name, "size": 1, "crc32": 0, "shapes": {}}]
        (tmp_path / STATE_FILE).write_text(json.dumps(state))
        with pytest.raises(StateError, match=r"state\.json: not the state of a learner: String should match pattern"):
            check_there(tmp_path)


def test_metrics_without_an_end_are_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match="line 1 is no line of metrics"):
        read_metrics(path)


def test_numbers_that_no_float_holds_are_left_out() -> None:
    assert dict(_numbers({"a": 1, "b": 10**400, "c": float("nan"), "d": float("inf"), "e": "1", "f": -2.5})) == {
        "a": 1.0, "f": -2.5,
    }  # fmt: skip


def test_a_kept_batch_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(msgpack.packb([b"one", b"two"]))
    assert read_batch(tmp_path / "x") == [b"one", b"two"]
