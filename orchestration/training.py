"""Training from a run's beginning or a checkpoint to its summary; a learner's fault takes it back to a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from ray.actor import ActorHandle

from configs.load import ConfigError, to_yaml
from configs.schema import RunConfig
from learner.durable import replace_durably
from orchestration.budget import is_spent
from orchestration.checkpoints import LEARNER, CheckpointError, Checkpoints, export_policy
from orchestration.console import Console
from orchestration.dispatch import Dispatcher
from orchestration.driver import Driver
from orchestration.evaluation import Evaluation
from orchestration.evaluations import Evaluations
from orchestration.fleet import Fleet
from orchestration.held_out import evaluate
from orchestration.interrupt import Interrupt, Interrupted
from orchestration.learners import DivergedError, LearnerError, Learners
from orchestration.ledger import Ledger
from orchestration.metrics import Summary
from orchestration.nonfinite import NonfiniteGuard
from orchestration.queue_client import QueueClient
from orchestration.recorder import Recorder
from orchestration.resume import ResumeError, ResumePoint, point_in, roll_back
from orchestration.run_folder import RunFolder
from orchestration.trackers import open_trackers


@dataclass
class Training:
    """began: `time.monotonic()` at the start. before: the first evaluation. digest: of the policy the run started from.

    new_ranks: starts processes for the learner's ranks.
    """

    config: RunConfig
    folder: RunFolder
    console: Console
    began: float
    learners: Learners
    fleet: Fleet
    replay: QueueClient
    before: Evaluation
    digest: str
    interrupt: Interrupt
    new_ranks: Callable[[], Sequence[ActorHandle]]

    async def run(self, resume: ResumePoint | None) -> tuple[Summary, Evaluation]:
        """The summary and the last evaluation. Raises what ends a run, LearnerError after several faults in a row."""
        at, failures = -1, 0
        while True:
            try:
                if failures and resume is not None:
                    await self._start_ranks_again(resume)
                return await self._train(resume)
            except DivergedError:
                raise
            except LearnerError as error:
                resume = self._checkpoint_behind(error)
                failures = failures + 1 if resume.state.update == at else 1
                at = resume.state.update
                if failures > self.config.deepspeed.max_restarts:
                    raise LearnerError(f"{error}; for the {failures}th time in a row at {resume.checkpoint}") from error

    def _checkpoint_behind(self, error: LearnerError) -> ResumePoint:
        """Where to go back to. Raises LearnerError, the same with why there is no way back."""
        try:
            point = point_in(self.folder, self.config)
        except (ResumeError, CheckpointError, ConfigError) as problem:
            raise LearnerError(f"{error}; the run cannot go back to a checkpoint: {problem}") from error
        self.console.say(f"warning: {error}; its ranks are started again")
        return point

    async def _start_ranks_again(self, resume: ResumePoint) -> None:
        """New ranks with the checkpoint's weights; what was sampled since then is refused by the queue."""
        began = time.monotonic()
        self.fleet.era += 1
        await self.learners.restart(self.new_ranks())
        await self.learners.load(str(resume.checkpoint / LEARNER))
        for line in resume.said:
            self.console.say(line)
        self.console.say(f"the learner is up again after {time.monotonic() - began:.0f} s")

    async def _train(self, resume: ResumePoint | None) -> tuple[Summary, Evaluation]:
        queue = await self.replay.begin(self.fleet.era, () if resume is None else resume.queued)
        await self.fleet.sync(anew=True)
        self.console.say(
            f"weights sent to {len(self.fleet.up)} actors; "
            f"training begins {time.monotonic() - self.began:.0f} s after the start"
        )
        if resume is None:
            # From here on there is something to keep.
            replace_durably(self.folder.config, to_yaml(self.config).encode())
        else:
            roll_back(resume)
        with closing(Ledger(self.folder.ledger)) as ledger:
            dispatcher = Dispatcher(self.config, self.fleet, ledger, queue)
            figures = None if resume is None else resume.state.recorder
            done = 0 if resume is None else resume.state.update
            trackers = open_trackers(self.config, self.folder, self.console.say, done)
            with Recorder(
                self.config, self.folder, self.console, self.fleet, self.replay, self.learners, dispatcher, self.began,
                figures, trackers,
            ) as recorder:  # fmt: skip
                try:
                    await self._updates(resume, dispatcher, recorder)
                finally:
                    await dispatcher.stop()
                return await self._end(dispatcher, recorder)

    async def _updates(self, resume: ResumePoint | None, dispatcher: Dispatcher, recorder: Recorder) -> None:
        """All updates that are to come."""
        config, folder, say = self.config, self.folder, self.console.say
        guard = NonfiniteGuard(folder.nonfinite, config.optim.max_nonfinite, resume.state.nonfinite if resume else 0)
        checkpoints = Checkpoints(config, folder, self.learners, self.replay, say, self.before, self.digest, guard)
        evaluations = Evaluations(config, folder, self.fleet, recorder, say)
        driver = Driver(
            config, checkpoints, dispatcher, self.replay, self.learners, self.fleet, recorder, guard, evaluations,
            self.interrupt,
        )  # fmt: skip
        if resume is None:
            evaluations.write(0, self.before)
            await recorder.compare_logprobs(self.before)
            if config.checkpoint.every:
                await checkpoints.write(0, dispatcher, recorder)
        else:
            checkpoints.best = resume.state.best
            await dispatcher.pivots.restore(resume.pivots)
            dispatcher.restore(resume.state.update, resume.state.dispatch)
        try:
            with self.interrupt.training():
                await driver.train()
        except Interrupted:
            raise Interrupted(await checkpoints.leave(dispatcher, recorder)) from None

    async def _end(self, dispatcher: Dispatcher, recorder: Recorder) -> tuple[Summary, Evaluation]:
        """The policy left behind, judged."""
        config, folder = self.config, self.folder
        if dispatcher.version < config.run.updates:
            tokens = recorder.totals.sampled_tokens
            cause = "run.max_tokens" if is_spent(config.run, tokens) else "run.stop"
            self.console.say(f"{cause} reached: {tokens:,} tokens generated in {dispatcher.version} updates")
        await export_policy(folder, self.learners)
        after = await evaluate(config, self.fleet)
        Evaluations(config, folder, self.fleet, recorder, self.console.say).write(dispatcher.version, after)
        await recorder.compare_logprobs(after)
        return recorder.write_summary(self.before, after), after
