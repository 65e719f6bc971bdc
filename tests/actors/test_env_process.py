"""One worker process: what it has of the actor's, and that it ends with the actor and takes its own with it."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from actors.env_process import ROOT, Ended, EnvProcess
from envs.worker_messages import DONE, Call, Reply, call_bytes, message_bytes, read_reply
from tests.actors.hostile import Hostile

GREETING = message_bytes(pickle.dumps((sys.path, pickle.dumps(Hostile))))
# Says its worker's number, and asks something that takes for ever.
ACTOR = """
import asyncio, sys
from actors.env_workers import EnvWorkers
from actors.remote_env import RemoteEnv
from configs.schema import RolloutSettings
from tests.actors.hostile import Hostile

async def main():
    workers = EnvWorkers(Hostile, RolloutSettings())
    env = RemoteEnv("hostile", workers)
    await env.begin(0)
    print(*workers.process_ids, flush=True)
    await env.step(sys.argv[1])

asyncio.run(main())
"""


@pytest.fixture
def process() -> Iterator[EnvProcess]:
    process = EnvProcess(GREETING, 256)
    yield process
    process.kill()
    assert process.is_gone(10.0)


def until(found: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not found() and time.monotonic() < deadline:
        time.sleep(0.05)
    return found()


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def begin(process: EnvProcess) -> Reply:
    await process.greeting(60.0)
    return read_reply(await process.ask(call_bytes(Call("begin", 0, b"", (3,))), 60.0))


async def step(process: EnvProcess, state: bytes, answer: str, limit_s: float = 60.0) -> Reply:
    return read_reply(await process.ask(call_bytes(Call("step", 0, state, (answer,))), limit_s))


async def test_a_worker_has_nothing_of_the_actors_but_its_channel() -> None:
    with open(os.devnull) as inherited:
        os.set_inheritable(inherited.fileno(), True)
        one = EnvProcess(GREETING, 64)
    try:
        reply = await step(one, (await begin(one)).state, "what")
    finally:
        one.kill()
        assert one.is_gone(10.0)
    heavy, gpus, files = reply.value[1].split(" ", 2)
    assert (heavy, gpus) == ("[]", "''")
    assert len(files.split(",")) <= 5  # 0, 1, 2, the channel, and the folder that is being read


def test_the_modules_of_a_worker_are_few_until_an_environment_asks_for_more() -> None:
    heavy = ("torch", "transformers", "vllm", "ray", "deepspeed", "numpy", "gymnasium", "pydantic")
    program = f"import sys, envs.worker; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("answer", ["hold 600", "sleep 600", "linger"])
def test_a_worker_ends_with_its_actor_whatever_it_is_doing(answer: str, tmp_path: Path) -> None:
    pid_file = tmp_path / "child"
    asked = f"linger {pid_file}" if answer == "linger" else answer
    actor = subprocess.Popen([sys.executable, "-c", ACTOR, asked], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert actor.stdout is not None
    worker = int(actor.stdout.readline())
    try:
        assert not is_gone(worker)
        assert answer != "linger" or until(pid_file.exists)
    finally:
        actor.kill()
        actor.wait(10)
        actor.stdout.close()
    assert until(lambda: is_gone(worker))
    if answer == "linger":
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


async def test_a_worker_that_hangs_says_where_once(process: EnvProcess) -> None:
    state = (await begin(process)).state
    with pytest.raises(TimeoutError):
        await step(process, state, "hold 600", limit_s=0.5)
    assert re.fullmatch(r" in _hold \(hostile.py:\d+\) < step \(hostile.py:\d+\)", await process.stuck_in())


@pytest.mark.parametrize("silence", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_worker_that_cannot_say_where_it_is_costs_a_moment(
    process: EnvProcess, silence: signal.Signals
) -> None:
    await begin(process)
    os.kill(process.process_id, silence)
    began = time.monotonic()
    assert await process.stuck_in() == ""
    assert time.monotonic() - began < 5


async def test_killing_a_worker_kills_what_it_has_started(process: EnvProcess, tmp_path: Path) -> None:
    pid_file = tmp_path / "child"
    state = (await begin(process)).state
    with pytest.raises(TimeoutError):
        await step(process, state, f"linger {pid_file}", limit_s=2.0)
    child = int(pid_file.read_text())
    assert not is_gone(child)
    process.kill()
    assert until(lambda: is_gone(child))


async def test_a_worker_whose_channel_is_closed_ends_itself(process: EnvProcess) -> None:
    await begin(process)
    process._loop.remove_reader(process._socket)  # type: ignore[union-attr]
    process._loop = None
    process._socket.close()
    assert until(lambda: is_gone(process.process_id))


async def test_answers_come_however_late_the_loop_looks_for_them(process: EnvProcess) -> None:
    """A loop that was busy beyond the limit finds answer and expiry at once: the answer counts."""
    state = (await begin(process)).state
    asked = asyncio.create_task(step(process, state, "a", limit_s=0.5))
    await asyncio.sleep(0)
    time.sleep(2.0)
    assert (await asked).kind == DONE


async def test_the_greeting_waits_for_whoever_asks_for_it(process: EnvProcess) -> None:
    first = asyncio.create_task(process.greeting(60.0))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(2.0)
    assert process.usable
    assert read_reply(await process.greeting(60.0)) == Reply(DONE, 7)


async def test_the_end_of_a_process_is_told_once_it_is_asked(process: EnvProcess) -> None:
    state = (await begin(process)).state
    with pytest.raises(Ended):
        await step(process, state, "exit 5")
    assert await process.fate() == "ended itself with exit code 5"
    assert not process.usable


async def test_a_process_that_only_closes_its_channel_is_told_from_one_that_ended(process: EnvProcess) -> None:
    state = (await begin(process)).state
    with pytest.raises(Ended):
        await step(process, state, "close")
    assert await process.fate() == "closed its connection to the actor"


async def test_large_messages_arrive_whole_both_ways(process: EnvProcess) -> None:
    state = (await begin(process)).state
    answer = "x" * 4_000_000
    reply = await step(process, state, answer)
    assert reply.value[4] == answer
    assert pickle.loads(reply.state) == (3, answer)
