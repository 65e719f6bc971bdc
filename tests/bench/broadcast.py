"""A weight broadcast against a bare gloo broadcast of the same bytes to as many processes."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import ray

from configs.load import load_config
from learner.sync_times import SyncTimes
from orchestration.cluster import ROOT
from orchestration.policy import ensure_policy
from tests.bench.rounds import interleaved, ratio, rounded
from tests.orchestration.stack import Stack, started

GOAL = 1.5
RANDOM = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 9, "num_attention_heads": 12}


class Peer:
    """One end of the bare broadcast. Nothing but sockets and bytes; buckets are those of the run."""

    def port(self) -> int:
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def join(self, rank: int, count: int, port: int) -> None:
        import torch.distributed as dist

        limit = timedelta(seconds=60)
        store = dist.TCPStore("127.0.0.1", port, count, rank == 0, limit, wait_for_workers=False)
        self._group: Any = dist.ProcessGroupGloo(dist.PrefixStore("bare", store), rank, count, limit)

    def broadcast(self, sizes: list[int]) -> float:
        """Seconds until every process has all bytes."""
        import torch
        import torch.distributed as dist

        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        buffers = [torch.ones(size, dtype=torch.uint8) for size in sizes]
        self._group.barrier().wait()
        began = time.perf_counter()
        for buffer in buffers:
            self._group.broadcast([buffer], options).wait()
        self._group.barrier().wait()
        return time.perf_counter() - began


def measure(rounds: int) -> dict[str, Any]:
    config = load_config(ROOT / "configs" / "quickstart.yaml", [])
    small = ensure_policy(config, print)
    figures: dict[str, Any] = {"goal_ratio_at_most": GOAL}
    with tempfile.TemporaryDirectory() as folder:
        large = random_policy(small, Path(folder))
        for name, policy, ranks in (("quickstart", small, 2), ("random_64M", large, 1), ("random_64M", large, 2)):
            figures[f"{name}_{ranks}_ranks"] = compare(policy, ranks, rounds)
    return figures


def compare(policy: Path, ranks: int, rounds: int) -> dict[str, Any]:
    overrides = ["cluster.dashboard=false", f"deepspeed.ranks={ranks}"]
    config = load_config(ROOT / "configs" / "quickstart.yaml", overrides)
    with started(config.model_dump(), policy, policy) as stack:
        rank: Any = stack.learners._ranks[0]
        sizes = ray.get(rank.__ray_call__.remote(bucket_sizes))
        peers = bare_group(1 + len(stack.actors))
        times: list[SyncTimes] = []

        def ours() -> float:
            times.append(broadcast(stack))
            return times[-1].total_s

        def bare() -> float:
            return float(max(ray.get([peer.broadcast.remote(sizes) for peer in peers])))

        found = interleaved({"ours": ours, "bare": bare}, max(rounds, 10))
    phases = {name: median(asdict(one)[name] for one in times[1:]) for name in asdict(times[0])}
    return {
        "bytes": sum(sizes),
        "actors": len(peers) - 1,
        **{name: rounded(value) for name, value in phases.items()},
        "bare_s": rounded(median(found["bare"])),
        "ratio": rounded(ratio(found["ours"], found["bare"])),
    }


def broadcast(stack: Stack) -> SyncTimes:
    async def call() -> SyncTimes:
        return await stack.broadcast()

    return asyncio.run(call())


def bucket_sizes(rank: Any) -> list[int]:
    """Bytes of the buckets that a learner's rank 0 sends."""
    from learner.weight_sender import size_bytes

    return [sum(map(size_bytes, bucket)) for bucket in rank._sender._engine._buckets]


def bare_group(count: int) -> list[Any]:
    remote: Any = ray.remote(Peer)
    peers = [remote.options(num_cpus=0).remote() for _ in range(count)]
    port = ray.get(peers[0].port.remote())
    ray.get([peer.join.remote(rank, count, port) for rank, peer in enumerate(peers)])
    return peers


def random_policy(like: Path, folder: Path) -> Path:
    """A random policy of about 64 M parameters with the quickstart's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(like)
    for name, value in (RANDOM | {"num_key_value_heads": 12, "head_dim": 64}).items():
        setattr(config, name, value)
    config.layer_types = ["full_attention"] * RANDOM["num_hidden_layers"]
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder
