"""The ops: one module per op, each with its public function, its prepared form and its table of backends."""

from __future__ import annotations

from typing import Any

from pygen.backends import Dispatcher
from pygen.ops._beam_state import BeamState
from pygen.ops._kept_tokens import KeptRows, KeptTokens
from pygen.ops._outputs import (
    BeamOutput,
    BeamStepOutput,
    DraftOutput,
    RowStatus,
    SampleOutput,
    TokenLogprobs,
    TopLogprobs,
)
from pygen.ops._state import DecodeState
from pygen.ops.beam_finalize import _dispatch as _beam_finalize
from pygen.ops.beam_finalize import beam_finalize
from pygen.ops.beam_step import PreparedBeamStep, beam_step, prepare_beam_step
from pygen.ops.beam_step import _dispatch as _beam_step
from pygen.ops.process_logits import PreparedProcessLogits, prepare_process_logits, process_logits
from pygen.ops.process_logits import _dispatch as _process_logits
from pygen.ops.reorder_cache import _dispatch as _reorder_cache
from pygen.ops.reorder_cache import reorder_cache
from pygen.ops.sample import PreparedSample, prepare_sample, sample
from pygen.ops.sample import _dispatch as _sample
from pygen.ops.token_logprobs import _dispatch as _token_logprobs
from pygen.ops.token_logprobs import token_logprobs
from pygen.ops.verify_draft import _dispatch as _verify_draft
from pygen.ops.verify_draft import verify_draft

__all__ = [
    "BeamOutput",
    "BeamState",
    "BeamStepOutput",
    "DecodeState",
    "DraftOutput",
    "KeptRows",
    "KeptTokens",
    "PreparedBeamStep",
    "PreparedProcessLogits",
    "PreparedSample",
    "RowStatus",
    "SampleOutput",
    "TokenLogprobs",
    "TopLogprobs",
    "beam_finalize",
    "beam_step",
    "prepare_beam_step",
    "prepare_process_logits",
    "prepare_sample",
    "process_logits",
    "reorder_cache",
    "sample",
    "token_logprobs",
    "verify_draft",
]

_TABLES = (_beam_finalize, _beam_step, _process_logits, _reorder_cache, _sample, _token_logprobs, _verify_draft)
# The backend table of every op, by the op's name.
DISPATCHERS: dict[str, Dispatcher[Any]] = {table.op: table for table in _TABLES}
