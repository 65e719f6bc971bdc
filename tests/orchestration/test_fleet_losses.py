"""When an actor is given up, when the run gives up, and that nothing that goes wrong meanwhile is swallowed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.exceptions import ActorDiedError

from orchestration import fleet as fleets
from orchestration import start
from orchestration.cluster import ROOT, kill_process
from orchestration.fleet import Fleet
from orchestration.learners import LearnerError
from orchestration.members import Phase
from orchestration.start import RolloutError
from tests.orchestration.fleet import KILLED, Ends, Handle, eventually, settle
from tests.orchestration.fleet import Fleet as Scripted
from tests.orchestration.test_fleet import BROKEN, back, configured, phases, sampling, ticket, up

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(monkeypatch)


# --- the end of an actor, and of all ---------------------------------------------------------------------------------


async def test_an_actor_that_fails_again_and_again_is_given_up_and_the_others_go_on(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted, configured(max_restarts=2)) as fleet:
        scripted.handles[0].errors["ready"] = [ActorDiedError()] * 99
        fleet.lost(0, KILLED)
        await eventually(lambda: phases(fleet)[0] is Phase.GONE)
        assert ends.actors == [0]
        assert fleet.members[0].failures == 3
        assert scripted.said[-1].startswith(
            "warning: rollout actor 0 is given up after 3 failures in a row (rollout.max_restarts), last: The actor "
            "died unexpectedly before finishing this task. ("
        )
        [call] = sampling(fleet, 0)
        await settle()
        assert scripted.asked[-1][0] == 1
        await scripted.finish(0)
        assert call.result().state == "queued"
        assert (await fleet.sync()).total_s == 1.0
        assert scripted.learners.given == [([1], True)]


async def test_failures_between_which_a_ticket_was_finished_do_not_add_up(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted, configured(max_restarts=1)) as fleet:
        for number in range(4):
            fleet.lost(0, BROKEN)
            await back(fleet, life=number + 2)
            [call] = sampling(fleet, number)
            await settle()
            await scripted.finish(number)
            assert call.result().state == "queued"
        assert ends.actors == []


async def test_with_no_restart_allowed_the_first_fault_is_the_last(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted, configured(max_restarts=0)) as fleet:
        fleet.lost(0, KILLED)
        await settle()
        assert (phases(fleet), ends.actors, scripted.handles[0].deaths) == ([Phase.GONE], [0], 0)


async def test_when_the_last_one_is_given_up_whoever_waits_hears_why(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted, configured(max_restarts=0)) as fleet:
        [call] = sampling(fleet, 0)
        await settle()
        scripted.handles[0].die()
        assert (await call).state == "failed"
        says = "^no rollout actor is left; last: rollout actor 0 failed at ticket 0: The actor died: out of memory$"
        for asked in (fleet.sample(ticket(0)), fleet.sync(), fleet.there()):
            with pytest.raises(RolloutError, match=says):
                await asked


async def test_who_waits_for_an_actor_waits_no_longer_than_a_start_may_take(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster has no room for it, or the machine is gone: there is no process and no error either."""
    monkeypatch.setattr(start, "has_room", lambda _: False)
    scripted = Scripted()
    async with up(scripted, configured(start_timeout_s=0.1)) as fleet:
        scripted.handles[0].absent = True
        fleet.lost(0, KILLED)
        says = (
            r"^no rollout actor was up for 0.1 s \(rollout.start_timeout_s\); last: rollout actor 0 failed at an "
            "evaluation: The actor died: out of memory$"
        )
        for asked in (fleet.sample(ticket(0)), fleet.sync(), fleet.there()):
            with pytest.raises(RolloutError, match=says):
                await asked
        assert phases(fleet) == [Phase.COMING]  # nor is it given up: it is still waited for


async def test_an_actor_whose_processes_end_while_they_start_is_given_up(ends: Ends) -> None:
    """Ray starts one after another and says no more than that the actor is not there."""
    scripted = Scripted(actors=2)
    async with up(scripted, configured(start_timeout_s=0.05, max_restarts=1)) as fleet:
        scripted.handles[0].absent = True
        fleet.lost(0, KILLED)
        await eventually(lambda: phases(fleet) == [Phase.GONE, Phase.UP])
        assert fleet.members[0].cause.startswith("its process was not up within 0.05 s (rollout.start_timeout_s): ")
        assert "it is being started again" in fleet.members[0].cause


async def test_who_waits_for_the_last_actor_waits_for_a_successor_when_it_is_given_up(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "is_placed", lambda _: True)
    scripted = Scripted()
    async with up(scripted, configured(max_restarts=1)) as fleet:
        room: Any = "its room"
        fleet.members[0].room = room
        scripted.handles[0].errors["ready"] = [ActorDiedError()] * 9  # its engine raised: Ray starts it no more
        fleet.lost(0, KILLED)
        await eventually(lambda: phases(fleet) == [Phase.GONE])
        waiting = asyncio.create_task(fleet.sync())
        await settle()
        assert not waiting.done()
        scripted.handles.append(Handle(scripted, 1))
        fleet.add(scripted.handles[1], room)
        await waiting
        await eventually(lambda: phases(fleet) == [Phase.GONE, Phase.UP])


async def test_a_start_that_takes_too_long_is_a_failure_and_ended(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted, configured(start_timeout_s=0.05, max_restarts=1)) as fleet:
        scripted.handles[0].mute.add("ready")
        fleet.lost(0, KILLED)
        await eventually(lambda: phases(fleet)[0] is Phase.GONE)
        assert phases(fleet)[1] is Phase.UP


async def test_who_waits_for_the_last_actor_waits_for_a_successor_when_its_node_is_lost(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted, configured()) as fleet:
        scripted.handles[0].absent = True
        fleet.lost(0, KILLED)
        fleet.write_off(fleet.members[0])
        assert (phases(fleet), ends.actors) == ([Phase.GONE], [0])
        assert scripted.said[-1] == "warning: rollout actor 0 has lost its node (none left)"
        [call] = sampling(fleet, 0)
        await settle()
        assert not call.done()
        scripted.handles.append(Handle(scripted, 1))
        room: Any = None
        fleet.add(scripted.handles[1], room)
        await eventually(lambda: phases(fleet) == [Phase.GONE, Phase.UP])
        await eventually(lambda: 0 in scripted.in_flight)
        await scripted.finish(0)
        assert (await call).state == "queued"


async def test_a_successor_is_waited_for_no_longer_than_a_start_may_take(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted, configured(start_timeout_s=0.1)) as fleet:
        fleet.lost(0, KILLED)
        fleet.write_off(fleet.members[0])
        with pytest.raises(
            RolloutError, match=r"^no rollout actor was up for 0.1 s \(rollout.start_timeout_s\); last: "
        ):
            await fleet.sync()


SITTING = """
import sys, time
from pathlib import Path
from configs.watchdog import Watchdog
dog = Watchdog(Path(sys.argv[1]))
def sitting_there():
    print("up", flush=True)
    time.sleep(60)
sitting_there()
"""


def test_a_process_is_killed_if_it_is_the_one_that_was_meant(tmp_path: Path) -> None:
    """Numbers of processes come again: another one that has it lives. Before its end it tells what it did."""
    stacks = tmp_path / "actor.txt"
    process = subprocess.Popen([sys.executable, "-c", SITTING, str(stacks)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        began = psutil.Process(process.pid).create_time()
        kill_process(process.pid, began - 1.0)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        assert stacks.read_text() == ""
        kill_process(process.pid, began)
        assert process.wait(20) == -signal.SIGKILL
        assert "in sitting_there" in stacks.read_text()
        kill_process(process.pid, began)  # it is gone already
    finally:
        process.kill()
        process.communicate(timeout=20)


# --- what goes wrong in looking after them ---------------------------------------------------------------------------


async def goes_on(fleet: Fleet) -> None:
    """What a run does next: weights, and a ticket, for which there is room."""
    await fleet.sync()
    await asyncio.wait_for(fleet.sample(ticket(0)), 0.05)


async def test_an_error_in_looking_after_an_actor_ends_the_run_also_while_others_have_room(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a slip of the program")

    scripted = Scripted(actors=2)
    async with up(scripted, configured(max_restarts=0)) as fleet:
        monkeypatch.setattr(Fleet, "_give_up", broken)
        fleet.lost(0, KILLED)
        await settle()
        with pytest.raises(KeyError, match="a slip of the program"):
            await goes_on(fleet)


async def test_an_error_in_looking_after_an_actor_is_told_to_who_waits_for_one(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a slip of the program")

    scripted = Scripted()
    async with up(scripted) as fleet:
        monkeypatch.setattr(fleets, "up_again", broken)
        fleet.lost(0, KILLED)
        with pytest.raises(KeyError, match="a slip of the program"):
            await asyncio.wait_for(fleet.sample(ticket(0)), 5)


async def test_a_fault_of_the_learner_while_an_actor_is_let_in_ends_with_that_learner(ends: Ends) -> None:
    """The run hears of it, goes back to a checkpoint with new ranks, and must not hear of the old ones again."""
    scripted = Scripted()
    async with up(scripted) as fleet:
        scripted.learners.faults = [LearnerError("learner rank 1 failed in connect: The actor died")]
        fleet.lost(0, BROKEN)
        with pytest.raises(LearnerError, match="learner rank 1 failed in connect"):
            await asyncio.wait_for(fleet.sample(ticket(0)), 5)
        await fleet.sync(anew=True)
        assert phases(fleet) == [Phase.UP]
        *calls, last = sampling(fleet, *range(5))  # the last has to wait for room
        await settle()
        assert not last.done() or last.exception() is None
        await scripted.finish(0)
        await scripted.finish(1, 2, 3, 4)
        assert [call.result().state for call in (*calls, last)] == ["queued"] * 5
