"""The processes of a comparison as jobs of a Ray cluster, as `ray job submit` starts them."""

from __future__ import annotations

import shlex
import time
from contextlib import suppress

from ray.job_submission import JobStatus, JobSubmissionClient

from orchestration.comparison_plan import ROOT
from orchestration.comparison_run import LaunchError, Task

_STATUS = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.STOPPED: 130}
_PATIENCE_S, _SILENCE_S = 60.0, 300.0


class Job:
    """A job that was submitted; its output is fetched when it has ended."""

    def __init__(self, client: JobSubmissionClient, job: str, task: Task) -> None:
        self._client, self._job, self._task = client, job, task
        self._answered = time.monotonic()

    def poll(self) -> int | None:
        """A head that does not answer for a while is waited for; in the end the job counts as failed."""
        try:
            status = _STATUS.get(self._client.get_job_status(self._job))
            if status is not None:
                self._log(self._client.get_job_logs(self._job))
        except (OSError, RuntimeError) as error:
            if time.monotonic() < self._answered + _SILENCE_S:
                return None
            self._log(f"the cluster has not answered for {_SILENCE_S:.0f} s: {error}")
            return 1
        self._answered = time.monotonic()
        return status

    def stop(self, *, force: bool) -> None:
        """Ray gives the job's process some seconds and then ends it itself, so force adds nothing."""
        with suppress(OSError, RuntimeError):
            if not force:
                self._client.stop_job(self._job)

    def _log(self, text: str) -> None:
        with self._task.log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")


class JobLauncher:
    """Submits tasks to the cluster whose dashboard answers at `address`. Raises LaunchError when it does not."""

    def __init__(self, address: str) -> None:
        self._address = address
        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError) as error:
            raise LaunchError(f"--address {address}: {str(error).splitlines()[0]}") from error

    def start(self, task: Task) -> Job:
        """A head that is just up refuses jobs until its agent is there: tried for a minute. Raises LaunchError."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                job = self._client.submit_job(
                    entrypoint=shlex.join(("python", *task.arguments)),
                    runtime_env={"working_dir": str(ROOT)},
                    metadata={"task": task.name},
                )
                return Job(self._client, job, task)
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise LaunchError(f"--address {self._address}: {str(error).strip().splitlines()[-1]}") from error
            time.sleep(2)
