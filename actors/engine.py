"""One in-process vLLM engine, owned by one thread; everything else talks to it through commands between two steps."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engine_arguments import engine_arguments
from configs.schema import RunConfig
from envs.trajectory import Floats, Ints

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput


class EngineError(RuntimeError):
    """The engine cannot go on; one line that says why."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy answered. All (n,); `ended`: with the end-of-turn token, not cut at the token limit."""

    token_ids: Ints
    behaviour_logprobs: Floats
    policy_versions: Ints
    ended: bool


@dataclass(frozen=True, slots=True)
class EngineClock:
    """Seconds since the engine was up, spent stepping, and spent paused; tokens sampled."""

    up_s: float
    busy_s: float
    paused_s: float
    sampled_tokens: int


class Engine:
    """`sample` may be awaited by many coroutines at once; the thread batches what is there at each step.

    A paused engine keeps its requests and does not step. Once a step has raised, every waiting and later call raises
    `EngineError` with the cause.
    """

    def __init__(self, config: RunConfig, policy: str, index: int, eos_id: int) -> None:
        self._config, self._eos_id = config, eos_id
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._waiting: dict[str, Future[RequestOutput]] = {}
        self._requests = 0
        self._paused_at: float | None = None
        self._broken: BaseException | None = None
        self._stopping = False
        self._started, self._busy_s, self._paused_s, self._sampled_tokens = time.monotonic(), 0.0, 0.0, 0
        ready: Future[None] = Future()
        arguments = engine_arguments(config, policy, index)
        self._thread = threading.Thread(target=self._run, args=(arguments, ready), name="vllm-step", daemon=True)
        self._thread.start()
        limit_s = config.rollout.start_timeout_s
        try:
            ready.result(limit_s)
        except TimeoutError:
            raise EngineError(f"the engine was not up within {limit_s:g} s (rollout.start_timeout_s)") from None

    async def sample(self, context_ids: Ints, max_tokens: int, seed: int) -> Completion | None:
        """One answer to a context (n,), at the run's temperature; None when the context leaves no room for a token."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        room = self._config.model.max_model_len - len(context_ids)
        if room < 1:
            return None
        params = SamplingParams(
            temperature=self._config.rollout.temperature, top_p=1.0, top_k=0, seed=seed,
            max_tokens=min(max_tokens, room),
            logprobs=0, stop_token_ids=[self._eos_id], detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self._requests += 1
        request_id, future = f"r{self._requests}", Future[Any]()

        def add() -> None:
            self._waiting[request_id] = future
            try:
                self._engine.add_request(request_id, {"prompt_token_ids": context_ids.tolist()}, params)
            except BaseException:
                del self._waiting[request_id]
                raise

        try:
            await self._call(add)
            return self._completion(await asyncio.wrap_future(future))
        except asyncio.CancelledError:
            # The caller gave up (time limit, or the run is over): free the engine's slot.
            self._commands.put((lambda: self._abort(request_id), Future()))
            raise

    async def worker_call(self, method: str | Callable[..., Any], **arguments: Any) -> Any:
        """Run a method on the engine's workers between two steps; returns the first worker's answer."""
        return (await self._call(lambda: self._engine.collective_rpc(method, kwargs=arguments)))[0]

    async def pause(self) -> None:
        """Stop stepping; running requests are kept."""

        def pause() -> None:
            if self._paused_at is None:
                self._paused_at = time.monotonic()

        await self._call(pause)

    async def resume(self, version: str) -> None:
        """Step again under `version`: running requests recompute their KV, so later tokens belong to it alone."""

        def resume() -> None:
            self._engine.set_weight_version(version)
            # Cached KV is of the old weights. Resetting with running requests preempts and recomputes them; without
            # the flag the reset silently does nothing while requests run.
            if not self._engine.reset_prefix_cache(reset_running_requests=True):
                raise EngineError("the prefix cache could not be reset after a weight update")
            if self._paused_at is not None:
                self._paused_s += time.monotonic() - self._paused_at
                self._paused_at = None

        await self._call(resume)

    def clock(self) -> EngineClock:
        return EngineClock(time.monotonic() - self._started, self._busy_s, self._paused_s, self._sampled_tokens)

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop the thread after the step it is in and free the engine."""
        self._stopping = True
        self._thread.join(timeout_s)
        if not self._thread.is_alive() and hasattr(self, "_engine"):
            self._engine.engine_core.shutdown()

    async def _call(self, command: Callable[[], Any]) -> Any:
        done: Future[Any] = Future()
        self._commands.put((command, done))
        if self._broken is not None:  # looked at behind the put: a thread that has ended runs no more commands
            self._fail(self._broken)
        return await asyncio.wrap_future(done)

    def _run(self, arguments: dict[str, Any], ready: Future[None]) -> None:
        try:
            self._engine = start_engine(arguments)
        except BaseException as error:
            self._broken = error
            ready.set_exception(error)
            return
        self._started = time.monotonic()
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
        return self._paused_at is not None or not self._engine.has_unfinished_requests()

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
        for output in self._engine.step():
            future = self._waiting.pop(output.request_id, None) if output.finished else None
            if future is not None:
                self._sampled_tokens += len(output.outputs[0].token_ids)
                if future.set_running_or_notify_cancel():
                    future.set_result(output)
        self._busy_s += time.monotonic() - began

    def _abort(self, request_id: str) -> None:
        if self._waiting.pop(request_id, None) is not None:
            self._engine.abort_request([request_id])

    def _fail(self, error: BaseException) -> None:
        """Nothing more will be run: everybody who waits is told why."""
        self._broken = error
        waiting, self._waiting = list(self._waiting.values()), {}
        while not self._commands.empty():
            waiting.append(self._commands.get()[1])
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineError(f"the engine stopped: {error}"))

    def _completion(self, output: RequestOutput) -> Completion:
        out = output.outputs[0]
        token_ids = np.fromiter(out.token_ids, np.int32, len(out.token_ids))
        logprobs = np.fromiter(
            (step[t].logprob for step, t in zip(out.logprobs or (), out.token_ids, strict=True)), np.float32
        )
        versions = np.full(len(token_ids), -1, np.int32)
        for span in out.weight_versions or ():
            versions[span.start : span.end] = int(span.version)
        if len(versions) and versions.min() < 0:
            raise EngineError(f"the engine did not say under which weights request {output.request_id} was sampled")
        return Completion(token_ids, logprobs, versions, bool(len(token_ids)) and int(token_ids[-1]) == self._eos_id)


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
