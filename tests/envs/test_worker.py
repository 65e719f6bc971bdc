"""A worker's side: episodes that any worker goes on with, and messages that hold whatever they are made of."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from envs.protocol import spoken
from envs.worker_episodes import MOST_KEPT, Episodes
from envs.worker_messages import (
    DONE,
    LONGEST_MESSAGE,
    NO_MEMORY,
    PREFIX,
    RAISED,
    BadMessage,
    Call,
    Reply,
    call_bytes,
    length_of,
    read_call,
    read_reply,
    reply_bytes,
    said_of,
)
from tests.actors.hostile import Hostile
from tests.envs.cases import CASES, MONSTERS, env_of


def whole(message: bytes) -> bytes:
    assert length_of(message) == len(message) - PREFIX.size
    return message[PREFIX.size :]


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "plain", "\ud800 half a character", "\U0010ffff\u0000", *MONSTERS[:6]])
def test_calls_and_replies_arrive_as_they_were(text: str) -> None:
    call = Call("step", 2**40, b"\x80\x00state", (text, 5, ["a", text], None))
    assert read_call(whole(call_bytes(call))) == call
    reply = Reply(DONE, [True, text, -0.1, None], b"state")
    assert read_reply(whole(reply_bytes(reply))) == reply


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x93",
        msgpack.packb(3),
        msgpack.packb(["done", 1]),
        msgpack.packb(["done", 1, b"", 2]),
        msgpack.packb({"kind": "done"}),
        msgpack.packb([["done"], 1, b""]),
        b"\x91" * 10**6,
    ],
)
def test_what_is_no_reply_is_refused(message: bytes) -> None:
    with pytest.raises(BadMessage, match=r"what (cannot be read|is no reply)"):
        read_reply(message)


@pytest.mark.parametrize(
    "reply",
    [
        Reply("fine", 1),
        Reply(DONE, 1, "text"),  # type: ignore[arg-type]
        Reply(RAISED, 3),
        Reply(RAISED, "x" * 501),
    ],
)
def test_a_reply_of_an_unknown_form_is_refused(reply: Reply) -> None:
    with pytest.raises(BadMessage, match="what is no reply"):
        read_reply(whole(reply_bytes(reply)))


def test_messages_have_a_largest_size() -> None:
    assert length_of(PREFIX.pack(LONGEST_MESSAGE)) == LONGEST_MESSAGE
    with pytest.raises(BadMessage, match=f"{LONGEST_MESSAGE + 1} bytes, at most {LONGEST_MESSAGE}"):
        length_of(PREFIX.pack(LONGEST_MESSAGE + 1))
    with pytest.raises(ValueError, match=f"at most {LONGEST_MESSAGE} can be sent"):
        reply_bytes(Reply(DONE, b"x" * LONGEST_MESSAGE))
    assert read_reply(whole(reply_bytes(Reply(NO_MEMORY, None)))).kind == NO_MEMORY


def test_an_error_is_said_on_one_line_that_is_not_too_long() -> None:
    assert said_of(ValueError("one\n  two\t three")) == "ValueError: one two three"
    said = said_of(KeyError("x" * 10**6))
    assert len(said) == 500
    assert said.endswith("...")


# --- episodes --------------------------------------------------------------------------------------------------------


def played(workers: list[Episodes], answers: list[str]) -> list[Any]:
    """What an episode says to the answers, each asked of the next worker."""
    reply = workers[0].answer(Call("begin", 7, b"", (4,)))
    said, state = [reply.value], reply.state
    for number, answer in enumerate(answers, start=1):
        reply = workers[number % len(workers)].answer(Call("step", 7, state, (answer,)))
        said.append(reply.value)
        state = reply.state
        if reply.value[0]:
            break
    return said


@pytest.mark.parametrize("case", CASES)
def test_an_episode_is_the_same_in_one_worker_and_handed_round(case: str, tmp_path: Path) -> None:
    env, rng = env_of(case, tmp_path), np.random.default_rng(3)
    env.reset(seed=4)
    answers = [spoken(env.settings, "so", env.random_answer(rng)), MONSTERS[3]]
    answers += [spoken(env.settings, "so", env.random_answer(rng)) for _ in range(env.settings.max_turns)]

    def worker() -> Episodes:
        return Episodes(lambda: env_of(case, tmp_path))

    kept = played([worker()], answers)
    assert played([worker(), worker(), worker()], answers) == kept
    assert kept[-1][0] is True
    # And as it is here: the first message, and what the first answer leads to.
    here = env_of(case, tmp_path)
    assert kept[0] == [here.rules, here.reset(seed=4)[0], here.settings.answer_tag]
    message, reward, terminated, truncated, info = here.step(answers[0])
    outcome = info["outcome"]
    assert kept[1] == [terminated or truncated, message, reward, outcome.verdict, outcome.answer, outcome.cause]


def test_an_environment_goes_on_with_its_own_object_as_long_as_nothing_else_has_happened() -> None:
    made: list[Hostile] = []

    def make() -> Any:
        made.append(Hostile())
        return made[-1]

    episodes = Episodes(make)
    assert episodes.target_count == 7
    state = episodes.answer(Call("begin", 0, b"", (1,))).state
    later = episodes.answer(Call("step", 0, state, ("a",))).state
    assert len(made) == 1
    # The actor knows it to be elsewhere: another worker went on with it.
    episodes.answer(Call("step", 0, state, ("b",)))
    assert len(made) == 2
    assert made[1].state == (1, "b")
    with pytest.raises(RuntimeError, match="no"):
        episodes.answer(Call("step", 0, later, ("raise no",)))
    episodes.answer(Call("ceiling", 0, later))
    assert len(made) == 4  # one where the other was ahead, one since the object that raised is not used again
    assert made[3].state == (1, "a")


def test_only_some_environments_are_kept() -> None:
    made: list[Hostile] = []

    def make() -> Any:
        made.append(Hostile())
        return made[-1]

    episodes = Episodes(make)
    states = [episodes.answer(Call("begin", n, b"", (n,))).state for n in range(MOST_KEPT + 1)]
    assert len(made) == MOST_KEPT + 1
    episodes.answer(Call("ceiling", MOST_KEPT, states[MOST_KEPT]))
    assert len(made) == MOST_KEPT + 1
    episodes.answer(Call("ceiling", 0, states[0]))
    assert len(made) == MOST_KEPT + 2


@pytest.mark.parametrize(("name", "arguments"), [("step", ("win",)), ("cut", ())])
def test_an_episode_that_is_over_is_not_kept(name: str, arguments: tuple[str, ...]) -> None:
    episodes = Episodes(Hostile)  # type: ignore[arg-type]
    state = episodes.answer(Call("begin", 0, b"", (1,))).state
    assert episodes.answer(Call(name, 0, state, arguments)).state == b""
    assert not episodes._kept


def test_states_are_what_the_environment_says_of_itself() -> None:
    episodes = Episodes(Hostile)  # type: ignore[arg-type]
    assert pickle.loads(episodes.answer(Call("begin", 0, b"", (9,))).state) == (9,)
