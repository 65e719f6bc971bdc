"""configs/cluster/: what KubeRay, Ray's launcher and the image are told fits together, and fits the project."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestration.run import _parser
from requirements.lock import read_lock

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "configs" / "cluster"
GPU_CONFIGS = {"single_24gb", "single_80gb", "single_141gb", "8_gpus", "4x8_gpus", "16x8_gpus"}
DOCKERFILE = re.sub(r"\\\n", " ", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"))
INSTRUCTIONS = re.findall(r"^([A-Z]+) +(.+)$", DOCKERFILE, re.MULTILINE)

# Of the API reference of KubeRay 1.6 (ray.io/v1): its fields, and which of them must be there.
JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
CLUSTER_FIELDS = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs",
}  # fmt: skip
HEAD_NEEDS, WORKER_NEEDS = {"rayStartParams", "template"}, {"groupName", "minReplicas", "maxReplicas", "template"}
HEAD_FIELDS = HEAD_NEEDS | {"enableIngress", "headService", "labels", "resources", "serviceType"}
WORKER_FIELDS = WORKER_NEEDS | {
    "idleTimeoutSeconds", "labels", "numOfHosts", "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend"
}  # fmt: skip


def documents() -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text(encoding="utf-8")))
    return {document["kind"]: document for document in found}


def job() -> dict[str, Any]:
    spec: dict[str, Any] = documents()["RayJob"]["spec"]
    return spec


def groups() -> Iterator[dict[str, Any]]:
    """The head's and the workers'."""
    cluster = job()["rayClusterSpec"]
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def pods() -> dict[str, dict[str, Any]]:
    """Template by the name of its one container."""
    templates = [job()["submitterPodTemplate"], *(group["template"] for group in groups())]
    return {template["spec"]["containers"][0]["name"]: template for template in templates}


def launcher() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8"))
    return config


def options_of_ray_start() -> set[str]:
    from ray.scripts.scripts import start

    return {option for parameter in start.params for option in parameter.opts}


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024, "Ti": 1 << 20}[quantity[-2:]]


def locked() -> dict[str, str]:
    """Of the CUDA lock, by name: `name==version`."""
    return read_lock(ROOT / "requirements" / "cuda.txt")[1]


def check_call(words: list[str]) -> None:
    """`python orchestration/run.py ...` is one that the program takes, with a config that there is."""
    assert words[:2] == ["python", "orchestration/run.py"]
    arguments = _parser().parse_args(words[2:])
    assert arguments.config is not None
    assert arguments.config.parent == Path("configs/gpu")
    assert arguments.config.stem in GPU_CONFIGS
    if (ROOT / "configs" / "gpu").is_dir():
        assert (ROOT / arguments.config).is_file()


# --- KubeRay ---


def test_the_manifest_has_fields_that_kuberay_knows() -> None:
    manifest = documents()["RayJob"]
    assert manifest["apiVersion"] == "ray.io/v1"
    assert set(manifest["spec"]) <= JOB_FIELDS
    cluster = job()["rayClusterSpec"]
    assert set(cluster) <= CLUSTER_FIELDS
    assert HEAD_NEEDS <= set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert WORKER_NEEDS <= set(group) <= WORKER_FIELDS
        assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert cluster["rayVersion"] == locked()["ray"].split("==")[-1]
    # The operator asks the dashboard too: it has the token only from its own setting.
    assert cluster["authOptions"] == {"mode": "token"}
    names = [entry["name"] for pod in pods().values() for entry in pod["spec"]["containers"][0].get("env", [])]
    assert not any(name.startswith("RAY_AUTH") for name in names)


def test_ray_starts_with_arguments_that_it_has_and_the_head_without_work() -> None:
    for group in groups():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert {f"--{name}" for name in group["rayStartParams"]} <= options_of_ray_start()
    head = job()["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_the_job_s_call_and_its_folders_are_there() -> None:
    check_call(shlex.split(job()["entrypoint"]))
    environment = yaml.safe_load(job()["runtimeEnvYAML"])
    # What the submitter uploads lies in its image; HTTPMode has no submitter.
    assert environment["working_dir"] == dict(INSTRUCTIONS)["WORKDIR"]
    assert job()["submissionMode"] == "K8sJobMode"
    roots = [
        word.removeprefix("run.root=") for word in shlex.split(job()["entrypoint"]) if word.startswith("run.root=")
    ]
    for name in ("ray-head", "ray-worker"):
        mounts = pods()[name]["spec"]["containers"][0]["volumeMounts"]
        assert any(Path(roots[0]).is_relative_to(mount["mountPath"]) for mount in mounts)


def test_every_mount_has_its_volume_and_the_shared_one_can_be_shared() -> None:
    claim = documents()["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups():
        spec = group["template"]["spec"]
        container, volumes = spec["containers"][0], {volume["name"]: volume for volume in spec["volumes"]}
        assert [mount["name"] for mount in container["volumeMounts"]] == list(volumes)
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        shm = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}["shm"]
        assert shm == "/dev/shm"
        memory = volumes["shm"]["emptyDir"]
        assert memory["medium"] == "Memory"
        # Ray's store lies in it, and it is part of the pod's memory.
        store = int(group["rayStartParams"]["object-store-memory"]) >> 20
        assert store < mebibytes(memory["sizeLimit"]) < mebibytes(container["resources"]["limits"]["memory"])


def test_pods_may_do_little_and_are_of_one_image() -> None:
    user = dict(INSTRUCTIONS)["USER"].split(":")
    for template in pods().values():
        spec, container = template["spec"], template["spec"]["containers"][0]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert [str(spec["securityContext"][key]) for key in ("runAsUser", "runAsGroup")] == user
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not any(key in spec for key in ("hostNetwork", "hostPID", "hostIPC"))
        names = [entry["name"] for entry in container.get("env", [])]
        assert len(names) == len(set(names))
    assert len({template["spec"]["containers"][0]["image"] for template in pods().values()}) == 1


def test_the_network_is_closed_to_all_others_but_not_to_the_pods_themselves() -> None:
    policy = documents()["NetworkPolicy"]["spec"]
    ours = policy["podSelector"]["matchLabels"].items()
    assert all(ours <= template["metadata"]["labels"].items() for template in pods().values())
    within, operator = policy["ingress"]
    assert within == {"from": [{"podSelector": policy["podSelector"]}]}
    ports = {port["name"]: port["containerPort"] for port in pods()["ray-head"]["spec"]["containers"][0]["ports"]}
    assert ports["gcs-server"] == 6379
    assert [port["port"] for port in operator["ports"]] == [ports["dashboard"]]


def test_a_job_that_is_stopped_has_time_for_a_checkpoint() -> None:
    head = pods()["ray-head"]["spec"]["containers"][0]
    waits = {entry["name"]: entry.get("value") for entry in head["env"]}["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(str(waits)) > 120
    assert any(f"RAY_JOB_STOP_WAIT_TIME_S={waits} " in command for command in launcher()["head_start_ray_commands"])


# --- Ray's launcher ---


def test_the_launcher_s_file_is_valid_to_ray_itself() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(launcher()))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"provider": {"region": "us-west-2"}}, jsonschema.ValidationError),
        ({"min_workers": 2}, jsonschema.ValidationError),
        ({"max_workers": 1}, ValueError),
        ({"head_node_type": "none"}, ValueError),
    ],
)
def test_ray_s_check_looks_at_what_it_is_given(change: dict[str, Any], error: type[Exception]) -> None:
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(error):
        validate_config({**launcher(), **change})


def test_the_launcher_brings_project_token_and_lock() -> None:
    config = launcher()
    mounts = config["file_mounts"]
    assert mounts["~/sesa-on-ray"] == "."
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    setup = [command for command in config["setup_commands"] if "setup.sh" in command]
    assert setup == ["cd ~/sesa-on-ray && FLAVOUR=cuda bash requirements/setup.sh"]
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    # It is added to the lock's environment without what it asks for: that is in the lock.
    added = config["head_setup_commands"][0]
    assert "--no-deps" in added
    assert {"jmespath", "urllib3", "python-dateutil"} <= set(locked())
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    workers = config["available_node_types"]["gpus"]
    assert 0 < workers["min_workers"] <= workers["max_workers"] <= config["max_workers"]


def test_every_shared_folder_is_made_for_the_user() -> None:
    """The root of a new EFS can be written to by root alone."""
    config = launcher()
    user = config["auth"]["ssh_user"]
    text = (CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8")
    commands = [command for key, value in config.items() if key.endswith("commands") for command in value]
    [made] = re.findall(rf"&& sudo install -d -o {user} -g {user} ((?:/shared/\w+ ?)+)$", "\n".join(commands), re.M)
    assert set(made.split()) == set(re.findall(r"/shared/\w+", text))
    [run_root] = re.findall(r"run\.root=(/shared/\w+)", job()["entrypoint"])
    assert {"/shared/huggingface", run_root} <= set(made.split())


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_the_launcher_starts_ray_with_the_token_and_arguments_it_has(key: str) -> None:
    command = launcher()[key][-1]
    before, arguments = command.split("ray start ")
    assert "RAY_AUTH_MODE=token " in before
    assert {word.split("=")[0] for word in arguments.split()} <= options_of_ray_start()
    assert "dashboard-host=0.0.0.0" not in arguments


def test_the_launcher_s_commands_are_bash() -> None:
    config = launcher()
    for command in (word for key, value in config.items() if key.endswith("commands") for word in value):
        subprocess.run(["bash", "-n", "-c", command], check=True)


# --- the image ---


def copied() -> list[str]:
    return [source for name, words in INSTRUCTIONS if name == "COPY" for source in words.split()[:-1]]


def test_all_that_is_copied_is_there() -> None:
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    packages = {"actors", "configs", "envs", "learner", "orchestration"}
    assert packages <= set(copied())


def test_the_image_has_all_that_set_up_reads() -> None:
    script = (ROOT / "requirements" / "setup.sh").read_text(encoding="utf-8")
    named = set(re.findall(r"requirements/[$\w-]+\.txt", script))
    files = {name.replace("$flavour", flavour) for name in named for flavour in ("cpu", "cuda")}
    assert "requirements/cuda.txt" in files
    assert files | {"requirements/setup.sh"} <= set(copied())
    assert [words for name, words in INSTRUCTIONS if name == "ARG"][1] == "FLAVOUR=cuda"
    assert "FLAVOUR=${FLAVOUR} " in DOCKERFILE


def test_the_image_s_user_is_none_that_may_do_all() -> None:
    assert INSTRUCTIONS[-2] == ("USER", "1000:1000")
    assert "PIP_NO_CACHE_DIR=1" in DOCKERFILE
    assert "rm -rf /var/lib/apt/lists/*" in DOCKERFILE


def test_the_builder_gets_what_is_copied_and_nothing_else() -> None:
    lines = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    let_in = [pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")]
    assert [source for source in copied() if not any(fnmatch(source, pattern) for pattern in let_in)] == []
    assert [pattern for pattern in let_in if not any(fnmatch(source, pattern) for source in copied())] == []


def test_what_is_to_be_set_is_said() -> None:
    text = (CLUSTER / "ray-cluster.yaml").read_text(encoding="utf-8")
    head, rest = text.split("cluster_name:")
    assert all(name in head for name in re.findall(r"\w+-CHANGE-ME", rest))
