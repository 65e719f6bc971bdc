"""The survey of an environment and its command: known answers, and bad input in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.environments import FrozenLakeSettings
from envs.__main__ import main
from envs.registry import make_env
from envs.survey import survey

ROOT = Path(__file__).resolve().parents[2]


def test_a_lake_without_slips_is_solved_by_the_oracle_and_seldom_by_chance() -> None:
    found = survey(make_env(FrozenLakeSettings()), 200)
    assert (found.ceiling, found.solvable, found.oracle, found.oracle_of_solvable) == (1, 1, 1, 1)
    assert found.exact
    assert 0.02 < found.random < 0.25
    assert sum(found.lengths.values()) == found.episodes == 200
    assert list(found.lengths) == [2, 3, 4, 5, 6]
    assert found.distinct_starts > 190


def test_slips_lower_the_ceiling_and_the_oracle_keeps_to_it() -> None:
    found = survey(make_env(FrozenLakeSettings(slip=0.3)), 300)
    assert 0.4 < found.ceiling < 0.95
    assert found.oracle == pytest.approx(found.ceiling, abs=0.08)
    assert found.random < found.ceiling - 0.2


def test_the_survey_starts_where_it_is_told() -> None:
    env = make_env(FrozenLakeSettings())
    assert survey(env, 1, first_seed=9).example != survey(env, 1, first_seed=10).example
    assert survey(env, 1, first_seed=9) == survey(env, 1, first_seed=9)


def test_the_command_prints_ceiling_floor_lengths_and_an_example() -> None:
    command = [sys.executable, "-m", "envs", "frozen_lake", "--episodes", "30", "slip=0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    for words in ("frozen_lake: 30 episodes", "ceiling", "exact", "solvable  1.0000", "random", "#", "You reached G."):
        assert words in done.stdout
    assert done.stderr == ""


def test_the_command_takes_a_runs_file(capsys: pytest.CaptureFixture[str]) -> None:
    config = ROOT / "configs" / "quickstart.yaml"
    assert main([str(config), "--episodes", "3", "size=3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("frozen_lake: 3 episodes")
    assert re.search(r"\nuser: \w \w \w\n\w \w \w\n\w \w \w\nP ", out)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["pond"], "error: pond: no environment of this name; there are path_exploration, frozen_lake, "),
        (["frozen_lake", "sise=4"], "env.sise: unknown key; did you mean 'env.size'?"),
        (["frozen_lake", "slip=2"], "env.slip: should be less than 1, got 2"),
        (["frozen_lake", "size=16", "random_ends=false"], "error: env.hole_share 0.2 with env.size 16: none of"),
        (["countdown", "least_numbers=5"], "least_numbers (5) must not exceed most_numbers (4)"),
        (["path_exploration", "depth=1"], "targets (20) are more than the 8 paths"),
        (["sudoku", "blanks=12", "max_turns=1", "actions_per_turn=4"], "blanks (12) are more than"),
        (["math"], "env.data: "),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--episodes", "2"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert error in said.err


@pytest.mark.parametrize("option", ["--episodes=0", "--first-seed=-1", "--episodes=many"])
def test_numbers_that_make_no_sense_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["frozen_lake", option])
    assert refused.value.code == 2
    assert "error: argument" in capsys.readouterr().err
