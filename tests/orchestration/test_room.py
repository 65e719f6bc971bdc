"""How room is reserved on a cluster: all of it or none is held for long; Ray's placement groups are scripted."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from configs.schema import RunConfig
from orchestration import room
from orchestration.room import ClusterError, Role, Room, give_back, is_lost, is_placed, reserve, reserve_one

CONFIG = RunConfig.model_validate(
    {"rollout": {"actors": 2}, "deepspeed": {"ranks": 2}, "cluster": {"placement_timeout_s": 30.0}}
)


class Group:
    def __init__(self, bundles: list[dict[str, float]], strategy: str, name: str = "") -> None:
        self.id, self.bundles, self.name, self.state = object(), bundles, name, "PENDING"


class Cluster:
    """A cluster with `free` CPUs; time passes as it is slept. others_end_at: when four CPUs more become free."""

    def __init__(self, free: float, others_end_at: float | None = None) -> None:
        self.now, self.free, self.others_end_at = 0.0, free, others_end_at
        self.groups: list[Group] = []
        self.asked, self.longest_held = 0, 0.0
        self._held_since: float | None = None

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, bundles: list[dict[str, float]], strategy: str, name: str = "") -> Group:
        self.asked += 1
        self.groups.append(Group(bundles, strategy, name))
        return self.groups[-1]

    def table(self, group: Group) -> dict[str, str]:
        if self.others_end_at is not None and self.now >= self.others_end_at:
            self.free, self.others_end_at = self.free + 4, None
        size = sum(bundle["CPU"] for bundle in group.bundles)
        if group.state == "PENDING" and size <= self.free:
            self.free -= size
            group.state = "CREATED"
        states = {g.state for g in self.groups}
        held = states == {"CREATED", "PENDING"}
        self._held_since = (self.now if self._held_since is None else self._held_since) if held else None
        if self._held_since is not None:
            self.longest_held = max(self.longest_held, self.now - self._held_since)
        return {"state": group.state}

    def remove(self, group: Group) -> None:
        self.groups.remove(group)
        self._held_since = None
        if group.state == "CREATED":
            self.free += sum(bundle["CPU"] for bundle in group.bundles)


def scripted(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Cluster:
    monkeypatch.setattr(room, "placement_group", cluster.ask)
    monkeypatch.setattr(room, "placement_group_table", cluster.table)
    monkeypatch.setattr(room, "remove_placement_group", cluster.remove)
    monkeypatch.setattr(room, "time", cluster_clock(cluster))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": cluster.free})
    return cluster


def cluster_clock(cluster: Cluster) -> Any:
    class Clock:
        sleep = staticmethod(cluster.sleep)

        @staticmethod
        def monotonic() -> float:
            return cluster.now

    return Clock


def test_ranks_share_a_group_and_every_actor_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free=4))
    ranks, actors = reserve(CONFIG)
    assert [r.bundle for r in ranks] == [0, 1]
    assert ranks[0].group is ranks[1].group
    assert len({id(r.group) for r in (*ranks, *actors)}) == 3
    assert [len(group.bundles) for group in cluster.groups] == [2, 1, 1]
    assert cluster.now == 0.0


def test_a_part_is_given_back_while_the_rest_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three CPUs are free, so a part is placed at once; the others' four become free after 25 s."""
    cluster = scripted(monkeypatch, Cluster(free=3, others_end_at=25.0))
    reserve(CONFIG)
    assert 25.0 <= cluster.now <= 30.0
    assert cluster.longest_held <= room.HOLD_S + 1.0
    assert [group.state for group in cluster.groups] == ["CREATED"] * 3


def test_what_holds_nothing_keeps_its_place_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free=0, others_end_at=25.0))
    reserve(CONFIG)
    assert cluster.asked == 3  # once each


@pytest.mark.parametrize("free", [0, 3])
def test_too_little_room_is_said_in_time_and_nothing_is_kept(free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free))
    with pytest.raises(ClusterError, match=rf"no room within 30 s .*free now: {{'CPU': {free}(\.0)?}}"):
        reserve(CONFIG)
    assert (cluster.groups, cluster.free) == ([], free)
    assert cluster.now <= 30.0 + room.LOOK_S + room.AGAIN_S[1]


def test_room_for_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free=1))
    found = reserve_one(Role("rollout actor", 2, 1.0, 0.0))
    assert found is not None
    assert is_placed(found)
    assert reserve_one(Role("rollout actor", 2, 1.0, 0.0)) is None
    assert not is_lost(found)
    cluster.groups[0].state = "RESCHEDULING"  # its node is gone
    assert is_lost(found)
    assert not is_placed(found)


def test_a_group_of_several_rooms_is_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free=4))
    ranks, actors = reserve(CONFIG)
    give_back([*ranks, actors[0]])
    assert cluster.groups == [actors[1].group]
    give_back(list[Room]())
    assert len(cluster.groups) == 1
