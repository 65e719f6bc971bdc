"""Tickets are pure functions, and no episode that is trained on is ever measured on."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from configs.seeds import derive_seed
from envs.trajectory import Ticket
from orchestration.tickets import FIRST_HELD_OUT_INDEX, held_out_tickets, training_ticket

RUN_SEEDS = st.integers(0, 2**40)
INDICES = st.integers(0, FIRST_HELD_OUT_INDEX - 1)


@given(RUN_SEEDS, INDICES)
def test_a_training_ticket_is_a_pure_function_of_run_seed_and_index(run_seed: int, index: int) -> None:
    ticket = training_ticket(run_seed, index, "frozen_lake")
    assert ticket == training_ticket(run_seed, index, "frozen_lake")
    assert (ticket.index, ticket.env, ticket.attempt) == (index, "frozen_lake", 0)
    assert training_ticket(run_seed, index, "other") == replace(ticket, env="other")


@given(RUN_SEEDS, INDICES)
def test_training_and_held_out_episodes_never_share_a_seed(run_seed: int, index: int) -> None:
    """Training seeds are even and held-out ones odd, below the 2**32 that environments take."""
    assert training_ticket(run_seed, index, "x").seed % 2 == 0
    assert 0 <= training_ticket(run_seed, index, "x").seed < 2**32
    assert all(t.seed % 2 == 1 and 0 <= t.seed < 2**32 for t in held_out_tickets(50, "x"))


def test_episodes_differ_between_tickets_and_between_runs() -> None:
    seeds = [[training_ticket(run_seed, i, "x").seed for i in range(500)] for run_seed in (0, 1)]
    assert len(set(seeds[0])) == 500
    assert not set(seeds[0]) & set(seeds[1])
    assert len({t.seed for t in held_out_tickets(500, "x")}) == 500


def test_held_out_episodes_are_the_same_however_many_are_asked_for() -> None:
    assert held_out_tickets(7, "x") == held_out_tickets(100, "x")[:7]
    assert [t.index for t in held_out_tickets(3, "x")] == [FIRST_HELD_OUT_INDEX + i for i in range(3)]


def test_seeds_stay_what_they_were() -> None:
    """Runs are compared with runs of older versions: a change here changes every episode."""
    assert derive_seed(0, 0, "episode") == 798198740
    assert training_ticket(7, 3, "x") == Ticket(3, "x", 1516704862)
    assert held_out_tickets(1, "x") == [Ticket(FIRST_HELD_OUT_INDEX, "x", 3256825233)]
