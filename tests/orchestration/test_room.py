"""How room is reserved on a cluster: all of it or none is held for long; Ray's placement groups are scripted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import ray

from configs.schema import RunConfig
from orchestration import room
from orchestration.placement import Node, Role
from orchestration.room import ClusterError, NewRooms, Room, give_back, is_lost, is_placed, reserve

CONFIG = RunConfig.model_validate(
    {"rollout": {"actors": 2}, "deepspeed": {"ranks": 2}, "cluster": {"placement_timeout_s": 30.0}}
)


class Group:
    def __init__(self, bundles: list[dict[str, float]], name: str, labels: list[dict[str, str]] | None) -> None:
        self.id, self.bundles, self.name, self.labels, self.state = object(), bundles, name, labels, "PENDING"


class Cluster:
    """A cluster with `free` CPUs; time passes as it is slept. others_end_at: when four CPUs more become free."""

    def __init__(self, free: float, others_end_at: float | None = None) -> None:
        self.now, self.free, self.others_end_at = 0.0, free, others_end_at
        self.nodes = [Node("a", {"CPU": 8.0}, {})]
        self.groups: list[Group] = []
        self.asked, self.longest_held = 0, 0.0
        self._held_since: float | None = None

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(
        self, bundles: list[dict[str, float]], strategy: str, name: str, bundle_label_selector: Any = None
    ) -> Group:
        assert strategy == "PACK"
        self.asked += 1
        self.groups.append(Group(bundles, name, bundle_label_selector))
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
    monkeypatch.setattr(room, "cluster_nodes", lambda: [replace(n, free={"CPU": cluster.free}) for n in cluster.nodes])
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
    rooms = NewRooms(Role("rollout actor", 2, 1.0, 0.0))
    found = rooms.next()
    assert found is not None
    assert is_placed(found)
    assert rooms.next() is None
    assert cluster.asked == 1
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


# --- clusters that grow and shrink -----------------------------------------------------------------------------------

GROWS = CONFIG.model_copy(update={"cluster": CONFIG.cluster.model_copy(update={"grows": True, "address": "auto"})})


def grow_at(cluster: Cluster, when: float, nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster's nodes are those from then on."""
    cluster.others_end_at = when  # four more CPUs
    monkeypatch.setattr(room, "cluster_nodes", lambda: nodes if cluster.now >= when else cluster.nodes)


def test_a_cluster_that_grows_is_waited_for_and_stays_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free=1))
    cluster.nodes = [Node("head", {"CPU": 1.0}, {})]
    grow_at(cluster, 25.0, [*cluster.nodes, Node("new", {"CPU": 4.0}, {})], monkeypatch)
    reserve(GROWS)
    assert 25.0 <= cluster.now <= 30.0
    assert cluster.asked == 3, "asked once: what is given back is no longer asked for"


def test_one_that_does_not_grow_enough_says_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free=1))
    cluster.nodes = [Node("head", {"CPU": 1.0}, {}), Node("other", {}, {})]
    grow_at(cluster, 1.0, [cluster.nodes[0], Node("new", {"CPU": 2.0}, {})], monkeypatch)
    cluster.others_end_at = None
    with pytest.raises(ClusterError) as caught:
        reserve(GROWS)
    assert str(caught.value).startswith(
        "the cluster is too small for this run within 30 s (cluster.placement_timeout_s), in which 1 node joined and "
        "1 node left: 4 CPU needed (2 learner rank x 1 + 2 rollout actor x 1), 3 there: lower "
    )
    assert cluster.groups == []


def test_one_that_does_not_grow_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free=1))
    cluster.nodes = [Node("head", {"CPU": 1.0}, {})]
    fixed = GROWS.model_copy(update={"cluster": GROWS.cluster.model_copy(update={"grows": False})})
    with pytest.raises(ClusterError, match=r"cannot place this run: 4 CPU needed .*cluster\.grows=true"):
        reserve(fixed)
    assert (cluster.asked, cluster.now) == (0, 0.0)


def test_where_it_grows_room_for_one_more_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free=0, others_end_at=5.0))
    rooms = NewRooms(Role("rollout actor", 2, 1.0, 0.0), grows=True)
    assert [rooms.next(), rooms.next()] == [None, None]
    assert cluster.asked == 1
    cluster.now = 6.0
    found = rooms.next()
    assert found is not None
    assert is_placed(found)
    assert rooms.next() is not None
    assert cluster.asked == 2


def test_room_that_is_asked_for_and_not_needed_any_more_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = scripted(monkeypatch, Cluster(free=0))
    rooms = NewRooms(Role("rollout actor", 2, 1.0, 0.0), grows=True)
    rooms.forget()
    assert rooms.next() is None
    rooms.forget()
    assert cluster.groups == []


def test_labels_are_handed_to_ray_for_each_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.model_validate({
        "rollout": {"actors": 1, "node_labels": {"zone": "!b"}, "node_resources": {"fast": 2}},
        "deepspeed": {"ranks": 2, "node_labels": {"zone": "in(a, b)"}},
    })  # fmt: skip
    cluster = scripted(monkeypatch, Cluster(free=8))
    cluster.nodes = [Node("a", {"CPU": 8.0, "fast": 2.0}, {}, {"zone": "a"})]
    reserve(config)
    assert [group.labels for group in cluster.groups] == [[{"zone": "in(a, b)"}] * 2, [{"zone": "!b"}]]
    assert [group.bundles for group in cluster.groups] == [[{"CPU": 1.0}] * 2, [{"CPU": 1.0, "fast": 2.0}]]
