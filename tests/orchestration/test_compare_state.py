"""What a comparison finds when it is started again: kept, gone on with, begun anew, or refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.load import ConfigError, to_yaml
from orchestration.comparison_plan import Plan, PlannedRun
from orchestration.comparison_state import State, clear_the_way, states_of, work_of
from orchestration.run_folder import RunFolder
from tests.orchestration.compared_runs import COMPARISON, comparison_file, leave_judgement, leave_run, planned

JUDGED = COMPARISON + "evaluate: {modes: [plain], samples: 3, episodes: 4}\n"
CHAIN = COMPARISON.replace("  one: []", "  one: []\n  again: {after: one}")


def leave_part(run: PlannedRun, checkpoint: bool) -> None:
    """What a run that was killed leaves."""
    (run.folder / "checkpoints").mkdir(parents=True)
    (run.folder / "config.yaml").write_text(to_yaml(run.config))
    if checkpoint:
        (run.folder / "checkpoints" / "latest").write_text("step-000001\n")


def refused(plan: Plan, only: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        work_of(plan, only)
    return list(caught.value.problems)


def test_each_run_is_taken_as_it_is_found(tmp_path: Path) -> None:
    plan = planned(comparison_file(tmp_path), tmp_path)
    leave_run(plan.runs[0].folder, plan.runs[0].config)
    leave_part(plan.runs[1], checkpoint=True)
    leave_part(plan.runs[2], checkpoint=False)
    work = work_of(plan, ())
    assert list(work.states.values()) == [State.FINISHED, State.RESUMED, State.AGAIN, State.NEW]
    assert [task.name for task in work.tasks] == ["two-seed-0", "one-seed-1", "two-seed-1"]
    assert work.tasks[0].arguments == ("orchestration/run.py", "--resume", str(plan.runs[1].folder))
    assert work.tasks[1].arguments == plan.runs[2].arguments
    assert work.tasks[2].log == tmp_path / "few" / "two-seed-1.log"


def test_only_what_has_neither_summary_nor_checkpoint_is_removed(tmp_path: Path) -> None:
    plan = planned(comparison_file(tmp_path), tmp_path)
    leave_run(plan.runs[0].folder, plan.runs[0].config)
    leave_part(plan.runs[1], checkpoint=True)
    leave_part(plan.runs[2], checkpoint=False)
    clear_the_way(work_of(plan, ()))
    assert [run.folder.exists() for run in plan.runs] == [True, True, False, False]


def test_looking_changes_nothing(tmp_path: Path) -> None:
    plan = planned(comparison_file(tmp_path), tmp_path)
    leave_part(plan.runs[0], checkpoint=False)
    before = sorted(tmp_path.rglob("*"))
    work_of(plan, ())
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_another_process_works_in_is_left_alone(tmp_path: Path) -> None:
    plan = planned(comparison_file(tmp_path), tmp_path)
    leave_part(plan.runs[0], checkpoint=False)
    holder = RunFolder(plan.runs[0].folder)
    holder.lock()
    try:
        with pytest.raises(ConfigError, match="is in use by process"):
            clear_the_way(work_of(plan, ()))
    finally:
        holder.release()
    assert (plan.runs[0].folder / "config.yaml").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_another_run_in_the_folder_is_refused_by_the_key_it_differs_in(tmp_path: Path, finished: bool) -> None:
    old = planned(comparison_file(tmp_path, COMPARISON.replace("tokens: 1000", "tokens: 2000")), tmp_path)
    for run in (old.runs[0], old.runs[3]):
        if finished:
            leave_run(run.folder, run.config)
        else:
            leave_part(run, checkpoint=True)
    problems = refused(planned(comparison_file(tmp_path), tmp_path))
    assert problems == [
        f"{tmp_path}/few/{name} was made with another run.max_tokens: move it away, or give another --root"
        for name in ("one-seed-0", "two-seed-1")
    ]


def test_several_keys_are_counted(tmp_path: Path) -> None:
    text = COMPARISON.replace("tokens: 1000", "tokens: 2000").replace("2.0e-4", "3.0e-4")
    run = planned(comparison_file(tmp_path, text), tmp_path).runs[0]
    leave_run(run.folder, run.config)
    [problem] = refused(planned(comparison_file(tmp_path), tmp_path))
    assert "another run.max_tokens and 1 more" in problem


def test_folders_may_be_moved(tmp_path: Path) -> None:
    path = comparison_file(tmp_path, CHAIN)
    for run in planned(path, tmp_path / "old").runs:
        leave_run(run.folder, run.config)
    (tmp_path / "old").rename(tmp_path / "new")
    assert set(states_of(planned(path, tmp_path / "new")).values()) == {State.FINISHED}


def test_a_folder_of_something_else_is_never_removed(tmp_path: Path) -> None:
    plan = planned(comparison_file(tmp_path), tmp_path)
    (plan.runs[0].folder / "thesis").mkdir(parents=True)
    assert refused(plan) == [f"{plan.runs[0].folder}: is no run's folder: move it away"]


def test_a_configuration_of_another_version_is_refused(tmp_path: Path) -> None:
    plan = planned(comparison_file(tmp_path), tmp_path)
    leave_run(plan.runs[0].folder, plan.runs[0].config)
    (plan.runs[0].folder / "config.yaml").write_text("rollout: {actrs: 2}\n")
    [problem] = refused(plan)
    assert "rollout.actrs: unknown key" in problem
    assert f"move {plan.runs[0].folder} away" in problem


class TestPoliciesTakenOver:
    def test_the_run_that_leaves_one_is_waited_for(self, tmp_path: Path) -> None:
        work = work_of(planned(comparison_file(tmp_path, CHAIN), tmp_path), ())
        needs = {task.name: task.needs for task in work.tasks}
        assert needs["again-seed-1"] == ("one-seed-1",)
        assert needs["two-seed-1"] == ()

    def test_a_finished_one_is_there(self, tmp_path: Path) -> None:
        plan = planned(comparison_file(tmp_path, CHAIN), tmp_path)
        one = next(run for run in plan.runs if run.name == "one-seed-0")
        leave_run(one.folder, one.config)
        assert [task.needs for task in work_of(plan, ()).tasks if task.name == "again-seed-0"] == [()]

    def test_what_started_from_another_one_is_refused(self, tmp_path: Path) -> None:
        plan = planned(comparison_file(tmp_path, CHAIN), tmp_path)
        again = next(run for run in plan.runs if run.name == "again-seed-0")
        leave_run(again.folder, again.config)
        assert refused(plan) == [
            f"{again.folder} started from another policy than one-seed-0 will leave: move it away"
        ]  # fmt: skip

    def test_only_some_methods(self, tmp_path: Path) -> None:
        plan = planned(comparison_file(tmp_path, CHAIN), tmp_path)
        assert [task.name for task in work_of(plan, ["two"]).tasks] == ["two-seed-0", "two-seed-1"]
        assert [task.name for task in work_of(plan, ["again", "one"]).tasks] == [
            "one-seed-0", "again-seed-0", "one-seed-1", "again-seed-1",
        ]  # fmt: skip
        assert refused(plan, ["again"])[0] == "--only: again-seed-0 starts from the policy of one-seed-0: not there"
        assert refused(plan, ["agin"]) == ["--only agin: no such method; did you mean 'again'?"]


class TestJudging:
    def test_comes_behind_the_run_and_is_kept(self, tmp_path: Path) -> None:
        plan = planned(comparison_file(tmp_path, JUDGED), tmp_path)
        first = plan.runs[0]
        leave_run(first.folder, first.config)
        leave_judgement(plan.judgements[1], 0.4)
        tasks = {task.name: task.needs for task in work_of(plan, ()).tasks}
        assert "one-seed-0.plain-3x4" not in tasks
        assert tasks["two-seed-0.plain-3x4"] == ("two-seed-0",)
        assert tasks["start.plain-3x4"] == ()

    @pytest.mark.parametrize(
        ("old", "new"), [("episodes: 4", "episodes: 4, overrides: [rollout.temperature=0.5]"), ("", "")]
    )
    def test_is_done_again_when_the_judge_changes_and_not_when_it_moves(
        self, tmp_path: Path, old: str, new: str
    ) -> None:
        path = comparison_file(tmp_path, JUDGED)
        for judgement in planned(path, tmp_path / "old").judgements:
            leave_judgement(judgement, 0.4)
        (tmp_path / "old").rename(tmp_path / "new")
        changed = planned(comparison_file(tmp_path, JUDGED.replace(old, new)), tmp_path / "new")
        again = [task.name for task in work_of(changed, ()).tasks if task.name.startswith("start")]
        assert again == (["start.plain-3x4"] if new else [])

    @pytest.mark.parametrize("text", ["{", "[]", json.dumps({"command": "python 'x"}), "{}", "\xff"])
    def test_is_done_again_when_its_file_is_damaged(self, tmp_path: Path, text: str) -> None:
        plan = planned(comparison_file(tmp_path, JUDGED), tmp_path)
        leave_judgement(plan.judgements[0], 0.4)
        plan.judgements[0].output.write_text(text, encoding="latin-1")
        assert "start.plain-3x4" in {task.name for task in work_of(plan, ()).tasks}

    def test_is_done_again_without_its_figures(self, tmp_path: Path) -> None:
        plan = planned(comparison_file(tmp_path, JUDGED), tmp_path)
        leave_judgement(plan.judgements[0], 0.4, policies=[{"name": "a/policy"}])
        assert "start.plain-3x4" in {task.name for task in work_of(plan, ()).tasks}

    @pytest.mark.parametrize(
        ("base", "again"),
        [
            ("env: {name: frozen_lake, size: 5}", True),
            ("rollout: {temperature: 0.3}", True),
            ("rollout: {tokens_per_turn: 20}", True),
            ("model: {path: another/policy}", True),
            ("optim: {lr: 1.0}", False),
        ],
    )
    def test_is_done_again_when_the_base_says_something_else_of_it(
        self, tmp_path: Path, base: str, again: bool
    ) -> None:
        path = comparison_file(tmp_path, JUDGED)
        leave_judgement(planned(path, tmp_path).judgements[0], 0.4)
        with (tmp_path / "base.yaml").open("a") as file:
            file.write(f"{base}\n")
        tasks = [task.name for task in work_of(planned(path, tmp_path), ()).tasks]
        assert ("start.plain-3x4" in tasks) is again

    def test_is_done_again_when_the_policy_changes(self, tmp_path: Path) -> None:
        plan = planned(comparison_file(tmp_path, JUDGED), tmp_path)
        leave_run(plan.runs[0].folder, plan.runs[0].config)
        for judgement in plan.judgements:
            leave_judgement(judgement, 0.4)
        work = work_of(plan, ())
        clear_the_way(work)
        assert "two-seed-0.plain-3x4" in {task.name for task in work.tasks}
        there = {judgement.name for judgement in plan.judgements if judgement.output.exists()}
        assert there == {"start.plain-3x4", "one-seed-0.plain-3x4"}
