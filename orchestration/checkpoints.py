"""What a run leaves to go on from: the learner's state, whole or not at all."""

from __future__ import annotations

from configs.schema import RunConfig
from orchestration.learners import Learners
from orchestration.ledger import Ledger
from orchestration.run_folder import RunFolder


async def write_checkpoint(
    config: RunConfig, folder: RunFolder, learners: Learners, ledger: Ledger, update: int
) -> None:
    """checkpoints/step-NNNNNN and `latest`; the run's ledger must balance. Raises LedgerError if it does not."""
    ledger.counts().check()
    final = folder.checkpoints / f"step-{update:06d}"
    partial = folder.partial(final)
    await learners.save(str(partial))
    folder.publish(partial, final)
    pointer = folder.checkpoints / ".latest.partial"
    pointer.write_text(final.name + "\n")
    pointer.rename(folder.checkpoints / "latest")
    folder.keep_checkpoints(config.checkpoint.keep)


async def export_policy(folder: RunFolder, learners: Learners) -> None:
    """policy/ in Hugging Face format, as `transformers` and `vllm` load it."""
    partial = folder.partial(folder.policy)
    await learners.export(str(partial))
    folder.publish(partial, folder.policy)
