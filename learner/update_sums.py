"""What an update reports, in sums that ranks can simply add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class UpdateSums:
    """What one rank adds to an update's figures: sums over its trained tokens, so that ranks simply add up.

    forward_tokens: tokens of all rows. computed_tokens: the same, with beginnings that rows share once. attended:
    positions attention worked through for them, padding included. kl: distance to the reference. left_out: tokens that
    masks kept from the loss. `own_*`: tokens sampled under the learner's own version and trained in their own context,
    where engine and learner must agree; `own_abs_diff_max` is a maximum.
    steps, skipped_steps: optimizer steps made, and left out for want of a finite gradient; they, `seconds`,
    `grad_norm` and `lr` are the same on all ranks.
    """

    loss: float = 0.0
    tokens: int = 0
    forward_tokens: int = 0
    computed_tokens: int = 0
    attended: int = 0
    entropy: float = 0.0
    clipped: float = 0.0
    importance: float = 0.0
    kl: float = 0.0
    left_out: float = 0.0
    own_tokens: int = 0
    own_abs_diff: float = 0.0
    own_abs_diff_max: float = 0.0
    steps: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    grad_norm: float = 0.0
    lr: float = 0.0


SAME_ON_ALL_RANKS = frozenset({"own_abs_diff_max", "steps", "skipped_steps", "seconds", "grad_norm", "lr"})


def add_up(ranks: Sequence[UpdateSums]) -> UpdateSums:
    """The whole update's sums, zeros of none; maxima where a field is not a sum."""
    if not ranks:
        return UpdateSums()
    return UpdateSums(
        **{
            f.name: (max if f.name in SAME_ON_ALL_RANKS else sum)(getattr(r, f.name) for r in ranks)
            for f in fields(UpdateSums)
        }
    )
