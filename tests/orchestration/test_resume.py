"""`--resume`: what is read, what is refused, how a folder is taken back to its checkpoint."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from configs.load import load_config, to_yaml
from configs.schema import RunConfig, StopSettings
from envs.codec import encode_group
from envs.trajectory import Ticket
from orchestration.checkpoints import CheckpointError, read_state
from orchestration.cluster import ROOT
from orchestration.ledger import Ledger, State
from orchestration.resume import ResumeError, check_policy, different, point_in, resume_point, roll_back
from orchestration.run_folder import RunFolder, RunFolderError
from tests.builders import parallel_group
from tests.orchestration.small_run import BEFORE, POLICY, Run, queued


@pytest.fixture
async def left(tmp_path: Path) -> Path:
    """The folder of a run that died in update 4: a checkpoint of update 2, a line of update 3 and half of another."""
    run = Run(tmp_path)
    for number in (1, 2):
        run.ledger.issue(Ticket(100 + number, "frozen_lake", 7), number)
        await run.update(number)
    run.ledger.move([2], State.TRAINED)
    run.ledger.issue(Ticket(3, "frozen_lake", 1), 2)
    with run.folder.metrics.open("a") as file:
        file.write('{"update":3}\n{"upd')
    run.folder.evaluations.write_text('{"update":0}\n{"update":2}\n{"update":3}\n')
    (run.folder.samples / "update-000003.msgpack").write_text("x")
    run.folder.nonfinite.mkdir()
    (run.folder.nonfinite / "update-000003.msgpack").write_text("x")
    run.folder.partial(run.folder.checkpoint(3))
    run.ledger.close()
    run.folder.release()
    return run.folder.path


def rows(ledger: Path) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(ledger)) as db:
        return db.execute("SELECT ticket, state FROM tickets ORDER BY ticket").fetchall()


def refused(path: Path, *overrides: str, config: Path | None = None) -> str:
    with pytest.raises((ResumeError, RunFolderError, CheckpointError)) as caught:
        resume_point(path, overrides, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read ----------------------------------------------------------------------------------------------------


def test_the_point_is_that_of_the_latest_checkpoint(left: Path) -> None:
    point = resume_point(left, ["run.updates=12", "rollout.actors=1", "deepspeed.ranks=3", "optim.lr=1e-5"], None)
    assert point.checkpoint == left / "checkpoints" / "step-000002"
    assert point.state.update == 2
    assert point.state.before.by_episode == BEFORE.by_episode
    assert point.queued == (queued(1), queued(2))
    assert (point.config.run.updates, point.config.rollout.actors, point.config.deepspeed.ranks) == (12, 1, 3)
    assert point.said == (
        f"resuming {left} from step-000002, 12 s into the run",
        "restored: 2 updates, 4 tickets (none ended), 2 groups queued",
        "issued again: 2 tickets that were in flight",
        "lost: update 3, done after the checkpoint, and what became of 1 tickets issued since",
    )
    point.folder.release()


def test_reading_changes_nothing(left: Path) -> None:
    before = {p: p.read_bytes() for p in left.rglob("*") if p.is_file() and p.name != ".lock"}
    resume_point(left, ["run.updates=12"], None).folder.release()
    after = {p: p.read_bytes() for p in left.rglob("*") if p.is_file() and p.name != ".lock"}
    assert {p.name: d for p, d in after.items() if "sqlite-" not in p.name} == {p.name: d for p, d in before.items()}


def test_a_config_that_says_the_same_is_no_contradiction(left: Path, tmp_path: Path) -> None:
    same = tmp_path / "same.yaml"
    same.write_text((left / "config.yaml").read_text())
    resume_point(left, ["optim.lr=1e-5"], same).folder.release()
    same.write_text(same.read_text().replace("weight_decay: 0.0", "weight_decay: 0.5"))
    assert "differs from" in refused(left, config=same)
    assert "in optim.weight_decay: leave --config away" in refused(left, config=same)


def test_the_process_that_works_on_a_run_finds_its_way_back_itself(left: Path) -> None:
    """With the run's lock held, as after a fault of the learner; the config is the one it runs with."""
    folder = RunFolder.reopen(left)
    config = load_config(left / "config.yaml", ["run.updates=12"])
    point = point_in(folder, config)
    assert (point.folder, point.config) == (folder, config)
    assert (point.checkpoint.name, point.state.update, point.queued) == ("step-000002", 2, (queued(1), queued(2)))
    roll_back(point)
    assert rows(left / "ledger.sqlite") == [(1, "queued"), (2, "queued"), (101, "in_flight"), (102, "in_flight")]
    assert "is in use by process" in refused(left)  # the lock is as it was
    folder.release()


def test_without_a_checkpoint_there_is_no_way_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    with pytest.raises(ResumeError, match=r"has none \(checkpoint\.every\)"):
        point_in(folder, RunConfig())


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run.seed=5", "run.seed cannot be changed"),
        ("run.name=other", "run.name cannot be changed"),
        ("env.size=5", "env.size cannot be changed"),
        ("sampler={name: sesa}", "sampler.name cannot be changed"),
        ("model.path=x", "model.path cannot be changed"),
        ("model.lora={rank: 4}", "model.lora cannot be changed"),
        ("model.warmup.layers=9", "model.warmup.layers cannot be changed"),
        ("grpo.groups_per_update=2", "grpo.groups_per_update cannot be changed"),
        ("eval.episodes=2", "eval.episodes cannot be changed"),
        ("run.updates=1", "run.updates=1: {} has done 2 already; give a larger number"),
    ],
)
def test_what_would_be_another_run_is_refused_by_name(left: Path, override: str, says: str) -> None:
    assert says.format(left) in refused(left, override)


def test_a_queue_too_small_for_what_was_queued_is_refused(left: Path) -> None:
    (left / "config.yaml").write_text(
        to_yaml(load_config(left / "config.yaml", ["queue.max_groups=1", "grpo.groups_per_update=1"]))
    )
    assert "queue.max_groups (1) is too small for the 2 groups queued" in refused(left)


def message_of(size: int) -> bytes:
    """A message of so many bytes."""
    group = parallel_group(1.0, 0.0)
    padded = encode_group(replace(group, sampler="x" * (size // 2)))
    message = encode_group(replace(group, sampler="x" * (size // 2 + size - len(padded))))
    assert len(message) == size
    return message


def test_a_queue_with_too_little_room_for_what_was_queued_is_refused(left: Path) -> None:
    """1 MiB takes 2^20 bytes and not one more."""
    queue = left / "checkpoints" / "step-000002" / "queue.msgpack"
    queue.write_bytes(msgpack.packb([message_of(1_000_000), message_of(48_576)]))
    resume_point(left, ["queue.max_mib=1"], None).folder.release()
    queue.write_bytes(msgpack.packb([message_of(1_000_000), message_of(48_577)]))
    assert "queue.max_mib (1) is too small for the 1048577 bytes of groups queued" in refused(left, "queue.max_mib=1")
    resume_point(left, ["queue.max_mib=2"], None).folder.release()


def test_metrics_that_are_short_or_missing_are_said_before_anything_changes(left: Path) -> None:
    (left / "metrics.jsonl").write_text('{"update":1}\n')
    there = sorted(left.rglob("*"))
    assert "metrics.jsonl is shorter than at the checkpoint (26 bytes): put it back" in refused(left)
    (left / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing (26 bytes at the checkpoint): put it back" in refused(left)
    assert [path for path in there if path.name != "metrics.jsonl"] == sorted(left.rglob("*"))


def test_evaluations_that_cannot_be_read_are_said_before_anything_changes(left: Path) -> None:
    whole = (left / "evaluations.jsonl").read_text()
    (left / "evaluations.jsonl").write_text('{"update": 0, "success"\n{"update": 1}\n')
    assert "evaluations.jsonl: line 1 is no line of metrics" in refused(left)
    (left / "evaluations.jsonl").write_bytes(b"\xff\n")
    assert "evaluations.jsonl: line 1 is no line of metrics: 'utf-8' codec" in refused(left)
    (left / "evaluations.jsonl").write_text(whole)
    resume_point(left, [], None).folder.release()
    (left / "evaluations.jsonl").unlink()
    resume_point(left, [], None).folder.release()


def test_another_starting_policy_is_refused(left: Path) -> None:
    point = resume_point(left, [], None)
    check_policy(point, "some/policy", POLICY)
    with pytest.raises(ResumeError, match=r"^model\.path: some/policy is not the policy .* its files differ") as caught:
        check_policy(point, "some/policy", "sha256:9")
    assert "\n" not in str(caught.value)
    point.folder.release()


def test_a_finished_run_wants_more_updates(left: Path) -> None:
    (left / "config.yaml").write_text(to_yaml(load_config(left / "config.yaml", ["run.updates=2"])))
    resume_point(left, [], None).folder.release()  # its end is missing: export, evaluation, summary
    (left / "summary.json").write_text("{}")
    assert "is finished: 2 updates of 2; go on with run.updates=4" in refused(left)
    resume_point(left, ["run.updates=3"], None).folder.release()


def test_a_run_whose_tokens_are_spent_wants_more_of_them(left: Path) -> None:
    checkpoint = left / "checkpoints" / "step-000002"
    state = read_state(checkpoint)
    spent = replace(state.recorder, totals=replace(state.recorder.totals, sampled_tokens=500))
    (checkpoint / "run.json").write_text(state.model_copy(update={"recorder": spent}).model_dump_json())
    resume_point(left, ["run.max_tokens=500"], None).folder.release()  # its end is missing
    (left / "summary.json").write_text("{}")
    says = "is finished: 500 tokens of run.max_tokens=500; go on with run.max_tokens=1000 or so"
    assert says in refused(left, "run.max_tokens=500")
    resume_point(left, ["run.max_tokens=501"], None).folder.release()


def test_a_run_that_its_rule_ended_goes_on_under_another_one(left: Path) -> None:
    checkpoint = left / "checkpoints" / "step-000002"
    state = read_state(checkpoint)
    rule = StopSettings(metric="entropy", at_most=0.1, updates=2)
    ended = replace(state.recorder, totals=replace(state.recorder.totals, beyond_stop=2, stop=rule))
    (checkpoint / "run.json").write_text(state.model_copy(update={"recorder": ended}).model_dump_json())
    (left / "summary.json").write_text("{}")
    same = "run.stop={metric: entropy, at_most: 0.1, updates: 2}"
    assert "is finished: run.stop was reached; go on with run.stop=null or another rule" in refused(left, same)
    for other in ("run.stop=null", same.replace("0.1", "0.01"), same.replace("entropy", "coverage")):
        resume_point(left, [other], None).folder.release()


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(to_yaml(RunConfig()))
    assert "has no checkpoint to go on from (checkpoint.every)" in refused(tmp_path)
    assert "is no run's folder" in refused(tmp_path / "checkpoints")
    assert "is no run's folder" in refused(tmp_path / "nowhere")


def test_a_run_that_is_running_is_not_resumed(left: Path) -> None:
    folder = RunFolder.reopen(left)
    assert "is in use by process" in refused(left)
    folder.release()
    resume_point(left, [], None).folder.release()


def test_damage_is_named(left: Path) -> None:
    checkpoint = left / "checkpoints" / "step-000002"
    ledger = checkpoint / "ledger.sqlite"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    assert "step-000002/ledger.sqlite: damaged" in refused(left)
    ledger.unlink()
    assert "step-000002/ledger.sqlite: damaged" in refused(left)
    ledger.write_bytes(whole)
    (checkpoint / "queue.msgpack").write_bytes(msgpack.packb([queued(1)]))
    assert "2 groups queued in its ledger, 1 there" in refused(left)
    (left / "checkpoints" / "latest").write_text("step-000009\n")
    assert "step-000009/run.json: cannot be read" in refused(left)


def run_py(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "orchestration/run.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    return line


def test_the_command_says_it_in_one_line(left: Path) -> None:
    assert "run.seed cannot be changed" in run_py("--resume", str(left), "run.seed=5")
    wrong = "checkpoint.best_by: metrics.jsonl has no 'sucess'; did you mean 'success'?"
    assert wrong in run_py("--resume", str(left), "checkpoint.best_by=sucess", "checkpoint.every=1")
    assert wrong in run_py("--config", "configs/quickstart.yaml", "checkpoint.every=1", "checkpoint.best_by=sucess")


# --- back to the checkpoint ------------------------------------------------------------------------------------------


def test_what_came_after_the_checkpoint_never_happened(left: Path) -> None:
    """And the same once more, as when the resumed run dies too."""
    for _ in range(2):
        point = resume_point(left, ["run.updates=12"], None)
        roll_back(point)
        assert rows(left / "ledger.sqlite") == [(1, "queued"), (2, "queued"), (101, "in_flight"), (102, "in_flight")]
        assert (left / "metrics.jsonl").read_text() == '{"update":1}\n{"update":2}\n'
        assert (left / "evaluations.jsonl").read_text() == '{"update": 0}\n{"update": 2}\n'
        assert list((left / "samples").iterdir()) == []
        assert list((left / "nonfinite").iterdir()) == []
        assert sorted(p.name for p in (left / "checkpoints").iterdir()) == ["latest", "step-000001", "step-000002"]
        assert load_config(left / "config.yaml", ()).run.updates == 12
        with Ledger(left / "ledger.sqlite") as ledger:
            ledger.counts().check()
            ledger.move([1, 2], State.TRAINED)
            ledger.issue(Ticket(103, "frozen_lake", 7), 2)
        with (left / "metrics.jsonl").open("a") as file:
            file.write('{"update":3}\n')
        point.folder.release()


def test_the_log_of_a_killed_process_is_not_played_into_the_restored_ledger(left: Path) -> None:
    """SQLite's log of the old ledger lies beside it, as after a SIGKILL."""
    program = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('PRAGMA journal_mode = WAL'); db.execute(\"UPDATE tickets SET state = 'trained'\"); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(left / "ledger.sqlite")], check=False)
    assert (left / "ledger.sqlite-wal").stat().st_size > 0
    point = resume_point(left, [], None)
    roll_back(point)
    assert rows(left / "ledger.sqlite")[0] == (1, "queued")
    point.folder.release()


def test_different_names_keys_in_order() -> None:
    one = RunConfig()
    other = RunConfig.model_validate({"optim": {"lr": 1.0}, "run": {"seed": 4}, "sampler": {"name": "sesa"}})
    found = different(one, other)
    assert found[0] == "run.seed"
    assert {"sampler.name", "sampler.group_size", "sampler.sketches", "optim.lr"} <= set(found)
    assert different(one, one) == []
