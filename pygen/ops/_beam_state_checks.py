"""Checks a BeamState and the arguments of a search, once; and passes the state's pointers to kernels."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from pygen.ops import _checks as checks
from pygen.ops._beam_state import BeamState
from pygen.ops._checks import Like
from pygen.ops._state_checks import check_captured_fields


def check_is_beam_state(state: object) -> None:
    if not isinstance(state, BeamState):
        raise TypeError(f"`state` must be a BeamState, got {type(state).__name__}")


def check_beam_state(state: BeamState, like: Like) -> None:
    """Checks the tensors of a BeamState, as far as a kernel that writes to them depends on it."""
    n, rows = state.num_beams, like.rows
    if checks.count("state.num_beams", n) == 0 or rows % n:
        raise ValueError(f"`state.num_beams` must divide the rows of `logits`, {rows}, got {n}")
    capacity = state.token_ids.shape[-1]
    for name, value in (("state.token_ids", state.token_ids), ("state.history", state.history)):
        checks.check_tensor(name, value)
        checks.check_dtype(name, value, torch.int64)
        checks.check_shape(name, value, "(rows, capacity)", (rows, capacity))
        checks.check_device(name, value, like.device)
        checks.check_last_stride(name, value)
        checks.check_rows_apart(name, value)
    steps, beams = state.step_tokens.shape[0], (rows // n, n)
    for field, dtype, words, shape in (
        ("slots", torch.int64, "(batch_size, num_beams)", beams),
        ("shared", torch.int32, "(batch_size, num_beams, num_beams)", (*beams, n)),
        ("running_scores", torch.float32, "(batch_size, num_beams)", beams),
        ("step_tokens", torch.int64, "(max_new_tokens, rows)", (steps, rows)),
        ("step_parents", torch.int32, "(max_new_tokens, rows)", (steps, rows)),
        ("finished_scores", torch.float32, "(batch_size, num_beams)", beams),
        ("finished", torch.bool, "(batch_size, num_beams)", beams),
        ("finished_steps", torch.int64, "(batch_size, num_beams)", beams),
        ("finished_tokens", torch.int64, "(batch_size, num_beams)", beams),
        ("finished_parents", torch.int32, "(batch_size, num_beams)", beams),
        ("open", torch.bool, "(batch_size,)", beams[:1]),
        ("unfinished", torch.int64, "(1,)", (1,)),
    ):
        checks.check_output(f"state.{field}", getattr(state, field), dtype, words, shape, like)
    if state.eos_token_ids is not None:
        count = (state.eos_token_ids.numel(),)
        checks.check_output("state.eos_token_ids", state.eos_token_ids, torch.int64, "(n,)", count, like)
    check_captured_fields(state, like)
    if state.limit is not None:
        checks.check_output("state.limit", state.limit, torch.int64, "(1,)", (1,), like)
    # Steps and columns after the prompt correspond one to one.
    if not 0 <= state.prompt_length == capacity - steps:
        raise ValueError(f"`state.prompt_length` must be {capacity - steps}, got {state.prompt_length}")


def beam_state_arguments(state: BeamState) -> dict[str, int]:
    """Returns keyword arguments for pygen._C.BeamPlan. The tensors must outlive the plan."""
    tensors: dict[str, Tensor | None] = {
        "append": state.token_ids,
        "history": None if state.history is state.token_ids else state.history,
        "slots": state.slots,
        "shared": state.shared,
        "running_scores": state.running_scores,
        "step_tokens": state.step_tokens,
        "step_parents": state.step_parents,
        "finished_scores": state.finished_scores,
        "finished": state.finished,
        "finished_steps": state.finished_steps,
        "finished_tokens": state.finished_tokens,
        "finished_parents": state.finished_parents,
        "open": state.open,
        "unfinished": state.unfinished,
        "eos": state.eos_token_ids,
        "state_steps": state.steps,
        "limit": state.limit,
    }
    return {
        **{f"{name}_ptr": 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()},
        "append_stride": state.token_ids.stride(0),
        "history_stride": state.history.stride(0),
        "eos_count": 0 if state.eos_token_ids is None else state.eos_token_ids.numel(),
        "pad_token_id": state.pad_token_id,
        "num_beams": state.num_beams,
        "num_candidates": state.num_candidates,
        "max_new_tokens": state.step_capacity,
        "prompt_length": state.prompt_length,
    }


def check_search(length_penalty: object, early_stopping: object, stopping_criteria: object, state: BeamState) -> None:
    max_new_tokens = state.max_new_tokens
    if isinstance(length_penalty, bool) or not isinstance(length_penalty, Real):
        raise TypeError(f"`length_penalty` must be a number, got {type(length_penalty).__name__}")
    if not math.isfinite(length_penalty):
        raise ValueError(f"`length_penalty` must be finite, got {length_penalty}")
    if not _in_float32(max(max_new_tokens, 1), float(length_penalty)):
        rule = f"must keep {max_new_tokens} ** length_penalty within float32"
        raise ValueError(f"`length_penalty` {rule}, got {length_penalty}")
    if not (isinstance(early_stopping, bool) or early_stopping == "never"):
        raise ValueError(f"`early_stopping` must be False, True or 'never', got {early_stopping!r}")
    if stopping_criteria is not None and not callable(stopping_criteria):
        raise TypeError(f"`stopping_criteria` must be callable, got {type(stopping_criteria).__name__}")
    if stopping_criteria is not None and state.steps is not None:
        rule = "must be None where the state counts the steps"
        raise ValueError(f"`stopping_criteria` {rule}, got {type(stopping_criteria).__name__}")


def _in_float32(length: int, length_penalty: float) -> bool:
    limits = torch.finfo(torch.float32)
    return math.log(limits.tiny) <= length_penalty * math.log(length) <= math.log(limits.max)
