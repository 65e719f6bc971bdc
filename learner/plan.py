"""Which rank trains which rows in which micro-batch: shared beginnings once, equal work, ranks in step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import DeepspeedSettings
from learner.rows import TrainingRow

# Tokens from which on a beginning is worth sharing.
MIN_SHARED = 8
# Units a rank has at least, where there is more than one: no rank then has much more work than another.
UNITS_A_RANK = 4


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows (by number) that share their first `prefix` tokens, none of them trained. tokens: with the prefix once."""

    rows: tuple[int, ...]
    prefix: int
    tokens: int


# [rank][micro-batch]: its units; none: the rank stands in
Plan = list[list[list[Unit]]]


def plan_rows(rows: Sequence[TrainingRow], settings: DeepspeedSettings) -> Plan:
    """The plan of a batch, the same on all ranks; without `packing` nothing is shared."""
    budget, ranks = settings.tokens_per_micro_batch, settings.ranks
    if not settings.packing:
        return plan_micro_batches(each_alone(rows), ranks, budget)
    total = sum(unit.tokens for unit in shared_units(rows, budget))
    most = budget if ranks == 1 else min(budget, total // (ranks * UNITS_A_RANK))
    return plan_micro_batches(shared_units(rows, most), ranks, budget)


def each_alone(rows: Sequence[TrainingRow]) -> list[Unit]:
    """A unit a row: nothing is shared."""
    return [Unit((i,), 0, len(row.token_ids)) for i, row in enumerate(rows)]


def shared_units(rows: Sequence[TrainingRow], most: int) -> list[Unit]:
    """Rows of one group together as far as they begin alike, in units of at most `most` tokens but for single rows."""
    alike: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        # Solutions of a prompt, branches of a pivot: all before their first trained token is the same.
        alike[row.group, row.token_ids[: row.targets[0]].tobytes()].append(number)
    groups: dict[int, list[int]] = defaultdict(list)
    for (group, _), members in alike.items():
        if len(members) == 1:
            groups[group] += members
    together = [members for members in (*alike.values(), *groups.values()) if len(members) > 1]
    alone = [members for members in groups.values() if len(members) == 1]
    return [unit for members in (*together, *alone) for unit in _units_of_group(rows, members, most)]


def _units_of_group(rows: Sequence[TrainingRow], members: Sequence[int], most: int) -> Iterator[Unit]:
    prefix = common_prefix([rows[i] for i in members])
    prefix = prefix if prefix >= MIN_SHARED else 0
    taken: list[int] = []
    for number in members:
        if taken and (not prefix or _tokens(rows, [*taken, number], prefix) > most):
            yield _unit(rows, taken, prefix)
            taken = []
        taken.append(number)
    yield _unit(rows, taken, prefix)


def _unit(rows: Sequence[TrainingRow], members: Sequence[int], prefix: int) -> Unit:
    own = prefix if len(members) > 1 else 0
    return Unit(tuple(members), own, _tokens(rows, members, own))


def _tokens(rows: Sequence[TrainingRow], members: Sequence[int], prefix: int) -> int:
    return prefix + sum(len(rows[i].token_ids) - prefix for i in members)


def common_prefix(rows: Sequence[TrainingRow]) -> int:
    """How many tokens all rows begin with before any of them is trained."""
    limit = min(int(row.targets[0]) for row in rows)
    same = (np.stack([row.token_ids[:limit] for row in rows]) == rows[0].token_ids[:limit]).all(0)
    return limit if same.all() else int(same.argmin())


def plan_micro_batches(units: Sequence[Unit], ranks: int, budget: int) -> Plan:
    """Units by [rank][micro-batch]; an empty micro-batch keeps the ranks in step.

    budget: tokens of a micro-batch; only a single unit may have more. The largest go first, each to the rank with the
    fewest tokens so far, and there to the micro-batch with the fewest, so that all ranks have about the same work.
    Under ZeRO-3 every forward is a collective: ranks with unequal numbers of forwards would wait for ever.
    """
    shares = _spread(sorted(units, key=lambda u: (-u.tokens, u.rows)), ranks)
    number = max(1, *(-(-sum(min(unit.tokens, budget) for unit in share) // budget) for share in shares))
    while True:
        plan = [_spread(share, number) for share in shares]
        batches = [batch for rank in plan for batch in rank]
        if all(len(batch) <= 1 or sum(unit.tokens for unit in batch) <= budget for batch in batches):
            return plan
        number += 1


def _spread(units: Sequence[Unit], bins: int) -> list[list[Unit]]:
    """Each unit to the bin with the fewest tokens, the first of equals."""
    spread: list[list[Unit]] = [[] for _ in range(bins)]
    tokens = [0] * bins
    for unit in units:
        place = min(range(bins), key=tokens.__getitem__)
        spread[place].append(unit)
        tokens[place] += unit.tokens
    return spread
