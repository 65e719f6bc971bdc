"""Runs of a comparison as Ray jobs, against a client that only remembers what it was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from orchestration import comparison_jobs
from orchestration.comparison_jobs import JobLauncher
from orchestration.comparison_plan import ROOT
from orchestration.comparison_run import LaunchError, Task, run_tasks


class Client:
    """A cluster that gives each job the statuses of `script`, one a look; `refusals` come before a job is taken."""

    script: tuple[JobStatus, ...] = (JobStatus.PENDING, JobStatus.RUNNING, JobStatus.SUCCEEDED)
    refusals: tuple[str, ...] = ()

    def __init__(self, address: str) -> None:
        if address == "http://nobody":
            raise ConnectionError("Failed to connect to Ray at address: http://nobody.\nmore")
        self.submitted, self.stopped = list[dict[str, Any]](), list[str]()
        self._looks, self._refusals = list(self.script), list(self.refusals)

    def submit_job(self, **job: Any) -> str:
        if self._refusals:
            raise RuntimeError(f"Request failed with status code 500:\n{self._refusals.pop(0)}")
        self.submitted.append(job)
        return f"job {len(self.submitted)}"

    def get_job_status(self, job: str) -> JobStatus:
        if not self._looks:
            raise ConnectionError("gone")
        return self._looks.pop(0)

    def get_job_logs(self, job: str) -> str:
        return f"output of {job}"

    def stop_job(self, job: str) -> bool:
        self.stopped.append(job)
        return True


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> JobLauncher:
    monkeypatch.setattr(comparison_jobs, "JobSubmissionClient", Client)
    monkeypatch.setattr(comparison_jobs.time, "sleep", lambda _: None)
    return JobLauncher("http://head:8265")


def task(folder: Path) -> Task:
    return Task("it", ("orchestration/run.py", "sampler={name: sesa}"), (), folder / "it.log")


def test_a_job_is_what_ray_job_submit_would_start(launcher: JobLauncher, tmp_path: Path) -> None:
    assert run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0) == {}
    client: Any = launcher._client
    assert client.submitted == [
        {
            "entrypoint": "python orchestration/run.py 'sampler={name: sesa}'",
            "runtime_env": {"working_dir": str(ROOT)},
            "metadata": {"task": "it"},
        }
    ]
    assert (tmp_path / "it.log").read_text() == "output of job 1\n"


@pytest.mark.parametrize(("status", "code"), [(JobStatus.FAILED, 1), (JobStatus.STOPPED, 130)])
def test_a_job_that_does_not_succeed_fails(
    launcher: JobLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: JobStatus, code: int
) -> None:
    launcher._client._looks = [status]  # type: ignore[attr-defined]
    assert run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0) == {"it": f"exit status {code}"}


def test_a_head_that_is_silent_for_long_is_a_failure(
    launcher: JobLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = launcher.start(task(tmp_path))
    launcher._client._looks = []  # type: ignore[attr-defined]
    assert job.poll() is None
    monkeypatch.setattr(comparison_jobs, "_SILENCE_S", 0.0)
    assert job.poll() == 1
    assert "has not answered" in (tmp_path / "it.log").read_text()


def test_a_head_that_is_just_up_is_asked_again(
    launcher: JobLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher._client._refusals = ["No available agent to submit job, please try again later."]  # type: ignore[attr-defined]
    assert run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0) == {}


def test_a_refusal_is_told(launcher: JobLauncher, tmp_path: Path) -> None:
    launcher._client._refusals = ["working_dir is too large"]  # type: ignore[attr-defined]
    failed = run_tasks([task(tmp_path)], launcher, 1, lambda _: None, 0)
    assert failed == {"it": "not started: --address http://head:8265: working_dir is too large"}


def test_stopping_stops_the_job_once(launcher: JobLauncher, tmp_path: Path) -> None:
    job = launcher.start(task(tmp_path))
    job.stop(force=False)
    job.stop(force=True)
    client: Any = launcher._client
    assert client.stopped == ["job 1"]


def test_an_address_where_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_jobs, "JobSubmissionClient", Client)
    with pytest.raises(LaunchError, match="--address http://nobody: Failed to connect"):
        JobLauncher("http://nobody")
