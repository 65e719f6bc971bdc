"""What a token's loss counts in its stream: normalisers over the whole batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from configs.objectives import Normalizer
from configs.schema import RunConfig
from envs.trajectory import Stream


@dataclass(frozen=True, slots=True)
class StreamShare:
    """weight: the stream's. tokens, sequences: trained ones of the whole batch. constant_length: tokens a sequence."""

    weight: float
    normalizer: Normalizer
    tokens: int
    sequences: int
    constant_length: int

    def of_token(self, length: int) -> float:
        """What a token of a sequence of `length` trained tokens counts.

        token: 1 / T, all tokens alike (DAPO, arXiv 2503.14476, eq. 8). sequence: 1 / (S length), all sequences alike
        (GRPO, arXiv 2402.03300, eq. 3). constant: 1 / (S constant_length), no bias to short answers (Dr. GRPO,
        arXiv 2503.20783, section 3.1). T and S are those of the whole batch.
        """
        divisor = {
            "token": self.tokens,
            "sequence": self.sequences * length,
            "constant": self.sequences * self.constant_length,
        }[self.normalizer]
        return self.weight / max(divisor, 1)


@dataclass(frozen=True, slots=True)
class Shares:
    streams: dict[Stream, StreamShare]

    def of_token(self, stream: Stream, length: int) -> float:
        return self.streams[stream].of_token(length)


def stream_shares(lengths: Iterable[tuple[Stream, int]], config: RunConfig) -> Shares:
    """lengths: (stream, trained tokens) of every trained sequence of the batch."""
    tokens: Counter[Stream] = Counter()
    sequences: Counter[Stream] = Counter()
    for stream, length in lengths:
        tokens[stream] += length
        sequences[stream] += 1
    grpo = config.grpo
    constant = grpo.constant_length or config.rollout.tokens_per_turn
    settings = {stream: getattr(grpo.streams, stream) for stream in Stream}
    return Shares(
        {
            stream: StreamShare(
                own.weight, own.normalizer or grpo.normalizer, tokens[stream], sequences[stream], constant
            )
            for stream, own in settings.items()
        }
    )
