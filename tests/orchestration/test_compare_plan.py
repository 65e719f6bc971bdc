"""What a comparison is going to run: order, settings, commands, and mistakes that are found before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.comparison import load_comparison
from configs.load import ConfigError, load_config
from orchestration.comparison_plan import DEFAULT_ROOT, ROOT, from_root, make_plan
from tests.orchestration.compared_runs import COMPARISON, comparison_file, planned

SHIPPED = sorted((ROOT / "configs" / "compare").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_comparison_can_be_planned(path: Path) -> None:
    comparison = load_comparison(path)
    plan = make_plan(comparison, path, DEFAULT_ROOT, DEFAULT_ROOT)
    assert len(plan.runs) == len(comparison.methods) * len(comparison.seeds)
    assert len({run.digest for run in plan.runs}) == len(plan.runs)  # no two methods are the same
    for run in plan.runs:
        assert not any(str(ROOT) in argument for argument in run.arguments)
        assert load_config(ROOT / run.arguments[2], run.arguments[3:]) == run.config


def test_all_methods_of_a_seed_come_before_the_next_seed(tmp_path: Path) -> None:
    plan = planned(comparison_file(tmp_path), tmp_path)
    assert [run.name for run in plan.runs] == ["one-seed-0", "two-seed-0", "one-seed-1", "two-seed-1"]


def test_a_run_has_the_budget_its_seed_and_the_overrides_in_their_order(tmp_path: Path) -> None:
    text = COMPARISON.replace("one: []", "one: [optim.lr=1.0e-4, run.updates=7]")
    run = planned(comparison_file(tmp_path, text), tmp_path / "runs").runs[2]
    assert (run.config.run.seed, run.config.run.max_tokens, run.config.run.updates) == (1, 1000, 7)
    assert run.config.optim.lr == 1e-4
    assert run.folder == tmp_path / "runs" / "few" / "one-seed-1"
    assert (run.config.run.root, run.config.run.name) == (str(tmp_path / "runs" / "few"), "one-seed-1")
    assert run.arguments[:2] == ("orchestration/run.py", "--config")
    assert load_config(Path(run.arguments[2]), run.arguments[3:]) == run.config


def test_a_method_may_have_a_configuration_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("sampler: {name: parallel, group_size: 6}\n")
    text = COMPARISON.replace("one: []", "one: {config: other.yaml}")
    groups = [run.config.sampler for run in planned(comparison_file(tmp_path, text), tmp_path).runs]
    assert getattr(groups[0], "group_size", None) == 6


def test_a_method_starts_from_the_policy_of_the_same_seed(tmp_path: Path) -> None:
    text = COMPARISON.replace("  one: []", "  again: {after: one}\n  one: []")
    runs = {run.name: run for run in planned(comparison_file(tmp_path, text), tmp_path).runs}
    assert list(runs)[:3] == ["one-seed-0", "two-seed-0", "again-seed-0"]
    assert runs["again-seed-1"].after == "one-seed-1"
    assert runs["again-seed-1"].config.model.path == str(tmp_path / "few" / "one-seed-1" / "policy")
    assert runs["one-seed-1"].config.model.path is None


def test_a_digest_is_of_the_settings_and_not_of_the_place(tmp_path: Path) -> None:
    path = comparison_file(tmp_path)
    here, there = planned(path, tmp_path / "a").runs, planned(path, tmp_path / "b").runs
    assert [run.digest for run in here] == [run.digest for run in there]
    assert len({run.digest for run in here}) == 4


def test_policies_are_judged_and_so_is_the_one_all_start_from(tmp_path: Path) -> None:
    text = COMPARISON + "evaluate: {modes: [plain, guided], samples: 8, episodes: 16}\n"
    plan = planned(comparison_file(tmp_path, text), tmp_path)
    names = [judgement.name for judgement in plan.judgements]
    assert names[:3] == ["start.plain-8x16", "start.guided-8x16", "one-seed-0.plain-8x16"]
    assert len(names) == 2 * (1 + 4)
    start, last = plan.judgements[0], plan.judgements[-1]
    assert "--policy" not in start.arguments
    assert last.arguments[:2] == ("-m", "orchestration.evaluate")
    assert last.arguments[last.arguments.index("--policy") + 1] == str(tmp_path / "few/two-seed-1/policy")
    assert last.arguments[last.arguments.index("--mode") + 1] == "guided"
    assert last.arguments[-1] == "eval.episodes=16"
    # One judge for all: the base's settings and not those of the method.
    assert "run.seed=1" in last.arguments
    assert not any(argument.startswith("sampler=") for argument in last.arguments)
    assert last.output == tmp_path / "few" / "two-seed-1.guided-8x16.json"


class TestMistakes:
    def problems(self, folder: Path, text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            planned(comparison_file(folder, text), folder)
        return list(caught.value.problems)

    def test_of_all_methods_are_told_at_once_and_once(self, tmp_path: Path) -> None:
        text = COMPARISON.replace("one: []", "one: [optim.lrr=1, rollout.actors=0]").replace(
            "sketches: 4", "sketchs: 4"
        )
        assert self.problems(tmp_path, text) == [
            "methods.one: override optim.lrr=1: optim.lrr: unknown key; did you mean 'optim.lr'?",
            "methods.one: override rollout.actors=0: rollout.actors: should be greater than 0, got 0",
            "methods.two: override sampler={name: sesa, sketchs: 4}: sampler.sketchs: unknown key; "
            "did you mean 'sampler.sketches'?",
        ]

    def test_of_the_judge(self, tmp_path: Path) -> None:
        text = COMPARISON + "evaluate: {overrides: [rollout.actors=none]}\n"
        assert self.problems(tmp_path, text) == [
            'evaluate: override rollout.actors=none: rollout.actors: should be a valid integer, got "none"'
        ]

    def test_a_base_that_is_not_there(self, tmp_path: Path) -> None:
        found = self.problems(tmp_path, COMPARISON.replace("BASE", "bsae.yaml"))
        assert len(found) == 2  # no judge, one line a method
        assert f"methods.one: {tmp_path / 'bsae.yaml'}: no such file; did you mean '{tmp_path / 'base.yaml'}'?" in found

    def test_a_falling_learning_rate_has_to_know_its_end(self, tmp_path: Path) -> None:
        text = COMPARISON.replace("optim.lr=2.0e-4", "optim.schedule=linear")
        assert "optim.schedule (linear) ends at run.updates" in self.problems(tmp_path, text)[0]
        ended = text.replace("optim.schedule=linear", "optim.schedule=linear, run.updates=40")
        assert planned(comparison_file(tmp_path, ended), tmp_path).runs[0].config.run.updates == 40


def test_paths_are_written_as_seen_from_the_projects_folder(tmp_path: Path) -> None:
    assert from_root(ROOT / "configs" / "compare" / ".." / "x.yaml") == Path("configs/x.yaml")
    assert from_root(tmp_path / "x.yaml") == tmp_path / "x.yaml"
