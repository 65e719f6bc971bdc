"""Who gets the learner's weights, and what becomes of those who do not take them."""

from __future__ import annotations

import asyncio

import pytest

from configs.schema import RunConfig
from learner.actors_client import WeightTransferError
from orchestration.fleet import TRIES
from orchestration.learners import LearnerError
from orchestration.members import Phase
from orchestration.start import RolloutError
from tests.orchestration.fleet import KILLED, Ends, eventually, settle, through_ray
from tests.orchestration.fleet import Fleet as Scripted
from tests.orchestration.test_fleet import BROKEN, back, configured, phases, sampling, up

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(monkeypatch)


def no_weights(text: str, *actors: int) -> Exception:
    """As it comes from the learner's rank 0."""
    return through_ray(WeightTransferError(text, actors))


# --- weights ---------------------------------------------------------------------------------------------------------


async def test_a_group_stays_open_as_long_as_its_members_live(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        for _ in range(3):
            await fleet.sync()
        assert scripted.learners.given == [([0, 1], True), ([0, 1], False), ([0, 1], False)]
        await fleet.sync(anew=True)
        assert scripted.learners.given[-1] == ([0, 1], True)
        fleet.lost(1, BROKEN)
        await back(fleet, 1)
        await fleet.sync()
        await fleet.sync()
        assert scripted.learners.given[4:] == [([1], True), ([0, 1], True), ([0, 1], False)]


async def test_all_whose_engines_are_up_are_asked_and_who_fails_is_lost(ends: Ends) -> None:
    scripted = Scripted(actors=3)
    async with up(scripted) as fleet:
        fleet.roster.move(fleet.members[1], Phase.READY)
        scripted.handles[2].errors["sleep"] = [BROKEN]
        pid = scripted.handles[2].pid
        async with scripted.learners.resting:  # as the learner does until its update is done
            await fleet.ask_all("sleep")
            assert [handle.told for handle in scripted.handles[:2]] == [{"sleep": ()}] * 2
            assert any("rollout actor 2 failed in sleep" in line for line in scripted.said)
            assert scripted.handles[2].pid > pid, "it may have kept the GPU's memory"
            await settle()
            assert fleet.members[2].phase is Phase.COMING, "its engine does not start beside an update"
        await eventually(lambda: fleet.members[2].phase is Phase.UP)


async def test_who_is_dismissed_asleep_is_woken_to_finish_its_tickets(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted, RunConfig.model_validate({"cluster": {"colocated": True}})) as fleet:
        await fleet.ask_all("sleep")
        fleet.dismiss([fleet.members[1]])
        await settle()
        assert [set(handle.told) for handle in scripted.handles] == [{"sleep"}, {"sleep", "wake"}]


async def test_a_newcomer_is_told_what_the_others_were_told(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        for model in ("first", "second"):
            await fleet.tell("use_recoverability", model)
        fleet.lost(1, BROKEN)
        await fleet.tell("use_recoverability", "third")
        await back(fleet, 1)
        assert [handle.told for handle in scripted.handles] == [{"use_recoverability": ("third",)}] * 2


async def test_what_the_others_are_told_while_a_newcomer_is_let_in_reaches_it(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        await fleet.tell("use_recoverability", "first")
        newcomer = scripted.handles[1]
        newcomer.mute.add("policy_version")
        fleet.lost(1, BROKEN)
        await eventually(lambda: newcomer.deaths == 1 and newcomer._pending)
        await fleet.tell("use_recoverability", "second")
        newcomer.mute.clear()
        newcomer._pending.pop().set_result(None)
        await back(fleet, 1)
        assert newcomer.told == {"use_recoverability": ("second",)}


async def test_an_actor_with_a_wrong_version_is_not_let_in(ends: Ends) -> None:
    """It answers, but with old weights: it is started once more, and then it has them."""
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        scripted.learners.version = 5
        scripted.handles[0].version = 5
        newcomer, seen = scripted.handles[1], list[Phase]()

        def meanwhile() -> None:
            newcomer.deaf = len(scripted.learners.given) < 2
            seen.append(phases(fleet)[1])

        scripted.learners.meanwhile = meanwhile
        fleet.lost(1, BROKEN)
        await back(fleet, 1)
        assert "rollout actor 1 holds version 0 instead of 5; it is started again" in str(scripted.said)
        assert (seen, newcomer.version) == ([Phase.READY] * 2, 5)
        assert ends.processes == [1, 1]  # once a fault, also where it was ending one already
        assert newcomer.deaths == 2
        assert fleet.members[1].failures == 2


async def test_an_actor_that_never_holds_the_version_is_given_up(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted, configured(max_restarts=2)) as fleet:
        scripted.learners.version = 5
        scripted.handles[1].deaf = True
        fleet.lost(1, BROKEN)
        await eventually(lambda: phases(fleet)[1] is Phase.GONE)
        assert phases(fleet)[0] is Phase.UP
        assert ends.actors == [1]
        assert scripted.said[-1].startswith(
            "warning: rollout actor 1 is given up after 3 failures in a row (rollout.max_restarts), last: "
            "rollout actor 1 holds version 0 instead of 5 ("
        )


async def test_a_broadcast_that_names_culprits_is_repeated_without_them(ends: Ends) -> None:
    scripted = Scripted(actors=3)
    async with up(scripted) as fleet:
        await fleet.sync()
        scripted.learners.version = 4
        scripted.handles[1].absent = True
        scripted.learners.faults = [no_weights("rollout actor 1 failed to take the weights: no memory left", 1)]
        await fleet.sync()
        assert scripted.learners.given[1:] == [([0, 1, 2], False), ([0, 2], True)]
        assert [handle.version for handle in scripted.handles] == [4, 0, 4]
        assert phases(fleet) == [Phase.UP, Phase.COMING, Phase.UP]
        assert "rollout actor 1 failed to take the weights: no memory left; it is started again" in scripted.said[0]
        scripted.handles[1].absent = False
        await back(fleet, 1)
        assert scripted.handles[1].version == 4


async def test_a_broadcast_without_a_culprit_is_tried_a_few_times(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        await fleet.sync()
        scripted.learners.faults = [no_weights("the weight group broke: Connection reset")] * 2
        await fleet.sync()
        assert scripted.learners.given[1:] == [([0, 1], False), ([0, 1], True), ([0, 1], True)]
        scripted.learners.faults = [no_weights("the weight group broke: Connection reset")] * 99
        with pytest.raises(RolloutError, match=f"the weights did not reach the rollout actors in {TRIES + 2} tries"):
            await fleet.sync()
        assert len(scripted.learners.faults) == 99 - TRIES - 2
        assert phases(fleet) == [Phase.UP] * 2  # nobody is blamed


async def test_a_newcomers_broadcast_without_a_culprit_is_tried_a_few_times(ends: Ends) -> None:
    """Nobody else waits for it for ever: the learner's next weights have to come through."""
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        scripted.learners.faults = [no_weights("the weight group could not be opened: Connection reset")] * 300
        fleet.lost(1, BROKEN)
        await eventually(lambda: len(scripted.learners.given) > TRIES)
        for _ in range(100):
            await settle()
        assert len(scripted.learners.given) < 100
        scripted.learners.faults = []
        await asyncio.wait_for(fleet.sync(), 5)


async def test_a_fault_of_the_learner_is_the_learners(ends: Ends) -> None:
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        scripted.learners.faults = [LearnerError("learner rank 1 failed in broadcast: The actor died")]
        with pytest.raises(LearnerError, match="learner rank 1"):
            await fleet.sync()
        assert phases(fleet) == [Phase.UP] * 2


async def test_weights_wait_for_an_actor_where_none_is_up(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted) as fleet:
        scripted.learners.version = 3
        scripted.handles[0].absent = True
        fleet.lost(0, KILLED)
        scripted.handles[0].die()
        waiting = asyncio.create_task(fleet.sync())
        await settle()
        assert not waiting.done()
        scripted.handles[0].absent = False
        assert (await waiting).total_s == 0.0  # it has got them already
        assert (phases(fleet), scripted.handles[0].version) == ([Phase.UP], 3)


async def test_who_dies_while_it_is_given_the_weights_is_named_by_the_broadcast_alone(ends: Ends) -> None:
    """A ticket of it ends at the same time: one fault, one warning."""
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        sampling(fleet, 0, 1)
        await settle()
        scripted.handles[1].absent = True
        scripted.learners.faults = [no_weights("rollout actor 1 failed to take the weights: The actor died", 1)]
        scripted.learners.meanwhile = lambda: scripted.handles[1].die() if scripted.learners.faults else None
        await fleet.sync()
        await settle()
        assert fleet.members[1].failures == 1
        assert len(scripted.said) == 1


@pytest.mark.parametrize("blamed", [False, True])
async def test_who_is_ready_again_during_a_broadcast_is_not_in_it_and_not_to_blame(ends: Ends, blamed: bool) -> None:
    """The process that died was in the group; the one in its place joins the next, and is not ended."""
    scripted = Scripted(actors=2)
    async with up(scripted) as fleet:
        await fleet.sync()

        async def restarted() -> None:
            scripted.handles[1].die()
            fleet.lost(1, KILLED)
            await eventually(lambda: phases(fleet)[1] is Phase.READY)

        scripted.learners.during = [restarted]
        scripted.learners.faults = [no_weights("rollout actor 1 did not join the weight group", 1)] if blamed else []
        await fleet.sync()
        await back(fleet, 1)
        await fleet.sync()
        repeated = [([0, 1], True)] if blamed else []
        await fleet.sync()
        assert scripted.learners.given[2:] == [([1], True), *repeated, ([0, 1], not blamed), ([0, 1], False)]
        assert ends.processes == []
        assert (scripted.handles[1].deaths, fleet.members[1].failures) == (1, 1)
        assert phases(fleet) == [Phase.UP] * 2


async def test_who_is_lost_while_it_is_let_in_leaves_no_open_group(ends: Ends) -> None:
    """Its next process has the life that the one before would have had, and is in no group."""
    scripted = Scripted()
    async with up(scripted) as fleet:
        fleet.lost(0, BROKEN)
        scripted.handles[0].errors["policy_version"] = [BROKEN]
        await back(fleet, life=3)
        await fleet.sync()
        assert scripted.learners.given == [([0], True), ([0], True), ([0], False)]


async def test_a_successor_is_not_let_in_for_who_died_while_it_was_told(ends: Ends) -> None:
    scripted = Scripted()
    async with up(scripted) as fleet:
        await fleet.tell("use_recoverability", "model")
        scripted.handles[0].mute.add("use_recoverability")
        fleet.lost(0, BROKEN)
        await eventually(lambda: len(scripted.learners.given) == 1 and scripted.handles[0]._pending)
        scripted.handles[0].mute.clear()
        scripted.handles[0].die()
        fleet.lost(0, KILLED)
        await back(fleet)
        assert scripted.learners.given == [([0], True), ([0], True)]
        assert scripted.handles[0].told == {"use_recoverability": ("model",)}
