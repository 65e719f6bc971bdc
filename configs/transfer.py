"""What weights can go over from the learner to the engines: sync.backend and sync.checksum beside the GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.schema import RunConfig


def check_transfer(config: RunConfig) -> None:
    """Raises ValueError, which names the keys."""
    rollout, sync = config.rollout, config.sync
    if sync.backend == "nccl" and rollout.gpus_per_actor == 0:
        raise ValueError(
            "sync.backend is nccl but rollout.gpus_per_actor is 0: use auto or gloo, or give the actors GPUs"
        )
    if rollout.tensor_parallel > 1 and rollout.gpus_per_actor > 0:
        # vLLM starts a process for each part, and only the one that starts them has registered our gloo backend: the
        # engine would fail while it comes up.
        asked = "sync.checksum, which needs gloo," if sync.checksum else "sync.backend gloo"
        if sync.checksum or config.transfer_backend == "gloo":
            raise ValueError(
                f"{asked} does not go with rollout.tensor_parallel ({rollout.tensor_parallel}): the parts of an engine "
                "are processes of vLLM's that know its own transfers only: set sync.backend=auto and "
                "sync.checksum=false, or rollout.tensor_parallel=1"
            )
    if sync.checksum and config.transfer_backend != "gloo":
        raise ValueError("sync.checksum works with sync.backend gloo only: vLLM's own transfers give no checksums")
