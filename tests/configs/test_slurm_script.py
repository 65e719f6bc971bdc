"""configs/cluster/slurm.sh with programs that stand for those of Slurm and Ray: order, limits, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "configs" / "cluster" / "slurm.sh"
NODES = ["n1", "n2", "n3"]
RUN = ["--config", "configs/gpu/4x8_gpus.yaml", "run.root=/shared/runs"]

FAKES = {
    "scontrol": """echo "scontrol $*" >>"$CALLS"; printf '%s\\n' n1 n2 n3""",
    "srun": """
echo "srun $*" >>"$CALLS"
for argument in "$@"; do
    case $argument in --nodelist=*) export NODE=${argument#*=} ;; --*) ;; *) break ;; esac
    shift
done
exec "$@" """,
    # As the real one: what the steps run is told, and not the script.
    "scancel": """echo "scancel $*" >>"$CALLS"; kill $(cat "$STATE"/pid-*) 2>/dev/null""",
    "python": """
case "$*" in *get_node_ip_address*) echo 10.0.0.1; exit ;; esac
exec "$REAL_PYTHON" "$@" """,
    "ray": """
echo "ray $*" >>"$CALLS"
case $1:$2 in
start:*)
    [[ $NODE != "${DIES:-}" ]] || { echo "no luck on $NODE" >&2; exit 1; }
    trap 'echo "ended $NODE" >>"$CALLS"; rm "$STATE/pid-$NODE"; exit 1' TERM
    echo $$ >"$STATE/pid-$NODE" # before its line: who has read that may end it
    echo "token $NODE $RAY_AUTH_MODE $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $(wc -c <"$RAY_AUTH_TOKEN_PATH")" >>"$CALLS"
    [[ $NODE == "${LATE:-}" ]] || touch "$STATE/node-$NODE"
    while true; do sleep 0.05; done
    ;;
list:nodes)
    [[ -f $STATE/node-n1 ]] || exit 1
    there=("$STATE"/node-*)
    printf '[%s]' "$(printf ',{}%.0s' "${there[@]}" | cut -c2-)"
    ;;
job:submit)
    [[ -z ${REFUSES:-} ]] || { echo "too large" >&2; exit 1; }
    echo RUNNING >"$STATE/job"
    [[ -z ${DEAF:-} ]] || exit 1 # its connection breaks, the job goes on
    until [[ -f $STATE/stop || -f $STATE/over ]]; do sleep 0.05; done
    if [[ -f $STATE/stop ]]; then
        sleep 0.3; echo checkpoint >>"$CALLS"; echo STOPPED >"$STATE/job"
    else
        cat "$STATE/over" >"$STATE/job"
    fi
    ;;
job:logs)
    until [[ -f $STATE/over ]]; do [[ -f $STATE/pid-n1 ]] || exit 1; sleep 0.05; done
    cat "$STATE/over" >"$STATE/job"
    ;;
job:stop) touch "$STATE/stop" ;;
job:status)
    [[ -f $STATE/job ]] || { echo "RuntimeError: Job sesa-7 does not exist"; exit 1; }
    case $(cat "$STATE/job") in
    SUCCEEDED) echo "Job 'sesa-7' succeeded" ;;
    FAILED) echo "Job 'sesa-7' failed" ;;
    STOPPED) echo "Job 'sesa-7' was stopped" ;;
    *) echo "Status for job 'sesa-7': $(cat "$STATE/job")" ;;
    esac
    ;;
esac""",
}
# Stands for the run's own check of its settings.
RUN_PY = """
import sys
if "wrong=1" in sys.argv:
    sys.exit("error: wrong: no such key")
root = next((a.removeprefix("run.root=") for a in sys.argv if a.startswith("run.root=")), "runs")
print(f"run:\\n  name: null\\n  root: {root}")
"""


class Job:
    """A project's folder, and the script in it as Slurm starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.calls_file = folder, folder / "state", folder / "calls"
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        self.state.mkdir()
        (folder / "home").mkdir()
        (folder / "orchestration").mkdir()
        (folder / "orchestration" / "run.py").write_text(RUN_PY)
        (programs / "activate").write_text(f'PATH={programs}:"$PATH"\n')
        for name, text in FAKES.items():
            (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (programs / name).chmod(0o755)
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder / "home"), "CALLS": str(self.calls_file),
            "STATE": str(self.state), "REAL_PYTHON": sys.executable, "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_SUBMIT_DIR": str(folder), "LOOK_S": "0.1", "JOIN_S": "60",
            "END_S": "20",
        }  # fmt: skip

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        self.calls_file.write_text("")
        return subprocess.Popen(
            ["bash", SCRIPT, *arguments], env=self.environment | variables, cwd="/", text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Its exit status and what it said."""
        return self.end_of(self.start(*arguments, **variables))

    def end_of(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            said, _ = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert list(self.state.glob("pid-*")) == [], "Ray was left behind"
        assert list((self.folder / "home").rglob("*.token")) == []
        return process.returncode, said

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    def until(self, beginning: str) -> None:
        """Wait until this was called."""
        deadline = time.monotonic() + 60
        while not any(call.startswith(beginning) for call in self.calls):
            assert time.monotonic() < deadline, f"nobody called {beginning}"
            time.sleep(0.02)

    def ends_as(self, outcome: str) -> None:
        """How the fake job ends; it may be said before it begins."""
        (self.state / "over").write_text(outcome)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_head_then_workers_then_the_run_then_the_end(job: Job) -> None:
    job.ends_as("SUCCEEDED")
    status, said = job.run(*RUN, RAY_NODE_ARGS="--num-cpus=64 --num-gpus=8")
    assert status == 0, said
    assert "3 nodes have joined" in said
    calls = [call for call in job.calls if not call.startswith(("ray list", "ray job status"))]
    starts = [call for call in calls if call.startswith("ray start")]
    step = "srun --nodes=1 --ntasks=1 --nodelist={} --cpu-bind=none "
    assert calls[0] == "scontrol show hostnames n[1-3]"
    assert calls[1].startswith(f"{step.format('n1')}python -c ")
    assert "get_node_ip_address" in calls[1]
    # The workers come up side by side.
    assert calls[2:4] == [step.format("n1") + starts[0], starts[0]]
    assert {call for call in calls[4:] if call.startswith("srun")} == {
        step.format(node) + starts[1] for node in ("n2", "n3")
    }
    own = "--block --disable-usage-stats --temp-dir=/tmp/ray-7"
    more = "--num-cpus=64 --num-gpus=8"
    assert starts == [
        f"ray start {own} --head --node-ip-address=10.0.0.1 --port=6379 --dashboard-host=127.0.0.1 "
        f"--dashboard-port=8265 {more}",
        *[f"ray start {own} --address=10.0.0.1:6379 {more}"] * 2,
    ]
    submit = (
        "ray job submit --address http://127.0.0.1:8265 --submission-id sesa-7 --working-dir . -- "
        f"python orchestration/run.py {' '.join(RUN)}"
    )
    # Every node has the token before the run is there, and Ray is told to end after it.
    assert {call for call in calls[: calls.index(submit)] if call.startswith("token")} == {
        f"token {node} token 600 64" for node in NODES
    }
    assert calls[calls.index(submit) + 1] == "scancel --signal=TERM 7"
    assert sorted(calls[-3:]) == [f"ended {node}" for node in NODES]


def test_workers_are_started_when_the_head_answers(job: Job) -> None:
    job.ends_as("SUCCEEDED")
    process = job.start(*RUN, LATE="n1")
    job.until("ray list")
    time.sleep(0.5)
    assert sum(call.startswith("ray start") for call in job.calls) == 1
    (job.state / "node-n1").touch()
    assert job.end_of(process)[0] == 0


def test_a_token_of_ones_own_is_left_where_it_is(job: Job) -> None:
    mine = job.folder / "mine"
    mine.write_text("x" * 64)
    mine.chmod(0o600)
    job.ends_as("SUCCEEDED")
    assert job.run(*RUN, RAY_AUTH_TOKEN_PATH=str(mine))[0] == 0
    assert mine.is_file()


@pytest.mark.parametrize(
    ("late", "who", "there"), [("n3", "the workers", "2 of 3"), ("n1", "the head on n1", "0 of 1")]
)
def test_a_node_that_does_not_join_ends_it_in_time(job: Job, late: str, who: str, there: str) -> None:
    status, said = job.run(*RUN, LATE=late, JOIN_S="5")
    assert status == 1
    assert f"slurm.sh: {who}: {there} nodes joined within 5 s (JOIN_S)" in said
    assert not any(call.startswith("ray job submit") for call in job.calls)


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_ray_that_ends_while_it_is_waited_for_is_said_at_once(job: Job, node: str) -> None:
    began = time.monotonic()
    status, said = job.run(*RUN, DIES=node)
    assert status == 1
    assert f"no luck on {node}" in said
    assert "slurm.sh: Ray has ended on a node while waiting for " in said
    assert time.monotonic() - began < 30


def test_a_failed_run_is_a_failed_job(job: Job) -> None:
    job.ends_as("FAILED")
    status, said = job.run(*RUN)
    assert status == 1
    assert said.splitlines()[-1] == "slurm.sh: the run failed: its last line above says why"


def test_before_the_time_limit_the_run_is_asked_to_end_and_waited_for(job: Job) -> None:
    process = job.start(*RUN)
    job.until("ray job submit")
    process.send_signal(signal.SIGTERM)
    status, said = job.end_of(process)
    assert status == 130, said
    assert "told to end: the run finishes its update and keeps a checkpoint, 540 s at most (STOP_S)" in said
    assert "sbatch configs/cluster/slurm.sh --resume /WHOLE/PATH/OF/ITS/FOLDER" in said
    calls = job.calls
    stopped = calls.index("ray job stop --no-wait --address http://127.0.0.1:8265 sesa-7")
    assert stopped < calls.index("checkpoint") < calls.index("scancel --signal=TERM 7")


def test_told_to_end_before_the_run_began(job: Job) -> None:
    process = job.start(*RUN, LATE="n2")
    job.until("token n3")
    process.send_signal(signal.SIGTERM)
    status, said = job.end_of(process)
    assert status == 130
    assert "told to end before the run began" in said
    assert not any(call.startswith("ray job") for call in job.calls)


def test_a_broken_connection_to_the_run_is_no_end_of_it(job: Job) -> None:
    process = job.start(*RUN, DEAF="yes")
    job.until("ray job logs --follow")
    job.ends_as("SUCCEEDED")
    assert job.end_of(process)[0] == 0


def test_a_head_that_ends_takes_the_run_with_it(job: Job) -> None:
    process = job.start(*RUN, DEAF="yes")
    job.until("ray job logs --follow")
    os.kill(int((job.state / "pid-n1").read_text()), signal.SIGTERM)
    status, said = job.end_of(process)
    assert status == 1
    assert "Ray's head has ended, and the run with it: see /tmp/ray-7 on n1" in said


def test_a_job_that_ray_does_not_take(job: Job) -> None:
    status, said = job.run(*RUN, REFUSES="yes")
    assert status == 1
    assert "too large\n" in said
    assert said.splitlines()[-1] == "slurm.sh: Ray did not take the job (above: why)"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wrong=1", *RUN], "error: wrong: no such key"),
        (["wrong=1", *RUN], "the run would not start (above: why)"),
        (RUN[:2], "run.root is no whole path: a job has a folder of its own, say run.root=/shared/runs"),
        (["--resume", "runs/mine"], "runs/mine: --resume wants the whole path, a job has a folder of its own"),
        (["--resume=runs/mine"], "--resume=runs/mine: --resume wants the whole path"),
    ],
)
def test_a_mistake_in_the_call_starts_nothing(job: Job, arguments: list[str], says: str) -> None:
    status, said = job.run(*arguments)
    assert status == 2
    assert says in said
    assert job.calls == []


@pytest.mark.parametrize("arguments", [["--resume", "/shared/runs/mine"], ["--resume=/shared/runs/mine"]])
def test_a_run_to_go_on_with_says_where_it_is_itself(job: Job, arguments: list[str]) -> None:
    job.ends_as("SUCCEEDED")
    assert job.run(*arguments)[0] == 0


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"SLURM_JOB_ID": ""}, "this is a script of Slurm: sbatch configs/cluster/slurm.sh"),
        ({"SLURM_SUBMIT_DIR": "/usr"}, "/usr is not the project's folder: submit the script from there"),
        ({"VENV": "nowhere"}, "nowhere is no environment: make it with FLAVOUR=cuda bash requirements/setup.sh"),
    ],
)
def test_a_wrong_place_is_said(job: Job, variables: dict[str, str], says: str) -> None:
    status, said = job.run(*RUN, **variables)
    assert status == 2
    assert says in said


def test_the_time_limits_leave_room_for_each_other() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", text, re.MULTILINE))
    assert {"nodes", "time", "signal", "exclusive", "no-kill", "output"} <= set(options)
    told = re.fullmatch(r"B:TERM@(\d+)", options["signal"])
    stop = re.search(r"STOP_S=\$\{STOP_S:-(\d+)\}", text)
    assert told is not None
    assert stop is not None
    assert int(stop[1]) < int(told[1])


def test_the_run_s_own_plan_has_the_line_that_is_looked_for(tmp_path: Path) -> None:
    command = [sys.executable, "orchestration/run.py", "--config", "configs/quickstart.yaml", "--dry-run"]
    done = subprocess.run(
        [*command, f"run.root={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert f"\n  root: {tmp_path}\n" in done.stdout


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
