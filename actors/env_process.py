"""One environment worker's process, seen from the actor: started, asked one thing at a time, killed.

Nothing here waits for the process but with a time limit, and nothing of its state is believed: an answer is a message
of bounded length that was asked for, and everything else ends the process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from actors.stuck import stuck_in
from envs.worker_messages import PREFIX, TELL, BadMessage, length_of

ROOT = Path(__file__).resolve().parents[1]
WORKER = "envs.worker"
READ_BYTES = 65536
# An ended process closes its socket shortly before it can be waited for.
FATE_CHECKS, FATE_CHECK_S = 100, 0.01
# How long one that is stuck has to say where, and how long a pause means that it has.
TELL_CHECKS, TELL_CHECK_S = 20, 0.01
# The cores and GPUs are the engine's: one thread is enough for an environment. The hash seed is fixed, so that an
# episode that goes on in another worker goes through sets in the same order.
DEFAULTS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
FORCED = {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}


class Ended(RuntimeError):
    """The process closed its connection."""


class EnvProcess:
    """`answered`: how often it has said what it was asked for; the greeting is the first time."""

    def __init__(self, greeting: bytes, memory_mib: int) -> None:
        """Starts it and waits for nothing. To be called by a thread that lives as long as the actor: with it the system
        takes the process. Raises OSError.
        """
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", WORKER, str(os.getpid()), str(memory_mib)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=DEFAULTS | _inherited() | FORCED | {"PYTHONPATH": path},
                    close_fds=True,
                    start_new_session=True,  # what it starts itself can be killed with it
                )
            except BaseException:
                self._socket.close()
                raise
        self.answered = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._inbox = bytearray()
        self._unsent, self._writing = memoryview(greeting), False
        self._fault: Exception | None = None
        self._write()

    @property
    def process_id(self) -> int:
        return self._child.pid

    @property
    def usable(self) -> bool:
        """Whether it can be asked, as far as is known: since the last time it may have ended or spoken out of turn."""
        if self._loop is not None and self._fault is None:
            self._read()
        return self._fault is None

    async def ask(self, message: bytes, limit_s: float) -> bytes:
        """The answer to a message. Raises what `greeting` does."""
        self._unsent = memoryview(message)
        return await self._reply(limit_s)

    async def greeting(self, limit_s: float) -> bytes:
        """What it says first. Raises TimeoutError, Ended, or BadMessage where it says what nobody may."""
        return await self._reply(limit_s)

    async def fate(self) -> str:
        """What became of a process that closed its connection; to be asked before it is killed."""
        for _ in range(FATE_CHECKS):
            try:
                # It stays waitable: until then its number is its own.
                ended = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return "ended"
            if ended is not None:
                return _fate(ended)
            await asyncio.sleep(FATE_CHECK_S)
        return "closed its connection to the actor"

    async def stuck_in(self) -> str:
        """Where one that gave no answer is, as `stuck_in` puts it; it is of no use any more, and to be killed."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self._child.pid, TELL)
        written = b""
        for _ in range(TELL_CHECKS):
            await asyncio.sleep(TELL_CHECK_S)
            try:
                part = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                part = b""
            except OSError:
                break
            written += part
            if written and not part:
                break
        return stuck_in(written)

    def kill(self) -> None:
        """Kill it and all it has started, and wait for none of them."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._loop = None
        self._socket.close()
        if self._child.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)

    def is_gone(self, timeout_s: float = 0.0) -> bool:
        """Whether a killed process has left the system's table."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout_s)
        return self._child.returncode is not None

    async def _reply(self, limit_s: float) -> bytes:
        loop = asyncio.get_running_loop()
        self._answer = answer = loop.create_future()
        # Not a timeout around the await: an answer that is there counts, however late the loop comes to look for it.
        timer = loop.call_later(limit_s, _expire, answer)
        if self._loop is None:
            self._loop = loop
            loop.add_reader(self._socket, self._read)
        self._write()
        self._hand_over()
        try:
            message = await answer
        finally:
            timer.cancel()
            self._answer = None
        self.answered += 1
        return message

    def _write(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            if self._loop is not None and not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket, self._write)
            return
        except OSError:  # its end, which reading tells
            self._unsent = memoryview(b"")
        if self._loop is not None and self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            part = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self._inbox += part
        self._hand_over(ended=not part)

    def _hand_over(self, ended: bool = False) -> None:
        try:
            self._take(ended)
        except (Ended, BadMessage) as fault:
            self._fault = fault
            if self._loop is not None:
                self._loop.remove_reader(self._socket)
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(fault)

    def _take(self, ended: bool) -> None:
        """Hand over the answer once it is whole. Raises Ended, BadMessage."""
        if ended:
            raise Ended
        if len(self._inbox) < PREFIX.size:
            return
        end = PREFIX.size + length_of(self._inbox)
        waiting = None if self._answer is None or self._answer.done() else self._answer
        # The greeting alone may come before it is asked for: whoever waited for it may have given up.
        if len(self._inbox) > end or (waiting is None and self.answered):
            raise BadMessage("what nobody had asked for")
        if waiting is not None and len(self._inbox) == end:
            message = bytes(self._inbox[PREFIX.size :])
            self._inbox.clear()
            waiting.set_result(message)


def _expire(answer: asyncio.Future[bytes]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


def _fate(ended: os.waitid_result) -> str:
    if ended.si_code == os.CLD_EXITED:
        return f"ended itself with exit code {ended.si_status}"
    try:
        return f"died of {signal.Signals(ended.si_status).name}"
    except ValueError:  # a signal without a name
        return f"died of signal {ended.si_status}"


def _inherited() -> dict[str, str]:
    """Of the actor's environment: not the engine's allocator, which gives nothing back that it once had."""
    return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MALLOC_CONF")}
