"""The pivots that DDE has tried in a run, and what is learned of them: where failed trajectories can still be saved.

Actors only predict. Their pivots come with the receipts; the driver fits recoverability to the newest of all actors'
and gives it to all of them between two updates.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pydantic import BaseModel, ConfigDict, FiniteFloat

from actors.receipt import Receipt
from actors.samplers.recoverability import Recoverability, fit
from configs.samplers import DdeSettings
from configs.schema import RunConfig

Tell = Callable[..., Awaitable[None]]  # (method, argument): calls a method of every actor


class Outcome(BaseModel):
    """One pivot. ticket: of its group. features: as the actor saw them. recovered: whether any branch succeeded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ticket: int
    features: tuple[FiniteFloat, ...]
    recovered: bool


class PivotState(BaseModel):
    """What a checkpoint keeps. weights, bias: of the model the actors have. pending: not yet in the window."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: tuple[FiniteFloat, ...]
    bias: FiniteFloat
    window: tuple[Outcome, ...]
    pending: tuple[Outcome, ...]


class PivotMemory:
    """Empty and idle unless the run's sampler is DDE by rule `learned`."""

    def __init__(self, config: RunConfig, tell: Tell) -> None:
        self._settings = learns_pivots(config)
        self._tell = tell
        self._window: list[Outcome] = []
        self._pending: list[Outcome] = []
        self.model = Recoverability.unfitted(self._settings.feature_count if self._settings else 0)

    def add(self, receipt: Receipt) -> None:
        """Keep the pivots of a ticket that has ended, whatever became of its group; a failed one has none.

        A pivot without a judged branch says nothing.
        """
        if self._settings is not None:
            self._pending += [
                Outcome(ticket=receipt.ticket.index, features=trial.features, recovered=trial.solved > 0)
                for trial in receipt.pivots
                if trial.branches
            ]

    async def advance(self, version: int) -> None:
        """Before tickets of `version` are issued: take in what came since the last update, in the tickets' order.

        Every `refit_every` updates the model is fitted, and the actors get it if it has changed. Without lag all
        tickets of an update have ended by then, and those of the next have not begun.
        """
        if self._settings is None:
            return
        self._window += sorted(self._pending, key=lambda outcome: outcome.ticket)
        self._pending.clear()
        del self._window[: -self._settings.window]
        if version % self._settings.refit_every == 0 and self._is_enough(self._settings.min_labels):
            model = fit([o.features for o in self._window], [o.recovered for o in self._window])
            if model != self.model:
                self.model = model
                await self._send()

    def state(self) -> PivotState | None:
        """For a checkpoint, at the same moment as the ledger; None where nothing is learned of pivots."""
        if self._settings is None:
            return None
        return PivotState(
            weights=self.model.weights, bias=self.model.bias, window=tuple(self._window), pending=tuple(self._pending)
        )

    async def restore(self, state: PivotState | None) -> None:
        """Go on from a checkpoint; the actors know again what they knew then."""
        if state is not None:
            self.model = Recoverability(state.weights, state.bias)
            self._window, self._pending = [*state.window], [*state.pending]
            await self._send()

    async def _send(self) -> None:
        await self._tell("use_recoverability", self.model)

    def _is_enough(self, labels: int) -> bool:
        return len(self._window) >= labels and len({outcome.recovered for outcome in self._window}) == 2


def learns_pivots(config: RunConfig) -> DdeSettings | None:
    """The settings of a sampler that learns where to resample; None for all others."""
    sampler = config.sampler
    return sampler if isinstance(sampler, DdeSettings) and sampler.rule == "learned" else None
