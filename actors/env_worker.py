"""One environment worker: a process that runs a call at a time, and the next process when it has to be killed."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from actors.env_process import Ended, EnvProcess
from configs.schema import RolloutSettings
from envs.worker_messages import NO_MEMORY, RAISED, BadMessage, Reply, read_reply

# A killed process is gone in milliseconds, unless it has much memory to give back.
REAP_S, CLOSE_S = 1.0, 5.0


class CallFailed(RuntimeError):
    """A call came to nothing, which is no verdict on the policy; the message goes on from the environment's name."""


class EnvWorker:
    """`replaced`: processes that a call has cost; `hung`: those of them that gave no answer in time.

    `target_count`: the environment's, once a process has been up. `greeting`: the first message to every process.
    """

    def __init__(self, greeting: bytes, limits: RolloutSettings) -> None:
        self.replaced = self.hung = 0
        self.target_count: int | None = None
        self._greeting, self._limits = greeting, limits
        self._process: EnvProcess | None = None
        self._began = 0.0
        self._killed: list[EnvProcess] = []

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.answered > 0

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.process_id

    def start(self) -> EnvProcess:
        """The process; started if there is none, which does not wait for it. Raises CallFailed."""
        if self._process is None:
            try:
                self._process = EnvProcess(self._greeting, self._limits.env_memory_mib)
            except OSError as error:
                raise CallFailed(f"has no worker: its process cannot be started ({error})") from error
            self._began = time.monotonic()
        return self._process

    async def up(self) -> EnvProcess:
        """The process, once it can be asked. Raises CallFailed when it cannot start."""
        if self._process is not None and not self._process.usable:
            self._kill()
        process = self.start()
        if not process.answered:
            await self._greet(process)
        return process

    async def ask(self, message: bytes) -> Reply:
        """What the worker says to a call. Raises CallFailed when it says nothing; then it has been replaced.

        A process that breaks down may do so because of what other calls have left in it: unless this was its first one,
        the call is made again in a fresh process.
        """
        limits = self._limits
        while True:
            process = await self.up()
            was_fresh = process.answered == 1
            try:
                reply = read_reply(await process.ask(message, limits.env_timeout_s))
                if reply.kind != NO_MEMORY:
                    return reply
                cause = f"ran out of memory (rollout.env_memory_mib: {limits.env_memory_mib}); its worker was replaced"
            except TimeoutError:
                self.hung += 1
                try:
                    where = await process.stuck_in()
                finally:  # also where nobody waits for it any more
                    self._replace()
                raise CallFailed(hung(limits.env_timeout_s, where)) from None
            except Ended:
                cause = (
                    f"took its worker down, which {await process.fate()} "
                    f"(rollout.env_memory_mib: {limits.env_memory_mib})"
                )
            except BadMessage as bad:
                cause = f"had its worker killed, which said {bad}"
            except BaseException:
                # Whoever asked is gone, and must not leave the answer to the next one.
                self._replace()
                raise
            self._replace()
            if was_fresh:
                raise CallFailed(cause)

    def close(self) -> None:
        """Kill the process and see that it is gone."""
        self._kill()
        for process in self._killed:
            process.is_gone(CLOSE_S)

    async def _greet(self, process: EnvProcess) -> None:
        limit_s = self._limits.start_timeout_s
        try:
            reply = read_reply(await process.greeting(max(0.0, self._began + limit_s - time.monotonic())))
            if reply.kind != RAISED and isinstance(reply.value, int | None):
                self.target_count = reply.value
                return
            cause = f"making an environment there raised {reply.value}"
        except TimeoutError:
            try:
                where = await process.stuck_in()
            finally:
                self._kill()
            cause = f"it was not up within {limit_s:g} s (rollout.start_timeout_s) and was killed{where}"
        except Ended:
            cause = f"its process {await process.fate()}; the actor's log may say why"
        except BadMessage as bad:
            cause = f"its process said {bad}"
        self._kill()
        raise CallFailed(f"has no worker: {cause}")

    def _replace(self) -> None:
        """Kill the process and start the next one, which comes up meanwhile; who asks it hears why it cannot start."""
        self.replaced += 1
        self._kill()
        with suppress(CallFailed):
            self.start()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._killed.append(self._process)
            self._process = None
            with suppress(RuntimeError):  # no loop runs when a run is closed
                asyncio.get_running_loop().call_later(REAP_S, self._reap)
        self._reap()

    def _reap(self) -> None:
        self._killed = [process for process in self._killed if not process.is_gone()]


def hung(limit_s: float, where: str = "") -> str:
    """What a call came to that took too long. where: as `stuck_in` has it."""
    return f"did not answer within {limit_s:g} s (rollout.env_timeout_s); its worker was killed{where}"
