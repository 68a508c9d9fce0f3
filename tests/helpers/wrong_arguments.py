"""Wrong arguments that several ops refuse: keywords, the type of the error and its exact message."""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from pygen.knobs import KNOBS
from pygen.ops import KeptRows, SampleOutput, TopLogprobs

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
    *float_range("top_n_sigma", "finite and >= 0", -0.1, NAN, INF),
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

KEPT = KeptRows(torch.zeros(2, VOCAB_SIZE, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), torch.zeros(2))
EVERY_TOKEN_SURVIVES = (
    "`output_kept` must be False where no filter (top_n_sigma, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, "
    "eta_cutoff), `token_bitmask` or temperature 0 leaves fewer tokens, got True"
)
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
    ({"output_kept": 1, "top_k": 3}, TypeError, "`output_kept` must be a bool, got int"),
    ({"kept_limit": 0}, ValueError, "`kept_limit` must be >= 1, got 0"),
    ({"kept_limit": -1}, ValueError, "`kept_limit` must be >= 1, got -1"),
    ({"kept_limit": 8.0}, TypeError, "`kept_limit` must be an int, got float"),
    ({"output_kept": True}, ValueError, EVERY_TOKEN_SURVIVES),
    (
        {"output_kept": True, "temperature": 0.5, "top_k": tensor(0, 0), "top_p": tensor(1.0, 1.0), "suppress": [3]},
        ValueError,
        EVERY_TOKEN_SURVIVES,
    ),
    ({"output_kept": True, "top_k": 3}, TypeError, "`out.kept` must be a KeptRows, got NoneType"),
    ({"out": OUT._replace(kept=KEPT)}, ValueError, "`out.kept` must be None with output_kept=False, got a KeptRows"),
    (
        {"out": OUT._replace(kept=KEPT), "output_kept": True, "top_k": 3, "kept_limit": 8},
        ValueError,
        "`out.kept.token_ids` must have shape (rows, min(kept_limit, vocab_size)) = (2, 8), got (2, 40)",
    ),
    (
        {"out": OUT._replace(kept=KEPT._replace(counts=OUT.token_ids)), "output_kept": True, "top_k": 3},
        TypeError,
        "`out.kept.counts` must be int32, got int64",
    ),
    (
        {"out": OUT._replace(kept=KEPT._replace(log_mass=KEPT.log_mass[:1])), "output_kept": True, "top_k": 3},
        ValueError,
        "`out.kept.log_mass` must have shape (rows,) = (2,), got (1,)",
    ),
]


def names(rows: list[Wrong]) -> list[str]:
    return [f"{i}-{next(iter(keywords))}" for i, (keywords, _, _) in enumerate(rows)]
