"""The one source of randomness: a seed is a pure function of run seed, ticket index and purpose."""

from __future__ import annotations

from hashlib import blake2b

# Far above the seeds of any ticket or evaluation: no demonstration plays an episode that is trained on or measured.
FIRST_DEMONSTRATION_SEED = 1 << 48


def derive_seed(run_seed: int, ticket_index: int, purpose: str) -> int:
    """A seed in [0, 2**31) that differs for every (run seed, ticket index, purpose)."""
    digest = blake2b(f"{run_seed}/{ticket_index}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 33
