"""How far sampling may run ahead of training (AReaL's staleness control, arXiv 2505.24298).

With B groups an update, a group that is number n of all groups accepted is trained at version (n - 1) // B. Issued at
version v it keeps within the lag L when n <= (v + L + 1) * B, so no more than that may be accepted or running.
"""

from __future__ import annotations


def capacity(version: int, max_lag: int, groups_per_update: int, accepted: int, running: int, max_running: int) -> int:
    """How many tickets may be issued now, at least 0.

    version: updates done so far. max_lag: L, in updates. accepted: groups trained so far and groups in the queue;
    dropped ones leave their place to others. running: tickets issued without a result. max_running: most of those.

    The bound counts groups in the order they finish: one overtaken by many issued later can still come too late, and
    `is_stale` is for those.
    """
    within_lag = (version + max_lag + 1) * groups_per_update - (accepted + running)
    return max(0, min(within_lag, max_running - running))


def is_stale(oldest_version: int, learner_version: int, max_lag: int) -> bool:
    """Whether a group is too old to be trained now, by its oldest token's version; -1, nothing sampled, never is."""
    return 0 <= oldest_version < learner_version - max_lag
