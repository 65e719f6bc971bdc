"""Where a failed trajectory can be taken up again, and how often each of these places is chosen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from actors.chat import Chat
from actors.episode import Episode, Turn
from actors.samplers.pivots import Candidate, candidates_of, distribution, draw, sentence_ends
from actors.samplers.recoverability import Recoverability
from configs.samplers import DdeSettings
from envs.trajectory import Ints, Role, Trajectory, Verdict
from tests.builders import CHATML, END, START, answer, ints, observation, prompt

STATE = b"as it stands"


def settings(**values: Any) -> DdeSettings:
    return DdeSettings.model_validate(values)


def no_pieces(token_ids: Ints) -> list[str]:
    raise AssertionError("only sentences need the text")


def episode() -> Episode:
    """Answers of 2, 3 and 5 tokens, of log-probs -1/2, -1 and -2 each, that earned 0.25, then 0.5."""
    segments = (
        *(prompt(1, 2, 3), answer(10, 11, logprob=-0.5), observation(4), answer(20, 21, 22, logprob=-1.0)),
        *(observation(4, 5), answer(30, 31, 32, 33, 34, logprob=-2.0)),
    )
    turns = (Turn(1, STATE, 0.0), Turn(3, STATE, 0.25), Turn(5, STATE, 0.75))
    return Episode(Trajectory(segments, Verdict.WRONG, 0.75), turns)


def places(found: tuple[Candidate, ...]) -> list[tuple[int, int]]:
    return [(c.segment, c.offset) for c in found]


# --- candidates ------------------------------------------------------------------------------------------------------


def test_turns_are_the_root_and_the_beginnings_of_later_answers() -> None:
    """Of 10 sampled tokens 0, 2 and 5 come before; surprise is that of the answer before, progress what it earned."""
    assert candidates_of(episode(), settings(candidates="turns"), no_pieces) == (
        Candidate(1, 0, 0.0, 0.0, 0.0),
        Candidate(3, 0, 0.2, 0.5, 0.25),
        Candidate(5, 0, 0.5, 1.0, 0.75),
    )


def test_every_so_many_tokens_counts_along_the_trajectory() -> None:
    """Tokens 4 and 8 of the ten: the 3rd of the second answer and the 4th of the third; turns stay candidates."""
    found = candidates_of(episode(), settings(candidates="tokens", segment_tokens=4), no_pieces)
    assert places(found) == [(1, 0), (3, 0), (3, 2), (5, 0), (5, 3)]
    assert [c.depth for c in found] == [0.0, 0.2, 0.4, 0.5, 0.8]
    assert [c.surprise for c in found] == [0.0, 0.5, 1.0, 1.0, 2.0]
    assert [c.progress for c in found] == [0.0, 0.25, 0.25, 0.75, 0.75]


def test_a_place_that_is_a_turn_too_counts_once_and_the_end_is_none() -> None:
    found = candidates_of(episode(), settings(candidates="tokens", segment_tokens=5), no_pieces)
    assert places(found) == [(1, 0), (3, 0), (5, 0)]
    assert places(candidates_of(episode(), settings(candidates="tokens", segment_tokens=1), no_pieces)) == [
        *[(1, 0), (1, 1)],
        *[(3, 0), (3, 1), (3, 2)],
        *[(5, i) for i in range(5)],
    ]


def test_the_mean_surprise_is_of_all_tokens_since_the_candidate_before() -> None:
    said = answer(1, 2, 3, 4)
    said.behaviour_logprobs[:] = [-1, -2, -6, 0]
    one = Episode(Trajectory((prompt(1), said), Verdict.WRONG, 0.0), (Turn(1, STATE, 0.0),))
    found = candidates_of(one, settings(candidates="tokens", segment_tokens=3), no_pieces)
    assert found[1] == Candidate(1, 3, 0.75, 3.0, 0.0)


def test_where_nothing_was_sampled_there_is_no_candidate() -> None:
    silent = Episode(Trajectory((prompt(1, 2),), Verdict.UNPARSABLE, 0.0), (Turn(1, STATE, 0.0),))
    for kind in ("turns", "sentences", "tokens"):
        assert candidates_of(silent, settings(candidates=kind), lambda ids: []) == ()


def test_sentences_end_inside_answers(chat: Chat) -> None:
    words = "One. Two!\nThree"
    token_ids = chat._encode(words).tolist()
    one = Episode(Trajectory((prompt(1), answer(*token_ids, chat.eos_id)), Verdict.WRONG, 0.0), (Turn(1, STATE, 0.0),))
    found = candidates_of(one, settings(candidates="sentences"), chat.pieces)
    assert places(found) == [(1, 0), (1, 4), (1, 10)]
    assert found[1].depth == 4 / 16


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        (["a", ".", " b", "?", " c", "!"], [2, 4]),  # the last sign ends the text, not a sentence before another one
        (["a.", " b"], [1]),
        (["a", "...", " b"], [2]),
        (["so 3", ".", "5 of", " x.y"], []),
        (["a", ".\n\n", "b"], [2]),
        (["a", ".", "\n", "\n", "b"], [4]),
        (["line", "\n", "line", "\n\n", "end"], [2, 4]),
        (['He said "no', '."', " Then"], [2]),
        (["(yes", "!", ")", " Then"], [3]),
        (["a. b", " c"], [1]),  # inside a token: behind it
        (["", "a.", "", " b", ""], [2]),
        ([], []),
    ],
)
def test_a_sentence_ends_with_a_token(pieces: list[str], ends: list[int]) -> None:
    assert list(sentence_ends(pieces)) == ends


def test_pieces_are_what_each_token_says(chat: Chat) -> None:
    assert chat.pieces(ints(*chat._encode("up a\n"), chat.eos_id)) == ["up", " ", "a", "\n", ""]
    assert chat.pieces(ints()) == []


# --- the choice ------------------------------------------------------------------------------------------------------


def test_features_are_those_asked_for() -> None:
    one = Candidate(3, 0, 0.2, 0.5, 0.25)
    assert one.features(settings(features="depth")) == (0.2,)
    assert one.features(settings(features="depth+surprise")) == (0.2, 0.5)
    assert one.features(settings(features="depth+surprise+progress")) == (0.2, 0.5, 0.25)


def test_before_the_first_fit_depth_alone_decides() -> None:
    """0, 0.2^2 and 0.5^2: shares of 0.29."""
    knobs = settings()
    found = candidates_of(episode(), knobs, no_pieces)
    np.testing.assert_allclose(distribution(found, Recoverability.unfitted(1), knobs), [0, 0.04 / 0.29, 0.25 / 0.29])


def test_the_worked_example() -> None:
    """P = sigmoid(1 - 4 r): 0.549834 at 0.2, 0.268941 at 0.5; times r^2: 0.0219934 and 0.0672353 of 0.0892287."""
    knobs = settings()
    found = candidates_of(episode(), knobs, no_pieces)
    got = distribution(found, Recoverability((-4.0,), 1.0), knobs)
    np.testing.assert_allclose(got, [0, 0.246484, 0.753516], atol=1e-6)


def test_all_features_and_another_gamma() -> None:
    """P = sigmoid(r - 2 surprise + 4 progress) times r: sigmoid(0.2), sigmoid(1.5)."""
    knobs = settings(features="depth+surprise+progress", gamma=1.0)
    found = candidates_of(episode(), knobs, no_pieces)
    utility = [0.2 / (1 + math.exp(-0.2)), 0.5 / (1 + math.exp(-1.5))]
    got = distribution(found, Recoverability((1.0, -2.0, 4.0)), knobs)
    np.testing.assert_allclose(got, [0, utility[0] / sum(utility), utility[1] / sum(utility)])


def test_without_depth_the_root_counts_like_any_other() -> None:
    found = candidates_of(episode(), knobs := settings(gamma=0.0), no_pieces)
    np.testing.assert_allclose(distribution(found, Recoverability.unfitted(1), knobs), [1 / 3] * 3)


def test_where_nothing_has_any_utility_the_root_is_the_pivot() -> None:
    only_root = candidates_of(episode(), settings(), no_pieces)[:1]
    assert distribution(only_root, Recoverability.unfitted(1), settings()).tolist() == [1.0]
    found = candidates_of(episode(), settings(), no_pieces)
    assert distribution(found, Recoverability((0.0,), -1e9), settings()).tolist() == [1.0, 0.0, 0.0]


def shares(knobs: DdeSettings, model: Recoverability, draws: int = 4000) -> list[float]:
    found = candidates_of(episode(), knobs, no_pieces)
    rng = np.random.default_rng(0)
    drawn = [found.index(draw(found, model, knobs, rng)) for _ in range(draws)]
    return [drawn.count(i) / draws for i in range(len(found))]


def test_pivots_are_drawn_as_often_as_the_rule_says() -> None:
    model = Recoverability((-4.0,), 1.0)
    np.testing.assert_allclose(shares(settings(), model), [0, 0.2465, 0.7535], atol=0.02)
    np.testing.assert_allclose(shares(settings(rule="random"), model), [0, 0.5, 0.5], atol=0.02)
    assert shares(settings(rule="root"), model, 10) == [1, 0, 0]


@pytest.mark.parametrize("rule", ["learned", "random", "root"])
def test_a_root_alone_is_the_pivot_of_every_rule(rule: str) -> None:
    only_root = candidates_of(episode(), settings(), no_pieces)[:1]
    rng = np.random.default_rng(0)
    assert draw(only_root, Recoverability.unfitted(1), settings(rule=rule), rng) == only_root[0]


def test_a_seed_decides() -> None:
    knobs, model = settings(candidates="tokens", segment_tokens=1), Recoverability.unfitted(1)
    found = candidates_of(episode(), knobs, no_pieces)
    once, again = ([draw(found, model, knobs, np.random.default_rng(i)) for i in range(20)] for _ in range(2))
    assert once == again
    assert len(set(once)) > 3


def test_guided_and_sketch_segments_are_no_answers_to_cut() -> None:
    """A guided prompt holds the sketch's tokens: they are given, not sampled, and no candidate lies among them."""
    guided = Trajectory((prompt(1, 2, 9, 9), answer(10, 11)), Verdict.WRONG, 0.0, sketch=1)
    found = candidates_of(
        Episode(guided, (Turn(1, STATE, 0.0),)), settings(candidates="tokens", segment_tokens=1), no_pieces
    )
    assert guided.segments[0].role is Role.PROMPT
    assert places(found) == [(1, 0), (1, 1)]


@pytest.mark.parametrize("layout", ["metaspace", "replaced"])
def test_sentences_end_also_where_a_tokenizer_hides_the_blank_before_a_word(layout: str) -> None:
    """Of SentencePiece's kind: a token decoded alone has lost the blank it begins with."""
    words = ["<unk>", "▁One", ".", "▁Two", "!", "▁Three"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = {
        "metaspace": decoders.Metaspace(),
        "replaced": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    }[layout]
    tokenizer.add_special_tokens([START, END])
    chat = Chat(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=CHATML))
    pieces = chat.pieces(ints(1, 2, 3, 4, 5))
    assert "".join(pieces) == "One. Two! Three"
    assert list(sentence_ends(pieces)) == [2, 4]
