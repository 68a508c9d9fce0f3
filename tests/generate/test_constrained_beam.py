"""Constrained beam search: against a naive search, by its properties, and its outputs."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.decode.constraints import DisjunctiveConstraint, PhrasalConstraint
from pygen.generate import generate
from tests.generate.models import TableModel, hf_model
from tests.generate.plans import make_call, step_by_step
from tests.generate.searches import TABLE_SIZE, Found, PlacedTable, constrained, table_model
from tests.helpers import naive_searches

CASES = 240
CASES_PER_TEST = 20
BEAMS: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 8, "pad_token_id": 3}
PROMPTS = torch.tensor([[5, 6, 7], [8, 9, 10]])

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Words = list[list[tuple[int, ...]]]


def draw_words(draw: random.Random, vocab_size: int) -> Words:
    """Draws one to three constraints, each a list of words of which the text must contain one."""
    constraints: Words = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        lengths = [draw.choice([1, 1, 2, 3]) for _ in range(draw.choice([1, 1, 2, 3]))]
        common = draw.sample(range(vocab_size), draw.choice([0, 0, 1]))
        firsts = draw.sample(range(vocab_size), len(lengths))
        words = [
            (*common, first, *(draw.randrange(vocab_size) for _ in range(length - 1)))
            for first, length in zip(firsts, lengths, strict=True)
        ]
        constraints.append(words)
    return constraints


def make_case(number: int) -> tuple[Any, Tensor, Words, dict[str, Any]]:
    """Returns (model, prompts, constraints, settings), a function of the number."""
    draw = random.Random(f"constrained {number}")
    family = draw.choice(["table", "table", "llama", "gpt2"])
    model = PlacedTable(number) if family == "table" else hf_model(family)
    vocab_size = TABLE_SIZE if family == "table" else 101
    shape = draw.randint(1, 3), draw.randint(1, 4)
    prompts = torch.tensor([[draw.randrange(4, vocab_size) for _ in range(shape[1])] for _ in range(shape[0])])
    num_beams = draw.choice([2, 2, 3, 4, 6])
    eos = draw.sample(range(vocab_size), draw.choice([0, 1, 1, 2]))
    settings: dict[str, Any] = {
        "num_beams": num_beams,
        "num_return_sequences": num_beams,
        "max_new_tokens": draw.choice([1, 2, 4, 7, 10]),
        "length_penalty": draw.choice([-1.0, 0.0, 0.5, 1.0, 2.0]),
        "early_stopping": draw.choice([False, True, "never"]),
        "eos_token_id": eos or None,
        "pad_token_id": 3,
    }
    if eos and draw.random() < 0.5:
        settings["sequence_bias"] = [[[token_id], draw.choice([1.0, 4.0])] for token_id in eos]
    if draw.random() < 0.3:
        settings["repetition_penalty"] = draw.choice([0.8, 1.3])
    if draw.random() < 0.3:
        settings["no_repeat_ngram_size"] = draw.choice([1, 2])
    if draw.random() < 0.3:
        settings["suppress_tokens"] = draw.sample(range(vocab_size), vocab_size // 4)
    if draw.random() < 0.3:
        settings["logits_processor"] = [lambda input_ids, scores: scores * 0.7]
    if draw.random() < 0.2:
        settings["renormalize_logits"] = True
    return model, prompts, draw_words(draw, vocab_size), settings


def naive(model: Any, prompts: Tensor, words: Words, settings: dict[str, Any]) -> list[naive_searches.Hypothesis]:
    log_probs = naive_searches.model_log_probs(model, step_by_step(make_call(prompts, **settings)))
    found = []
    for prompt in prompts.tolist():
        task = naive_searches.Task(
            log_probs,
            tuple(prompt),
            settings["num_beams"],
            settings["max_new_tokens"],
            tuple(settings["eos_token_id"] or ()),
            settings["length_penalty"],
            settings["early_stopping"],
        )
        found += naive_searches.constrained(task, words)
    return found


def forced(words: Words) -> list[Any]:
    """Returns the words as `force_words_ids`."""
    return [list(options[0]) if len(options) == 1 else [list(word) for word in options] for options in words]


def generated(found: Found, prompts: Tensor) -> list[tuple[int, ...]]:
    lengths = (found.beam_indices >= 0).sum(1).tolist()
    return [tuple(row[:n]) for row, n in zip(found.sequences[:, prompts.shape[1] :].tolist(), lengths, strict=True)]


def contains(tokens: list[int], word: Any) -> bool:
    return any(tokens[i : i + len(word)] == list(word) for i in range(len(tokens)))


@pytest.mark.parametrize("first", range(0, CASES, CASES_PER_TEST))
def test_against_a_naive_search(first: int) -> None:
    for number in range(first, first + CASES_PER_TEST):
        model, prompts, words, settings = make_case(number)
        found = constrained(model, prompts, force_words_ids=forced(words), **settings)
        expected = naive(model, prompts, words, settings)
        about = f"case {number}: {words} {settings}"
        assert generated(found, prompts) == [h.tokens for h in expected], about
        scores = torch.tensor([h.score for h in expected])
        torch.testing.assert_close(found.sequences_scores, scores, rtol=1e-4, atol=1e-4, msg=about)
        for row, tokens in enumerate(generated(found, prompts)):
            beams = found.beam_indices[row].tolist()
            total = sum(float(found.scores[t][beams[t], token]) for t, token in enumerate(tokens))
            assert float(scores[row]) == pytest.approx(
                total / len(tokens) ** settings["length_penalty"], rel=1e-3, abs=1e-4
            )


# Recorded from transformers 4.55.4, for the table model of that seed: the generated tokens, and their scores.
RECORDED: list[tuple[int, dict[str, Any], list[list[int]], list[float]]] = [
    (
        0,
        {"force_words_ids": [[11, 12]]},
        [[21, 10, 14, 15, 5, 19, 11, 12], [14, 15, 5, 19, 15, 5, 11, 12]],
        [-2.19299, -1.31358],
    ),
    (
        2,
        {"force_words_ids": [[[11, 12], [14, 13]]], "eos_token_id": 16, "repetition_penalty": 1.3},
        [[22, 17, 12, 18, 8, 2, 14, 13], [15, 3, 19, 3, 10, 6, 14, 13]],
        [-2.32125, -2.28676],
    ),
    (
        3,
        {"force_words_ids": [[20, 21, 22], [9]], "length_penalty": 0.5, "eos_token_id": 14, "early_stopping": True},
        [[19, 9, 20, 7, 21, 20, 21, 22], [15, 0, 6, 21, 15, 20, 21, 22]],
        [-9.62016, -5.21343],
    ),
]


@pytest.mark.parametrize(("seed", "settings", "tokens", "scores"), RECORDED)
def test_as_recorded(seed: int, settings: dict[str, Any], tokens: list[list[int]], scores: list[float]) -> None:
    found = constrained(table_model(seed), PROMPTS, **{**BEAMS, **settings})
    assert found.sequences[:, 3:].tolist() == tokens
    assert found.sequences_scores.tolist() == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_every_constraint_is_met_if_the_length_allows(seed: int) -> None:
    words = draw_words(random.Random(seed), TABLE_SIZE)
    eos = seed % TABLE_SIZE
    if any(eos in word for options in words for word in options):
        words = [[(eos - 1,)]]
    found = constrained(
        PlacedTable(seed), PROMPTS, force_words_ids=forced(words), eos_token_id=eos, num_return_sequences=4,
        **{**BEAMS, "max_new_tokens": 14},
    )  # fmt: skip
    for rank, tokens in enumerate(found.sequences.tolist()):
        if rank % 4 == 0:
            assert all(any(contains(tokens, word) for word in options) for options in words), (words, tokens)


def test_hypotheses_that_meet_constraints_come_first() -> None:
    settings = {**BEAMS, "force_words_ids": [[11, 12], [[13], [14, 15]]], "eos_token_id": 4, "num_beams": 6}
    found = constrained(table_model(1), PROMPTS, **settings, num_return_sequences=6)
    for rows in (slice(0, 6), slice(6, 12)):
        tokens, scores = found.sequences[rows].tolist(), found.sequences_scores[rows].tolist()
        met = [contains(row, [11, 12]) and (contains(row, [13]) or contains(row, [14, 15])) for row in tokens]
        assert met[0] and not met[-1] and met == sorted(met, reverse=True)
        assert scores[: sum(met)] == sorted(scores[: sum(met)], reverse=True)
        # transformers 4 returned these hypotheses first, although they lack words.
        assert max(scores[sum(met) :]) > scores[0]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_constraints_that_the_prompt_meets_change_nothing(family: str, early_stopping: bool | str) -> None:
    settings = {
        **BEAMS,
        "num_return_sequences": 4,
        "eos_token_id": list(range(4, 20)),
        "early_stopping": early_stopping,
    }
    prompts = torch.tensor([[5, 6, 7], [9, 6, 7]])
    found = constrained(hf_model(family), prompts, force_words_ids=[[6, 7], [[99, 98], [5], [9]]], **settings)
    plain: Any = generate(hf_model(family), prompts, return_dict_in_generate=True, output_scores=True, **settings)
    assert torch.equal(found.sequences, plain.sequences)
    assert torch.equal(found.beam_indices, plain.beam_indices)
    torch.testing.assert_close(found.sequences_scores, plain.sequences_scores)
    for one, other in zip(found.scores, plain.scores, strict=True):
        torch.testing.assert_close(one, other)


def test_hidden_prompt_tokens_meet_nothing() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    settings = {**BEAMS, "force_words_ids": [[33]]}
    found = constrained(hf_model("llama"), torch.tensor([[33, 6, 7], [33, 6, 7]]), mask=mask, **settings)
    alone = constrained(hf_model("llama"), torch.tensor([[6, 7]]), **settings)
    assert 33 in found.sequences[0, 1:].tolist() and 33 not in found.sequences[1, 1:].tolist()
    assert torch.equal(found.sequences[0, 1:], alone.sequences[0])
    # Hypotheses that lack words do not come between others either.
    split = constrained(
        hf_model("llama"),
        torch.tensor([[33, 6, 7]]),
        mask=torch.tensor([[1, 0, 1]]),
        **BEAMS,
        force_words_ids=[[33, 7]],
    )
    assert 33 not in split.sequences[0, 1:].tolist()


def test_a_constraint_is_not_used_up() -> None:
    constraints = [PhrasalConstraint([30, 31]), DisjunctiveConstraint([[40], [41, 42]])]
    first, second = (constrained(hf_model("llama"), PROMPTS, constraints=constraints, **BEAMS) for _ in range(2))
    assert torch.equal(first.sequences, second.sequences)
    words = constrained(hf_model("llama"), PROMPTS, force_words_ids=[[30, 31], [[40], [41, 42]]], **BEAMS)
    assert torch.equal(first.sequences, words.sequences)


@pytest.mark.parametrize(
    "settings", [{"suppress_tokens": [30]}, {"force_words_ids": [[30, 31, 32]], "max_new_tokens": 2}]
)
def test_unmet_constraints_return_the_best_hypotheses(settings: dict[str, Any]) -> None:
    settings = {**BEAMS, "force_words_ids": [[30]], "num_return_sequences": 4, **settings}
    found = constrained(hf_model("llama"), PROMPTS, **settings)
    assert not any(contains(row, settings["force_words_ids"][0]) for row in found.sequences.tolist())
    assert found.sequences.shape[1] == 3 + settings["max_new_tokens"] and bool(found.sequences_scores.isfinite().all())
    for scores in found.sequences_scores.view(2, 4).tolist():
        assert scores == sorted(scores, reverse=True)


def test_a_word_may_end_with_the_end() -> None:
    settings = {**BEAMS, "force_words_ids": [[30, 11]], "eos_token_id": 11}
    found = constrained(hf_model("llama"), PROMPTS, **settings)
    for tokens in generated(found, PROMPTS):
        assert tokens[-2:] == (30, 11) and 11 not in tokens[:-1]
    after = constrained(hf_model("llama"), PROMPTS, **{**settings, "force_words_ids": [[11, 30]]})
    assert 11 not in after.sequences[:, 3:], "nothing follows the end"


@pytest.mark.parametrize("first", [5, 8])
def test_a_dead_end_returns_the_text_so_far(first: int) -> None:
    def only_the_end(input_ids: Tensor, scores: Tensor) -> Tensor:
        """Allows only the end at the third step of the prompt that begins with `first`."""
        hidden = torch.arange(scores.shape[1]) != 11
        return scores.masked_fill(
            ((input_ids[:, 0] == first) & (input_ids.shape[1] == 5))[:, None] & hidden, -torch.inf
        )

    settings = {**BEAMS, "force_words_ids": [[30, 31, 32]], "eos_token_id": 11, "logits_processor": [only_the_end]}
    dead, other = generated(constrained(hf_model("llama"), PROMPTS, **settings), PROMPTS)
    if first == 8:
        dead, other = other, dead
    assert len(dead) == 3 and dead[-1] == 11
    assert contains(list(other), [30, 31, 32])


def test_criteria() -> None:
    def stops_at_50(input_ids: Tensor, scores: Any) -> Tensor:
        return input_ids[:, -1] >= 50

    settings = {**BEAMS, "force_words_ids": [[30]], "num_return_sequences": 4, "max_new_tokens": 20}
    found = constrained(hf_model("llama"), PROMPTS, criteria=[stops_at_50], **settings)
    met = [tokens for tokens in generated(found, PROMPTS) if 30 in tokens]
    assert len(met) >= 4
    for tokens in met:
        assert tokens[-1] >= 50 or len(tokens) == 20
        assert all(token < 50 for token in tokens[tokens.index(30) : -1])
    now = constrained(hf_model("llama"), PROMPTS, criteria=[lambda input_ids, scores: True], **settings)
    assert now.steps == 1 and now.sequences[:, 3:].shape == (8, 1)
    assert [30 in row for row in now.sequences[:, 3:].tolist()] == [True, False, False, False] * 2


def test_prompts_and_padding_do_not_meet() -> None:
    settings = {**BEAMS, "force_words_ids": [[30], [[40, 41], [42]]], "num_return_sequences": 4}
    settings |= {"eos_token_id": list(range(43, 60)), "repetition_penalty": 1.3}
    padded = torch.cat([torch.full((2, 2), 3), PROMPTS], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    together = constrained(hf_model("llama"), padded, mask=mask, **settings)
    for b in range(2):
        alone = constrained(hf_model("llama"), PROMPTS[b : b + 1], **settings)
        width = alone.sequences.shape[1]
        assert torch.equal(together.sequences[4 * b : 4 * b + 4, 2 : 2 + width], alone.sequences)


def test_invalid_scores_name_the_row() -> None:
    table = torch.zeros(TABLE_SIZE, TABLE_SIZE)
    table[10, 4] = torch.inf
    with pytest.raises(RuntimeError, match=r"row 4 at step 0 hold \+inf, first at token id 4"):
        constrained(TableModel(table), PROMPTS, force_words_ids=[[5]], **BEAMS)
    with pytest.raises(RuntimeError, match="row 0 at step 0 hold no token that is allowed"):
        constrained(TableModel(table), PROMPTS[:1], force_words_ids=[[5]], suppress_tokens=list(range(23)), **BEAMS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"force_words_ids": [[101]]}, r"`constraints` must ask for ids in \[0, 101\), got 101"),
        ({"length_penalty": 1e6}, "`length_penalty` must keep 8"),
        ({"force_words_ids": None}, "`constraints` must hold at least one"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        constrained(hf_model("llama"), PROMPTS, **{**BEAMS, "force_words_ids": [[5]], **settings})
