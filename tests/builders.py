"""What many tests build: token arrays and groups, and a tokenizer, a policy and an environment that follow a script."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engine import Completion
from actors.env_worker import CallFailed, hung
from configs.environments import TurnSettings
from configs.schema import RunConfig
from configs.seeds import derive_seed
from envs.base import Outcome, TextEnv
from envs.trajectory import (
    Credit,
    Group,
    Ints,
    Role,
    Row,
    Segment,
    Stream,
    Ticket,
    Trajectory,
    Verdict,
    no_floats,
    no_ints,
)
from envs.worker_episodes import Episodes
from envs.worker_messages import Call, Reply, said_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from actors.chat import Chat
    from actors.rollout import Rollout, Shared
    from learner.batches import MicroBatch
    from learner.rows import TrainingRow

START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TICKET = Ticket(index=5, env="scripted", seed=11)


# --- records ---------------------------------------------------------------------------------------------------------


def ints(*values: int) -> Ints:
    return np.array(values, np.int32)


def prompt(*token_ids: int) -> Segment:
    return Segment(Role.PROMPT, ints(*token_ids), no_floats(), no_ints())


def observation(*token_ids: int) -> Segment:
    return Segment(Role.OBSERVATION, ints(*token_ids), no_floats(), no_ints())


def answer(*token_ids: int, logprob: float = -0.5, version: int = 0, role: Role = Role.ANSWER) -> Segment:
    n = len(token_ids)
    return Segment(role, ints(*token_ids), np.full(n, logprob, np.float32), np.full(n, version, np.int32))


def solution(reward: float, tokens: int = 2, version: int = 0, verdict: Verdict | None = None) -> Trajectory:
    """A prompt of three tokens and one answer of `tokens`; solved where the reward is above 0."""
    verdict = verdict or (Verdict.SOLVED if reward > 0 else Verdict.WRONG)
    said = answer(*range(10, 10 + tokens), version=version)
    return Trajectory((prompt(1, 2, 3), said), verdict, reward, answer=f"{tokens} tokens")


def parallel_group(
    *rewards: float, index: int = 0, tokens: Sequence[int] | None = None, version: int = 0, weight: float = 1.0
) -> Group:
    """One solution a reward, of `tokens` answer tokens each (default 2), all compared with each other."""
    lengths = tokens or [2] * len(rewards)
    trajectories = tuple(solution(r, n, version) for r, n in zip(rewards, lengths, strict=True))
    rows = tuple(Row(i, 1, (Credit(1, 2, Stream.SOLUTION, "all", r, weight),)) for i, r in enumerate(rewards))
    return Group(Ticket(index, "scripted", 2 * index), "parallel", trajectories, rows)


def collated(rows: Sequence[TrainingRow]) -> MicroBatch:
    """All rows as one micro-batch on the CPU, nothing shared."""
    import torch

    from learner.batches import collate
    from learner.plan import each_alone

    return collate(rows, each_alone(rows), torch.device("cpu"))


# --- a policy and an environment by script ---------------------------------------------------------------------------


def byte_tokenizer(template: str | None = CHATML, eos: str | None = END) -> PreTrainedTokenizerFast:
    """One token a byte, but "up" is one of its own: the bytes "u", "p" are another tokenisation of the same text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "up"]
    bpe = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[("u", "p")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([START, END])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=eos, chat_template=template, clean_up_tokenization_spaces=False
    )


Said = str | Sequence[int] | None  # a text (the end-of-turn token follows), token ids as they are, or no room


def plan(said: Mapping[str, Said], ticket: Ticket = TICKET, run_seed: int = 0) -> dict[int, Said]:
    """What to answer by the seed of a request, from what to answer by its purpose."""
    return {derive_seed(run_seed, ticket.index, purpose): words for purpose, words in said.items()}


@dataclass(frozen=True)
class Request:
    """What the policy was asked. context_ids: (n,)."""

    context_ids: Ints
    context: str
    max_tokens: int
    seed: int


class ScriptedPolicy:
    """Answers by the request's seed (`plan`), else by its context's text; records all requests and their answers.

    Token number j of an answer (from 1) has log-prob -j/128, which float32 holds exactly.
    """

    def __init__(
        self,
        said: Callable[[str], Said],
        planned: Mapping[int, Said] | None = None,
        max_model_len: int = 10**6,
        version: int = 0,
    ) -> None:
        self.requests: list[Request] = []
        self.completions: dict[int, Completion] = {}
        self.version = version
        self._said, self._planned, self._max_model_len = said, planned or {}, max_model_len
        self._tokenizer = byte_tokenizer()

    async def sample(self, context_ids: Ints, max_tokens: int, seed: int) -> Completion | None:
        context = str(self._tokenizer.decode(context_ids.tolist()))
        self.requests.append(Request(context_ids, context, max_tokens, seed))
        said = self._planned[seed] if seed in self._planned else self._said(context)
        room = self._max_model_len - len(context_ids)
        if said is None or room < 1:
            return None
        token_ids = ints(*self.encode(said)[: min(max_tokens, room)])
        n = len(token_ids)
        logprobs = np.arange(-1, -n - 1, -1, dtype=np.float32) / np.float32(128)
        ended = bool(n) and int(token_ids[-1]) == self._tokenizer.eos_token_id
        completion = Completion(token_ids, logprobs, np.full(n, self.version, np.int32), ended)
        self.completions[seed] = completion
        return completion

    def encode(self, said: str | Sequence[int]) -> list[int]:
        if isinstance(said, str):
            return [*self._tokenizer(said)["input_ids"], int(self._tokenizer.eos_token_id)]
        return list(said)


class ScriptedEnv(TextEnv):
    """Does what the answer says: `earn X` goes on, `lose X` and `win X` end the episode, `raise` raises, `hang` waits,
    and `break` says that judging it broke.

    A sketch reads `plan WORD`; its key is the word in lower case. The prompt tells the episode's seed.
    """

    def __init__(self, released: threading.Event | None = None, max_turns: int = 5) -> None:
        super().__init__(TurnSettings(max_turns=max_turns))
        self._released = released or threading.Event()
        self.closing = 0.0

    @property
    def rules(self) -> str:
        return "Say win."

    def sketch_request(self, number: int) -> str:
        return f" Name plan {number}."

    def guidance(self, sketch: str) -> str:
        return f" Follow:\n{sketch}\nnow."

    def sketch_key(self, sketch: str) -> str | None:
        found = re.fullmatch(r"plan (\w+)", sketch)
        return found[1].lower() if found else None

    def _draw(self) -> tuple[str, ...]:
        """All answers so far are the state."""
        return ()

    def _opening(self) -> str:
        return f"Episode {self.seed}."

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action == "raise":
            raise RuntimeError("boom")
        if action == "hang":
            self._released.wait(30)
        self.state = (*self.state, action)
        found = re.fullmatch(r"(earn|lose|win) (-?[\d.]+)", action)
        word, reward = (found[1], float(found[2])) if found else ("", 0.0)
        if action == "break":
            return "Broken.", 0.0, True, False, {"outcome": Outcome(Verdict.FAILED, "", "the judge broke")}
        verdict = Verdict.SOLVED if word == "win" else Verdict.WRONG if found else Verdict.UNPARSABLE
        outcome = Outcome(verdict, "|".join(self.state))
        truncated = len(self.state) >= self.settings.max_turns
        return f"Turn {len(self.state)}.", reward, word in ("lose", "win"), truncated, {"outcome": outcome}

    def cut(self) -> float:
        return self.closing

    def _unused(self, *_: Any) -> Any:
        raise NotImplementedError

    # What the base class's own `step` would ask for, and what rollouts never do.
    _act: Any = _unused
    _state_text = _ending = render = _ceiling = _oracle = _optimal_length = _unused
    random_answer: Any = _unused
    solved = property(_unused)


class ThreadWorkers:
    """What `EnvWorkers` does, in threads of this process: for environments that tests hold in their hands."""

    def __init__(self, make_env: Callable[[], TextEnv], limit_s: float) -> None:
        self._episodes, self._limit_s = Episodes(make_env), limit_s
        self._threads = ThreadPoolExecutor(8)

    async def run(self, call: Call) -> Reply:
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._episodes.answer, call)
        try:
            return await asyncio.wait_for(running, self._limit_s)
        except TimeoutError:
            raise CallFailed(hung(self._limit_s)) from None
        except Exception as error:
            raise CallFailed(f"raised {said_of(error)}") from error


@dataclass
class Scene:
    """Puts a scripted policy and environment together; `released` lets hanging environments go."""

    chat: Chat
    released: threading.Event = field(default_factory=threading.Event)

    def shared(
        self, policy: ScriptedPolicy, make_env: Callable[[], TextEnv] | None = None, **groups: Mapping[str, Any]
    ) -> Shared:
        """`groups`: of the run's configuration."""
        from actors.rollout import Shared

        config = RunConfig.model_validate({"model": {"max_model_len": 4096}, **groups})
        make = make_env or (lambda: ScriptedEnv(self.released))
        return Shared(config, self.chat, policy, ThreadWorkers(make, config.rollout.env_timeout_s))

    async def rollout(
        self,
        policy: ScriptedPolicy,
        make_env: Callable[[], TextEnv] | None = None,
        ticket: Ticket = TICKET,
        **groups: Mapping[str, Any],
    ) -> Rollout:
        """A rollout of the ticket whose environment has been reset."""
        from actors.rollout import Rollout

        rollout = Rollout(ticket, self.shared(policy, make_env, **groups))
        await rollout.start()
        return rollout


@dataclass(frozen=True)
class Sampled:
    """A group, and what it was sampled with."""

    group: Group
    rollout: Rollout
    policy: ScriptedPolicy

    @property
    def plain(self) -> list[int]:
        return self.rollout.opening().tolist()


def token_ids_of(segments: Sequence[Segment]) -> list[int]:
    return [int(token) for segment in segments for token in segment.token_ids]
