"""Transition scores: hand-checked, against transformers with and without beams, and refused arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import compute_transition_scores
from tests.generate.models import hf_model

SCORES = (torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.tensor([[7.0, 8, 9], [10, 11, 12]]))


@pytest.mark.parametrize(
    ("sequences", "beam_indices", "expected"),
    [
        ([[9, 0, 2], [9, 1, 1]], None, [[1, 9], [5, 11]]),
        ([[9, 0, 2], [9, 1, 1]], [[1, 0], [0, 1]], [[4, 9], [2, 11]]),
        ([[9, 9, 2, 2], [9, 9, 1, 0]], [[0, -1, -1], [1, 1, -1]], [[3, 0], [5, 10]]),
        ([[9, 2], [9, 1]], [[0, -1], [1, -1]], [[3], [5]]),
        ([[9, 2, -5], [9, 1, 0]], [[0, -1], [1, 0]], [[3, 0], [5, 7]]),  # ids after the end do not matter
    ],
)
def test_by_hand(sequences: list[list[int]], beam_indices: Any, expected: list[list[float]]) -> None:
    origin = None if beam_indices is None else torch.tensor(beam_indices, dtype=torch.int32)
    assert compute_transition_scores(torch.tensor(sequences), SCORES, origin).tolist() == expected


def test_normalised_by_hand() -> None:
    chosen = compute_transition_scores(torch.tensor([[0]]), (torch.tensor([[3.0, 1.0]]).log(),), None, True)
    torch.testing.assert_close(chosen, torch.tensor([[0.75]]).log())


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "temperature": 0.7, "top_k": 20, "num_return_sequences": 3},
    "beam": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.3},
    "beam_sample": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2, "length_penalty": -1.0},
}


@pytest.mark.parametrize("normalize_logits", [False, True])
@pytest.mark.parametrize("eos_token_id", [None, list(range(30))])
@pytest.mark.parametrize("mode", MODES)
def test_same_as_transformers(mode: str, eos_token_id: Any, normalize_logits: bool) -> None:
    model = hf_model("llama")
    ids = torch.tensor([[5, 6, 7], [8, 9, 3]])
    settings = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "pad_token_id": 0}
    torch.manual_seed(3)
    output = model.generate(ids, max_new_tokens=8, eos_token_id=eos_token_id, **settings, **MODES[mode])
    origin = output.get("beam_indices")
    for scores in (output.scores, output.logits):
        arguments = (output.sequences, scores, origin, normalize_logits)
        expected = model.compute_transition_scores(*arguments)
        chosen = compute_transition_scores(*arguments)
        assert chosen.dtype == expected.dtype
        torch.testing.assert_close(chosen, expected, rtol=1e-6, atol=1e-6)
        if not normalize_logits:
            assert torch.equal(chosen, expected)


IDS = torch.tensor([[9, 0, 2], [9, 1, 1]])


@pytest.mark.parametrize(
    ("sequences", "scores", "beam_indices", "error", "message"),
    [
        (IDS.float(), SCORES, None, TypeError, "`sequences` must be a tensor of integers, got torch.float32"),
        (IDS[0], SCORES, None, ValueError, r"`sequences` must have shape \(rows, length\), got \(3,\)"),
        (IDS, None, None, TypeError, "`scores` must be a tuple of tensors .*output_scores=True.*, got NoneType"),
        (IDS, (), None, ValueError, r"`scores` must hold tensors of one shape \(rows, vocab_size\), got \[\]"),
        (IDS, (SCORES[0], SCORES[1][:1]), None, ValueError, "`scores` must hold tensors of one shape"),
        (IDS[:1], SCORES, None, ValueError, "`scores` must hold 1 rows, .* got 2"),
        (IDS[:, :1], SCORES, None, ValueError, "`sequences` must hold at least 2 tokens a row, .* got 1"),
        (IDS, SCORES, IDS.double(), TypeError, "`beam_indices` must be a tensor of integers, got torch.float64"),
        (IDS, SCORES, IDS, ValueError, "`beam_indices` must hold 2 rows of values below 2, .* values up to 9"),
        (IDS, SCORES, IDS[:1] * 0, ValueError, r"`beam_indices` must hold 2 rows .* got shape \(1, 3\)"),
        (IDS, SCORES, IDS * 0, ValueError, "`beam_indices` must not hold more than the 2 steps of `scores`, got 3"),
    ],
)
def test_refused(
    sequences: Tensor, scores: Any, beam_indices: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compute_transition_scores(sequences, scores, beam_indices)
