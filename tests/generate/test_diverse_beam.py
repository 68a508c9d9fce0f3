"""Diverse beam search: against a naive search, by its properties, and its outputs."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.decode.group_plans import check_groups
from pygen.generate import generate
from tests.generate.models import TableModel, hf_model
from tests.generate.plans import make_call, step_by_step
from tests.generate.searches import TABLE_SIZE, Found, PlacedTable, diverse, table_model
from tests.helpers import naive_searches

CASES = 240
CASES_PER_TEST = 20
BEAMS: dict[str, Any] = {"num_beams": 6, "num_beam_groups": 3, "max_new_tokens": 8, "pad_token_id": 3}
PROMPTS = torch.tensor([[5, 6, 7], [8, 9, 10]])

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make_case(number: int) -> tuple[Any, Tensor, dict[str, Any]]:
    """Returns (model, prompts, settings), a function of the number."""
    draw = random.Random(f"diverse {number}")
    family = draw.choice(["table", "table", "llama", "gpt2"])
    model = PlacedTable(number) if family == "table" else hf_model(family)
    vocab_size = TABLE_SIZE if family == "table" else 101
    shape = draw.randint(1, 3), draw.randint(1, 4)
    prompts = torch.tensor([[draw.randrange(4, vocab_size) for _ in range(shape[1])] for _ in range(shape[0])])
    groups, size = draw.choice([(1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (4, 1), (4, 2)])
    eos = draw.sample(range(vocab_size), draw.choice([0, 1, 1, 2]))
    settings: dict[str, Any] = {
        "num_beams": groups * size,
        "num_beam_groups": groups,
        "diversity_penalty": draw.choice([0.1, 0.5, 1.5, 10.0]),
        "num_return_sequences": groups * size,
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
        settings["bad_words_ids"] = [[7], [8, 9]]
    if draw.random() < 0.3:
        settings["logits_processor"] = [lambda input_ids, scores: scores * 0.7]
    if draw.random() < 0.2:
        settings["renormalize_logits"] = True
    return model, prompts, settings


def naive(model: Any, prompts: Tensor, settings: dict[str, Any]) -> list[list[naive_searches.Hypothesis]]:
    processors = step_by_step(make_call(prompts, **settings))
    log_probs = naive_searches.model_log_probs(model, processors, settings["diversity_penalty"])
    found = []
    for prompt in prompts.tolist():
        task = naive_searches.Task(
            log_probs,
            tuple(prompt),
            settings["num_beams"] // settings["num_beam_groups"],
            settings["max_new_tokens"],
            tuple(settings["eos_token_id"] or ()),
            settings["length_penalty"],
            settings["early_stopping"],
        )
        found.append(naive_searches.diverse(task, settings["num_beam_groups"]))
    return found


def generated(found: Found, prompts: Tensor) -> list[tuple[int, ...]]:
    lengths = (found.beam_indices >= 0).sum(1).tolist()
    return [tuple(row[:n]) for row, n in zip(found.sequences[:, prompts.shape[1] :].tolist(), lengths, strict=True)]


def assert_scores_add_up(found: Found, prompts: Tensor, length_penalty: float) -> None:
    """Asserts that a hypothesis scores the sum of its tokens' scores, found through `beam_indices`."""
    for row, tokens in enumerate(generated(found, prompts)):
        beams = found.beam_indices[row].tolist()
        total = sum(float(found.scores[t][beams[t], token]) for t, token in enumerate(tokens))
        expected = pytest.approx(total / len(tokens) ** length_penalty, rel=1e-4, abs=1e-4)
        assert float(found.sequences_scores[row]) == expected


@pytest.mark.parametrize("first", range(0, CASES, CASES_PER_TEST))
def test_against_a_naive_search(first: int) -> None:
    for number in range(first, first + CASES_PER_TEST):
        model, prompts, settings = make_case(number)
        found = diverse(model, prompts, **settings)
        expected = [h for of_prompt in naive(model, prompts, settings) for h in of_prompt]
        about = f"case {number}: {settings}"
        assert generated(found, prompts) == [h.tokens for h in expected], about
        scores = torch.tensor([h.score for h in expected])
        torch.testing.assert_close(found.sequences_scores, scores, rtol=1e-4, atol=1e-4, msg=about)
        assert_scores_add_up(found, prompts, settings["length_penalty"])


# Row i has the scores of the tokens after i. The search starts at 0, group by group.
HAND_TABLE = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25] * 4, [0.25] * 4]).log()


@pytest.mark.parametrize(
    ("penalty", "tokens", "scores"),
    [
        # The second group takes .4 e^-.2 = .327 over .3, the third .3 over .4 e^-.4; then the second pays once more.
        (0.2, [(0, 0), (1, 3), (0, 0)], [0.16, 0.12, 0.327492**2]),
        # Each group begins with another token. The third finds .25 everywhere, and pays for 0 and 3.
        (1.0, [(0, 0), (1, 3), (2, 1)], [0.16, 0.12, 0.05]),
    ],
)
def test_by_hand(penalty: float, tokens: list[tuple[int, int]], scores: list[float]) -> None:
    prompts = torch.tensor([[0]])
    settings: dict[str, Any] = {"num_beams": 3, "num_beam_groups": 3, "num_return_sequences": 3, "max_new_tokens": 2}
    found = diverse(TableModel(HAND_TABLE), prompts, diversity_penalty=penalty, length_penalty=0.0, **settings)
    assert generated(found, prompts) == tokens
    torch.testing.assert_close(found.sequences_scores.exp(), torch.tensor(scores))


# Recorded from transformers 4.55.4, for the table model of that seed: the generated tokens, and their scores.
RECORDED: list[tuple[int, dict[str, Any], list[list[int]], list[float]]] = [
    (
        0,
        {"diversity_penalty": 0.5},
        [
            [19, 15, 5, 19, 15, 5, 19, 15], [21, 10, 14, 15, 5, 19, 15, 5], [21, 3, 0, 13, 17, 2, 13, 17],
            [14, 15, 5, 19, 15, 5, 19, 15], [14, 15, 5, 19, 15, 5, 7, 21], [20, 1, 22, 16, 3, 0, 14, 15],
        ],
        [-0.88213, -0.8884, -0.95032, -0.77507, -0.89709, -1.08742],
    ),
    (
        1,
        {"diversity_penalty": 2.0, "eos_token_id": 4, "early_stopping": True},
        [
            [5, 5, 5, 5, 5, 5, 5, 5], [18, 17, 2, 0, 13, 8, 0, 13], [18, 17, 2, 0, 13, 8, 10, 6],
            [6, 21, 16, 18, 17, 2, 0, 13], [6, 21, 16, 18, 17, 2, 9, 6], [11, 7, 18, 17, 2, 0, 13, 8],
        ],
        [-0.81651, -0.90548, -0.9464, -1.0286, -1.0642, -1.07311],
    ),
    (
        2,
        {
            "diversity_penalty": 1.0, "eos_token_id": 12, "num_beams": 4, "num_beam_groups": 4,
            "length_penalty": 0.5, "repetition_penalty": 1.3,
        },
        [
            [22, 17, 12, 3, 3, 3, 3, 3], [0, 22, 17, 12, 3, 3, 3, 3], [9, 0, 22, 17, 12, 3, 3, 3],
            [16, 13, 15, 17, 12, 3, 3, 3], [15, 3, 19, 3, 10, 6, 18, 11], [6, 18, 11, 5, 2, 7, 0, 22],
        ],
        [-1.52886, -1.89043, -2.25598, -2.61895, -3.95669, -4.08608],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "settings", "tokens", "scores"), RECORDED)
def test_as_recorded(seed: int, settings: dict[str, Any], tokens: list[list[int]], scores: list[float]) -> None:
    found = diverse(table_model(seed), PROMPTS, **{**BEAMS, "num_return_sequences": 3, **settings})
    assert found.sequences[:, 3:].tolist() == tokens
    assert found.sequences_scores.tolist() == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_one_group_is_beam_search(family: str, early_stopping: bool | str) -> None:
    settings: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 9, "pad_token_id": 3}
    settings |= {"eos_token_id": list(range(4, 20)), "early_stopping": early_stopping, "repetition_penalty": 1.2}
    found = diverse(hf_model(family), PROMPTS, **settings)
    plain: Any = generate(hf_model(family), PROMPTS, return_dict_in_generate=True, output_scores=True, **settings)
    for name in ("sequences", "sequences_scores", "beam_indices"):
        assert torch.equal(getattr(found, name), plain[name]), name
    assert len(found.scores) == len(plain.scores)
    assert all(map(torch.equal, found.scores, plain.scores))


def test_groups_differ_more_with_a_larger_penalty() -> None:
    def num_shared(penalty: float) -> int:
        """Counts pairs of hypotheses with the same token at the same position, over some models."""
        count = 0
        for seed in range(12):
            found = diverse(table_model(seed), PROMPTS, diversity_penalty=penalty, num_return_sequences=6, **BEAMS)
            tokens = found.sequences[:, 3:].view(2, 6, 1, -1)
            count += int((tokens == tokens.transpose(1, 2)).sum())
        return count

    counts = [num_shared(penalty) for penalty in (1e-6, 0.3, 1.0, 4.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 1.5 * counts[-1]


def test_with_a_large_penalty_no_two_groups_choose_the_same_token_in_a_step() -> None:
    settings = {**BEAMS, "num_beams": 4, "num_beam_groups": 4, "num_return_sequences": 4}
    found = diverse(hf_model("llama"), PROMPTS, diversity_penalty=1e4, **settings)
    for step in range(8):
        for prompt in (0, 1):
            assert len(set(found.sequences[4 * prompt : 4 * prompt + 4, 3 + step].tolist())) == 4


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompts_and_padding_do_not_meet(family: str) -> None:
    settings = {**BEAMS, "diversity_penalty": 0.7, "num_return_sequences": 6, "eos_token_id": list(range(20, 30))}
    padded = torch.cat([torch.full((2, 2), 3), PROMPTS], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    together = diverse(hf_model(family), padded, mask=mask, repetition_penalty=1.3, **settings)
    for b in range(2):
        alone = diverse(hf_model(family), PROMPTS[b : b + 1], repetition_penalty=1.3, **settings)
        rows = slice(6 * b, 6 * b + 6)
        width = alone.sequences.shape[1]
        assert torch.equal(together.sequences[rows, 2 : 2 + width], alone.sequences)
        torch.testing.assert_close(together.sequences_scores[rows], alone.sequences_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_a_group_that_is_done_chooses_nothing(early_stopping: bool | str) -> None:
    # The first group writes 2, 1 and ends. The second writes 4, 5; its best next token is 3, the pad token.
    eos, pad = 1, 3
    table = torch.zeros(6, 6)
    table[[0, 0, 2, 4, 5], [2, 4, eos, 5, pad]] = torch.tensor([6.0, 5.0, 9.0, 9.0, 6.0])
    settings: dict[str, Any] = {"num_beams": 2, "num_beam_groups": 2, "max_new_tokens": 3, "length_penalty": 0.0}
    settings |= {"eos_token_id": eos, "pad_token_id": pad, "early_stopping": early_stopping}
    prompts = torch.tensor([[0]])
    found = diverse(TableModel(table), prompts, diversity_penalty=9.0, num_return_sequences=2, **settings)
    assert sorted(generated(found, prompts)) == [(2, eos), (4, 5, pad)]


def test_criteria_end_hypotheses() -> None:
    def stops_at_50(input_ids: Tensor, scores: Any) -> Tensor:
        return input_ids[:, -1] >= 50

    settings = {**BEAMS, "diversity_penalty": 0.7, "num_return_sequences": 6, "max_new_tokens": 20}
    found = diverse(hf_model("llama"), PROMPTS, criteria=[stops_at_50], **settings)
    for tokens in generated(found, PROMPTS):
        assert tokens[-1] >= 50 and all(token < 50 for token in tokens[:-1])


def test_criteria_end_the_search() -> None:
    # 1 allows only 3 and 2 allows nothing, so the pool of finished hypotheses does not fill up.
    table = torch.full((4, 4), -torch.inf)
    table[[0, 0, 1, 3], [1, 2, 3, 3]] = torch.tensor([2.0, 1.0, 0.0, 0.0])
    settings: dict[str, Any] = {"num_beams": 4, "num_beam_groups": 2, "max_new_tokens": 6, "pad_token_id": 0}
    for criteria, steps in [((), 6), ([lambda ids, scores: ids.shape[1] >= 3], 2)]:
        found = diverse(TableModel(table), torch.tensor([[0]]), diversity_penalty=0.1, criteria=criteria, **settings)
        assert found.steps == steps and found.sequences.tolist() == [[0, 1] + [3] * (steps - 1)]


def test_cancelled_before_it_began() -> None:
    cancel = threading.Event()
    cancel.set()
    found = diverse(hf_model("llama"), PROMPTS, diversity_penalty=0.7, cancel=cancel, **BEAMS)
    assert found.steps == 0 and torch.equal(found.sequences, PROMPTS)


def test_invalid_scores_name_the_row_of_the_batch() -> None:
    table = torch.zeros(TABLE_SIZE, TABLE_SIZE)
    table[10] = torch.nan
    with pytest.raises(RuntimeError, match="row 6 at step 0 hold NaN"):
        diverse(TableModel(table), PROMPTS, diversity_penalty=0.7, **BEAMS)


def test_processors_that_remember_rows_are_refused() -> None:
    class Remembers:
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores

        def reorder_cache(self, source_rows: Tensor) -> None: ...

    with pytest.raises(NotImplementedError, match=r"`logits_processor\[0\]` keeps a state, which groups"):
        diverse(hf_model("llama"), PROMPTS, diversity_penalty=0.7, logits_processor=[Remembers()], **BEAMS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((6, 4, 0.5, False), r"`num_beam_groups` must divide `num_beams` \(6\), got 4"),
        ((2, 4, 0.5, False), r"`num_beam_groups` must divide `num_beams` \(2\), got 4"),
        ((6, 3, 0.0, False), "`diversity_penalty` must be finite and > 0 with `num_beam_groups` > 1, got 0.0"),
        ((6, 3, None, False), "`diversity_penalty` must be finite and > 0 .*, got None"),
        ((6, 3, float("inf"), False), "`diversity_penalty` must be finite and > 0 .*, got inf"),
        ((6, 3, -0.5, False), "`diversity_penalty` must be finite and > 0 .*, got -0.5"),
        ((6, 1, 0.5, False), "`diversity_penalty` needs `num_beam_groups` > 1, got 0.5"),
        ((6, 3, 0.5, True), "`do_sample` must be False with `num_beam_groups` > 1, got True"),
    ],
)
def test_settings_that_do_not_go_together(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_groups(*settings)


@pytest.mark.parametrize("settings", [(6, 3, 0.5, None), (6, 6, 2, False), (6, 1, 0.0, True), (1, 1, None, None)])
def test_settings_that_do(settings: Any) -> None:
    check_groups(*settings)
