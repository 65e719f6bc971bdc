"""Files that cannot run here, as their own linters see them: shell scripts, the Dockerfile, Kubernetes manifests."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from orchestration.cluster import ROOT

BIN = Path(sys.executable).parent
CLUSTER = ROOT / "configs" / "cluster"
SCRIPTS = [*ROOT.glob("configs/cluster/*.sh"), *ROOT.glob("requirements/*.sh"), *ROOT.glob(".ci/*")]
DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")


def said(linter: str, file: Path) -> str:
    return subprocess.run([BIN / linter, file], capture_output=True, text=True, check=False, timeout=60).stdout


def manifests() -> Iterator[dict[str, Any]]:
    """Those of Kubernetes' own kinds, and the pods of the RayJob, whose other keys test_cluster_files.py knows."""
    for document in yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8")):
        if document["kind"] != "RayJob":
            yield document
            continue
        cluster = document["spec"]["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for template in (document["spec"]["submitterPodTemplate"], *(group["template"] for group in groups)):
            metadata = {"name": "one", **template.get("metadata", {})}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def check(manifest: dict[str, Any]) -> None:
    """Raises ValidationError, also for a key that Kubernetes would drop without a word."""
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    assert said("shellcheck", script) == ""


def test_shellcheck_looks(tmp_path: Path) -> None:
    script = tmp_path / "careless.sh"
    script.write_text("#!/bin/bash\nrm -r $1\n")
    assert "SC2086" in said("shellcheck", script)


def test_hadolint_finds_nothing() -> None:
    assert said("hadolint", CLUSTER / "Dockerfile") == ""


def test_hadolint_looks(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(DOCKERFILE + "\nRUN cd /tmp && sudo true\n")
    assert "DL3004" in said("hadolint", file)


def test_kubernetes_knows_every_key() -> None:
    kinds = [manifest["kind"] for manifest in manifests()]
    assert kinds == ["PersistentVolumeClaim", "NetworkPolicy", "Pod", "Pod", "Pod"]
    for manifest in manifests():
        check(manifest)


def test_a_key_kubernetes_does_not_know_is_refused() -> None:
    for manifest in manifests():
        broken = copy.deepcopy(manifest)
        broken["spec"]["sepc"] = {}
        with pytest.raises(kubernetes_validate.ValidationError, match="sepc"):
            check(broken)
