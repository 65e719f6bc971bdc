"""What the actor makes of a worker's answers: plain values of the right form, or a failure of the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.env_worker import CallFailed
from actors.failures import EnvironmentFailure
from actors.remote_env import LONGEST_TEXT, RemoteEnv
from envs.trajectory import Verdict
from envs.worker_messages import DONE, Call, Reply

TEXT_CALLS: dict[str, list[Any]] = {
    "another_attempt": [],
    "tried": [["a"]],
    "several": [2],
    "sketch_request": [0],
    "sketches_so_far": [("a",)],
    "guidance": ["a"],
    "sketch_key": ["a"],
}
STEP = [True, "You won.", 1.0, "solved", "Up", ""]


@dataclass
class Answering:
    """Workers that all say the same."""

    value: Any
    state: bytes = b""
    asked: list[Call] = field(default_factory=list)

    async def run(self, call: Call) -> Reply:
        self.asked.append(call)
        if isinstance(self.value, Exception):
            raise self.value
        return Reply(DONE, self.value, self.state)


async def test_a_step_is_read_field_by_field() -> None:
    step = await RemoteEnv("lake", Answering(STEP)).step("<answer>Up</answer>")
    assert (step.over, step.message, step.reward) == (True, "You won.", 1.0)
    assert (step.outcome.verdict, step.outcome.answer, step.outcome.cause) == (Verdict.SOLVED, "Up", "")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (1, b"bytes", "bytes where a text belongs"),
        (1, None, "NoneType where a text belongs"),
        (1, "x" * (LONGEST_TEXT + 1), f"a text of {LONGEST_TEXT + 1} characters, more than {LONGEST_TEXT}"),
        (2, float("nan"), "nan where a finite number belongs"),
        (2, float("-inf"), "-inf where a finite number belongs"),
        (2, "1", "str where a finite number belongs"),
        (3, "splendid", "'splendid' is not a valid Verdict"),
        (3, ["solved"], r"\['solved'\] is not a valid Verdict"),
        (4, 7, "int where a text belongs"),
        (5, {}, "dict where a text belongs"),
    ],
)
async def test_a_step_of_another_form_is_a_failure(place: int, value: Any, said: str) -> None:
    forged = [*STEP[:place], value, *STEP[place + 1 :]]
    with pytest.raises(EnvironmentFailure, match=f"^lake answered step with {said}$"):
        await RemoteEnv("lake", Answering(forged)).step("x")


@pytest.mark.parametrize("value", [None, 3, "abcdef", [], STEP[:5], {"over": True}])
async def test_values_of_another_number_are_a_failure(value: Any) -> None:
    with pytest.raises(EnvironmentFailure, match=r"^lake answered step with \w+ where 6 values belong$"):
        await RemoteEnv("lake", Answering(value)).step("x")
    with pytest.raises(EnvironmentFailure, match=r"^lake answered begin with \w+ where 3 values belong$"):
        await RemoteEnv("lake", Answering(value)).begin(1)


async def test_numbers_and_texts_alone_are_checked_too() -> None:
    for value in (None, "x", float("inf"), 1):
        env = RemoteEnv("lake", Answering(value))
        with pytest.raises(EnvironmentFailure, match=r"^lake answered ceiling with .* where a finite number belongs$"):
            await env.ceiling()
        with pytest.raises(EnvironmentFailure, match=r"^lake answered cut with .* where a finite number belongs$"):
            await env.cut()
    for ask, arguments in TEXT_CALLS.items():
        with pytest.raises(EnvironmentFailure, match=f"^lake answered {ask} with int where a text belongs$"):
            await getattr(RemoteEnv("lake", Answering(3)), ask)(*arguments)
        assert await getattr(RemoteEnv("lake", Answering("so")), ask)(*arguments) == "so"


async def test_no_key_is_an_answer() -> None:
    assert await RemoteEnv("lake", Answering(None)).sketch_key("x") is None


async def test_a_judges_cause_is_cut_to_a_line_of_the_ledger() -> None:
    step = await RemoteEnv("lake", Answering([*STEP[:3], "failed", "", "x" * 10**5])).step("x")
    assert step.outcome.cause == "x" * 500


async def test_a_failed_call_names_the_environment() -> None:
    with pytest.raises(EnvironmentFailure, match=r"^lake raised OSError: no map$"):
        await RemoteEnv("lake", Answering(CallFailed("raised OSError: no map"))).step("x")


async def test_every_call_brings_the_episode_as_the_last_one_left_it() -> None:
    workers = Answering(["rules", "first", "answer"], b"one")
    env = RemoteEnv("lake", workers)
    await env.begin(5)
    workers.value, workers.state = [False, *STEP[1:]], b"two"
    await env.step("a")
    workers.value, workers.state = 0.5, b""
    await env.ceiling()
    workers.value, workers.state = [False, "m", float("nan"), *STEP[3:]], b"three"
    with pytest.raises(EnvironmentFailure):
        await env.step("b")
    assert [(call.name, call.state, call.arguments) for call in workers.asked] == [
        ("begin", b"", (5,)),
        ("step", b"one", ("a",)),
        ("ceiling", b"two", ()),
        ("step", b"two", ("b",)),
    ]
    assert env.state == b"two"
    assert (env.rules, env.first_message, env.answer_tag) == ("rules", "first", "answer")


async def test_environments_are_different_episodes_of_their_actor() -> None:
    workers = Answering(0.5)
    for state in (b"same", b"same"):
        await RemoteEnv("lake", workers, state).ceiling()
    one, two = workers.asked
    assert one.episode != two.episode
    assert one.state == two.state == b"same"
