"""One ZeRO-3 rank as a Ray actor: decodes the whole batch, takes its share of it, steps, sends weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import torch
from ray.actor import ActorHandle

from configs.network import speak_from
from configs.schema import RunConfig
from configs.watchdog import Watchdog
from envs.codec import decode_group
from learner.rows import TrainingRow, training_rows
from learner.sync_times import SyncTimes
from learner.update import PolicyLearner
from learner.update_sums import UpdateSums
from learner.watched import watched
from learner.zero3 import join_ranks, leave_gpu, meeting_place

if TYPE_CHECKING:
    from learner.weight_sender import WeightSender


class LearnerRank:
    """Rank `rank` of `config.deepspeed.ranks`. Call `meet` on rank 0, then `start` on all with what it returned."""

    def __init__(self, config: RunConfig, policy: str, rank: int, stacks: str = "") -> None:
        self._config, self._policy, self._rank = config, policy, rank
        self.watchdog = Watchdog(Path(stacks) / f"learner-rank-{rank}.txt") if stacks else None
        self.limit_s = config.deepspeed.timeout_s
        self._sender: WeightSender | None = None
        self.version = 0

    def meet(self) -> tuple[str, int]:
        """This node's address, and the port at which the ranks can meet from now on."""
        address = str(ray.util.get_node_ip_address())
        self._meeting = meeting_place(address, self.limit_s)
        return address, int(self._meeting.port)

    @watched
    def start(self, address: str, port: int) -> int:
        """Join the ranks and load the policy; returns the number of its parameters."""
        speak_from(str(ray.util.get_node_ip_address()))
        self._device = torch.device("cuda" if self._config.deepspeed.gpus_per_rank > 0 else "cpu")
        join_ranks(self._config, self._rank, address, port)
        self._learner = PolicyLearner(self._config, self._policy, self._rank, self._device)
        self._engine = self._learner.engine
        leave_gpu(self._engine, self._config)
        return sum(p.ds_numel for p in self._engine.module.parameters())

    @watched
    def connect(self, actors: Mapping[int, ActorHandle]) -> None:
        """Rank 0 opens the weight group with these actors, by their numbers, and leaves the one before."""
        if self._rank == 0 or self._config.transfer_backend == "ipc":
            # vllm takes seconds to import: only the rank that sends pays for it.
            from learner.weight_sender import WeightSender

            if self._sender is not None:
                self._sender.close()
                self._sender = None  # or a group that cannot be opened leaves one that is closed
            address = str(ray.util.get_node_ip_address())
            self._sender = WeightSender(self._engine.module, actors, address, self._config, self._rank)

    @watched
    def update(self, payloads: Sequence[bytes]) -> UpdateSums:
        """One update on a batch of encoded groups, on all ranks at once: version + 1."""
        sums = self._learner.update(self._rows(payloads), self.version)
        self.version += 1
        leave_gpu(self._engine, self._config)
        return sums

    @watched
    def score(self, payloads: Sequence[bytes]) -> UpdateSums:
        """Compare the engine's log-probs with the learner's on encoded groups, without training (the `own_*` sums)."""
        sums = self._learner.score(self._rows(payloads), self.version)
        leave_gpu(self._engine, self._config)
        return sums

    @watched
    def broadcast(self, version: int) -> SyncTimes:
        """Send the weights as `version` to every actor; every rank joins. Only rank 0's times say something."""
        if self._sender is not None:
            return self._sender.send(version)
        from learner.gather import gathered_parameters

        for _ in gathered_parameters(self._engine.module, getattr(torch, self._config.model.dtype)):
            pass
        return SyncTimes()

    @watched
    def save(self, folder: str) -> None:
        """Write the policy's and the optimizer's state into a folder; all ranks must call."""
        from learner.checkpoint import save_state

        save_state(self._engine, folder, self.version)
        leave_gpu(self._engine, self._config)

    @watched
    def load(self, folder: str) -> int:
        """Go on from what `save` wrote, whatever the number of ranks then; all ranks must call. Returns the version."""
        from learner.checkpoint import load_state

        self.version = load_state(self._engine, folder)
        leave_gpu(self._engine, self._config)
        return self.version

    @watched
    def export(self, folder: str) -> None:
        """Write the policy in Hugging Face format (rank 0 writes, all ranks must call)."""
        from learner.export import export_policy

        dtype = getattr(torch, self._config.model.dtype)
        export_policy(self._engine.module, Path(folder), self._policy, dtype, writes=self._rank == 0)
        leave_gpu(self._engine, self._config)

    def _rows(self, payloads: Sequence[bytes]) -> list[TrainingRow]:
        rows = training_rows([decode_group(data) for data in payloads], self._config)
        return [row for row in rows if len(row.targets)]
