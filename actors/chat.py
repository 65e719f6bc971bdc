"""Chat turns as token pieces: sampled tokens are appended as they came, never decoded and tokenised again.

Message texts can hold what the policy said (sketches told back, words repeated by an environment): the names of control
tokens in them are taken out, or a policy that spells `<|im_end|>` would end the user's turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from envs.trajectory import Ints

MARK = "\u2063slot\u2063"
# Characters of a message whose tokens are kept: what is kept has a bound, whatever environments say.
LONGEST_KEPT = 2000


class ChatError(ValueError):
    """The tokenizer cannot hold a conversation; one line that says why."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Prompt tokens before and after a slot; sampled tokens go between them."""

    before: Ints
    after: Ints

    def around(self, token_ids: Ints) -> Ints:
        return np.concatenate([self.before, token_ids, self.after])


class Chat:
    """Turns messages into token ids with the tokenizer's own chat template.

    Pieces are cut out of rendered templates at a mark, so any template works that puts message texts in verbatim.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise ChatError(
                f"model.path: {tokenizer.name_or_path}: the tokenizer has no chat template; use a chat model"
            )
        if tokenizer.eos_token_id is None:
            raise ChatError(f"model.path: {tokenizer.name_or_path}: the tokenizer has no end-of-turn token (eos_token)")
        self._tokenizer = tokenizer
        self._control = _control_tokens(tokenizer)
        self.eos_id = self._end_of_turn()
        # An environment's later turns repeat (same position, same turns left), so their pieces are worth keeping.
        self._kept_reply = lru_cache(maxsize=4096)(self._reply)

    @classmethod
    def load(cls, path: str) -> Chat:
        return cls(AutoTokenizer.from_pretrained(path, trust_remote_code=False))

    def opening(self, rules: str, user: str) -> Ints:
        """Tokens (n,) of the system and first user message, up to where the assistant begins."""
        return self._encode(self._render(rules, user))

    def opening_frame(self, rules: str, user: str) -> Frame:
        """The opening whose user text holds `MARK` once: its tokens before and after the mark."""
        before, after = self._split(self._render(rules, user))
        return Frame(self._encode(before), self._encode(after))

    def reply(self, user: str, closed: bool) -> Ints:
        """Tokens (n,) between an assistant's last token and the next answer, with the user's words between.

        `closed`: the assistant's turn already ends with the end-of-turn token; else that token comes first.
        """
        return (self._kept_reply if len(user) <= LONGEST_KEPT else self._reply)(user, closed)

    def _reply(self, user: str, closed: bool) -> Ints:
        turns = [
            {"role": "user", "content": "."},
            {"role": "assistant", "content": MARK},
            {"role": "user", "content": user.replace(MARK, " ")},
        ]
        token_ids = self._encode(self._split(self._template(turns))[1])
        return token_ids[1:] if closed and len(token_ids) and token_ids[0] == self.eos_id else token_ids

    def text(self, token_ids: Ints) -> str:
        """What the tokens say, without special tokens: for environments only, never to train on."""
        return str(self._tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)).strip()

    def pieces(self, token_ids: Ints) -> list[str]:
        """What each token adds to the text, special ones nothing; a character of several tokens is in none of them."""
        ids = token_ids.tolist()
        if not ids:
            return []
        # Behind the token before it: alone, some tokenizers leave out the blank a word begins with.
        pairs = [ids[max(i - 1, 0) : i + 1] for i in range(len(ids))]
        together, alone = (
            self._tokenizer.batch_decode(of, skip_special_tokens=True) for of in (pairs, [[token] for token in ids])
        )
        return [str(pair[len(before) :]) for pair, before in zip(together, ["", *alone], strict=False)]

    def is_closed(self, token_ids: Ints) -> bool:
        """Whether sampled tokens end their own turn."""
        return bool(len(token_ids)) and int(token_ids[-1]) == self.eos_id

    def without_end(self, token_ids: Ints) -> Ints:
        """The tokens without a closing end-of-turn token."""
        return token_ids[:-1] if self.is_closed(token_ids) else token_ids

    def _end_of_turn(self) -> int:
        """The special token the template puts behind an answer: not every model's eos token, which it is else."""
        turns = [{"role": "user", "content": "."}, {"role": "assistant", "content": MARK}]
        behind = self._encode(self._template(turns).partition(MARK)[2])
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return int(behind[0]) if len(behind) and int(behind[0]) in special else int(self._tokenizer.eos_token_id)

    def _render(self, rules: str, user: str) -> str:
        try:
            return self._template([{"role": "system", "content": rules}, {"role": "user", "content": user}])
        except Exception as no_system_role:  # templates raise their own error types through jinja
            if "system" not in str(no_system_role).lower():
                raise
            return self._template([{"role": "user", "content": f"{rules}\n\n{user}"}])

    def _template(self, turns: Sequence[dict[str, str]]) -> str:
        plain = [{**turn, "content": self._without_control(turn["content"])} for turn in turns]
        return str(self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))

    def _without_control(self, text: str) -> str:
        """A blank in place of each: what stands around it must not make another one."""
        return self._control.sub(" ", text)

    def _split(self, rendered: str) -> tuple[str, str]:
        parts = rendered.split(MARK)
        if len(parts) != 2:
            raise ChatError(
                f"model.path: {self._tokenizer.name_or_path}: its chat template does not keep message texts as they are"
            )
        return parts[0], parts[1]

    def _encode(self, text: str) -> Ints:
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds a tokenizer's special tokens as they are spelled; not ordinary ones that were added, as `<answer>`."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = sorted({*map(str, tokenizer.all_special_tokens), *added} - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")
