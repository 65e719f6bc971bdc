"""The scale benchmark: its load, its messages, its model of a broadcast, and all of it together with few tickets."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from configs.load import ConfigError
from envs.codec import read_header
from envs.trajectory import Ticket
from tests.bench.scale.__main__ import judge, main, ratios_of
from tests.bench.scale.actors import SimulatedActor
from tests.bench.scale.load import Load, load_from
from tests.bench.scale.messages import templates
from tests.bench.scale.weights import Link, depth, flat_s, ring_s, tree_s

LINK = Link(bytes_per_s=1e9, latency_s=1e-3)

# --- the load --------------------------------------------------------------------------------------------------------


def test_what_all_actors_offer_does_not_depend_on_their_number() -> None:
    load = Load()
    for actors in (1, 16, 1024):
        assert actors * load.prompts_in_flight / load.latency_s(actors) == pytest.approx(load.tickets_per_s)


def test_the_learner_keeps_pace_with_what_is_queued() -> None:
    load = Load(tickets=1000, groups_per_update=128, filtered_share=0.2, failed_share=0.05, learner_speed=2.0)
    assert load.updates == 8
    assert load.update_s == pytest.approx(128 / (256.0 * 0.75) / 2)


def test_a_file_is_read_and_overrides_are_put_in_last(tmp_path: Path) -> None:
    path = tmp_path / "load.yaml"
    path.write_text("tickets: 500\ntickets_per_s: 64\n", encoding="utf-8")
    assert load_from(path, ["tickets=600", "hosts=1"]) == Load(tickets=600, tickets_per_s=64.0, hosts=1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tickets=0"], "override tickets=0: tickets: Input should be greater than 0"),
        (["tickets=many"], "override tickets=many: tickets: Input should be a valid integer"),
        (["tokens=3"], "override tokens=3: tokens: no such setting; there are tickets, tickets_per_s"),
        (["tickets_per_s=.nan"], "override tickets_per_s=.nan: tickets_per_s: Input should be"),
        (["latency_sigma=-1"], "override latency_sigma=-1: latency_sigma: Input should be greater than or equal to 0"),
        (["tickets"], "tickets: expected key=value"),
        (["filtered_share=0.6", "failed_share=0.4"], "filtered_share (0.6) and failed_share (0.4) leave no group"),
        (["queue_groups=8"], "queue_groups (8) must be at least groups_per_update (1024)"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_from(None, overrides)
    assert said in str(refused.value)


def test_bad_input_ends_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--load", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--actors", "16,0"])
    assert "--actors: 16,0: give whole numbers from 1 on" in capsys.readouterr().err


# --- messages and actors ---------------------------------------------------------------------------------------------


def test_lengths_are_the_distributions_quantiles() -> None:
    load = Load(tokens_median=200, tokens_sigma=0.5, trajectories=2)
    tokens = [made.receipt.sampled_tokens / 2 for made in templates(load)]
    assert tokens == sorted(tokens)
    assert np.median(tokens) == pytest.approx(200, rel=0.05)
    assert np.std(np.log(tokens)) == pytest.approx(0.5, rel=0.1)
    assert fmean(made.share for made in templates(load)) == pytest.approx(1.0)


def test_a_message_has_the_header_of_its_ticket() -> None:
    made = templates(Load(tokens_median=50))[3]
    for index, attempt, version in ((0, 0, 0), (10**9, 2, 70_000)):
        header = read_header(made.stamped(Ticket(index, "frozen_lake", 7, attempt), version))
        assert (header.index, header.attempt, header.oldest_version) == (index, attempt, version)
        assert (header.sampled_tokens, header.trajectories) == (made.receipt.sampled_tokens, 8)
        assert header.has_signal


class Box:
    """An outbox that keeps what is put into it."""

    def __init__(self) -> None:
        self.put_in: list[bytes] = []

    async def put(self, data: bytes, era: int) -> str:
        self.put_in.append(data)
        return "queue"


async def test_an_actors_tickets_fare_as_the_load_says() -> None:
    load = Load(filtered_share=0.3, failed_share=0.2, tokens_median=10)
    box: Any = Box()
    actor = SimulatedActor(load, 0.0, templates(load), box)
    actor.version = 5
    receipts = [await actor.sample(Ticket(i, "frozen_lake", i), 0) for i in range(1000)]
    states = [receipt.state for receipt in receipts]
    assert states.count("failed") / 1000 == pytest.approx(0.2, abs=0.04)
    assert states.count("filtered") / 1000 == pytest.approx(0.3, abs=0.04)
    queued = [receipt.ticket.index for receipt in receipts if receipt.state == "queued"]
    assert [read_header(data).index for data in box.put_in] == queued
    assert {read_header(data).oldest_version for data in box.put_in} == {5}
    assert actor.clock().sampled_tokens == sum(receipt.sampled_tokens for receipt in receipts)


async def test_an_actor_is_idle_without_a_ticket() -> None:
    load, box = Load(latency_sigma=0.0, tokens_sigma=0.0), Box()
    actor = SimulatedActor(load, 0.05, templates(load), box)  # type: ignore[arg-type]
    assert actor.clock().busy_s == 0
    await actor.sample(Ticket(0, "frozen_lake", 0), 0)
    assert 0.05 <= actor.clock().busy_s <= actor.clock().up_s


# --- the model of a broadcast ----------------------------------------------------------------------------------------


def simulated_s(children: Sequence[Sequence[int]], buckets: int, step_s: float) -> float:
    """Every sender sends bucket by bucket, to its children in turn, each bucket as soon as it has it; 0 is the root."""
    has = {0: [0.0] * buckets}
    for sender in range(len(children)):  # those nearer to the root come first
        free_s = 0.0
        for bucket in range(buckets):
            for child in children[sender]:
                free_s = max(free_s, has[sender][bucket]) + step_s
                has.setdefault(child, []).append(free_s)
    return max(times[-1] for times in has.values())


def binary(engines: int) -> list[list[int]]:
    return [[c for c in (2 * i + 1, 2 * i + 2) if c <= engines] for i in range(engines + 1)]


@pytest.mark.parametrize("engines", [1, 2, 5, 6, 16, 30, 100, 1022])
@pytest.mark.parametrize("buckets", [1, 2, 17])
def test_the_closed_forms_are_what_a_simulation_says(engines: int, buckets: int) -> None:
    bucket_bytes = 10**6
    given = buckets * bucket_bytes, engines, LINK, bucket_bytes
    step_s = LINK.latency_s + bucket_bytes / LINK.bytes_per_s
    star = [list(range(1, engines + 1)), *[[] for _ in range(engines)]]
    chain = [[i + 1] if i < engines else [] for i in range(engines + 1)]
    assert flat_s(*given) == pytest.approx(simulated_s(star, buckets, step_s))
    assert ring_s(*given) == pytest.approx(simulated_s(chain, buckets, step_s))
    tree = simulated_s(binary(engines), buckets, step_s)
    assert tree <= tree_s(*given) * (1 + 1e-9)
    full = math.log2(engines + 2).is_integer()
    assert tree == pytest.approx(tree_s(*given), abs=1e-9 if full else 2 * depth(engines) * step_s)


def test_with_many_buckets_a_ring_takes_as_long_as_the_wire_and_a_tree_twice() -> None:
    link, weights = Link(1e9, 0.0), 10**9
    assert ring_s(weights, 16, link, 10**4) == pytest.approx(1.0, rel=1e-3)
    assert tree_s(weights, 1024, link, 10**4) == pytest.approx(2.0, rel=1e-3)
    assert flat_s(weights, 16, link, 10**4) == pytest.approx(16.0)


def test_with_few_buckets_and_many_engines_a_tree_beats_a_ring() -> None:
    given = 10**7, 1024, LINK, 10**6
    assert tree_s(*given) < ring_s(*given) < flat_s(*given)


@pytest.mark.parametrize(
    ("given", "said"),
    [((0, 1, 1), "weight_bytes is 0"), ((1, 0, 1), "engines is 0"), ((1, 1, 0), "bucket_bytes is 0")],
)
def test_a_broadcast_of_nothing_is_refused(given: tuple[int, int, int], said: str) -> None:
    weight_bytes, engines, bucket_bytes = given
    for seconds in (flat_s, ring_s, tree_s):
        with pytest.raises(ValueError, match=said):
            seconds(weight_bytes, engines, LINK, bucket_bytes)


@pytest.mark.parametrize(("bytes_per_s", "latency_s"), [(0.0, 0.0), (1.0, -1.0), (math.nan, 0.0)])
def test_a_link_that_carries_nothing_is_refused(bytes_per_s: float, latency_s: float) -> None:
    with pytest.raises(ValueError, match="carries nothing"):
        Link(bytes_per_s, latency_s)


# --- the goal --------------------------------------------------------------------------------------------------------


def costs(driver: float, queue: float) -> dict[str, float]:
    return {"cost_us": driver + queue, "driver_us_per_ticket": driver, "queue_us_per_ticket": queue}


def test_the_goal_is_about_driver_and_queue_together(capsys: pytest.CaptureFixture[str]) -> None:
    few, flat, steep = costs(1000, 1000), costs(2000, 1000), costs(2500, 1000)
    assert ratios_of({"16": few}) == ratios_of({"1024": few}) == {}
    assert ratios_of({"16": few, "1024": flat}) == costs(2.0, 1.0) | {"cost_us": 1.5}
    assert (judge({"16": few, "1024": flat}), judge({"16": few, "1024": steep}), judge({"16": few})) == (0, 1, 0)
    assert "1024 actors over 16: 1.75, goal at most 1.5 (driver 2.50, queue 1.00)" in capsys.readouterr().out


# --- all of it -------------------------------------------------------------------------------------------------------

SMALL = (
    "tickets=320", "groups_per_update=32", "queue_groups=48", "tokens_median=100", "tickets_per_s=200",
    "max_policy_lag=1", "hosts=1", "queue_mib=32",
)  # fmt: skip


@pytest.mark.real
@pytest.mark.slow
def test_every_ticket_ends_once_with_one_actor_and_with_sixteen(tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    assert main(["--actors", "1,16", "--json", str(path), *SMALL]) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert list(figures["points"]) == ["1", "16"]
    assert figures["ratios"] == {}  # there is no point of 1,024
    assert figures["broadcast_model"]["seconds"]["7B to 16"]["flat"] > 16 * 14e9 / 12.5e9
    for point in figures["points"].values():
        assert point["ledger_balanced"]
        ended = [point[state] for state in ("trained", "filtered", "stale", "failed", "cancelled")]
        assert sum(ended) == point["issued"]
        assert (point["updates"], sum(point["lags"].values())) == (10, point["trained"])
        assert 0 < point["trained"] <= 320
        assert 0 < point["queue_groups_max"] <= 48
        positive = (
            "wall_s", "tickets_per_s", "queue_mb_per_s", "driver_us_per_ticket", "driver_loop_us_per_ticket",
            "queue_us_per_ticket", "queue_loop_us_per_ticket", "queue_mib_max", "queue_rss_mib", "driver_rss_mib",
            "cost_us",
        )  # fmt: skip
        assert all(point[name] > 0 for name in positive)
        assert point["driver_loop_us_per_ticket"] <= point["driver_us_per_ticket"]
        assert point["queue_loop_us_per_ticket"] <= point["queue_us_per_ticket"]
        assert all(0 <= point[name] <= 1 for name in ("actor_idle_share", "learner_idle_share", "queue_cpu_share"))
