"""Which records of Math are trained on and which are held out; which of them an episode asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.environments import MathSettings
from configs.seeds import FIRST_DEMONSTRATION_SEED
from envs.base import BadEnvironment
from envs.math.env import Math
from envs.math.parts import split_records
from tests.envs.test_math_records import jsonl, numbered, parquet


def asked(env: Math, seeds: Sequence[int]) -> set[str]:
    return {env.reset(seed=seed)[0] for seed in seeds}


def test_every_tenth_record_is_held_out_and_never_trained_on(tmp_path: Path) -> None:
    env = Math(MathSettings(data=str(jsonl(tmp_path / "a.jsonl", numbered(35)))))
    held_out = {"q9?", "q19?", "q29?"}
    assert asked(env, range(1, 400, 2)) == held_out
    training = {f"q{i}?" for i in range(35)} - held_out
    assert asked(env, range(0, 1000, 2)) == training
    demonstrated = asked(env, range(FIRST_DEMONSTRATION_SEED, FIRST_DEMONSTRATION_SEED + 1000))
    assert demonstrated == training


def test_held_out_data_of_its_own(tmp_path: Path) -> None:
    data, other = jsonl(tmp_path / "a.jsonl", numbered(12)), parquet(tmp_path / "b.parquet", numbered(3, "h"))
    env = Math(MathSettings(data=str(data), held_out_data=str(other)))
    assert asked(env, range(1, 200, 2)) == {"h0?", "h1?", "h2?"}
    assert asked(env, range(0, 400, 2)) == {f"q{i}?" for i in range(12)}


def test_of_few_records_nothing_is_held_out(tmp_path: Path) -> None:
    env = Math(MathSettings(data=str(jsonl(tmp_path / "a.jsonl", numbered(9)))))
    assert asked(env, range(1, 300, 2)) == asked(env, range(0, 300, 2)) == {f"q{i}?" for i in range(9)}
    one = Math(MathSettings(data=str(jsonl(tmp_path / "b.jsonl", numbered(1)))))
    assert asked(one, range(4)) == {"q0?"}


def test_a_question_that_is_repeated_is_on_one_side(tmp_path: Path) -> None:
    rows = [{"question": f"same  {i % 15}" if i < 15 else f" same {i % 15}\n", "answer": i} for i in range(60)]
    parts = split_records(MathSettings(data=str(jsonl(tmp_path / "a.jsonl", rows))))
    assert [record.answer for record in parts.held_out] == ["9", "24", "39", "54"]
    assert len(parts.training) == 56
    assert not any(record.question.split() == ["same", "9"] for record in parts.training)


def test_few_questions_often_repeated_are_few(tmp_path: Path) -> None:
    parts = split_records(MathSettings(data=str(jsonl(tmp_path / "a.jsonl", numbered(5) * 8))))
    assert parts.training == parts.held_out
    assert len(parts.training) == 40


def test_held_out_questions_are_left_out_of_training(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "a.jsonl", numbered(12))
    other = jsonl(tmp_path / "b.jsonl", [{"question": " q3?", "answer": 3}, {"question": "new?", "answer": 4}])
    parts = split_records(MathSettings(data=str(data), held_out_data=str(other)))
    assert [record.question for record in parts.held_out] == ["q3?", "new?"]
    assert [record.question for record in parts.training] == [f"q{i}?" for i in range(12) if i != 3]


def test_held_out_data_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    data = str(jsonl(tmp_path / "a.jsonl", numbered(12)))
    with pytest.raises(BadEnvironment, match=r"^env\.held_out_data: all questions of .*leave none to train on$"):
        Math(MathSettings(data=data, held_out_data=data))


def test_it_is_split_once_until_a_file_changes(tmp_path: Path) -> None:
    settings = MathSettings(data=str(jsonl(tmp_path / "a.jsonl", numbered(30))))
    first = split_records(settings)
    assert split_records(settings) is first
    jsonl(tmp_path / "a.jsonl", numbered(50))
    assert len(split_records(settings).held_out) == 5
