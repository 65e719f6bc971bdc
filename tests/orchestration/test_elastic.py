"""How many rollout actors there should be, and what is done about it; the processes are scripted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from ray.util.placement_group import PlacementGroup

from configs.schema import RunConfig
from orchestration import elastic, scale
from orchestration.elastic import Elastic, State, read_state
from orchestration.members import Member, Phase
from orchestration.room import Room
from orchestration.run_folder import RunFolder


class Fleet:
    """What `Elastic` asks of a fleet: actors come up at once."""

    def __init__(self, actors: int) -> None:
        self.members = [Member(number, None, phase=Phase.UP) for number in range(actors)]

    def add(self, handle: Any, room: Any) -> Member:
        member = Member(len(self.members), handle, room, phase=Phase.UP)
        self.members.append(member)
        return member

    def dismiss(self, members: list[Member]) -> None:
        for member in members:
            member.phase = Phase.GONE

    def write_off(self, member: Member) -> None:
        member.phase = Phase.GONE

    @property
    def up(self) -> list[Member]:
        return [m for m in self.members if m.phase is Phase.UP]


class Stage:
    """room: for so many more actors."""

    def __init__(self, path: Path, actors: int = 2, room: int = 100, **rollout: Any) -> None:
        self.folder, self.room, self.said = path, room, list[str]()
        self.fleet = Fleet(actors)
        fleet: Any = self.fleet
        config = RunConfig.model_validate({"rollout": {"actors": actors, **rollout}})
        self.asked = False  # for room that was not there
        self.elastic = Elastic(config, path, fleet, self._new, self.said.append, self._enough)

    def _new(self, number: int) -> tuple[Any, Any] | None:
        if not self.room:
            self.asked = True
            return None
        self.room -= 1
        return f"handle {number}", f"room {number}"

    def _enough(self) -> None:
        self.asked = False

    def asks(self) -> bool:
        """Whether it asks for room, after a look."""
        self.look()
        return self.asked

    def wish(self, text: str) -> None:
        (self.folder / "scale.json").write_text(text)

    def look(self) -> State:
        asyncio.run(self.elastic.look())
        state = read_state(self.folder)
        assert state is not None
        return state


def test_as_many_as_the_config_says_are_left_alone(tmp_path: Path) -> None:
    state = Stage(tmp_path).look()
    assert (state.wanted, state.up, state.told) == (2, 2, "")


def test_a_wish_adds_actors_and_takes_the_newest_away(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.wish('{"actors": 4}')
    assert stage.look().phases["up"] == [0, 1, 2, 3]
    assert [(m.handle, str(m.room)) for m in stage.fleet.members[2:]] == [
        ("handle 2", "room 2"), ("handle 3", "room 3")
    ]  # fmt: skip
    stage.wish('{"actors": 1}')
    state = stage.look()
    assert (state.phases["up"], state.phases["gone"]) == ([0], [1, 2, 3])
    stage.wish('{"actors": 2}')
    assert stage.look().phases["up"] == [0, 4]  # numbers do not come again


async def test_the_run_goes_on_while_ray_looks_for_room(tmp_path: Path) -> None:
    stage, goes_on, seen = Stage(tmp_path), Event(), list[bool]()
    stage.wish('{"actors": 3}')
    stage.elastic._new_actor = lambda _: seen.append(goes_on.wait(10))
    looking = asyncio.create_task(stage.elastic.look())
    await asyncio.sleep(0)
    goes_on.set()
    await looking
    assert seen == [True]


def test_what_there_is_no_room_for_is_said_and_tried_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, room=1)
    stage.wish('{"actors": 4}')
    state = stage.look()
    assert (state.up, state.told) == (3, "no room on the cluster for rollout actor 3")
    stage.room = 1
    state = stage.look()
    assert (state.up, state.told) == (4, "")


def test_room_is_no_longer_asked_for_when_the_wish_is_taken_back(tmp_path: Path) -> None:
    stage = Stage(tmp_path, room=1)
    stage.wish('{"actors": 4}')
    assert stage.asks()
    stage.wish('{"actors": 3}')
    assert not stage.asks()
    stage.wish('{"actors": 5}')
    assert stage.asks()
    stage.wish('{"actors": 1}')
    assert not stage.asks()


def test_actors_are_added_as_the_cluster_has_room(tmp_path: Path) -> None:
    stage = Stage(tmp_path, room=1, max_actors=8)
    assert (stage.look().up, stage.look().told) == (3, "")
    stage.room = 10
    assert stage.look().up == 8
    stage.wish('{"actors": 3}')  # what somebody asks for goes before what there is room for
    assert stage.look().up == 3


def test_an_actor_that_was_given_up_is_replaced(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.fleet.members[1].phase = Phase.GONE
    assert stage.look().phases["up"] == [0, 2]


def test_actors_whose_node_is_gone_are_replaced_as_soon_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three that are to come back, one's node is gone; one has no room of its own, which nobody is asked about."""
    stage, rooms = Stage(tmp_path, actors=4, room=0), [Room(PlacementGroup.empty(), i) for i in range(3)]
    monkeypatch.setattr(elastic, "is_lost", lambda room: room in rooms[:2])
    for member, room, phase in zip(
        stage.fleet.members, [*rooms, None], [Phase.UP, Phase.COMING, Phase.COMING, Phase.COMING], strict=True
    ):
        member.room, member.phase = room, phase
    state = stage.look()
    assert (state.phases["up"], state.phases["coming"], state.phases["gone"]) == ([0], [2, 3], [1])
    assert state.told == "no room on the cluster for rollout actor 4"
    stage.room = 1
    assert stage.look().phases["up"] == [0, 4]


@pytest.mark.parametrize("text", ["", "4", '{"actors": 0}', '{"actors": "4"}', '{"actors": 4, "x": 1}', "\0" * 10])
def test_a_wish_that_makes_no_sense_is_said_once_and_not_followed(tmp_path: Path, text: str) -> None:
    stage = Stage(tmp_path)
    stage.wish(text)
    assert stage.look().up == 2
    assert stage.look().up == 2
    assert len(stage.said) == 1
    assert "scale.json" in stage.said[0]


def test_engines_of_the_ranks_stay_as_many_as_they_are(tmp_path: Path) -> None:
    stage = Stage(tmp_path, actors=2)
    halves = {"rollout": {"actors": 2, "gpus_per_actor": 0.5}, "deepspeed": {"ranks": 2, "gpus_per_rank": 0.5}}
    stage.elastic._config = RunConfig.model_validate(halves | {"cluster": {"colocated": True}})
    for actors in (3, 1):
        stage.wish(json.dumps({"actors": actors}))
        assert stage.look().up == 2
    assert len([line for line in stage.said if "(cluster.colocated): it is not followed" in line]) == 2


@pytest.mark.parametrize("backend", ["auto", "gloo"])
def test_engines_on_parts_of_gpus_do_not_become_two_on_one(tmp_path: Path, backend: str) -> None:
    stage = Stage(tmp_path, actors=1)
    part = {"rollout": {"actors": 1, "gpus_per_actor": 0.5}, "deepspeed": {"gpus_per_rank": 1}}
    stage.elastic._config = RunConfig.model_validate(part | {"sync": {"backend": backend}})
    stage.wish('{"actors": 2}')
    assert stage.look().up == 1
    assert "(rollout.gpus_per_actor): it is not followed" in stage.said[0]
    stage.elastic._config = RunConfig.model_validate(part | {"rollout": {"actors": 1, "gpus_per_actor": 1}})
    stage.wish('{"actors": 2} ')
    assert stage.look().up == 2


def test_a_wish_of_the_process_before_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "scale.json").write_text('{"actors": 7}')
    assert Stage(tmp_path).look().up == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"wanted": 1}', "nonsense"])
def test_a_state_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "fleet.json").write_text(text)
    assert read_state(tmp_path) is None


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "says"),
    [("actors", "say actors=N"), ("actors=-1", "say actors=N"), ("ranks=2", "say actors=N"),
     ("actors=0", "between 1 and"), ("actors=1000000", "between 1 and")],
)  # fmt: skip
def test_the_command_refuses_what_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, says: str
) -> None:
    assert scale.main([str(tmp_path), what]) == 2
    assert says in capsys.readouterr().err


def test_the_command_refuses_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main([str(tmp_path / "none"), "actors=2"]) == 2
    assert "is no folder of a run" in capsys.readouterr().err


def test_the_command_refuses_a_run_that_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("run: {}\n")
    assert scale.main([str(tmp_path), "actors=2"]) == 2
    assert "is not running: set rollout.actors" in capsys.readouterr().err
    assert not (tmp_path / "scale.json").exists()


@pytest.mark.parametrize(
    ("of_rank", "cluster", "says"),
    [
        (0.5, "{colocated: true}", "(cluster.colocated): set rollout.actors and deepspeed.ranks"),
        (1, "{}", "actors=2 with rollout.gpus_per_actor (0.5): no two engines can be on one GPU"),
    ],
)
def test_the_command_refuses_a_run_whose_engines_cannot_be_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], of_rank: float, cluster: str, says: str
) -> None:
    parts = f"rollout: {{actors: 1, gpus_per_actor: 0.5}}\ndeepspeed: {{ranks: 1, gpus_per_rank: {of_rank}}}\n"
    (tmp_path / "config.yaml").write_text(f"{parts}cluster: {cluster}\n")
    folder = RunFolder(tmp_path)
    folder.lock()
    try:
        assert scale.main([str(tmp_path), "actors=2"]) == 2
    finally:
        folder.release()
    assert says in capsys.readouterr().err
    assert not (tmp_path / "scale.json").exists()


def test_the_command_waits_until_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's folder is locked, as by a run; it says two actors from the beginning, or never."""
    (tmp_path / "config.yaml").write_text("run: {}\n")
    folder = RunFolder(tmp_path)
    folder.lock()
    try:
        phases = {str(phase): [0, 1] if phase is Phase.UP else [] for phase in Phase}
        (tmp_path / "fleet.json").write_text(json.dumps({"wanted": 2, "phases": phases, "places": {}, "told": ""}))
        assert scale.main([str(tmp_path), "actors=2"]) == 0
        assert json.loads((tmp_path / "scale.json").read_text()) == {"actors": 2}
        assert capsys.readouterr().out == "rollout actors: 2 wanted, 2 up\n"
        assert scale.main([str(tmp_path), "actors=3", "--wait", "0.1"]) == 1
        assert "not done within 0.1 s (--wait)" in capsys.readouterr().err
    finally:
        folder.release()
