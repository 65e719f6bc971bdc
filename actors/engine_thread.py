"""The thread that owns a vLLM engine: it steps while there are requests and runs commands between two steps."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput


# Who waits for a command: a thread-safe future told what it returned, or a request's own, told only of a failure.
Caller = Future[Any] | asyncio.Future[Any]
Answer = tuple[asyncio.Future[Any], Any]


class EngineError(RuntimeError):
    """The engine cannot go on; one line that says why."""


@dataclass(frozen=True, slots=True)
class EngineClock:
    """Seconds since the engine was up, spent stepping, and spent paused; tokens sampled.

    prompt_tokens: of all requests, their contexts; cached_tokens: of them, found in the prefix cache.
    """

    up_s: float
    busy_s: float
    paused_s: float
    sampled_tokens: int
    prompt_tokens: int = 0
    cached_tokens: int = 0


class EngineThread:
    """Starts the engine and waits for it, up to `timeout_s`. alive: called before steps (False)

    and commands (True), and when no more of them follow (None).

    Once a step has raised, every waiting and later call raises EngineError. Paused, requests are kept and no step is
    made. Of finished requests: `sampled_tokens`, `prompt_tokens`, and of these `cached_tokens`, found in the prefix
    cache.
    """

    def __init__(
        self, arguments: dict[str, Any], timeout_s: float, alive: Callable[[bool | None], None] = lambda _: None
    ) -> None:
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Caller]] = queue.SimpleQueue()
        self._waiting: dict[str, asyncio.Future[RequestOutput]] = {}
        self._requests, self._alive = 0, alive
        self._paused_at: float | None = None
        self._asleep: tuple[list[str] | None] | None = None  # what it takes to wake it
        self._broken: BaseException | None = None
        self._stopping = False
        self.started, self.busy_s, self.paused_s = time.monotonic(), 0.0, 0.0
        self.sampled_tokens = self.prompt_tokens = self.cached_tokens = 0
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(arguments, ready), name="vllm-step", daemon=True)
        self._thread.start()
        try:
            ready.result(timeout_s)
        except TimeoutError:
            raise EngineError(f"the engine was not up within {timeout_s:g} s (rollout.start_timeout_s)") from None

    async def answer(self, token_ids: list[int], params: SamplingParams) -> RequestOutput:
        """The finished output of one request; given up, it is aborted."""
        self._requests += 1
        request_id, future = f"r{self._requests}", asyncio.get_running_loop().create_future()

        def add() -> None:
            self.engine.add_request(request_id, {"prompt_token_ids": token_ids}, params)
            self._waiting[request_id] = future

        try:
            # Only a failure to add is told: to be woken twice for each request would cost the engine's thread the GIL.
            self._put(add, future)
            output: RequestOutput = await future
            return output
        except asyncio.CancelledError:
            # The caller gave up (time limit, or the run is over): free the engine's slot.
            self._commands.put((lambda: self._abort(request_id), Future()))
            raise

    async def call(self, command: Callable[[], Any]) -> Any:
        """Run a command between two steps; what it returns or raises."""
        done: Future[Any] = Future()
        self._put(command, done)
        return await asyncio.wrap_future(done)

    def _put(self, command: Callable[[], Any], caller: Caller) -> None:
        self._commands.put((command, caller))
        if self._broken is not None:  # looked at behind the put: a thread that has ended runs no more commands
            self._fail(self._broken)

    def pause(self) -> None:
        """For a command."""
        if self._paused_at is None:
            self._paused_at = time.monotonic()

    def resume(self) -> None:
        """For a command."""
        if self._paused_at is not None:
            self.paused_s += time.monotonic() - self._paused_at
            self._paused_at = None

    def sleep(self, *, gives_memory: bool) -> None:
        """For a command: pause, and on GPUs give back their memory."""
        self.pause()
        # In vLLM's words: level 1 moves weights to the host's memory, 0 stops scheduling alone, all there is on CPUs.
        self.engine.sleep(level=int(gives_memory), mode="keep")
        self._asleep = (None if gives_memory else ["scheduling"],)

    def wake(self) -> None:
        """For a command: undo that, and stay paused."""
        if self._asleep is not None:
            self.engine.wake_up(*self._asleep)
            self._asleep = None

    def clock(self) -> EngineClock:
        up_s = time.monotonic() - self.started
        return EngineClock(
            up_s, self.busy_s, self.paused_s, self.sampled_tokens, self.prompt_tokens, self.cached_tokens
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop the thread after the step it is in and free the engine."""
        self._stopping = True
        self._thread.join(timeout_s)
        if not self._thread.is_alive() and hasattr(self, "engine"):
            self.engine.engine_core.shutdown()

    def _run(self, arguments: dict[str, Any], ready: Future[None]) -> None:
        try:
            self.engine = start_engine(arguments)
        except BaseException as error:
            self._broken = error
            ready.set_exception(error)
            return
        self.started = time.monotonic()
        ready.set_result(None)
        try:
            while not self._stopping:
                self._run_commands()
                if not self._idle():
                    self._step()
            self._fail(EngineError("it was closed"))
        except BaseException as error:
            self._fail(error)

    def _idle(self) -> bool:
        return self._paused_at is not None or not self.engine.has_unfinished_requests()

    def _run_commands(self) -> None:
        """Run all commands that are there; an idle engine waits for one, looking up to see whether to stop."""
        wait = self._idle()
        while True:
            self._alive(False)
            try:
                command = self._commands.get(wait, timeout=0.2)
            except queue.Empty:
                return
            self._alive(True)
            _execute(*command)
            wait = False

    def _step(self) -> None:
        began = time.monotonic()
        answers: list[Answer] = []
        for output in self.engine.step():
            future = self._waiting.pop(output.request_id, None) if output.finished else None
            if future is not None:
                self.sampled_tokens += len(output.outputs[0].token_ids)
                self.prompt_tokens += len(output.prompt_token_ids or ())
                self.cached_tokens += output.num_cached_tokens or 0
                answers.append((future, output))
        _tell(answers)
        self.busy_s += time.monotonic() - began

    def _abort(self, request_id: str) -> None:
        if self._waiting.pop(request_id, None) is not None:
            self.engine.abort_request([request_id])

    def _fail(self, error: BaseException) -> None:
        """Nothing more will be run: everybody who waits is told why."""
        self._alive(None)
        self._broken = error
        callers: list[Caller] = list(self._waiting.values())
        self._waiting = {}
        with suppress(queue.Empty):  # the thread and who puts a command behind its end may both be here
            while True:
                callers.append(self._commands.get_nowait()[1])
        cause = EngineError(f"the engine stopped: {error}")
        _tell([(caller, cause) for caller in callers if isinstance(caller, asyncio.Future)])
        for caller in callers:
            if isinstance(caller, Future) and caller.set_running_or_notify_cancel():
                caller.set_exception(cause)


def _execute(command: Callable[[], Any], caller: Caller) -> None:
    """Run a command unless its caller has given up; what it raises is told, what it returns to those of `call` only."""
    if caller.cancelled() if isinstance(caller, asyncio.Future) else not caller.set_running_or_notify_cancel():
        return
    try:
        result = command()
    except BaseException as error:
        if isinstance(caller, asyncio.Future):
            _tell([(caller, error)])
        else:
            caller.set_exception(error)
    else:
        if isinstance(caller, Future):
            caller.set_result(result)


def _tell(answers: list[Answer]) -> None:
    """Hand over answers from the engine's thread, all of a step at one waking of their loop."""
    for loop in {future.get_loop() for future, _ in answers}:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, [answer for answer in answers if answer[0].get_loop() is loop])


def _settle(answers: list[Answer]) -> None:
    for future, answer in answers:
        if future.done():  # given up
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def start_engine(arguments: dict[str, Any]) -> Any:
    """A vLLM engine in this process, holding version 0 of the policy."""
    # Must be set before vllm is imported: it puts the engine core into this process instead of one of its own.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from actors.weight_receiver import register

    register()
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    engine.set_weight_version("0")
    return engine
