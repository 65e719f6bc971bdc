"""Conversations as token pieces: put together they are the whole template's tokens, and sampled tokens stay."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from actors.chat import LONGEST_KEPT, MARK, Chat, ChatError
from tests.builders import CHATML, byte_tokenizer, ints

NO_SYSTEM_ROLE = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
# Turns that end with a token of the template's own, which is not the one that ends an answer.
BRACKETS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>"
    "{% else %}[{{ m['role'] }}: {{ m['content'] }}]{% endif %}{% endfor %}"
)


def whole(tokenizer: PreTrainedTokenizerFast, *turns: tuple[str, str]) -> list[int]:
    """Tokens of the conversation as the template renders it, up to where the assistant begins."""
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", [CHATML, BRACKETS])
def test_an_opening_is_the_whole_template_tokenised(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    expected = whole(tokenizer, ("system", "Rules up."), ("user", "Go up\n?"))
    assert Chat(tokenizer).opening("Rules up.", "Go up\n?").tolist() == expected


@pytest.mark.parametrize("template", [CHATML, BRACKETS])
@pytest.mark.parametrize("closed", [True, False])
def test_replies_between_sampled_tokens_make_the_whole_conversation(template: str, closed: bool) -> None:
    tokenizer = byte_tokenizer(template)
    chat = Chat(tokenizer)
    said = [tokenizer("go up")["input_ids"], tokenizer("and down")["input_ids"]]
    end = [tokenizer.eos_token_id] if closed else []
    pieces = [
        chat.opening("Rules.", "Begin.").tolist(),
        [*said[0], *end],
        chat.reply("You went up.", closed).tolist(),
        [*said[1], *end],
        chat.reply("And now?", closed).tolist(),
    ]
    turns = [
        *(("system", "Rules."), ("user", "Begin."), ("assistant", "go up"), ("user", "You went up.")),
        *(("assistant", "and down"), ("user", "And now?")),
    ]
    assert [token for piece in pieces for token in piece] == whole(tokenizer, *turns)


def test_a_reply_tells_an_open_turn_from_a_closed_one(chat: Chat) -> None:
    open_turn, closed_turn = chat.reply("And now?", False), chat.reply("And now?", True)
    assert open_turn.tolist() == [chat.eos_id, *closed_turn.tolist()]
    assert chat.reply("And now?", False) is open_turn  # kept: environments say the same many times


def test_long_replies_are_the_same_and_not_kept(chat: Chat) -> None:
    """Or an environment that says something long and new each time would fill the actor's memory."""
    for length in (LONGEST_KEPT, LONGEST_KEPT + 1):
        first, second = chat.reply("x" * length, True), chat.reply("x" * length, True)
        assert first.tolist() == second.tolist()
        assert (first is second) == (length <= LONGEST_KEPT)


def test_a_reply_keeps_the_templates_end_where_it_is_plain_text() -> None:
    tokenizer = byte_tokenizer(BRACKETS.replace("<|im_end|>", ";"))
    chat = Chat(tokenizer)
    assert chat.eos_id == tokenizer.eos_token_id
    assert chat.reply("x", closed=True).tolist() == tokenizer(";[user: x]")["input_ids"]


def test_a_frame_keeps_the_tokens_of_a_sketch_as_they_were_sampled(
    chat: Chat, tokenizer: PreTrainedTokenizerFast
) -> None:
    one, two = tokenizer("up")["input_ids"], [*tokenizer("u")["input_ids"], *tokenizer("p")["input_ids"]]
    assert len(one) == 1
    frame = chat.opening_frame("Rules.", f"Begin. Follow {MARK} now.")
    expected = whole(tokenizer, ("system", "Rules."), ("user", "Begin. Follow up now."))
    assert frame.around(ints(*one)).tolist() == expected
    spelt = frame.around(ints(*two))
    assert spelt.tolist() == [*frame.before.tolist(), *two, *frame.after.tolist()]
    assert len(spelt) == len(expected) + 1
    assert tokenizer.decode(spelt.tolist()) == tokenizer.decode(expected)


def test_ends_of_turns(chat: Chat, tokenizer: PreTrainedTokenizerFast) -> None:
    said = tokenizer("up we go")["input_ids"]
    closed, open_ = ints(*said, chat.eos_id), ints(*said)
    assert (chat.is_closed(closed), chat.is_closed(open_), chat.is_closed(ints())) == (True, False, False)
    assert chat.without_end(closed).tolist() == chat.without_end(open_).tolist() == said
    assert chat.text(closed) == chat.text(open_) == "up we go"


def test_environments_read_text_without_special_tokens_and_margins(
    chat: Chat, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert chat.text(ints(*tokenizer("\n up \n")["input_ids"], chat.eos_id)) == "up"


def test_a_template_without_a_system_role_gets_the_rules_with_the_first_message() -> None:
    tokenizer = byte_tokenizer(NO_SYSTEM_ROLE + CHATML)
    chat = Chat(tokenizer)
    assert chat.opening("Rules.", "Begin.").tolist() == whole(tokenizer, ("user", "Rules.\n\nBegin."))
    frame = chat.opening_frame("Rules.", f"Follow {MARK}.")
    merged = whole(tokenizer, ("user", "Rules.\n\nFollow a."))
    assert frame.around(ints(*tokenizer("a")["input_ids"])).tolist() == merged


def test_other_complaints_of_a_template_are_not_taken_for_a_missing_system_role() -> None:
    """This one would be silent with the rules in the user's message."""
    chat = Chat(byte_tokenizer(NO_SYSTEM_ROLE.replace("System role not supported", "rules are too long") + CHATML))
    with pytest.raises(Exception, match="rules are too long"):
        chat.opening("Rules.", "Begin.")


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (byte_tokenizer(template=None), "no chat template"),
        (byte_tokenizer(eos=None), r"no end-of-turn token \(eos_token\)"),
    ],
    ids=["template", "eos"],
)
def test_a_tokenizer_that_cannot_hold_a_conversation_is_refused_in_one_line(
    tokenizer: PreTrainedTokenizerFast, expected: str
) -> None:
    with pytest.raises(ChatError, match=expected) as caught:
        Chat(tokenizer)
    assert str(caught.value).startswith("model.path: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("altered", ["m['content'] | replace('slot', '')", "m['content'] ~ m['content']", "''"])
def test_a_template_that_alters_texts_is_refused_in_one_line(altered: str) -> None:
    chat = Chat(byte_tokenizer(CHATML.replace("m['content']", altered)))
    for cut in (lambda: chat.reply("x", True), lambda: chat.opening_frame("Rules.", MARK)):
        with pytest.raises(ChatError, match="does not keep message texts as they are") as caught:
            cut()
        assert "\n" not in str(caught.value)


def test_the_end_of_a_turn_is_the_templates_and_not_always_eos() -> None:
    """As with Gemma: eos is another token than the one that ends an answer."""
    tokenizer = byte_tokenizer(eos="<|im_start|>")
    chat = Chat(tokenizer)
    assert chat.eos_id == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id
    said = ints(*tokenizer("up")["input_ids"], chat.eos_id)
    assert chat.is_closed(said)
    assert tokenizer.decode([*said, *chat.reply("x", True)]).count("<|im_end|>") == 2
