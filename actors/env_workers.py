"""Environment calls in processes that may hang, crash or run out of memory: that costs an episode, never the actor.

A process runs one call at a time, so it is known whose call went wrong. It is killed and replaced then; the episodes
that lived in it go on in any other one, since the actor has each of them as its last call left it.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections import deque
from collections.abc import Callable

from actors.env_worker import CallFailed, EnvWorker
from configs.schema import RolloutSettings
from envs.base import BadEnvironment, TextEnv
from envs.worker_messages import RAISED, Call, Reply, call_bytes, message_bytes, said_of

# A call waits this long for a free worker before there is one more: where calls take microseconds, one is enough.
PATIENCE_S = 0.25


class EnvWorkers:
    """At most `rollout.env_workers` processes. The limit of a call runs while the call does, not while it waits."""

    def __init__(self, make_env: Callable[[], TextEnv], limits: RolloutSettings) -> None:
        """Starts the first worker, and does not wait for it. Raises BadEnvironment where `make_env` cannot be sent, and
        CallFailed where no process can be started.
        """
        self._limits, self._greeting = limits, _greeting(make_env)
        self._workers = [EnvWorker(self._greeting, limits)]
        self._idle = [*self._workers]
        self._waiting: deque[tuple[float, asyncio.Future[EnvWorker]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._told = 0
        self._workers[0].start()

    async def ready(self) -> None:
        """Wait until the first worker is up. Raises CallFailed when it cannot start."""
        worker = await self._take()
        try:
            await worker.up()
        finally:
            self._give(worker)

    async def run(self, call: Call) -> Reply:
        """Raises CallFailed when the environment raises, takes too long, or takes its worker down."""
        try:
            message = call_bytes(call)
        except ValueError as error:
            raise CallFailed(f"cannot be sent a call: {error}") from error
        worker = await self._take()
        try:
            reply = await worker.ask(message)
        finally:
            self._give(worker)
        if reply.kind == RAISED:
            raise CallFailed(f"raised {reply.value}")
        return reply

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            worker.close()

    @property
    def target_count(self) -> int | None:
        """The environment's, known once a worker has been up."""
        return next((worker.target_count for worker in self._workers if worker.target_count is not None), None)

    @property
    def replaced(self) -> int:
        """Processes that calls have cost."""
        return sum(worker.replaced for worker in self._workers)

    def newly_replaced(self) -> int:
        """Those since the last time this was asked."""
        before, self._told = self._told, self.replaced
        return self._told - before

    @property
    def hung(self) -> int:
        """Calls that gave no answer in time."""
        return sum(worker.hung for worker in self._workers)

    @property
    def process_ids(self) -> list[int]:
        return [worker.process_id for worker in self._workers if worker.process_id is not None]

    # --- who waits for a worker, and when there are more of them -----------------------------------------------------

    async def _take(self) -> EnvWorker:
        if self._idle:
            return self._idle.pop()  # the one used last, which has most of the episodes
        loop = asyncio.get_running_loop()
        given: asyncio.Future[EnvWorker] = loop.create_future()
        self._waiting.append((loop.time(), given))
        self._watch(loop)
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self._give(given.result())
            raise

    def _give(self, worker: EnvWorker) -> None:
        while self._waiting:
            _, given = self._waiting.popleft()
            if not given.done():
                given.set_result(worker)
                return
        # One whose process has to come up first is the last to be taken.
        self._idle.insert(len(self._idle) if worker.is_up else 0, worker)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None and len(self._workers) < self._limits.env_workers:
            self._timer = loop.call_later(PATIENCE_S, self._grow, loop)

    def _grow(self, loop: asyncio.AbstractEventLoop) -> None:
        """Add a worker if a call has waited too long for one, and not for one that is coming up."""
        self._timer = None
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()
        if not self._waiting:
            return
        if loop.time() - self._waiting[0][0] >= PATIENCE_S and all(worker.is_up for worker in self._workers):
            self._workers.append(EnvWorker(self._greeting, self._limits))
            self._give(self._workers[-1])
        self._watch(loop)


def _greeting(make_env: Callable[[], TextEnv]) -> bytes:
    """What a process is told first: where to import from, then how to make an environment. Raises BadEnvironment."""
    try:
        return message_bytes(pickle.dumps((sys.path, pickle.dumps(make_env))))
    except Exception as error:
        raise BadEnvironment(
            f"env: how to make it cannot be sent to a worker process ({said_of(error)}): it takes a function or class "
            "of a module, and settings of plain values"
        ) from error
