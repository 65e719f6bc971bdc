"""Signs of life of the replay queue, which are scripted."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError, RayError

from actors.place import Place
from orchestration import answers, pulse
from orchestration.pulse import queue_lives

HERE = Place("127.0.0.1", "a node", 4711, 1000.5)


class Looked:
    """What `queue_lives` did to a queue whose signs of life are `signs`, one after another; then none is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *signs: Place | RayError | None) -> None:
        self.killed: list[tuple[int, float]] = []
        self.said: list[str] = []
        self._signs, self._all = iter(signs), asyncio.Event()
        monkeypatch.setattr(pulse, "kill_process", lambda *process: self.killed.append(process))
        monkeypatch.setattr(answers, "MOMENT_S", 0.01)
        monkeypatch.setattr(pulse, "AGAIN_S", 0.01)

    async def go(self) -> None:
        handle = SimpleNamespace(__ray_call__=SimpleNamespace(remote=self._sign))
        looking = asyncio.create_task(queue_lives(handle, 0.04, self.said.append))
        await asyncio.wait_for(self._all.wait(), 10)
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    async def _sign(self, _: object) -> Place:
        sign = next(self._signs, "end")
        if sign == "end":
            self._all.set()
        if isinstance(sign, RayError):
            raise sign
        if not isinstance(sign, Place):
            await asyncio.Event().wait()
        return HERE


async def test_a_queue_that_gives_no_sign_of_life_is_ended_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Looked(monkeypatch, HERE, HERE, None, None, None)
    await looked.go()
    assert looked.killed == [(HERE.pid, HERE.began)]
    assert looked.said == [
        "warning: the replay queue gave no sign of life for 0.06 s (1.5 x rollout.hang_timeout_s); it is started again"
    ]


async def test_a_queue_that_comes_up_is_given_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    died = RayActorError(error_msg="The actor died: out of memory")
    looked = Looked(monkeypatch, None, None, HERE, died, None, None)
    await looked.go()
    assert (looked.killed, looked.said) == ([], [])


async def test_the_queue_that_hangs_after_another_one_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Looked(monkeypatch, HERE, None, HERE, None)
    await looked.go()
    assert looked.killed == [(HERE.pid, HERE.began)] * 2


@pytest.mark.parametrize("fault", [None, RayActorError(error_msg="The actor died: out of memory")])
async def test_a_queue_that_answers_again_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, fault: RayActorError | None
) -> None:
    starting = RayActorError(error_msg="The actor is being started")
    looked = Looked(monkeypatch, HERE, fault, starting, starting, HERE, HERE)
    await looked.go()
    assert [line for line in looked.said if "warning" not in line] == [
        "the replay queue answers again, 0 s after its fault"
    ]
