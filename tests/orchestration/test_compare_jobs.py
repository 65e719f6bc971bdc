"""Runs of a comparison as Ray jobs, against a client that only remembers what it was asked."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
from ray.job_submission import JobStatus

from orchestration import comparison_jobs
from orchestration.comparison_jobs import JobLauncher
from orchestration.comparison_plan import ROOT
from orchestration.comparison_run import LaunchError, Task, run_tasks


class Client:
    """A cluster that gives each job the statuses of `script`, one a look; `troubles` come before a job is taken.

    lost: of submissions that arrive, so many answers are lost.
    """

    script: tuple[JobStatus, ...] = (JobStatus.PENDING, JobStatus.RUNNING, JobStatus.SUCCEEDED)

    def __init__(self, address: str) -> None:
        if address == "http://nobody":
            raise ConnectionError("Failed to connect to Ray at address: http://nobody.\nmore")
        self.submitted, self.stopped = list[dict[str, Any]](), list[str]()
        self.troubles, self.lost = list[Exception](), 0
        self._looks = list(self.script)

    def submit_job(self, **job: Any) -> str:
        if self.troubles:
            raise self.troubles.pop(0)
        if job["submission_id"] in [other["submission_id"] for other in self.submitted]:
            raise refusal(f"ValueError: Job with submission_id {job['submission_id']} already exists. Please use")
        self.submitted.append(job)
        if self.lost:
            self.lost -= 1
            raise ConnectionError("the connection was reset")
        return str(job["submission_id"])

    def get_job_status(self, job: str) -> JobStatus:
        if not self._looks:
            raise ConnectionError("gone")
        return self._looks.pop(0)

    def get_job_logs(self, job: str) -> str:
        return f"output of {job}"

    def stop_job(self, job: str) -> bool:
        self.stopped.append(job)
        return True


def refusal(text: str) -> RuntimeError:
    return RuntimeError(f"Request failed with status code 500:\n{text}")


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> JobLauncher:
    monkeypatch.setattr(comparison_jobs, "JobSubmissionClient", Client)
    monkeypatch.setattr(comparison_jobs, "_PAUSE_S", 0.0)
    return JobLauncher("http://head:8265")


def client_of(launcher: JobLauncher) -> Client:
    client: Any = launcher._client
    return client


def task(folder: Path) -> Task:
    return Task("it", ("orchestration/run.py", "sampler={name: sesa}"), (), folder / "it.log")


def test_a_job_is_what_ray_job_submit_would_start(launcher: JobLauncher, tmp_path: Path) -> None:
    assert run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0) == {}
    [job] = client_of(launcher).submitted
    name = job.pop("submission_id")
    assert name.startswith("it-")
    assert job == {
        "entrypoint": "python orchestration/run.py 'sampler={name: sesa}'",
        "runtime_env": {"working_dir": str(ROOT)},
        "metadata": {"task": "it"},
    }
    assert (tmp_path / "it.log").read_text() == f"output of {name}\n"


@pytest.mark.parametrize(("status", "code"), [(JobStatus.FAILED, 1), (JobStatus.STOPPED, 130)])
def test_a_job_that_does_not_succeed_fails(
    launcher: JobLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: JobStatus, code: int
) -> None:
    client_of(launcher)._looks = [status]
    assert run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0) == {"it": f"exit status {code}"}


def test_a_head_that_is_silent_for_long_is_a_failure(
    launcher: JobLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = launcher.start(task(tmp_path))
    client_of(launcher)._looks = []
    assert job.poll() is None
    monkeypatch.setattr(comparison_jobs, "_SILENCE_S", 0.0)
    assert job.poll() == 1
    assert "has not answered" in (tmp_path / "it.log").read_text()


def test_a_head_that_is_just_up_is_asked_again(
    launcher: JobLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_of(launcher).troubles = [refusal("No available agent to submit job, please try again later.")]
    assert run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0) == {}


def test_a_refusal_is_told(launcher: JobLauncher, tmp_path: Path) -> None:
    client_of(launcher).troubles = [refusal("working_dir is too large")]
    failed = run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0)
    assert failed == {"it": "not started: --address http://head:8265: working_dir is too large"}


def test_stopping_stops_the_job_once(launcher: JobLauncher, tmp_path: Path) -> None:
    job = launcher.start(task(tmp_path))
    job.stop(force=False)
    job.stop(force=True)
    client = client_of(launcher)
    assert client.stopped == [client.submitted[0]["submission_id"]]


# --- a head that is slow, or away for a while ------------------------------------------------------------------------


def test_a_head_that_is_away_for_a_moment_is_asked_again(launcher: JobLauncher, tmp_path: Path) -> None:
    client_of(launcher).troubles = [ConnectionError("HTTPConnectionPool: Max retries exceeded"), TimeoutError()]
    assert run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0) == {}
    assert len(client_of(launcher).submitted) == 1


def test_a_head_that_stays_away_is_told_and_the_others_go_on(
    launcher: JobLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_jobs, "_PATIENCE_S", 0.0)
    client_of(launcher).troubles = [ConnectionError("Max retries exceeded\nmore")]
    other = Task("other", ("x",), (), tmp_path / "other.log")
    failed = run_tasks([task(tmp_path), other], launcher, 1, lambda _: None, 0)
    assert failed == {"it": "not started: --address http://head:8265: Max retries exceeded"}
    [stopped] = client_of(launcher).stopped  # lest it had arrived
    assert stopped.startswith("it-")


def test_a_submission_whose_answer_was_lost_is_not_made_twice(launcher: JobLauncher, tmp_path: Path) -> None:
    client_of(launcher).lost = 1
    assert run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0) == {}
    assert len(client_of(launcher).submitted) == 1


def test_a_job_that_succeeded_has_succeeded_though_its_output_is_gone(
    launcher: JobLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: str) -> str:
        raise RuntimeError("logs gone")

    monkeypatch.setattr(launcher._client, "get_job_logs", gone)
    assert run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0) == {}
    assert "cannot be fetched: logs gone" in (tmp_path / "it.log").read_text()


def test_a_head_that_hangs_does_not_hang_us(
    launcher: JobLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, freed = launcher.start(task(tmp_path)), threading.Event()

    def hangs(_: str) -> JobStatus:
        freed.wait(20)
        return JobStatus.SUCCEEDED

    monkeypatch.setattr(comparison_jobs, "_ANSWER_S", 0.05)
    monkeypatch.setattr(launcher._client, "get_job_status", hangs)
    monkeypatch.setattr(launcher._client, "stop_job", hangs)
    began = time.monotonic()
    assert job.poll() is None
    job.stop(force=False)
    assert time.monotonic() - began < 5
    monkeypatch.setattr(comparison_jobs, "_SILENCE_S", 0.0)
    assert job.poll() == 1
    assert "no answer within 0.05 s" in (tmp_path / "it.log").read_text()
    freed.set()


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "auto", "127.0.0.1:6379"])
def test_what_is_no_dashboard_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(comparison_jobs, "JobSubmissionClient", Client)
    with pytest.raises(LaunchError, match=rf"^--address {address}: give the cluster's dashboard, such as http://HEAD"):
        JobLauncher(address)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"), OSError("bad"), RuntimeError("bad\nmore"), ray.exceptions.RpcError("bad", 14),
        ray.exceptions.AuthenticationError("bad"),
    ],
)  # fmt: skip
def test_whatever_the_client_says_of_an_address_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(_: str) -> Client:
        raise error

    monkeypatch.setattr(comparison_jobs, "JobSubmissionClient", broken)
    with pytest.raises(LaunchError, match=r"^--address http://head: .*bad") as caught:
        JobLauncher("http://head")
    assert "\n" not in str(caught.value)


def test_an_address_where_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_jobs, "JobSubmissionClient", Client)
    with pytest.raises(LaunchError, match="--address http://nobody: Failed to connect"):
        JobLauncher("http://nobody")
