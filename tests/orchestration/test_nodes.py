"""Several Ray nodes of different kinds: processes come where labels and resources say, and nodes that come are used."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from configs.schema import RunConfig
from orchestration.cluster import ROOT
from orchestration.room import ClusterError, Room, cluster_nodes, give_back, reserve

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room, a node in zone a, and a fast one in zone b."""
    one = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    try:
        one.add_node(num_cpus=2, labels={"zone": "a"}, object_store_memory=80 << 20)
        one.add_node(num_cpus=4, labels={"zone": "b"}, resources={"fast": 2}, object_store_memory=80 << 20)
        one.connect()
        yield one
    finally:
        ray.shutdown()
        one.shutdown()


def configured(of: Cluster, **groups: dict[str, object]) -> RunConfig:
    address = {"address": of.address, "placement_timeout_s": 20.0}
    return RunConfig.model_validate(groups | {"cluster": address | groups.get("cluster", {})})


def zones(rooms: list[Room]) -> list[str]:
    """Of the nodes they are on."""
    of_node = {node["NodeID"]: node["Labels"].get("zone", "") for node in ray.nodes()}
    return [of_node[placement_group_table(r.group)["bundles_to_node_id"][r.bundle]] for r in rooms]


def test_a_dry_run_looks_at_the_cluster(cluster: Cluster) -> None:
    done = subprocess.run(
        [sys.executable, "orchestration/run.py", "--config", "configs/quickstart.yaml", "--dry-run",
         f"cluster.address={cluster.address}", "rollout.actors=6", "deepspeed.node_labels={zone: a}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line.removeprefix("# ") for line in done.stdout.splitlines() if line.startswith("# ")]
    end = next(i for i, line in enumerate(said) if line.startswith("memory of each"))
    plan = [line.partition(": ")[2] for line in said[end - 4 : end]]
    assert sorted(plan[:3]) == [
        "learner rank 0-1; left 0 of 2 CPU",
        "nothing of this run; left nothing",
        "rollout actor 0-3; left 0 of 4 CPU, 2 of 2 fast",
    ]
    assert plan[3] == "2 CPU more needed"


def test_labels_and_resources_say_where_and_a_node_that_comes_is_used(cluster: Cluster) -> None:
    config = configured(
        cluster,
        rollout={"actors": 2, "node_resources": {"fast": 1}},
        deepspeed={"ranks": 2, "node_labels": {"zone": "!b"}},
    )
    ranks, actors = reserve(config)
    assert zones(ranks) == ["a", "a"]
    assert zones(actors) == ["b", "b"]
    give_back([*ranks, *actors])

    nowhere = {"actors": 1, "node_labels": {"zone": "c"}}
    with pytest.raises(ClusterError, match=r"no node has the labels \{'zone': 'c'\} for a rollout actor"):
        reserve(configured(cluster, rollout=nowhere))

    with ThreadPoolExecutor() as pool:
        asked = pool.submit(reserve, configured(cluster, rollout=nowhere, cluster={"grows": True}))
        time.sleep(3)
        assert not asked.done()
        cluster.add_node(num_cpus=1, labels={"zone": "c"}, object_store_memory=80 << 20)
        _, actors = asked.result(20)
    assert zones(actors) == ["c"]
    assert sorted(node.labels.get("zone", "") for node in cluster_nodes()) == ["", "a", "b", "c"]
