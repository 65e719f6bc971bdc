"""Advantages that the sampler gives: nothing is compared or scaled, every token is trained once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from actors.samplers.tree import tree_rows
from configs.schema import RunConfig
from envs.codec import decode_group, encode_group
from envs.trajectory import Credit, Group, Row, Stream, Trajectory, Verdict
from learner.rows import training_rows
from tests.builders import TICKET, answer, observation, parallel_group, prompt, solution

SHARED, SEEN, TAIL = answer(10, 11, logprob=-0.25), observation(7), answer(12, 13, 14, logprob=-0.5)
TREE = (
    Trajectory((prompt(1, 2), SHARED, SEEN, TAIL), Verdict.SOLVED, 1.0),
    Trajectory((prompt(1, 2), SHARED, SEEN, answer(20, logprob=-1.0)), Verdict.WRONG, 0.0, parent=0, pivot=3),
)
GROUP = Group(TICKET, "tree", TREE, tuple(tree_rows(TREE)))


def run_config(**grpo: object) -> RunConfig:
    return RunConfig.model_validate({"grpo": grpo})


@pytest.mark.parametrize("normalize_std", [True, False])
def test_a_tree_as_the_learner_trains_it(normalize_std: bool) -> None:
    """V_root = V of what both share = 1/2, so that the two ends are worth 1/2 + 1/2 and its negative."""
    trunk, branch = training_rows([decode_group(encode_group(GROUP))], run_config(normalize_std=normalize_std))
    assert trunk.token_ids[trunk.targets].tolist() == [10, 11, 12, 13, 14]
    assert trunk.advantages.tolist() == [0, 0, 1, 1, 1]
    assert trunk.sequences.tolist() == [0, 0, 1, 1, 1]
    assert trunk.behaviour_logprobs.tolist() == [-0.25, -0.25, -0.5, -0.5, -0.5]
    assert branch.token_ids.tolist() == [1, 2, 10, 11, 7, 20], "what it took over is its context"
    assert (branch.targets.tolist(), branch.advantages.tolist()) == ([5], [-1])
    assert branch.own_context
    for row in (trunk, branch):
        np.testing.assert_allclose(row.loss_weights, 1 / 6, rtol=1e-6)  # six sampled tokens in all, each once
        assert set(row.streams.tolist()) == {0}


def test_given_advantages_are_in_no_baseline() -> None:
    """A group that holds both: rewards are compared among themselves alone."""
    compared = parallel_group(1.0, 0.0)
    told = Row(0, 1, (Credit(1, 2, Stream.SOLUTION, "all", 100.0, advantage=0.125),))
    mixed = replace(compared, rows=(*compared.rows, told))
    rows = training_rows([mixed], run_config(normalize_std=False))
    assert [set(row.advantages.tolist()) for row in rows] == [{0.5}, {-0.5}, {0.125}]


def test_an_answer_near_its_limit_loses_nothing_of_a_given_advantage() -> None:
    overlong = {"buffer_tokens": 48, "penalty": 8.0}
    [trunk, _] = training_rows([GROUP], run_config(overlong=overlong, normalize_std=False))
    assert trunk.advantages.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(("advantages", "signal"), [((0.0, 0.0), False), ((0.0, -0.5), True)])
def test_a_given_advantage_is_a_signal_where_it_is_not_zero(advantages: tuple[float, ...], signal: bool) -> None:
    """Unequal rewards beside it are none: they are not compared."""
    rows = tuple(
        Row(i, 1, (Credit(1, 2, Stream.SOLUTION, "tree", float(i), advantage=a),)) for i, a in enumerate(advantages)
    )
    group = Group(TICKET, "tree", (solution(0.0), solution(1.0)), rows)
    assert group.has_signal is signal
