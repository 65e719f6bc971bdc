"""The loop: tickets become groups, groups an update, an update new weights for the actors."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from configs.schema import RunConfig
from learner.update_sums import UpdateSums
from orchestration.checkpoints import Checkpoints
from orchestration.dispatch import Dispatcher
from orchestration.evaluations import Evaluations
from orchestration.fleet import Fleet
from orchestration.interrupt import Interrupt
from orchestration.learners import Learners
from orchestration.nonfinite import NonfiniteGuard
from orchestration.queue_client import STARTED_AGAIN, QueueClient
from orchestration.recorder import Recorder
from orchestration.replay_buffer import Taken


@dataclass(frozen=True, slots=True)
class Driver:
    config: RunConfig
    checkpoints: Checkpoints
    dispatcher: Dispatcher
    replay: QueueClient
    learners: Learners
    fleet: Fleet
    recorder: Recorder
    nonfinite: NonfiniteGuard
    evaluations: Evaluations
    interrupt: Interrupt

    async def train(self) -> None:
        """The run's updates that are to come. Meanwhile actors go on sampling as far as the lag bound allows.

        Raises Interrupted between two updates.
        """
        await self.recorder.begin()
        self.dispatcher.issue()
        while not self.recorder.is_over(version := self.dispatcher.version):
            with self.recorder.learner_waits():
                taken, payloads = await self._next_batch(version)
            sums = await self._learn(version + 1, taken, payloads)
            sync = await self.fleet.sync()
            await self.dispatcher.pivots.advance(version + 1)
            self.dispatcher.advance(version + 1)
            await self.recorder.record(version + 1, taken, sums, sync, payloads)
            await self.evaluations.while_training(version + 1)
            if self._checkpoint_due(version + 1):
                await self.checkpoints.write(version + 1, self.dispatcher, self.recorder)
        await self.dispatcher.stop()

    async def _next_batch(self, version: int) -> tuple[Taken, ray.ObjectRef]:
        """Wait for a batch within the lag bound. Groups that turn out too old when taken are dropped and counted.

        The batch is then short of them; their replacements are for the next one.
        """
        while True:
            size = await self.interrupt.unless_asked(self.dispatcher.batch_ready())
            async with self.dispatcher.taking:
                taken, payloads = await self.replay.take(size, version, self.dispatcher.wanted)
                if taken.queue != self.dispatcher.queue:
                    await self._book_lost(taken)
                self.dispatcher.book_batch(taken)
            if taken.fresh:
                return taken, payloads

    async def _book_lost(self, taken: Taken) -> None:
        """The replay queue has died: what it held is sampled again, except what its successor has got meanwhile."""
        name, there = await self.replay.contents()
        there += [header.index for header in (*taken.fresh, *taken.stale)]
        self.dispatcher.book_lost(name, there, [taken.queue])
        self.recorder.warn(STARTED_AGAIN)

    async def _learn(self, update: int, taken: Taken, payloads: ray.ObjectRef) -> UpdateSums:
        sums = await self.learners.update(payloads)
        if sums.steps:
            self.dispatcher.book_trained(taken)
        else:
            self.dispatcher.book_untrained(taken, "the update had no finite loss and gradient")
        kept = await self.nonfinite.look_at(update, sums, [] if sums.steps else await payloads)
        if kept is not None:
            self.recorder.warn(f"update {update} was left out: no finite loss and gradient; its batch is in {kept}")
        return sums

    def _checkpoint_due(self, update: int) -> bool:
        every = self.config.checkpoint.every
        return self.recorder.is_over(update) or bool(every and update % every == 0)
