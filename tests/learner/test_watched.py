"""A rank's calls are looked after from their begin to their end, whatever that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from configs.watchdog import Watchdog
from learner.rank import LearnerRank
from learner.watched import watched


class Dog:
    """In place of a watchdog."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def feed(self, limit_s: float) -> None:
        self.did.append(f"feed {limit_s:g}")

    def rest(self) -> None:
        self.did.append("rest")


class Rank:
    def __init__(self, dog: Any = None) -> None:
        self.watchdog: Watchdog | None = dog
        self.limit_s = 7.0
        self.did: list[str] = dog.did if dog is not None else []

    @watched
    def update(self, payloads: list[int], *, scale: int = 1) -> int:
        """Adds up."""
        self.did.append("update")
        return scale * sum(payloads)

    @watched
    def fail(self) -> None:
        raise ValueError("boom")


def test_a_call_has_its_limit_and_then_nothing_is_expected() -> None:
    rank = Rank(Dog())
    assert rank.update([1, 2], scale=3) == 9
    assert rank.did == ["feed 7", "update", "rest"]
    assert rank.update([1]) == 1
    assert rank.did == ["feed 7", "update", "rest"] * 2


def test_after_an_error_nothing_is_expected_either() -> None:
    rank = Rank(Dog())
    with pytest.raises(ValueError, match="boom"):
        rank.fail()
    assert rank.did == ["feed 7", "rest"]


def test_without_a_watchdog_a_call_is_a_call() -> None:
    rank = Rank()
    assert rank.update([1, 2]) == 3
    with pytest.raises(ValueError, match="boom"):
        rank.fail()


def test_a_watched_method_keeps_its_name_and_its_words() -> None:
    assert (Rank.update.__name__, Rank.update.__doc__) == ("update", "Adds up.")


def test_a_rank_is_looked_after_where_it_has_a_folder_for_its_stacks(tmp_path: Path) -> None:
    """In all it is asked to do with the others."""
    config = RunConfig.model_validate({"deepspeed": {"timeout_s": 9}})
    assert LearnerRank(config, "policy", 1).watchdog is None
    rank: Any = LearnerRank(config, "policy", 1, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["learner-rank-1.txt"]
    rank.watchdog = Dog()
    together = ("start", "connect", "update", "score", "broadcast", "save", "load", "export")
    for method in together:
        rank.watchdog.did.clear()
        with pytest.raises(Exception):  # noqa: B017, PT011 - it was never started, each fails in its own way
            getattr(rank, method)(*[None] * 9)
        assert rank.watchdog.did == ["feed 9", "rest"], method
