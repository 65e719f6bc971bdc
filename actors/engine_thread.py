"""The thread that owns a vLLM engine: it steps while there are requests and runs commands between two steps."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput


class EngineError(RuntimeError):
    """The engine cannot go on; one line that says why."""


class EngineThread:
    """Starts the engine and waits for it, up to `timeout_s`.

    Once a step has raised, every waiting and later call raises EngineError. Paused, requests are kept and no step is
    made. `sampled_tokens`: of finished requests.
    """

    def __init__(self, arguments: dict[str, Any], timeout_s: float) -> None:
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._waiting: dict[str, Future[RequestOutput]] = {}
        self._requests = 0
        self._paused_at: float | None = None
        self._broken: BaseException | None = None
        self._stopping = False
        self.started, self.busy_s, self.paused_s, self.sampled_tokens = time.monotonic(), 0.0, 0.0, 0
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
        request_id, future = f"r{self._requests}", Future[Any]()

        def add() -> None:
            self._waiting[request_id] = future
            try:
                self.engine.add_request(request_id, {"prompt_token_ids": token_ids}, params)
            except BaseException:
                del self._waiting[request_id]
                raise

        try:
            await self.call(add)
            output: RequestOutput = await asyncio.wrap_future(future)
            return output
        except asyncio.CancelledError:
            # The caller gave up (time limit, or the run is over): free the engine's slot.
            self._commands.put((lambda: self._abort(request_id), Future()))
            raise

    async def call(self, command: Callable[[], Any]) -> Any:
        """Run a command between two steps; what it returns or raises."""
        done: Future[Any] = Future()
        self._commands.put((command, done))
        if self._broken is not None:  # looked at behind the put: a thread that has ended runs no more commands
            self._fail(self._broken)
        return await asyncio.wrap_future(done)

    def pause(self) -> None:
        """For a command."""
        if self._paused_at is None:
            self._paused_at = time.monotonic()

    def resume(self) -> None:
        """For a command."""
        if self._paused_at is not None:
            self.paused_s += time.monotonic() - self._paused_at
            self._paused_at = None

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
        try:
            if self._idle():
                _execute(*self._commands.get(timeout=0.2))
            while True:
                _execute(*self._commands.get_nowait())
        except queue.Empty:
            return

    def _step(self) -> None:
        began = time.monotonic()
        for output in self.engine.step():
            future = self._waiting.pop(output.request_id, None) if output.finished else None
            if future is not None:
                self.sampled_tokens += len(output.outputs[0].token_ids)
                if future.set_running_or_notify_cancel():
                    future.set_result(output)
        self.busy_s += time.monotonic() - began

    def _abort(self, request_id: str) -> None:
        if self._waiting.pop(request_id, None) is not None:
            self.engine.abort_request([request_id])

    def _fail(self, error: BaseException) -> None:
        """Nothing more will be run: everybody who waits is told why."""
        self._broken = error
        waiting, self._waiting = list(self._waiting.values()), {}
        while not self._commands.empty():
            waiting.append(self._commands.get()[1])
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineError(f"the engine stopped: {error}"))


def _execute(command: Callable[[], Any], done: Future[Any]) -> None:
    """Run a command unless its caller has given up, and hand over what it returns or raises."""
    if not done.set_running_or_notify_cancel():
        return
    try:
        result = command()
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(result)


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
