"""How a rollout actor comes to the learner's weights, and leaves its GPU to the learner."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from actors.engine import Engine
from actors.held_time import HeldTime
from actors.received import Received


class TakesWeights:
    """The calls of the learner. Tickets wait meanwhile, and their time limits stand still.

    After an error the engine stays paused; a later update that comes whole sets it going.
    """

    _engine: Engine
    _held_time: HeldTime

    async def policy_version(self) -> int:
        """Of the weights the engine holds."""
        return self._engine.version

    async def init_weight_transfer_engine(self, init_info: Any) -> None:
        """Join the learner's weight group, leaving the one before; `init_info` is the transfer backend's."""
        with self._held_time.held():
            await self._engine.wake()  # an update that was broken off is ended, which writes to the engine's weights
            await self._engine.worker_call("leave_weight_group")
            await self._engine.worker_call("init_weight_transfer_engine", init_info=init_info)

    async def update_weights(self, update_info: Any, version: int) -> Received:
        """Take what the learner sends and go on sampling as `version`. After an error the engine stays paused."""
        began = time.monotonic()
        self._held_time.hold()
        try:
            await self._pause()
            paused = time.monotonic()
            received: Received = await self._engine.worker_call("take_weights", update_info=update_info)
        finally:
            self._held_time.release()
        loaded = time.monotonic()
        await self._engine.resume(str(version))
        pause_s, load_s = paused - began, time.monotonic() - loaded
        return replace(received, pause_s=received.pause_s + pause_s, load_s=received.load_s + load_s)

    async def begin_weights(self) -> float:
        """Get ready for weights that come in parts: `take_part` for each, then `end_weights`. Seconds it took."""
        began = time.monotonic()
        self._held_time.hold()
        await self._pause()
        await self._engine.worker_call("begin_weights")
        return time.monotonic() - began

    async def take_part(self, update_info: Any) -> float:
        """Take a part of the learner's weights. Seconds it took."""
        began = time.monotonic()
        await self._engine.worker_call("take_part", update_info=update_info)
        return time.monotonic() - began

    async def end_weights(self, version: int) -> float:
        """All have come: go on sampling as `version`. Seconds it took."""
        began = time.monotonic()
        await self._engine.worker_call("finish_weight_update")
        await self._engine.resume(str(version))
        self._held_time.release()
        return time.monotonic() - began

    async def sleep(self) -> None:
        """Leave the GPU to the learner, until weights come or `wake` is called (cluster.colocated). Tickets wait."""
        self._held_time.hold()
        await self._engine.sleep()

    async def wake(self) -> None:
        """Go on with the weights from before `sleep`."""
        await self._engine.wake()
        await self._engine.resume(str(self._engine.version))
        self._held_time.release()

    async def _pause(self) -> None:
        """Stop sampling, awake: weights need their memory."""
        await self._engine.pause()
        await self._engine.wake()
