"""One number of actors: the run's own driver, dispatcher, fleet, ledger and queue, with simulated ends."""

from __future__ import annotations

import asyncio
import io
import logging
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import ray

from configs.schema import RunConfig
from orchestration.cluster import LOOPBACK_ENV, ROOT, spawn_beside_driver
from orchestration.console import Console
from orchestration.dispatch import Dispatcher
from orchestration.driver import Driver
from orchestration.evaluations import Evaluations
from orchestration.fleet import Fleet
from orchestration.interrupt import Interrupt
from orchestration.ledger import Ledger
from orchestration.nonfinite import NonfiniteGuard
from orchestration.queue_client import QueueClient
from orchestration.recorder import Recorder
from orchestration.replay_queue import ReplayQueue
from orchestration.run_folder import RunFolder
from tests.bench.scale.actors import Handle, Host
from tests.bench.scale.figures import Point
from tests.bench.scale.learner import SimulatedLearners
from tests.bench.scale.load import Load
from tests.bench.scale.meters import Meters

QUEUE = "replay queue"
SPARE = 64  # calls of a host beside its tickets


class Balance:
    """In place of the checkpoints: the ledger is looked at after the last update."""

    async def write(self, update: int, dispatcher: Dispatcher, recorder: Recorder) -> None:
        """Raises LedgerError."""
        dispatcher.ledger.counts().check()


def measure(actors: int, load: Load) -> Point:
    """In a Ray of its own, started and ended here."""
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=(2 * load.queue_mib + 256) << 20,
        runtime_env={"env_vars": {**LOOPBACK_ENV, "PYTHONPATH": str(ROOT)}},
    )  # fmt: skip
    try:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            return asyncio.run(_train(actors, load, RunFolder(Path(folder))))
    finally:
        ray.shutdown()


async def _train(actors: int, load: Load, folder: RunFolder) -> Point:
    config, began, said = load.run_config(actors), time.monotonic(), io.StringIO()
    queue = spawn_beside_driver(ReplayQueue, QUEUE, config.queue)
    learners: Any = SimulatedLearners(load)
    fleet = Fleet(config, learners, _handles(actors, load, config), lambda text: print(text, file=said))
    replay, console = QueueClient(config, queue), Console(config, began, said)
    await fleet.start()
    fleet.watch()
    name = await replay.begin(fleet.era)
    await fleet.sync(anew=True)
    with closing(Ledger(folder.ledger)) as ledger:
        dispatcher = Dispatcher(config, fleet, ledger, name)
        with Recorder(config, folder, console, fleet, replay, learners, dispatcher, began) as recorder:
            driver = _driver(config, folder, console, dispatcher, replay, learners, fleet, recorder)
            try:
                async with Meters(queue, replay, dispatcher, config) as meters:
                    await driver.train()
                return meters.point(actors, folder, ledger)
            finally:
                await dispatcher.stop()
                await fleet.close()


def _handles(actors: int, load: Load, config: RunConfig) -> list[Any]:
    remote: Any = ray.remote(Host)
    hosts = min(load.hosts, actors)
    played = [range(first, actors, hosts) for first in range(hosts)]
    started = [
        remote.options(num_cpus=0, max_concurrency=len(numbers) * load.prompts_in_flight + SPARE).remote(
            load, actors, list(numbers), QUEUE, config.queue.timeout_s
        )
        for numbers in played
    ]
    return [Handle(started[number % hosts], number) for number in range(actors)]


def _driver(
    config: RunConfig, folder: RunFolder, console: Console, dispatcher: Dispatcher, replay: QueueClient,
    learners: Any, fleet: Fleet, recorder: Recorder,
) -> Driver:  # fmt: skip
    checkpoints: Any = Balance()
    guard = NonfiniteGuard(folder.nonfinite, config.optim.max_nonfinite)
    evaluations = Evaluations(config, folder, fleet, recorder, console.say)
    interrupt = Interrupt(console.say)
    return Driver(config, checkpoints, dispatcher, replay, learners, fleet, recorder, guard, evaluations, interrupt)
