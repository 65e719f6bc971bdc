"""The code of docs/extending.md, as it stands there: an environment is played, a sampler samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.base import TextEnv
from envs.trajectory import Verdict
from tests.builders import Scene, ScriptedPolicy, plan

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
MOST_LINES = 50


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "extending"}
    exec(compile(code, str(PAGE), "exec", dont_inherit=True), names)
    return names


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    return run(snippets()[0])


def made(names: dict[str, Any], **settings: Any) -> TextEnv:
    env: TextEnv = names["HigherLower"](names["HigherLowerSettings"](**settings))
    return env


@pytest.mark.parametrize("number", [0, 1])
def test_they_are_as_short_as_the_page_says(number: int) -> None:
    assert len([line for line in snippets()[number].splitlines() if line.strip()]) <= MOST_LINES
    assert len(snippets()) == 2


@pytest.mark.parametrize("seed", range(8))
def test_the_environment_is_solved_by_its_oracle(environment: dict[str, Any], seed: int) -> None:
    """16 numbers need five guesses at most."""
    env = made(environment)
    message, _ = env.reset(seed=seed)
    assert message.startswith("It is between 1 and 16.")
    assert env.ceiling() == 1.0
    outcome, messages, over = None, [message], False
    while not over:
        message, _, *ends, info = env.step(f"<answer>{env.oracle()}</answer>")
        outcome, over = info["outcome"], any(ends)
        messages.append(message)
    assert outcome is not None
    assert outcome.verdict is Verdict.SOLVED
    assert env.turns <= 5
    assert messages[-1] == "Found."


def test_the_environment_knows_what_cannot_be_done(environment: dict[str, Any]) -> None:
    env = made(environment, max_turns=2, max_actions=2)
    env.reset(seed=1)
    assert env.ceiling() == 3 / 16
    assert "a number is expected" in env.step("<answer>seven</answer>")[0]
    assert env.ceiling() == 1 / 16
    assert "It was" in env.step("<answer>99</answer>")[0]
    assert env.oracle() is None
    assert [env.sketch_key(sketch) for sketch in ("begin 7", "begin 07", "anyhow")] == ["7", "7", None]


def test_an_episode_is_gone_back_to(environment: dict[str, Any]) -> None:
    env, other = made(environment), made(environment)
    env.reset(seed=3)
    env.step("<answer>8</answer>")
    kept = env.snapshot()
    rng = np.random.default_rng(0)
    answers = [env.random_answer(rng)]
    other.restore(kept)
    assert [env.step(f"<answer>{a}</answer>") for a in answers] == [
        other.step(f"<answer>{a}</answer>") for a in answers
    ]


async def test_the_sampler_trains_hinted_solutions_behind_the_plain_prompt(scene: Scene) -> None:
    names = run(snippets()[1])
    said = {"solution/0/1": "win 1", "solution/1/1": "lose 0", "solution/2/1": "raise", "solution/3/1": "win 1"}
    policy = ScriptedPolicy(lambda _: None, plan(said))
    rollout = await scene.rollout(policy)
    group = await names["HintSampler"](names["HintSettings"](group_size=4)).sample_group(rollout)
    assert [t.verdict for t in group.trajectories] == [Verdict.SOLVED, Verdict.WRONG, Verdict.FAILED, Verdict.SOLVED]
    assert [row.trajectory for row in group.rows] == [0, 1, 3]  # the failed one is in none
    plain = rollout.opening().tolist()
    contexts = [None if row.context_ids is None else row.context_ids.tolist() for row in group.rows]
    assert contexts == [plain, None, None]
    hinted = [request.context for request in policy.requests if "Think twice." in request.context]
    assert len(hinted) == 2
    assert group.has_signal
