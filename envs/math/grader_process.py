r"""The process that compares answers with math-verify: `python -m envs.math.grader_process MEMORY_MIB`.

One JSON object a line. It says {"ready": true} once, then for each {"id", "reference", "answer", "limit_s"} on its
standard input {"id", "equal", "last"}, or {"id", "failure", "last"} when memory may have run out. After "last": true,
as it has become large, and with its input it ends. What the library cannot read equals nothing.

It holds nothing but the library, so that it starts fast and can be killed at any moment. Its own limits hold even when
nobody is left to kill it. It writes no file, and evaluates no text.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_LINE = 65536
# As Python writes them; 007 is none.
WHOLE = re.compile(r"0+|[1-9][0-9]*", re.ASCII)
DECIMAL = re.compile(r"[0-9]+\.[0-9]*|\.[0-9]+", re.ASCII)
# Beyond the limit of whoever asks, who has to be the first to give up and to say so.
ALARM_DELAY_S = 1.0
# The library swallows MemoryError and says "not equal". What fails is one large step (a number squared, a list
# doubled): above this share of the allowance a step can have failed. An ordinary comparison takes a few MiB.
DOUBTFUL = 0.25
# So that it is the answer, and not those before it, that gets there.
LARGE = 0.125

Judge = Callable[[str, str], bool]


def main(memory_mib: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our input
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it is doing
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = _private_output()
    judge = load_judge()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    before = memory_bytes("VmSize")
    allowed = memory_mib * 2**20
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = before + allowed if most == resource.RLIM_INFINITY else min(before + allowed, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _send(replies, {"ready": True})
    while line := sys.stdin.buffer.readline(LONGEST_LINE):
        reply = _answer(json.loads(line), judge)
        used = (memory_bytes("VmPeak") - before) / (limit - before)
        if used > DOUBTFUL and reply.get("equal") is False:
            cause = f"came near the memory limit of {memory_mib} MiB (env.grade_memory_mib)"
            reply = {"id": reply["id"], "failure": cause}
        _send(replies, reply | {"last": used > LARGE})
        if used > LARGE:
            return


def _private_output() -> BinaryIO:
    """The standard output, and nobody else's from here on: what a library prints would be taken for a reply."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return replies


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")


def _answer(request: dict[str, Any], judge: Judge) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_REAL, request["limit_s"] + ALARM_DELAY_S)
    try:
        return {"id": request["id"], "equal": judge(request["reference"], request["answer"])}
    except RecursionError:
        return {"id": request["id"], "equal": False}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def load_judge() -> Judge:
    """`equal(reference, answer)` of two cleaned texts; warmed up, so that the first comparison is as fast as others."""
    from math_verify import LatexExtractionConfig, parse, verify

    evaluate_no_text()
    logging.disable(logging.CRITICAL)
    forms = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(text: str) -> list[Any]:
        if not balanced(text):
            return []
        found: list[Any] = parse(f"\\boxed{{{text}}}", forms, parsing_timeout=None)
        return found

    def equal(reference: str, answer: str) -> bool:
        # No time limits of its own: they are signals that the alarm above would lose, and take a time-out for a wrong.
        return bool(verify(read(reference), read(answer), timeout_seconds=None))

    equal("\\frac{1}{2}", "x+0.5")
    return equal


def evaluate_no_text() -> None:
    """Put `atom_of` in the place of sympy's parser of Python, which is an `eval`: the library reads numbers by it."""
    from latex2sympy2_extended import latex2sympy2
    from math_verify import parser
    from sympy.parsing import sympy_parser

    for module in (sympy_parser, parser, latex2sympy2):
        module.parse_expr = atom_of
    sympy_parser.eval_expr = atom_of


def atom_of(text: str, *_: object, **__: object) -> Any:
    """The number a text is, or the symbol of a name. Raises SyntaxError, as for Python that is none, for any other."""
    from sympy import Float, Integer, Symbol

    text = text.strip()
    if WHOLE.fullmatch(text):
        return Integer(text)
    if DECIMAL.fullmatch(text):
        return Float(text)
    if text.isidentifier():  # sympy's modules have the names of units parsed when they are imported
        return Symbol(text)
    raise SyntaxError("only numbers and names are read from text")


def balanced(text: str) -> bool:
    """Whether every brace has its partner."""
    depth = 0
    for character in text.replace("\\\\", "").replace("\\{", "").replace("\\}", ""):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def memory_bytes(name: str) -> int:
    """This process's `VmSize` (address space) or `VmPeak` (the most it has been)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status does not tell {name}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
