"""The one weight that a CPU engine keeps twice: a head tied to the embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestration.tickets import held_out_tickets
from tests.orchestration.stack import SETTINGS, assert_engine_and_learner_agree, started

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]


def test_actors_take_the_learners_weights_whatever_they_loaded(tied_policies: tuple[Path, Path]) -> None:
    """One rank, one actor, heads tied to the embedding: a reload must not keep the old policy's head."""
    settings = SETTINGS | {"rollout": {"actors": 1}, "deepspeed": {"ranks": 1}}
    with started(settings, *tied_policies) as stack:

        async def score() -> Any:
            messages = await stack.actors[0].sample_held_out.remote(held_out_tickets(8, "frozen_lake"), 4, None)
            return await stack.learners.score(messages)

        assert_engine_and_learner_agree(stack.run(score))
