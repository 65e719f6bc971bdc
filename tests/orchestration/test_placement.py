"""Where processes would come, on paper: packed, by labels, and by how much what does not fit is too large."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.placement import Node, Role, is_labelled, lacking, place, plan_in_words

LEARNERS, ACTORS = Role("learner rank", 2, 1.0, 0.0, together=True), Role("rollout actor", 3, 0.5, 0.0)
GPU_RANKS, GPU_ACTORS = Role("learner rank", 4, 1.0, 1.0, together=True), Role("rollout actor", 4, 1.0, 2.0)


def node(name: str = "a", labels: Mapping[str, str] | None = None, **resources: float) -> Node:
    return Node(name, resources, resources, labels or {})


def words(needed: list[Role], *nodes: Node) -> list[str]:
    return list(plan_in_words(place(needed, nodes)))


# --- the plan --------------------------------------------------------------------------------------------------------


def test_ranks_stay_together_and_nodes_with_gpus_are_spared() -> None:
    assert words([LEARNERS, ACTORS], node("gpus", CPU=8, GPU=8), node("small", CPU=1), node("large", CPU=4)) == [
        "gpus: nothing of this run; left 8 of 8 CPU, 8 of 8 GPU",
        "small: rollout actor 0-1; left 0 of 1 CPU",
        "large: learner rank 0-1, rollout actor 2; left 1.5 of 4 CPU",
    ]


def test_eight_gpus_are_shared_by_ranks_and_engines() -> None:
    actors = Role("rollout actor", 4, 1.0, 1.0)
    assert words([GPU_RANKS, actors], node(CPU=32, GPU=8)) == [
        "a: learner rank 0-3, rollout actor 0-3; left 24 of 32 CPU, 0 of 8 GPU"
    ]


def test_ranks_that_no_node_holds_are_on_as_few_as_can_be() -> None:
    ranks = Role("learner rank", 12, 1.0, 1.0, together=True)
    assert words([ranks], *(node(name, CPU=32, GPU=8) for name in "abc")) == [
        "a: learner rank 0-7; left 24 of 32 CPU, 0 of 8 GPU",
        "b: learner rank 8-11; left 28 of 32 CPU, 4 of 8 GPU",
        "c: nothing of this run; left 32 of 32 CPU, 8 of 8 GPU",
    ]


def test_what_does_not_fit_is_said_and_by_how_much() -> None:
    assert words([GPU_RANKS, GPU_ACTORS], node(CPU=32, GPU=8))[1:] == [
        "no place for 2 of 4 rollout actor: 4 GPU more needed"
    ]
    scattered = words([GPU_ACTORS], *(node(name, CPU=8, GPU=1) for name in "abcdefgh"))
    assert scattered[-1] == (
        "no place for 4 of 4 rollout actor: what is left is on several nodes, or on nodes without its labels; "
        "each needs {'CPU': 1.0, 'GPU': 2.0} on one"
    )
    assert words([LEARNERS]) == ["no place for 2 of 2 learner rank: 2 CPU more needed"]


def test_a_share_of_a_gpu_is_one_gpus() -> None:
    shares = Role("rollout actor", 13, 0.0, 0.6)
    assert lacking([shares], [node(CPU=32, GPU=8)]) == [
        "single nodes have room for 8 of 13 rollout actor, each with {'GPU': 0.6}"
    ]
    halves = Role("rollout actor", 5, 0.0, 0.5)
    assert words([halves], Node("a", {"GPU": 2}, {"GPU": 1.5}))[-1].startswith("no place for 2 of 5 rollout actor")


def test_what_others_hold_is_not_given_twice() -> None:
    busy = Node("a", {"CPU": 8.0, "memory": 1e9, "node:10.0.0.1": 1.0}, {"CPU": 1.0, "memory": 1e9})
    assert (
        words([LEARNERS], busy)
        == [
            "a: nothing of this run; left 1 of 8 CPU",
            "no place for 2 of 2 learner rank: 1 CPU more needed",
        ]
        or words([LEARNERS], busy)[0] == "a: learner rank 0; left 0 of 8 CPU"
    )


def test_labels_and_custom_resources_choose_nodes() -> None:
    actors = Role("rollout actor", 2, 1.0, 0.0, resources={"fast": 1.0}, labels={"zone": "in(b, c)"})
    found = words(
        [actors], node("a", {"zone": "a"}, CPU=8, fast=8), node("b", {"zone": "b"}, CPU=8, fast=1),
        node("c", {"zone": "c"}, CPU=8),
    )  # fmt: skip
    assert found[1] == "b: rollout actor 0; left 7 of 8 CPU, 0 of 1 fast"
    assert found[3].startswith("no place for 1 of 2 rollout actor: ")


@pytest.mark.parametrize(
    ("selector", "value", "expected"),
    [
        ("a", "a", True), ("a", "b", False), ("a", None, False),
        ("!a", "b", True), ("!a", None, True), ("!a", "a", False),
        ("in(a, b)", "b", True), ("in(a,b)", "c", False), ("!in(a, b)", "c", True), ("!in(a, b)", "a", False),
    ],
)  # fmt: skip
def test_selectors_are_rays(selector: str, value: str | None, expected: bool) -> None:
    assert is_labelled({} if value is None else {"zone": value}, {"zone": selector}) is expected


ROLES = st.builds(
    Role, st.sampled_from(["x", "y"]), st.integers(0, 6), st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]), together=st.booleans(), labels=st.sampled_from([{}, {"zone": "a"}]),
)  # fmt: skip
NODES = st.builds(
    lambda cpus, gpus, zone: node("n", {"zone": zone} if zone else {}, CPU=cpus, GPU=gpus),
    st.sampled_from([0.0, 1.0, 2.5, 16.0]), st.sampled_from([0.0, 1.0, 8.0]), st.sampled_from(["", "a"]),
)  # fmt: skip


@given(st.lists(ROLES, max_size=3, unique_by=lambda role: role.name), st.lists(NODES, max_size=5))
def test_nothing_is_given_twice_and_what_fits_is_not_called_impossible(needed: list[Role], nodes: list[Node]) -> None:
    placement = place(needed, nodes)
    for i, one in enumerate(nodes):
        for kind in ("CPU", "GPU"):
            taken = sum(
                len(numbers) * role.bundle.get(kind, 0.0)
                for role in needed for (at, name), numbers in placement.placed.items() if (at, name) == (i, role.name)
            )  # fmt: skip
            assert placement.left[i][kind] == pytest.approx(one.free[kind] - taken)
            assert placement.left[i][kind] >= -1e-6
    for role in needed:
        placed = [n for (_, name), numbers in placement.placed.items() for n in numbers if name == role.name]
        without = sum(count for one, count in placement.without if one is role)
        assert sorted(placed) == list(range(role.count - without))
    if not placement.without:
        assert lacking(needed, nodes) == []


# --- what is in the way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "nodes", "expected"),
    [
        ([LEARNERS, ACTORS], [node(CPU=3.5)], []),
        ([LEARNERS, ACTORS], [node(CPU=2), node(CPU=1.5, memory=9)], []),
        (
            [LEARNERS, ACTORS],
            [node(CPU=2), node(CPU=1)],
            ["3.5 CPU needed (2 learner rank x 1 + 3 rollout actor x 0.5), 3 there"],
        ),
        (
            [LEARNERS, GPU_ACTORS],
            [node(CPU=8)],
            [
                "8 GPU needed (4 rollout actor x 2), 0 there",
                "no single node has {'CPU': 1.0, 'GPU': 2.0} for a rollout actor",
            ],
        ),
        (
            # enough in all, but an actor's two GPUs must be on one node
            [LEARNERS, GPU_ACTORS],
            [node(CPU=8, GPU=1)] * 8,
            ["no single node has {'CPU': 1.0, 'GPU': 2.0} for a rollout actor"],
        ),
        (
            [GPU_ACTORS],
            [node(CPU=8, GPU=3)] * 3,
            ["single nodes have room for 3 of 4 rollout actor, each with {'CPU': 1.0, 'GPU': 2.0}"],
        ),
        ([Role("x", 2, 0.0, 0.0)], [node(CPU=1)], []),
        (
            [LEARNERS],
            [],
            ["2 CPU needed (2 learner rank x 1), 0 there", "no single node has {'CPU': 1.0} for a learner rank"],
        ),
        (
            [Role("x", 1, 1.0, 0.0, labels={"zone": "b"})],
            [node("a", {"zone": "a"}, CPU=8)],
            ["no node has the labels {'zone': 'b'} for a x"],
        ),
        (
            [Role("x", 9, 1.0, 0.0, labels={"zone": "b"})],
            [node("a", {"zone": "a"}, CPU=8), node("b", {"zone": "b"}, CPU=4)],
            ["the nodes with the labels {'zone': 'b'} have room for 4 of 9 x"],
        ),
        (
            [Role("x", 2, 1.0, 0.0, resources={"fast": 1.0})],
            [node(CPU=8, fast=1)],
            [
                "2 fast needed (2 x x 1), 1 there",
                "single nodes have room for 1 of 2 x, each with {'CPU': 1.0, 'fast': 1.0}",
            ],
        ),
    ],
    ids=[
        "fits", "fits on two", "too few", "no gpus", "scattered", "in pieces", "nothing needed", "no nodes", "no label",
        "too few with the label", "custom",
    ],
)  # fmt: skip
def test_what_lacks_in_words(needed: list[Role], nodes: list[Node], expected: list[str]) -> None:
    assert lacking(needed, nodes) == expected
