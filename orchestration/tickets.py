"""Tickets as pure functions of run seed and index; training and held-out episodes never share a seed."""

from __future__ import annotations

from configs.seeds import derive_seed
from envs.trajectory import Ticket

FIRST_HELD_OUT_INDEX = 10**9


def training_ticket(run_seed: int, index: int, env: str) -> Ticket:
    """Ticket number `index` of a run. Its episode's seed is even."""
    return Ticket(index, env, 2 * derive_seed(run_seed, index, "episode"))


def held_out_tickets(count: int, env: str) -> list[Ticket]:
    """The same episodes for every run, whatever its seed, so that runs can be compared. Their seeds are odd."""
    return [Ticket(FIRST_HELD_OUT_INDEX + i, env, 2 * derive_seed(0, i, "held-out episode") + 1) for i in range(count)]
