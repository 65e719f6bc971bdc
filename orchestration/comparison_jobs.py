"""The processes of a comparison as jobs of a Ray cluster, as `ray job submit` starts them."""

from __future__ import annotations

import shlex
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from orchestration.comparison_plan import ROOT
from orchestration.comparison_run import LaunchError, Task

T = TypeVar("T")

_STATUS = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.STOPPED: 130}
_PATIENCE_S, _PAUSE_S, _SILENCE_S = 60.0, 2.0, 300.0
# One answer of the head; a job's first submission sends the project along.
_ANSWER_S, _SUBMISSION_S = 30.0, 300.0
# What the client raises when the cluster does not answer, not in time, or refuses; requests' errors are OSErrors.
_TROUBLE = (OSError, RuntimeError, ValueError, RayError)


class Job:
    """A job that was submitted; its output is fetched when it has ended."""

    def __init__(self, client: JobSubmissionClient, job: str, task: Task) -> None:
        self._client, self._job, self._task = client, job, task
        self._answered = time.monotonic()

    def poll(self) -> int | None:
        """A head that does not answer for a while is waited for; in the end the job counts as failed."""
        try:
            status = _STATUS.get(_within(_ANSWER_S, lambda: self._client.get_job_status(self._job)))
        except _TROUBLE as error:
            if time.monotonic() < self._answered + _SILENCE_S:
                return None
            self._log(f"the cluster has not answered for {_SILENCE_S:.0f} s: {_cause(error)}")
            return 1
        self._answered = time.monotonic()
        if status is not None:
            self._fetch_log()
        return status

    def stop(self, *, force: bool) -> None:
        """Ray gives the job's process some seconds and then ends it itself, so force adds nothing."""
        with suppress(*_TROUBLE):
            if not force:
                _within(_ANSWER_S, lambda: self._client.stop_job(self._job))

    def _fetch_log(self) -> None:
        """What became of the job does not depend on whether its output can be had."""
        try:
            self._log(_within(_ANSWER_S, lambda: self._client.get_job_logs(self._job)))
        except _TROUBLE as error:
            self._log(f"the output of {self._job} cannot be fetched: {_cause(error)}")

    def _log(self, text: str) -> None:
        with self._task.log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")


class JobLauncher:
    """Submits tasks to the cluster whose dashboard answers at `address`. Raises LaunchError when it does not."""

    def __init__(self, address: str) -> None:
        self._address = address
        if not address.startswith(("http://", "https://")):
            raise LaunchError(f"--address {address}: give the cluster's dashboard, such as http://HEAD:8265")
        try:
            self._client = _within(_PATIENCE_S, lambda: JobSubmissionClient(address))
        except _TROUBLE as error:
            raise LaunchError(f"--address {address}: {_cause(error)}") from error

    def start(self, task: Task) -> Job:
        """A head that is just up refuses jobs until its agent is there, and one under load may be slow to answer: it
        is tried for a minute. Raises LaunchError.
        """
        deadline = time.monotonic() + _PATIENCE_S
        # The same at each try: a submission that arrived, though its answer was lost, is not made twice.
        job = f"{task.name}-{uuid.uuid4().hex[:8]}"
        lost = False
        while True:
            try:
                _within(_SUBMISSION_S, lambda: self._submit(job, task))
                return Job(self._client, job, task)
            except _TROUBLE as error:
                if lost and "already exists" in str(error):
                    return Job(self._client, job, task)  # it had arrived
                silent = isinstance(error, OSError)
                lost = lost or silent
                if not (silent or "No available agent" in str(error)) or time.monotonic() > deadline:
                    if lost:  # it may have arrived, and nobody would look after it
                        Job(self._client, job, task).stop(force=False)
                    raise LaunchError(f"--address {self._address}: {_cause(error)}") from error
            time.sleep(_PAUSE_S)

    def _submit(self, job: str, task: Task) -> None:
        self._client.submit_job(
            entrypoint=shlex.join(("python", *task.arguments)),
            submission_id=job,
            runtime_env={"working_dir": str(ROOT)},
            metadata={"task": task.name},
        )


def _within(limit_s: float, call: Callable[[], T]) -> T:
    """What the call returns or raises, TimeoutError when it takes longer: the client itself would wait for ever."""
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    # A thread that hangs must not keep this process from ending.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(limit_s)
    except TimeoutError:
        if answer.done():
            raise
        raise TimeoutError(f"no answer within {limit_s:g} s") from None


def _cause(error: BaseException) -> str:
    """One line. Errors that the head reports carry its traceback before it, others say what to do after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if lines[0].startswith("Request failed") else lines[0]
