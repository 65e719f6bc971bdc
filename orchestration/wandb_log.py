"""A run's figures on Weights & Biases, for those who have the package and an account (or WANDB_MODE=offline)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from configs.schema import RunConfig
from learner.durable import replace_durably
from orchestration.metrics_table import HeldOutMetrics, UpdateMetrics, scalars
from orchestration.run_folder import RunFolder


class WandbLog:
    """One run there for one run folder, resumed ones too. The key is taken from WANDB_API_KEY or the user's netrc."""

    name = "Weights & Biases"

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        import wandb

        kept = folder.path / "wandb_id.txt"
        if not kept.exists():
            replace_durably(kept, secrets.token_hex(8).encode())
        self._run = wandb.init(
            project=config.observe.wandb, name=folder.path.name, id=kept.read_text(), resume="allow",
            dir=str(folder.path), config=config.model_dump(mode="json"),
        )  # fmt: skip
        # Not W&B's own steps, which may only rise: a run that goes on from a checkpoint does some updates again.
        for group in ("training", "held_out"):
            self._run.define_metric(f"{group}/*", step_metric="update")

    def update(self, line: UpdateMetrics) -> None:
        self._log("training", line.update, scalars(line))

    def held_out(self, line: HeldOutMetrics) -> None:
        self._log("held_out", line.update, scalars(line))

    def close(self) -> None:
        self._run.finish()

    def _log(self, group: str, update: int, values: Mapping[str, float]) -> None:
        self._run.log({"update": update} | {f"{group}/{name}": value for name, value in values.items()})
