"""The ops: one module per op, each with its public function, its prepared form and its table of backends."""

from __future__ import annotations

from pygen.ops._beam_state import BeamState
from pygen.ops._outputs import BeamStepOutput, RowStatus, SampleOutput, TopLogprobs
from pygen.ops._state import DecodeState
from pygen.ops.beam_finalize import BeamOutput, beam_finalize
from pygen.ops.beam_step import PreparedBeamStep, beam_step, prepare_beam_step
from pygen.ops.process_logits import PreparedProcessLogits, prepare_process_logits, process_logits
from pygen.ops.reorder_cache import reorder_cache
from pygen.ops.sample import PreparedSample, prepare_sample, sample
from pygen.ops.token_logprobs import TokenLogprobs, token_logprobs
from pygen.ops.verify_draft import DraftOutput, verify_draft

__all__ = [
    "BeamOutput",
    "BeamState",
    "BeamStepOutput",
    "DecodeState",
    "DraftOutput",
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
