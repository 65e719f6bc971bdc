"""Every wait in the code has a time limit: in the same function, or in the place that is named here."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from orchestration.cluster import ROOT

FOLDERS = ("actors", "configs", "envs", "learner", "orchestration")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
WAITS = (
    "wait",
    "join",
    "result",
    "get",
    "acquire",
    "communicate",
)  # for ever, unless they are given a limit
# Waits whose limit is not in their function, and where it is.
ELSEWHERE = {
    "actors/env_workers.py:EnvWorkers._take": "of a task that is done",
    "actors/held_time.py:HeldTime.within": "of a task that is done",
    "actors/weight_receiver.py:GlooWeightTransferEngine.receive_weights": "the group's own, sync.timeout_s",
    "envs/math/grader.py:Grader.stop": "of a process that was killed",
    "learner/actors_client.py:_gathered": "of calls that are done",
    "learner/gather.py:_of_other_ranks": "the rank's watchdog, deepspeed.timeout_s",
    "learner/weight_sender.py:GlooTrainerWeightTransferEngine.trainer_init": "the answers', sync.timeout_s",
    "learner/weight_sender.py:GlooTrainerWeightTransferEngine._wait_for": "the group's own, sync.timeout_s",
    "learner/nccl_sender.py:opened": "the answers', sync.timeout_s",
    "learner/weight_meeting.py:wait_for_all": "of a call that is done",
    "orchestration/answers.py:answer_in": "of a task that is done",
    "orchestration/fleet.py:Fleet._free": "somebody is up and full: each of its tickets has a limit",
    "orchestration/interrupt.py:Interrupt.unless_asked": "that of what is waited for beside it",
    "orchestration/learners.py:Learners._one": "by those who call it, in Learners._within",
    "orchestration/tracker_thread.py:TrackerThread._work": "its thread has nothing else to do, and keeps no process",
    "orchestration/start.py:_find": "by those who call it, rollout.start_timeout_s",
}


class Waits(ast.NodeVisitor):
    """`found`: (function, line, text) of every wait without a limit in its own function."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int, str]] = []
        self._functions: list[str] = []
        self._within = 0

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._functions.append(node.name)
        within, self._within = self._within, 0
        self.generic_visit(node)
        self._within = within
        self._functions.pop()

    visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        limited = any(ast.unparse(item.context_expr).startswith("asyncio.timeout(") for item in node.items)
        self._within += limited
        self.generic_visit(node)
        self._within -= limited

    def visit_Await(self, node: ast.Await) -> None:
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "remote":
            self._note(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if is_unbounded(node):
            self._note(node)
        self.generic_visit(node)

    def _note(self, node: ast.Await | ast.Call) -> None:
        if not self._within:
            self.found.append((".".join(self._functions), node.lineno, ast.unparse(node)))


def is_unbounded(call: ast.Call) -> bool:
    """Whether this may wait for ever: `ray.get(x)`, `thread.join()`, `subprocess.run(...)` and such without a limit."""
    name, given = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
    if name in ("ray.get", "ray.wait", "asyncio.wait", "subprocess.run", "subprocess.check_output",
                "subprocess.check_call"):  # fmt: skip
        return "timeout" not in given
    limits = [one for one in call.args if not (isinstance(one, ast.Constant) and one.value in (None, True))]
    nothing_given = not limits and not given & {"timeout", "timeout_s", "blocking"}
    return isinstance(call.func, ast.Attribute) and call.func.attr in WAITS and nothing_given


def waits() -> Iterator[tuple[str, str, str]]:
    """(file and function, where, text)."""
    for path in SOURCES:
        seen = Waits()
        seen.visit(ast.parse(path.read_text(encoding="utf-8")))
        name = path.relative_to(ROOT).as_posix()
        for function, line, text in seen.found:
            yield f"{name}:{function}", f"{name}:{line}", text


def test_every_wait_has_a_limit() -> None:
    unknown = [f"{where}: {text}" for place, where, text in waits() if place not in ELSEWHERE]
    assert not unknown, "\n".join(["a wait without a limit; who ends it?", *unknown])


def test_no_limit_is_named_of_a_wait_that_is_gone() -> None:
    assert set(ELSEWHERE) <= {place for place, _, _ in waits()}
