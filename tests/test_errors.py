"""One row per wrong argument of an op: the error's type and exact message. A refused call changes nothing."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import pytest
import torch

from pygen.backends import BackendError
from pygen.knobs import KNOBS
from pygen.ops import (
    BeamState,
    DecodeState,
    SampleOutput,
    TokenLogprobs,
    TopLogprobs,
    beam_finalize,
    beam_step,
    prepare_process_logits,
    prepare_sample,
    process_logits,
    reorder_cache,
    sample,
    token_logprobs,
    verify_draft,
)

ROWS, VOCAB_SIZE = 2, 40

LOGITS = torch.zeros(ROWS, VOCAB_SIZE)
IDS = torch.zeros(ROWS, 5, dtype=torch.int64)
META = torch.device("meta")

Wrong = tuple[dict[str, Any], type[Exception], str]


def tensor(*values: Any) -> torch.Tensor:
    return torch.tensor(values)


def float_range(name: str, words: str, *values: float, **others: Any) -> list[Wrong]:
    """Returns rows for values outside the range of a float knob, as a number and in row 1 of a tensor."""
    rows: list[Wrong] = []
    for value in values:
        rows.append(({name: value, **others}, ValueError, f"`{name}` must be {words}, got {value}"))
        shown = torch.tensor(value, dtype=torch.float64).item()
        per_row = torch.tensor([0.5, value], dtype=torch.float64)
        rows.append(({name: per_row, **others}, ValueError, f"`{name}` must be {words}, got {shown} in row 1"))
    return rows


def float_types(name: str) -> list[Wrong]:
    number = f"`{name}` must be a number or a (rows,) tensor, got"
    shape = f"`{name}` must have shape (rows,) = (2,), got"
    return [
        ({name: "0.5"}, TypeError, f"{number} str"),
        ({name: True}, TypeError, f"{number} bool"),
        ({name: {0.5}}, TypeError, f"{number} set"),
        ({name: [0.5, "0.5"]}, TypeError, f"`{name}` must hold numbers, got str"),
        ({name: [0.5]}, ValueError, f"{shape} (1,)"),
        (
            {name: tensor(1, 1)},
            TypeError,
            f"`{name}` must be a number or a floating point tensor, got a tensor of int64",
        ),
        ({name: tensor(0.5, 0.5, 0.5)}, ValueError, f"{shape} (3,)"),
        ({name: torch.ones(2, 1)}, ValueError, f"{shape} (2, 1)"),
        ({name: torch.ones(2, device=META)}, ValueError, f"`{name}` must be on cpu like `logits`, got meta"),
    ]


def int_types(name: str, least: int) -> list[Wrong]:
    words = f"`{name}` must be >= {least}, got"
    number = f"`{name}` must be an int or a (rows,) tensor, got"
    return [
        ({name: 1.0}, TypeError, f"{number} float"),
        ({name: True}, TypeError, f"{number} bool"),
        ({name: torch.tensor(1.0)}, TypeError, f"{number} float"),
        ({name: [1, 1.0]}, TypeError, f"`{name}` must hold ints, got float"),
        ({name: [1, least - 1]}, ValueError, f"{words} {least - 1} in row 1"),
        ({name: "1"}, TypeError, f"{number} str"),
        ({name: tensor(1.0, 1.0)}, TypeError, f"`{name}` must be an int or an int64 tensor, got a tensor of float32"),
        ({name: tensor(True, True)}, TypeError, f"`{name}` must be an int or an int64 tensor, got a tensor of bool"),
        ({name: tensor(1)}, ValueError, f"`{name}` must have shape (rows,) = (2,), got (1,)"),
        ({name: least - 1}, ValueError, f"{words} {least - 1}"),
        ({name: tensor(1, least - 1)}, ValueError, f"{words} {least - 1} in row 1"),
    ]


NAN, INF = math.nan, math.inf
FLOATS = [knob.name for knob in KNOBS if knob.type is float]
NEEDS_IDS = "`input_ids` must be given where `{}` acts, got None"

SHAPING: list[Wrong] = [
    # logits
    ({"logits": [[1.0]]}, TypeError, "`logits` must be a torch.Tensor, got list"),
    ({"logits": LOGITS.double()}, TypeError, "`logits` must be float32, float16 or bfloat16, got float64"),
    ({"logits": LOGITS.long()}, TypeError, "`logits` must be float32, float16 or bfloat16, got int64"),
    ({"logits": LOGITS[0]}, ValueError, "`logits` must have shape (rows, vocab_size), got (40,)"),
    ({"logits": LOGITS[None]}, ValueError, "`logits` must have shape (rows, vocab_size), got (1, 2, 40)"),
    ({"logits": LOGITS[:, :0]}, ValueError, "`logits` must have at least one column, got shape (2, 0)"),
    (
        {"logits": torch.zeros(VOCAB_SIZE, ROWS).t()},
        ValueError,
        "`logits` must have a contiguous last dimension, got strides (1, 2)",
    ),
    # float knobs
    *[row for name in FLOATS for row in float_types(name)],
    *float_range("temperature", "finite and >= 0", -0.1, NAN, INF, 1e39),
    *float_range("top_p", "in [0, 1]", -0.1, 1.2, NAN),
    *float_range("min_p", "in [0, 1]", -0.1, 1.2, NAN),
    *float_range("typical_p", "in (0, 1]", 0.0, 1.2, NAN),
    *float_range("epsilon_cutoff", "in [0, 1)", -0.1, 1.0, NAN),
    *float_range("eta_cutoff", "in [0, 1)", -0.1, 1.0, NAN),
    *float_range("repetition_penalty", "finite and > 0", 0.0, -1.0, NAN, INF, 1e-60, input_ids=IDS),
    *float_range("presence_penalty", "finite", NAN, INF, -INF, input_ids=IDS),
    *float_range("frequency_penalty", "finite", NAN, INF, -INF, input_ids=IDS),
    ({"top_h": 0.0}, ValueError, "`top_h` must be in (0, 1], got 0.0"),
    ({"top_h": 1.5}, ValueError, "`top_h` must be in (0, 1], got 1.5"),
    ({"top_h": tensor(0.5, -0.5)}, ValueError, "`top_h` must be in [0, 1], got -0.5 in row 1"),
    # int knobs
    *int_types("top_k", 0),
    *int_types("no_repeat_ngram_size", 0),
    *int_types("min_tokens_to_keep", 1),
    *int_types("prompt_lengths", 0),
    # do_sample
    ({"do_sample": 1}, TypeError, "`do_sample` must be a bool or a (rows,) bool tensor, got int"),
    ({"do_sample": None}, TypeError, "`do_sample` must be a bool or a (rows,) bool tensor, got NoneType"),
    ({"do_sample": tensor(1, 0)}, TypeError, "`do_sample` must be bool, got int64"),
    ({"do_sample": tensor(True)}, ValueError, "`do_sample` must have shape (rows,) = (2,), got (1,)"),
    ({"do_sample": [True, 1]}, TypeError, "`do_sample` must hold bools, got int"),
    # history
    ({"repetition_penalty": 1.1}, ValueError, NEEDS_IDS.format("repetition_penalty")),
    ({"repetition_penalty": tensor(1.0, 1.1)}, ValueError, NEEDS_IDS.format("repetition_penalty")),
    ({"presence_penalty": 0.1}, ValueError, NEEDS_IDS.format("presence_penalty")),
    ({"frequency_penalty": 0.1}, ValueError, NEEDS_IDS.format("frequency_penalty")),
    ({"no_repeat_ngram_size": 2}, ValueError, NEEDS_IDS.format("no_repeat_ngram_size")),
    ({"input_ids": [[1], [2]]}, TypeError, "`input_ids` must be a torch.Tensor, got list"),
    ({"input_ids": IDS.short()}, TypeError, "`input_ids` must be int64 or int32, got int16"),
    ({"input_ids": IDS[0]}, ValueError, "`input_ids` must have shape (rows, length) with 2 rows, got (5,)"),
    ({"input_ids": IDS[:1]}, ValueError, "`input_ids` must have shape (rows, length) with 2 rows, got (1, 5)"),
    ({"input_ids": IDS.to(META)}, ValueError, "`input_ids` must be on cpu like `logits`, got meta"),
    (
        {"input_ids": torch.zeros(5, 2, dtype=torch.int64).t()},
        ValueError,
        "`input_ids` must have a contiguous last dimension, got strides (1, 2)",
    ),
    # tables
    ({"bias": [0.0] * VOCAB_SIZE}, TypeError, "`bias` must be a torch.Tensor, got list"),
    ({"bias": LOGITS.half()}, TypeError, "`bias` must be float32, got float16"),
    (
        {"bias": torch.zeros(VOCAB_SIZE + 1)},
        ValueError,
        "`bias` must have shape (vocab_size,) or (rows, vocab_size) = (2, 40), got (41,)",
    ),
    (
        {"bias": torch.zeros(3, VOCAB_SIZE)},
        ValueError,
        "`bias` must have shape (vocab_size,) or (rows, vocab_size) = (2, 40), got (3, 40)",
    ),
    ({"bias": LOGITS.to(META)}, ValueError, "`bias` must be on cpu like `logits`, got meta"),
    (
        {"bias": torch.zeros(2 * VOCAB_SIZE)[::2]},
        ValueError,
        "`bias` must have a contiguous last dimension, got strides (2,)",
    ),
    ({"suppress": 3}, TypeError, "`suppress` must be a sequence of ints or an int64 tensor, got int"),
    ({"suppress": "12"}, TypeError, "`suppress` must be a sequence of ints or an int64 tensor, got str"),
    ({"suppress": [1, 2.0]}, TypeError, "`suppress` must hold ints, got float"),
    ({"suppress": [True]}, TypeError, "`suppress` must hold ints, got bool"),
    ({"suppress": tensor(1.0)}, TypeError, "`suppress` must be int64 or int32, got float32"),
    (
        {"suppress": torch.zeros(3, 4, dtype=torch.int64)},
        ValueError,
        "`suppress` must have shape (n,) or (rows, n) with 2 rows, got (3, 4)",
    ),
    (
        {"suppress": torch.tensor(3)},
        ValueError,
        "`suppress` must have shape (n,) or (rows, n) with 2 rows, got ()",
    ),
    ({"token_bitmask": tensor(1, 1)}, TypeError, "`token_bitmask` must be int32, got int64"),
    (
        {"token_bitmask": torch.zeros(3, dtype=torch.int32)},
        ValueError,
        "`token_bitmask` must have shape (ceil(vocab_size / 32),) or (rows, ceil(vocab_size / 32)) = (2, 2), got (3,)",
    ),
    # backends
    (
        {"backend": "gpu"},
        ValueError,
        "`backend` must be one of 'auto', 'cpu', 'cuda', 'triton', 'torch', got 'gpu'",
    ),
]

OUT = SampleOutput(torch.zeros(2, dtype=torch.int64), None, None, torch.zeros(2, dtype=torch.int32))
TOP = TopLogprobs(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))
NOISE = torch.ones(ROWS, VOCAB_SIZE)
SEED_NEEDS = "`seed` must be a sequence of ints or an int64 tensor, got"

NO_GENERATOR: dict[str, Any] = {"generator": None}

SAMPLE: list[Wrong] = [
    ({"seed": -1, **NO_GENERATOR}, ValueError, "`seed` must be in [0, 2**64), got -1"),
    ({"seed": 2**64, **NO_GENERATOR}, ValueError, "`seed` must be in [0, 2**64), got 18446744073709551616"),
    ({"seed": 1.0, **NO_GENERATOR}, TypeError, f"{SEED_NEEDS} float"),
    (
        {"seed": True, **NO_GENERATOR},
        TypeError,
        "`seed` must be an int, a sequence of ints or an int64 tensor, got bool",
    ),
    ({"seed": [1, 2.0], **NO_GENERATOR}, TypeError, "`seed` must hold ints, got float"),
    ({"seed": [1, -2], **NO_GENERATOR}, ValueError, "`seed` must be in [0, 2**64), got -2"),
    ({"seed": [1], **NO_GENERATOR}, ValueError, "`seed` must be an int or hold one int per row, 2, got 1"),
    ({"seed": tensor(1.0, 2.0), **NO_GENERATOR}, TypeError, "`seed` must be int64, got float32"),
    ({"seed": tensor(1), **NO_GENERATOR}, ValueError, "`seed` must have shape (rows,) = (2,), got (1,)"),
    ({"step": -1}, ValueError, "`step` must be in [0, 2**32), got -1"),
    ({"step": 2**32}, ValueError, "`step` must be in [0, 2**32), got 4294967296"),
    ({"step": 1.0}, TypeError, "`step` must be an int or a (rows,) int64 tensor, got float"),
    ({"step": True}, TypeError, "`step` must be an int or a (rows,) int64 tensor, got bool"),
    ({"step": tensor(1.0, 1.0)}, TypeError, "`step` must be int64, got float32"),
    ({"step": tensor(1)}, ValueError, "`step` must have shape (rows,) = (2,), got (1,)"),
    ({"rng": "numpy"}, ValueError, "`rng` must be 'philox' or 'torch', got 'numpy'"),
    ({"rng": None}, ValueError, "`rng` must be 'philox' or 'torch', got None"),
    ({"rng": "torch", "seed": 3, **NO_GENERATOR}, ValueError, "`seed` must be None with rng='torch', got 3"),
    (
        {"rng": "torch", "noise": NOISE, **NO_GENERATOR},
        ValueError,
        "`noise` must be None with rng='torch', got a tensor",
    ),
    ({"seed": 3}, ValueError, "`generator` must be None where `seed` is given, got a torch.Generator"),
    ({"noise": NOISE}, ValueError, "`generator` must be None where `noise` is given, got a torch.Generator"),
    ({"noise": NOISE, "seed": 3}, ValueError, "`seed` must be None where `noise` is given, got 3"),
    ({"generator": 3}, TypeError, "`generator` must be a torch.Generator, got int"),
    ({"noise": [1.0], **NO_GENERATOR}, TypeError, "`noise` must be a torch.Tensor, got list"),
    ({"noise": NOISE.double(), **NO_GENERATOR}, TypeError, "`noise` must be float32, got float64"),
    (
        {"noise": NOISE[:1], **NO_GENERATOR},
        ValueError,
        "`noise` must have shape (rows, vocab_size) = (2, 40), got (1, 40)",
    ),
    (
        {"noise": NOISE.index_fill(1, tensor(7), 0.0), **NO_GENERATOR},
        ValueError,
        "`noise` must be finite and > 0, got 0.0 in row 0 at id 7",
    ),
    (
        {"noise": NOISE.index_fill(1, tensor(7), NAN), **NO_GENERATOR},
        ValueError,
        "`noise` must be finite and > 0, got nan in row 0 at id 7",
    ),
    (
        {"noise": NOISE.index_fill(1, tensor(7), INF), **NO_GENERATOR},
        ValueError,
        "`noise` must be finite and > 0, got inf in row 0 at id 7",
    ),
    ({"logprobs": -1}, ValueError, "`logprobs` must be >= 0, got -1"),
    ({"logprobs": True}, TypeError, "`logprobs` must be an int, got bool"),
    ({"logprobs": 1.0}, TypeError, "`logprobs` must be an int, got float"),
    ({"out": torch.zeros(2)}, TypeError, "`out` must be a SampleOutput, got Tensor"),
    ({"out": OUT._replace(status=OUT.token_ids)}, TypeError, "`out.status` must be int32, got int64"),
    (
        {"out": OUT._replace(token_ids=cast(Any, None))},
        TypeError,
        "`out.token_ids` must be a torch.Tensor, got NoneType",
    ),
    (
        {"out": OUT._replace(token_ids=torch.zeros(4, dtype=torch.int64)[::2])},
        ValueError,
        "`out.token_ids` must be contiguous, got strides (2,) for shape (2,)",
    ),
    (
        {"out": OUT._replace(logprobs=torch.zeros(2), top_logprobs=TOP)},
        ValueError,
        "`out.logprobs` and `out.top_logprobs` must be None with logprobs=0, got tensors",
    ),
    ({"out": OUT, "logprobs": 3}, TypeError, "`out.top_logprobs` must be a TopLogprobs, got NoneType"),
    (
        {"out": OUT._replace(logprobs=torch.zeros(2), top_logprobs=TOP), "logprobs": 2},
        ValueError,
        "`out.top_logprobs.token_ids` must have shape (rows, logprobs) = (2, 2), got (2, 3)",
    ),
]

PROCESS: list[Wrong] = [
    ({"out": [0.0]}, TypeError, "`out` must be a torch.Tensor, got list"),
    ({"out": LOGITS.half()}, TypeError, "`out` must be float32, got float16"),
    ({"out": LOGITS[:1]}, ValueError, "`out` must have shape (rows, vocab_size) = (2, 40), got (1, 40)"),
    ({"out": LOGITS.to(META)}, ValueError, "`out` must be on cpu like `logits`, got meta"),
    ({"out": LOGITS}, ValueError, "`out` must share no memory with `logits`, got overlapping tensors"),
    (
        {"out": torch.zeros(1, VOCAB_SIZE).expand(ROWS, VOCAB_SIZE)},
        ValueError,
        "`out` must have rows apart, got strides (0, 1) for shape (2, 40)",
    ),
]


def state_with(**changes: Any) -> DecodeState:
    state = DecodeState.create(IDS, 3)
    for name, value in changes.items():
        setattr(state, name, value)
    return state


STATE: list[Wrong] = [
    (
        {"state": state_with(), "input_ids": IDS},
        ValueError,
        "`input_ids` must be None where `state` gives the sequences, got a tensor",
    ),
    (
        {"state": DecodeState.create(IDS[:1], 3)},
        ValueError,
        "`state.token_ids` must have shape (rows, capacity) = (2, 8), got (1, 8)",
    ),
    (
        {"state": state_with(history=IDS)},
        ValueError,
        "`state.history` must have shape (rows, capacity) = (2, 8), got (2, 5)",
    ),
    ({"state": state_with(finished=tensor(0, 0))}, TypeError, "`state.finished` must be bool, got int64"),
    ({"state": state_with(prompt_length=9)}, ValueError, "`state.prompt_length` must be in [0, 8], got 9"),
    ({"state": state_with(eos_token_ids=tensor(1.0))}, TypeError, "`state.eos_token_ids` must be int64, got float32"),
]


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
        "`cache_tensors` must have elements apart, got strides (60, 0, 5, 1) for shape (2, 3, 4, 5)",
    ),
    (
        {"cache_tensors": torch.zeros(80).as_strided((2, 3, 4, 5), (20, 20, 5, 1))},
        ValueError,
        "`cache_tensors` must have elements apart, got strides (20, 20, 5, 1) for shape (2, 3, 4, 5)",
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
        "`state.token_ids` must have rows apart, got strides (0, 1) for shape (2, 8)",
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


LOGPROB_OUT = TokenLogprobs(torch.zeros(2), None, torch.zeros(2, dtype=torch.int32))
TOP_OUT = LOGPROB_OUT._replace(top_logprobs=TopLogprobs(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)))
TOKEN_SHAPE = "`token_ids` must have shape (rows,) or (rows, n) with 2 rows, got"
TWO_DIMENSIONAL = "`logits` must have shape (rows, vocab_size), got"

LOGPROBS: list[Wrong] = [
    ({"logits": [[1.0]]}, TypeError, "`logits` must be a torch.Tensor, got list"),
    ({"logits": LOGITS.double()}, TypeError, "`logits` must be float32, float16 or bfloat16, got float64"),
    ({"logits": LOGITS[None]}, ValueError, f"{TWO_DIMENSIONAL} (1, 2, 40)"),
    ({"logits": LOGITS[:, :0]}, ValueError, "`logits` must have at least one column, got shape (2, 0)"),
    (
        {"logits": torch.zeros(VOCAB_SIZE, ROWS).t()},
        ValueError,
        "`logits` must have a contiguous last dimension, got strides (1, 2)",
    ),
    ({"token_ids": [0, 0]}, TypeError, "`token_ids` must be a torch.Tensor, got list"),
    ({"token_ids": tensor(0.0, 0.0)}, TypeError, "`token_ids` must be int64 or int32, got float32"),
    ({"token_ids": IDS[:, 0].short()}, TypeError, "`token_ids` must be int64 or int32, got int16"),
    ({"token_ids": tensor(0)}, ValueError, f"{TOKEN_SHAPE} (1,)"),
    ({"token_ids": IDS.t()}, ValueError, f"{TOKEN_SHAPE} (5, 2)"),
    ({"token_ids": IDS[None]}, ValueError, f"{TOKEN_SHAPE} (1, 2, 5)"),
    ({"token_ids": torch.tensor(0)}, ValueError, f"{TOKEN_SHAPE} ()"),
    ({"token_ids": IDS.to(META)}, ValueError, "`token_ids` must be on cpu like `logits`, got meta"),
    (
        {"token_ids": IDS[:, ::2]},
        ValueError,
        "`token_ids` must have a contiguous last dimension, got strides (5, 2)",
    ),
    ({"top": 1.0}, TypeError, "`top` must be an int, got float"),
    ({"top": True}, TypeError, "`top` must be an int, got bool"),
    ({"top": -1}, ValueError, "`top` must be >= 0, got -1"),
    ({"out": tuple(LOGPROB_OUT)}, TypeError, "`out` must be a TokenLogprobs, got tuple"),
    ({"out": TOP_OUT}, ValueError, "`out.top_logprobs` must be None with top=0, got tensors"),
    ({"top": 3, "out": LOGPROB_OUT}, TypeError, "`out.top_logprobs` must be a TopLogprobs, got NoneType"),
    (
        {"out": LOGPROB_OUT._replace(logprobs=torch.zeros(2, 5))},
        ValueError,
        "`out.logprobs` must have shape (rows,) = (2,), got (2, 5)",
    ),
    (
        {"token_ids": IDS, "out": LOGPROB_OUT},
        ValueError,
        "`out.logprobs` must have shape (rows, n) = (2, 5), got (2,)",
    ),
    (
        {"out": LOGPROB_OUT._replace(status=torch.zeros(2))},
        TypeError,
        "`out.status` must be int32, got float32",
    ),
    (
        {"top": 2, "out": TOP_OUT},
        ValueError,
        "`out.top_logprobs.token_ids` must have shape (rows, top) = (2, 2), got (2, 3)",
    ),
    (
        {"top": 3, "out": TOP_OUT._replace(top_logprobs=TopLogprobs(IDS[:, :3].clone(), torch.zeros(2, 3).double()))},
        TypeError,
        "`out.top_logprobs.logprobs` must be float32, got float64",
    ),
    ({"backend": "gpu"}, ValueError, "`backend` must be one of 'auto', 'cpu', 'cuda', 'triton', 'torch', got 'gpu'"),
]


TARGET, DRAFT, DRAFT_IDS = torch.zeros(ROWS, 4, VOCAB_SIZE), torch.zeros(ROWS, 3, VOCAB_SIZE), IDS[:, :3]
UNIFORMS, NOISE = torch.zeros(ROWS, 3), torch.ones(ROWS, VOCAB_SIZE)
POSITIONS = "`target_logits` must have shape (rows, n + 1, vocab_size) with at least one position and one column, got"
DEVICE = "must be on cpu like `target_logits`, got meta"

DRAFTS: list[Wrong] = [
    ({"target_logits": [[[1.0]]]}, TypeError, "`target_logits` must be a torch.Tensor, got list"),
    ({"target_logits": TARGET.long()}, TypeError, "`target_logits` must be float32, float16 or bfloat16, got int64"),
    ({"target_logits": LOGITS}, ValueError, f"{POSITIONS} (2, 40)"),
    ({"target_logits": TARGET[:, :0]}, ValueError, f"{POSITIONS} (2, 0, 40)"),
    ({"target_logits": TARGET[..., :0]}, ValueError, f"{POSITIONS} (2, 4, 0)"),
    (
        {"target_logits": TARGET[..., ::2]},
        ValueError,
        "`target_logits` must have a contiguous last dimension, got strides (160, 40, 2)",
    ),
    ({"draft_token_ids": [[0]]}, TypeError, "`draft_token_ids` must be a torch.Tensor, got list"),
    ({"draft_token_ids": DRAFT_IDS.short()}, TypeError, "`draft_token_ids` must be int64 or int32, got int16"),
    ({"draft_token_ids": IDS}, ValueError, "`draft_token_ids` must have shape (rows, n) = (2, 3), got (2, 5)"),
    ({"draft_token_ids": IDS[0, :3]}, ValueError, "`draft_token_ids` must have shape (rows, n) = (2, 3), got (3,)"),
    ({"draft_token_ids": DRAFT_IDS.to(META)}, ValueError, f"`draft_token_ids` {DEVICE}"),
    (
        {"draft_token_ids": IDS[:, ::2]},
        ValueError,
        "`draft_token_ids` must have a contiguous last dimension, got strides (5, 2)",
    ),
    ({"draft_logits": 1.0}, TypeError, "`draft_logits` must be a torch.Tensor, got float"),
    ({"draft_logits": DRAFT.double()}, TypeError, "`draft_logits` must be float32, float16 or bfloat16, got float64"),
    (
        {"draft_logits": TARGET},
        ValueError,
        "`draft_logits` must have shape (rows, n, vocab_size) = (2, 3, 40), got (2, 4, 40)",
    ),
    ({"draft_logits": DRAFT.to(META)}, ValueError, f"`draft_logits` {DEVICE}"),
    (
        {"draft_logits": DRAFT.repeat(1, 1, 2)[..., ::2]},
        ValueError,
        "`draft_logits` must have a contiguous last dimension, got strides (240, 80, 2)",
    ),
    ({"draft_lengths": 1.0}, TypeError, "`draft_lengths` must be an int, got float"),
    ({"draft_lengths": True}, TypeError, "`draft_lengths` must be an int, got bool"),
    ({"draft_lengths": -1}, ValueError, "`draft_lengths` must be >= 0, got -1"),
    ({"draft_lengths": 4}, ValueError, "`draft_lengths` must be in [0, 3], got 4"),
    ({"draft_lengths": tensor(1.0, 1.0)}, TypeError, "`draft_lengths` must be int64 or int32, got float32"),
    ({"draft_lengths": tensor(1)}, ValueError, "`draft_lengths` must have shape (rows,) = (2,), got (1,)"),
    ({"draft_lengths": tensor(0, 4)}, ValueError, "`draft_lengths` must be in [0, 3], got 4 in row 1"),
    ({"draft_lengths": tensor(-1, 0)}, ValueError, "`draft_lengths` must be in [0, 3], got -1 in row 0"),
    ({"draft_lengths": tensor(1, 1).to(META)}, ValueError, f"`draft_lengths` {DEVICE}"),
    ({"do_sample": 1}, TypeError, "`do_sample` must be a bool or a (rows,) bool tensor, got int"),
    ({"do_sample": tensor(True)}, ValueError, "`do_sample` must have shape (rows,) = (2,), got (1,)"),
    ({"temperature": -1.0}, ValueError, "`temperature` must be finite and >= 0, got -1.0"),
    ({"temperature": NAN}, ValueError, "`temperature` must be finite and >= 0, got nan"),
    ({"temperature": tensor(1.0, -1.0)}, ValueError, "`temperature` must be finite and >= 0, got -1.0 in row 1"),
    ({"temperature": torch.ones(2, device=META)}, ValueError, f"`temperature` {DEVICE}"),
    ({"step": -1}, ValueError, "`step` must be in [0, 2**32), got -1"),
    ({"step": 1.0}, TypeError, "`step` must be an int or a (rows,) int64 tensor, got float"),
    ({"step": tensor(1)}, ValueError, "`step` must have shape (rows,) = (2,), got (1,)"),
    (
        {"generator": None, "seed": True},
        TypeError,
        "`seed` must be an int, a sequence of ints or an int64 tensor, got bool",
    ),
    ({"generator": None, "seed": 2**64}, ValueError, "`seed` must be in [0, 2**64), got 18446744073709551616"),
    ({"seed": 1}, ValueError, "`generator` must be None where `seed` is given, got a torch.Generator"),
    ({"generator": 3}, TypeError, "`generator` must be a torch.Generator, got int"),
    ({"uniforms": UNIFORMS}, ValueError, "`noise` must be given where `uniforms` is, got None"),
    ({"noise": NOISE}, ValueError, "`uniforms` must be given where `noise` is, got None"),
    (
        {"uniforms": UNIFORMS, "noise": NOISE},
        ValueError,
        "`generator` must be None where `noise` is given, got a torch.Generator",
    ),
    ({"uniforms": 0.5, "noise": NOISE}, TypeError, "`uniforms` must be a torch.Tensor, got float"),
    ({"uniforms": UNIFORMS.double(), "noise": NOISE}, TypeError, "`uniforms` must be float32, got float64"),
    (
        {"uniforms": UNIFORMS[:, :2], "noise": NOISE},
        ValueError,
        "`uniforms` must have shape (rows, n) = (2, 3), got (2, 2)",
    ),
    ({"uniforms": UNIFORMS.to(META), "noise": NOISE}, ValueError, f"`uniforms` {DEVICE}"),
    (
        {"uniforms": tensor([0.0, 0.5, 0.0], [0.0, 0.0, 1.0]), "noise": NOISE},
        ValueError,
        "`uniforms` must be in [0, 1), got 1.0 in row 1 at draft 2",
    ),
    (
        {"uniforms": tensor([0.0, NAN, 0.0], [0.0, 0.0, 0.0]), "noise": NOISE},
        ValueError,
        "`uniforms` must be in [0, 1), got nan in row 0 at draft 1",
    ),
    (
        {"generator": None, "uniforms": UNIFORMS, "noise": NOISE[:, :3]},
        ValueError,
        "`noise` must have shape (rows, vocab_size) = (2, 40), got (2, 3)",
    ),
    ({"generator": None, "uniforms": UNIFORMS, "noise": NOISE.to(META)}, ValueError, f"`noise` {DEVICE}"),
    (
        {"generator": None, "uniforms": UNIFORMS, "noise": 0 * NOISE},
        ValueError,
        "`noise` must be finite and > 0, got 0.0 in row 0 at id 0",
    ),
    ({"backend": "gpu"}, ValueError, "`backend` must be one of 'auto', 'cpu', 'cuda', 'triton', 'torch', got 'gpu'"),
]


def names(rows: list[Wrong]) -> list[str]:
    return [f"{i}-{next(iter(keywords))}" for i, (keywords, _, _) in enumerate(rows)]


@pytest.mark.parametrize(("keywords", "error", "message"), SHAPING + SAMPLE, ids=names(SHAPING + SAMPLE))
def test_sample(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    generator = torch.Generator().manual_seed(3)
    state, default_state = generator.get_state(), torch.get_rng_state()
    out = SampleOutput(OUT.token_ids.clone(), None, None, OUT.status.clone())
    arguments = {"logits": LOGITS, "generator": generator, "out": out, **keywords}
    with pytest.raises(error) as raised:
        sample(arguments.pop("logits"), **arguments)
    assert type(raised.value) is error
    assert str(raised.value) == message
    assert generator.get_state().equal(state) and torch.get_rng_state().equal(default_state)
    assert out.token_ids.equal(OUT.token_ids) and out.status.equal(OUT.status)
    assert (LOGITS == 0).all()


@pytest.mark.parametrize(("keywords", "error", "message"), SHAPING + PROCESS, ids=names(SHAPING + PROCESS))
def test_process_logits(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    out = torch.full((ROWS, VOCAB_SIZE), 5.0)
    arguments = {"logits": LOGITS, "out": out, **keywords}
    with pytest.raises(error) as raised:
        process_logits(arguments.pop("logits"), **arguments)
    assert type(raised.value) is error
    assert str(raised.value) == message
    assert (out == 5).all() and (LOGITS == 0).all()


@pytest.mark.parametrize(("keywords", "error", "message"), STATE, ids=names(STATE))
@pytest.mark.parametrize("prepare", [prepare_sample, prepare_process_logits])
def test_state(prepare: Any, keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        prepare(LOGITS, **keywords)
    assert str(raised.value) == message


def test_a_step_tensor_with_a_state() -> None:
    with pytest.raises(ValueError, match="`step` must be None where `state` has a column for every step, got a tensor"):
        prepare_sample(LOGITS, state=state_with(), step=tensor(0, 0))


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


@pytest.mark.parametrize(("keywords", "error", "message"), LOGPROBS, ids=names(LOGPROBS))
def test_token_logprobs(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": LOGITS, "token_ids": IDS[:, 0], **keywords}
    with pytest.raises(error) as raised:
        token_logprobs(arguments.pop("logits"), **arguments)
    assert type(raised.value) is error
    assert str(raised.value) == message
    assert not LOGPROB_OUT.logprobs.any() and not LOGPROB_OUT.status.any()


@pytest.mark.parametrize(("keywords", "error", "message"), DRAFTS, ids=names(DRAFTS))
def test_verify_draft(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    generator = torch.Generator().manual_seed(3)
    noise_before, default_state = generator.get_state(), torch.get_rng_state()
    arguments = {"target_logits": TARGET, "draft_token_ids": DRAFT_IDS, "generator": generator, **keywords}
    with pytest.raises(error) as raised:
        verify_draft(**arguments)
    assert type(raised.value) is error
    assert str(raised.value) == message
    assert generator.get_state().equal(noise_before) and torch.get_rng_state().equal(default_state)
    assert not TARGET.any() and not DRAFT.any() and not DRAFT_IDS.any()


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_backend_that_cannot_run(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    with pytest.raises(BackendError, match=f"`sample`: backend '{backend}' cannot run on cpu; cpu: can run; cuda: "):
        sample(LOGITS, backend=backend, generator=generator)
    assert generator.get_state().equal(state)
