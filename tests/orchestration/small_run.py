"""A run of stand-ins that leaves a real folder: one ticket an update, a checkpoint after each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from configs.load import to_yaml
from configs.schema import RunConfig, RunSettings
from envs.codec import encode_group
from envs.trajectory import GroupStats, Ticket
from learner.durable import write_durably
from learner.learner_state import FORMAT, STATE_FILE, LayerFile, LearnerState
from orchestration.checkpoints import Checkpoints
from orchestration.evaluation import Evaluation
from orchestration.ledger import Ledger, State
from orchestration.metrics_table import UpdateMetrics
from orchestration.nonfinite import NonfiniteGuard
from orchestration.pivot_memory import PivotMemory
from orchestration.replay_buffer import QueueError
from orchestration.run_folder import RunFolder
from orchestration.sampled import DispatchState, PivotSums, Sampled
from orchestration.totals import RecorderState, Totals
from tests.builders import parallel_group
from tests.orchestration.test_metrics import metrics

BEFORE = Evaluation(0.5, {7: 0.25, 9: 0.75}, {4: 0.8}, 1.5, 0.9, 0.75, 1000, 80, (b"kept elsewhere",), 1, "boom")
POLICY = "sha256:0123"
UPDATES = 10
SAMPLED = Sampled(
    groups=3,
    reward_sum=0.1 + 0.2,
    stats=GroupStats(sketches=5),
    pivots=PivotSums(3, 1, 0.5, 1.2, (1, 2, 0, 0), (0, 1, 0, 0)),
    targets=20,
    questions=frozenset({"a1", "b2"}),
    found=frozenset({("a1", "Bodorn / Diveth"), ("b2", "Bodorn / Diveth")}),
)


def queued(index: int) -> bytes:
    """The message of the group of this ticket."""
    return encode_group(parallel_group(1.0, 0.0, index=index))


class Queue:
    """Holds a group of every ticket, unless it is broken. lost: tickets whose groups went with the queue before."""

    def __init__(self) -> None:
        self.broken: Exception | None = None
        self.name, self.lost = "first", set[int]()

    async def copy(self, indices: Sequence[int]) -> list[bytes]:
        if self.broken is not None:
            raise self.broken
        for index in self.lost.intersection(indices):
            raise QueueError(f"ticket {index} is not there")
        return [queued(index) for index in indices]

    async def contents(self) -> tuple[str, list[int]]:
        return self.name, [9]


class Learners:
    """Saves the number of the update, in two files. elsewhere: files written where the driver does not see them."""

    def __init__(self) -> None:
        self.version = 0
        self.broken: Exception | None = None
        self.elsewhere: tuple[str, ...] = ()

    async def save(self, folder: str) -> None:
        if self.broken is not None:
            raise self.broken
        data = b"weights %d" % self.version
        layers = tuple(LayerFile(name=part, size=len(data), crc32=0, shapes={}) for part in ("a", "b"))
        state = LearnerState(format=FORMAT, version=self.version, steps=self.version, layers=layers)
        for name, content in [("a", data), ("b", data), (STATE_FILE, state.model_dump_json().encode())]:
            if name not in self.elsewhere:
                write_durably(Path(folder) / name, content)


class Dispatcher:
    queue = "first"

    def __init__(self, ledger: Ledger, pivots: PivotMemory) -> None:
        self.ledger, self.pivots = ledger, pivots
        self.there: list[int] = []

    def book_lost(self, queue: str, there: Collection[int]) -> None:
        self.queue, self.there = queue, list(there)
        for index in self.ledger.indices(State.QUEUED):
            self.ledger.retry(index, "lost")

    def state(self) -> DispatchState:
        return DispatchState(next_index=5, settled=2, rounds=1, sampled=SAMPLED)


async def _tell(method: str, *arguments: Any) -> None:
    """There are no actors."""


class Recorder:
    """What a checkpoint asks of the recorder."""

    def __init__(self, metrics: Path, last: UpdateMetrics) -> None:
        self.last, self._metrics = last, metrics

    def state(self) -> RecorderState:
        return RecorderState(12.5, Totals(own_tokens=4), self._metrics.stat().st_size)

    def is_over(self, updates: int) -> bool:
        return updates >= UPDATES


class Run:
    """A run of one ticket an update, each with a checkpoint."""

    def __init__(self, path: Path, sampler: str = "parallel", **settings: Any) -> None:
        groups = {"run": {"updates": UPDATES}, "sampler": {"name": sampler}, "checkpoint": {"every": 1, **settings}}
        config = RunConfig.model_validate(groups)
        self.folder = RunFolder.reserve(RunSettings(root=str(path), name="run"), "x")
        self.folder.config.write_text(to_yaml(config))
        self.ledger = Ledger(self.folder.ledger)
        self.pivots = PivotMemory(config, _tell)
        self.learners, self.said = Learners(), list[str]()
        self.queue = Queue()
        self.recorder: Any = None
        learners: Any = self.learners
        queue: Any = self.queue
        self.nonfinite = NonfiniteGuard(self.folder.nonfinite, limit=5)
        self.checkpoints = Checkpoints(
            config, self.folder, learners, queue, self.said.append, BEFORE, POLICY, self.nonfinite
        )

    async def update(self, number: int, **figures: Any) -> None:
        dispatcher: Any = Dispatcher(self.ledger, self.pivots)
        with self.folder.metrics.open("a") as file:
            file.write(f'{{"update":{number}}}\n')
        self.recorder = Recorder(self.folder.metrics, metrics(number, **figures))
        self.learners.version = number
        self.ledger.issue(Ticket(number, "frozen_lake", 1), number)
        self.ledger.move([number], State.QUEUED)
        await self.checkpoints.write(number, dispatcher, self.recorder)

    def there(self) -> list[str]:
        return sorted(p.name for p in self.folder.checkpoints.iterdir())
