"""Stopping criteria: hand-made rows, and the same as transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation import stopping_criteria as theirs

from pygen import stopping
from pygen.stopping.criteria import MaxLengthCriteria, StoppingCriteriaList

IDS = torch.tensor([[3, 5, 7], [3, 7, 5]])


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("MaxLengthCriteria", {"max_length": 3}, [True, True]),
        ("MaxLengthCriteria", {"max_length": 4}, [False, False]),
        ("MaxTimeCriteria", {"max_time": 60.0}, [False, False]),
        ("MaxTimeCriteria", {"max_time": 60.0, "initial_timestamp": 0.0}, [True, True]),
        ("EosTokenCriteria", {"eos_token_id": 7}, [True, False]),
        ("EosTokenCriteria", {"eos_token_id": [7, 5]}, [True, True]),
        ("EosTokenCriteria", {"eos_token_id": torch.tensor([5])}, [False, True]),
    ],
)
def test_simple_criteria(name: str, arguments: dict[str, Any], expected: list[bool]) -> None:
    for module in (stopping, theirs):
        assert getattr(module, name)(**arguments)(IDS, None).tolist() == expected


def test_confidence_by_row() -> None:
    """pygen judges each row; transformers looks at the first only."""
    scores = (torch.zeros(2, 8), torch.tensor([[0.0] * 7 + [3.0], [0.0] * 8]))
    criterion = stopping.ConfidenceCriteria(0.5)
    assert criterion(IDS, scores).tolist() == [False, True]
    other: Any = theirs.ConfidenceCriteria(0.5)
    assert not other(IDS[:1], scores)
    with pytest.raises(ValueError, match="needs `output_scores=True`"):
        criterion(IDS, None)


def test_any_of_a_list_ends_a_row() -> None:
    criteria = StoppingCriteriaList([stopping.EosTokenCriteria(7), lambda ids, scores: False])
    assert criteria(IDS, None).tolist() == [True, False]
    assert criteria.max_length is None
    criteria.append(lambda ids, scores: True)
    assert criteria(IDS, None).tolist() == [True, True]
    criteria += [MaxLengthCriteria(9), MaxLengthCriteria(4)]
    assert criteria.max_length == 9


def test_validation_adds_the_length() -> None:
    criteria = StoppingCriteriaList([stopping.EosTokenCriteria(7)])
    assert stopping.validate_stopping_criteria(criteria, 5).max_length == 5
    assert len(criteria) == 1
    with pytest.warns(UserWarning, match="end at 4 tokens, `max_length` is 5"):
        assert stopping.validate_stopping_criteria(StoppingCriteriaList([MaxLengthCriteria(4)]), 5).max_length == 4


def test_a_criterion_may_look_at_several_new_tokens() -> None:
    criterion, ids = stopping.EosTokenCriteria([7]), torch.tensor([[7, 1, 2], [1, 7, 2], [1, 2, 7]])
    found = [criterion(ids, None, new_token_length=count).tolist() for count in (1, 2, 3)]
    assert found == [[False, False, True], [False, True, True], [True, True, True]]


def test_position_limit_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    criterion = MaxLengthCriteria(10, max_position_embeddings=2)
    for length in (1, 2, 3, 3):
        criterion(IDS[:, :length], None)
    assert [record.getMessage() for record in caplog.records] == [
        "The model has 2 positions; longer texts may fail or be of poor quality."
    ]
