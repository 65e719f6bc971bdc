"""`make bench`: the figures a change must not make worse, on the real stack with the quickstart's policy.

make bench ARGS="--tickets 64 --json figures.json"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from configs.load import load_config
from envs.codec import decode_group, encode_group
from orchestration.cluster import ROOT
from orchestration.policy import ensure_policy
from tests.orchestration.stack import Stack, started


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds, tokens a second (all actors, all ranks), MB a second (one process); medians over the rounds."""

    stack_up_s: float
    rollout_tokens_per_s: float
    learner_tokens_per_s: float
    update_s: float
    broadcast_s: float
    encode_mb_per_s: float
    decode_mb_per_s: float
    group_bytes: int


async def rounds(stack: Stack, count: int, tickets: int) -> list[tuple[float, float, float, float]]:
    """Of each round: tokens sampled and learned a second, seconds of an update and of a broadcast."""
    figures = []
    for number in range(count):
        began = time.monotonic()
        receipts, payloads = await stack.sample_batch(number * tickets, tickets)
        sampled = sum(r.sampled_tokens for r in receipts) / (time.monotonic() - began)
        sums = await stack.update(payloads)
        figures.append((sampled, sums.forward_tokens / sums.seconds, sums.seconds, await stack.learners.broadcast()))
    return figures


def codec_speed(stack: Stack, tickets: int) -> tuple[float, float, int]:
    async def messages() -> list[bytes]:
        _, payloads = await stack.sample_batch(10**6, tickets)
        return list(await payloads)

    data = asyncio.run(messages())
    size = sum(map(len, data)) / 1e6
    began = time.perf_counter()
    groups = [decode_group(d) for d in data]
    middle = time.perf_counter()
    for group in groups:
        encode_group(group)
    return size / (time.perf_counter() - middle), size / (middle - began), int(1e6 * size / len(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tickets", type=int, default=16, help="groups of a round")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    overrides = ["cluster.dashboard=false", "grpo.drop_zero_signal=false"]
    config = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
    policy = ensure_policy(config, print)
    began = time.monotonic()
    with started(config.model_dump(), policy, policy) as stack:
        up_s = time.monotonic() - began
        columns = zip(*asyncio.run(rounds(stack, arguments.rounds, arguments.tickets)), strict=True)
        sampled, learned, update_s, broadcast_s = (median(column) for column in columns)
        encode, decode, size = codec_speed(stack, arguments.tickets)
    figures = Figures(up_s, sampled, learned, update_s, broadcast_s, encode, decode, size)
    for name, value in asdict(figures).items():
        print(f"{name:22} {value:12,.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
