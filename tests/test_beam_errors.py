"""Wrong arguments of `beam_step`, `beam_finalize` and `reorder_cache`: the error's type and exact message.

A refused call changes nothing.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pygen.ops import BeamState, DecodeState, beam_finalize, beam_step, reorder_cache
from tests.helpers.wrong_arguments import (
    IDS,
    INF,
    LOGITS,
    META,
    NAN,
    ROWS,
    SAMPLE,
    SHAPING,
    VOCAB_SIZE,
    Wrong,
    names,
    tensor,
)

CACHE, ROTATED = torch.zeros(ROWS, 3, 4, 5), torch.tensor([1, 0])

REORDER: list[Wrong] = [
    ({"cache_tensors": 3}, TypeError, "`cache_tensors` must be a tensor or a sequence of tensors, got int"),
    ({"cache_tensors": []}, ValueError, "`cache_tensors` must hold at least one tensor, got none"),
    ({"cache_tensors": [CACHE, None]}, TypeError, "`cache_tensors[1]` must be a torch.Tensor, got NoneType"),
    (
        {"cache_tensors": CACHE[0]},
        ValueError,
        "`cache_tensors` must have shape (rows, heads, positions, head_dim), got (3, 4, 5)",
    ),
    (
        {"cache_tensors": [CACHE, CACHE[:1]]},
        ValueError,
        "`cache_tensors[1]` must have 2 rows like `cache_tensors[0]`, got 1",
    ),
    (
        {"cache_tensors": [CACHE, CACHE.to(META)]},
        ValueError,
        "`cache_tensors[1]` must be on cpu like `cache_tensors[0]`, got meta",
    ),
    (
        {"cache_tensors": CACHE.transpose(2, 3)},
        ValueError,
        "`cache_tensors` must have a contiguous last dimension, got strides (60, 20, 1, 5)",
    ),
    (
        {"cache_tensors": CACHE[:, :1].expand(2, 3, 4, 5)},
        ValueError,
        "`cache_tensors` must have elements that share no memory, got strides (60, 0, 5, 1) for shape (2, 3, 4, 5)",
    ),
    (
        {"cache_tensors": torch.zeros(80).as_strided((2, 3, 4, 5), (20, 20, 5, 1))},
        ValueError,
        "`cache_tensors` must have elements that share no memory, got strides (20, 20, 5, 1) for shape (2, 3, 4, 5)",
    ),
    ({"cache_tensors": [CACHE, CACHE]}, ValueError, "`cache_tensors` must not hold a tensor twice, got equal pointers"),
    ({"beam_idx": [1, 0]}, TypeError, "`beam_idx` must be a torch.Tensor, got list"),
    ({"beam_idx": ROTATED.short()}, TypeError, "`beam_idx` must be int64 or int32, got int16"),
    ({"beam_idx": tensor(1)}, ValueError, "`beam_idx` must have shape (rows,) = (2,), got (1,)"),
    ({"beam_idx": ROTATED.to(META)}, ValueError, "`beam_idx` must be on cpu like `cache_tensors`, got meta"),
    ({"beam_idx": tensor(1, 2)}, ValueError, "`beam_idx` must be in [0, 2), got 2 in row 1"),
    ({"beam_idx": tensor(-1, 0)}, ValueError, "`beam_idx` must be in [0, 2), got -1 in row 0"),
    ({"start": 1.0}, TypeError, "`start` must be an int, got float"),
    ({"start": -1}, ValueError, "`start` must be >= 0, got -1"),
    ({"start": 5}, ValueError, "`start` must be in [0, 4], got 5"),
    ({"start": 4, "length": 3}, ValueError, "`start` must be in [0, 3], got 4"),
    ({"start": tensor(1.0, 1.0)}, TypeError, "`start` must be int64 or int32, got float32"),
    ({"start": tensor(1)}, ValueError, "`start` must have shape (rows,) = (2,), got (1,)"),
    ({"start": tensor(0, 5)}, ValueError, "`start` must be in [0, 4], got 5 in row 1"),
    ({"length": True}, TypeError, "`length` must be an int, got bool"),
    ({"length": 5}, ValueError, "`length` must be in [0, 4], got 5"),
    (
        {"cache_tensors": [CACHE, torch.zeros(ROWS, 1, 7, 1)]},
        ValueError,
        "`length` must be given where `cache_tensors` differ in positions, got [4, 7]",
    ),
    ({"backend": "gpu"}, ValueError, "`backend` must be one of 'auto', 'cpu', 'cuda', 'triton', 'torch', got 'gpu'"),
]


def beams_with(**changes: Any) -> BeamState:
    state = BeamState.create(IDS[:1], 3, num_beams=2)
    for name, value in changes.items():
        setattr(state, name, value)
    return state


BEAM: list[Wrong] = [
    # arguments shared with the other ops; the state has the history
    *[
        ({name: value for name, value in keywords.items() if name != "input_ids"}, error, message)
        for keywords, error, message in SHAPING
        if not message.startswith(("`input_ids`", "`prompt_lengths`", "`do_sample`"))
    ],
    *[row for row in SAMPLE if next(iter(row[0])) in ("seed", "rng", "generator", "noise")],
    ({"do_sample": tensor(True, True)}, TypeError, "`do_sample` must be a bool, got Tensor"),
    ({"normalized": 1}, TypeError, "`normalized` must be a bool, got int"),
    ({"temperature": 0}, ValueError, "`temperature` must be finite and > 0, got 0"),
    ({"temperature": tensor(1.0, 0.0)}, ValueError, "`temperature` must be finite and > 0, got 0.0 in row 1"),
    # the search
    ({"length_penalty": "1"}, TypeError, "`length_penalty` must be a number, got str"),
    ({"length_penalty": True}, TypeError, "`length_penalty` must be a number, got bool"),
    ({"length_penalty": NAN}, ValueError, "`length_penalty` must be finite, got nan"),
    ({"length_penalty": -INF}, ValueError, "`length_penalty` must be finite, got -inf"),
    ({"length_penalty": 90.0}, ValueError, "`length_penalty` must keep 3 ** length_penalty within float32, got 90.0"),
    ({"length_penalty": -90}, ValueError, "`length_penalty` must keep 3 ** length_penalty within float32, got -90"),
    ({"early_stopping": "always"}, ValueError, "`early_stopping` must be False, True or 'never', got 'always'"),
    ({"early_stopping": None}, ValueError, "`early_stopping` must be False, True or 'never', got None"),
    ({"stopping_criteria": 3}, TypeError, "`stopping_criteria` must be callable, got int"),
    ({"step": 3}, ValueError, "`step` must be in [0, 2], got 3"),
    ({"step": -1}, ValueError, "`step` must be >= 0, got -1"),
    ({"step": 1.0}, TypeError, "`step` must be an int, got float"),
    # the state
    ({"state": DecodeState.create(IDS, 3)}, TypeError, "`state` must be a BeamState, got DecodeState"),
    ({"state": beams_with(num_beams=0)}, ValueError, "`state.num_beams` must divide the rows of `logits`, 2, got 0"),
    ({"logits": LOGITS[:1]}, ValueError, "`state.num_beams` must divide the rows of `logits`, 1, got 2"),
    (
        {"logits": torch.zeros(4, VOCAB_SIZE)},
        ValueError,
        "`state.token_ids` must have shape (rows, capacity) = (4, 8), got (2, 8)",
    ),
    (
        {"state": beams_with(token_ids=torch.zeros(1, 8, dtype=torch.int64).expand(2, 8))},
        ValueError,
        "`state.token_ids` must have rows that share no memory, got strides (0, 1) for shape (2, 8)",
    ),
    (
        {"state": beams_with(history=IDS)},
        ValueError,
        "`state.history` must have shape (rows, capacity) = (2, 8), got (2, 5)",
    ),
    ({"state": beams_with(slots=tensor([0.0, 1.0]))}, TypeError, "`state.slots` must be int64, got float32"),
    (
        {"state": beams_with(running_scores=torch.zeros(2))},
        ValueError,
        "`state.running_scores` must have shape (batch_size, num_beams) = (1, 2), got (2,)",
    ),
    (
        {"state": beams_with(step_tokens=torch.zeros(2, 3, dtype=torch.int64).t())},
        ValueError,
        "`state.step_tokens` must be contiguous, got strides (1, 3) for shape (3, 2)",
    ),
    (
        {"state": beams_with(open=torch.ones(1).bool().to(META))},
        ValueError,
        "`state.open` must be on cpu like `logits`, got meta",
    ),
    ({"state": beams_with(eos_token_ids=tensor(1.0))}, TypeError, "`state.eos_token_ids` must be int64, got float32"),
    ({"state": beams_with(prompt_length=4)}, ValueError, "`state.prompt_length` must be 5, got 4"),
]

FINALIZE: list[Wrong] = [
    ({"state": IDS}, TypeError, "`state` must be a BeamState, got Tensor"),
    ({"num_return_sequences": 1.0}, TypeError, "`num_return_sequences` must be an int, got float"),
    ({"num_return_sequences": 0}, ValueError, "`num_return_sequences` must be in [1, 2], got 0"),
    ({"num_return_sequences": 3}, ValueError, "`num_return_sequences` must be in [1, 2], got 3"),
    (
        {"state": beams_with(step_tokens=torch.zeros(3, 2))},
        TypeError,
        "`state.step_tokens` must be int64, got float32",
    ),
    (
        {"state": beams_with(finished_parents=torch.zeros(1, 3, dtype=torch.int32))},
        ValueError,
        "`state.finished_parents` must have shape (batch_size, num_beams) = (1, 2), got (1, 3)",
    ),
    (
        {"state": beams_with(finished_steps=tensor([3, -1]))},
        ValueError,
        "`state.finished_steps` must be in [-1, 2], got 3",
    ),
    (
        {"state": beams_with(finished_steps=tensor([-2, -1]))},
        ValueError,
        "`state.finished_steps` must be in [-1, 2], got -2",
    ),
    ({"backend": "gpu"}, ValueError, "`backend` must be one of 'auto', 'cpu', 'cuda', 'triton', 'torch', got 'gpu'"),
]


@pytest.mark.parametrize(("keywords", "error", "message"), REORDER, ids=names(REORDER))
def test_reorder_cache(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    cache = torch.rand(ROWS, 3, 4, 5)
    before = cache.clone()
    with pytest.raises(error) as raised:
        reorder_cache(**{"cache_tensors": cache, "beam_idx": ROTATED, **keywords})
    assert type(raised.value) is error
    assert str(raised.value) == message
    assert cache.equal(before)


@pytest.mark.parametrize(("keywords", "error", "message"), BEAM, ids=names(BEAM))
def test_beam_step(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    generator = torch.Generator().manual_seed(3)
    noise_before, default_state = generator.get_state(), torch.get_rng_state()
    arguments = {"logits": LOGITS, "state": beams_with(), "do_sample": True, "generator": generator, **keywords}
    before = copy.deepcopy(vars(arguments["state"]))
    with pytest.raises(error) as raised:
        beam_step(arguments.pop("logits"), **arguments)
    assert type(raised.value) is error
    assert str(raised.value) == message
    assert generator.get_state().equal(noise_before) and torch.get_rng_state().equal(default_state)
    for name, value in vars(arguments["state"]).items():
        assert not isinstance(value, torch.Tensor) or value.is_meta or value.equal(before[name]), name


@pytest.mark.parametrize(("keywords", "error", "message"), FINALIZE, ids=names(FINALIZE))
def test_beam_finalize(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        beam_finalize(**{"state": beams_with(), **keywords})
    assert type(raised.value) is error
    assert str(raised.value) == message
