"""Wrong arguments of `token_logprobs` and `verify_draft`: the error's type and exact message.

A refused call changes nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen.ops import TokenLogprobs, TopLogprobs, token_logprobs, verify_draft
from tests.helpers.wrong_arguments import IDS, LOGITS, META, NAN, NOISE, ROWS, VOCAB_SIZE, Wrong, names, tensor

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
UNIFORMS = torch.zeros(ROWS, 3)
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
