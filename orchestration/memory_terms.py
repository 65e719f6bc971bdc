"""What the estimate of memory is made of: terms, each with what makes it smaller, and the most they come to at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIB, GIB = 2**20, 2**30
BYTES_OF = {"float32": 4, "bfloat16": 2}
# CUDA's context with the kernels of torch, cuBLAS's workspaces and NCCL's buffers: about a GiB on the cards in use.
CUDA_CONTEXT = GIB
SMALLER = "take a smaller model or larger GPUs"


@dataclass(frozen=True, slots=True)
class Term:
    """size: bytes. lower: what makes it smaller, in the words of the configuration."""

    name: str
    size: int
    lower: str = SMALLER


@dataclass(frozen=True, slots=True)
class Need:
    """Memory of one process, or of one GPU.

    phases: what is there at once in each of them. limit: bytes there are, called `of`; None where nobody said.
    """

    role: str
    phases: Mapping[str, Sequence[Term]]
    limit: int | None = None
    of: str = ""

    @property
    def peak(self) -> str:
        """The phase that needs the most; the first of equals."""
        return max(self.phases, key=lambda phase: total(self.phases[phase]))

    @property
    def terms(self) -> Sequence[Term]:
        """Of the peak."""
        return self.phases[self.peak]

    @property
    def size(self) -> int:
        """Bytes, at the peak."""
        return total(self.terms)

    @property
    def largest(self) -> Term:
        """Of the peak's terms."""
        return max(self.terms, key=lambda term: term.size)

    @property
    def fits(self) -> bool:
        return self.limit is None or self.size <= self.limit


def total(terms: Sequence[Term]) -> int:
    return sum(term.size for term in terms)


def share(count: int, parts: int) -> int:
    """Of `count`, in the largest of equal parts."""
    return -(-count // parts)


def either(*ways: str) -> str:
    """`a, b or c` of those that are not empty."""
    *some, last = [way for way in ways if way] or [""]
    return f"{', '.join(some)} or {last}" if some else last
