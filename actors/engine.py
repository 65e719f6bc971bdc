"""One in-process vLLM engine: answers to contexts, pauses, and calls into its workers between two steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engine_arguments import engine_arguments
from actors.engine_thread import EngineClock, EngineError, EngineThread
from configs.schema import RunConfig
from configs.watchdog import Watchdog
from envs.trajectory import Floats, Ints

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

__all__ = ["Completion", "Engine", "EngineClock", "EngineError"]


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy answered. All (n,); `ended`: with the end-of-turn token, not cut at the token limit."""

    token_ids: Ints
    behaviour_logprobs: Floats
    policy_versions: Ints
    ended: bool


class Engine:
    """version: of the weights it holds. `start` comes before all else.

    `sample` may be awaited by many coroutines at once; the engine's thread batches what is there at each step.

    A paused engine keeps its requests and does not step. Once a step has raised, every waiting and later call raises
    `EngineError` with the cause. A step that does not end ends the process, by the watchdog.
    """

    def __init__(self, config: RunConfig, policy: str, index: int, eos_id: int, dog: Watchdog | None = None) -> None:
        self._config, self._eos_id, self._watchdog = config, eos_id, dog
        self.version, self.is_started = 0, False
        self._arguments = engine_arguments(config, policy, index)

    def start(self) -> None:
        """Load the policy and wait until all is up. Raises EngineError, and what vLLM raises."""
        self._thread = EngineThread(self._arguments, self._config.rollout.start_timeout_s, self._alive)
        self.is_started = True

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
        return self._completion(await self._thread.answer(context_ids.tolist(), params))

    async def worker_call(self, method: str | Callable[..., Any], **arguments: Any) -> Any:
        """Run a method on the engine's workers between two steps; returns the first worker's answer."""
        return (await self._thread.call(lambda: self._thread.engine.collective_rpc(method, kwargs=arguments)))[0]

    async def pause(self) -> None:
        """Stop stepping; running requests are kept."""
        await self._thread.call(self._thread.pause)

    async def sleep(self) -> None:
        """Pause, and give back a GPU's memory: weights move to the host's, cached KV is dropped and recomputed."""
        await self._thread.call(lambda: self._thread.sleep(gives_memory=self._config.rollout.gpus_per_actor > 0))

    async def wake(self) -> None:
        """Take that memory again. The engine stays paused; one that was awake is as it was."""
        await self._thread.call(self._thread.wake)

    async def resume(self, version: str) -> None:
        """Step again under `version`: running requests recompute their KV, so later tokens belong to it alone."""

        def resume() -> None:
            self._thread.engine.set_weight_version(version)
            # Cached KV is of the old weights. Resetting with running requests preempts and recomputes them; without
            # the flag the reset silently does nothing while requests run.
            if not self._thread.engine.reset_prefix_cache(reset_running_requests=True):
                raise EngineError("the prefix cache could not be reset after a weight update")
            self._thread.resume()
            self.version = int(version)

        await self._thread.call(resume)

    def clock(self) -> EngineClock:
        return self._thread.clock()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop after the step under way and free the engine."""
        self._thread.close(timeout_s)

    def _alive(self, command: bool | None) -> None:
        """A step takes a moment; a command may wait for weights on the wire."""
        if self._watchdog is None:
            return
        if command is None:
            self._watchdog.rest()
        else:
            self._watchdog.feed(self._config.rollout.hang_timeout_s + command * self._config.sync.timeout_s)

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
