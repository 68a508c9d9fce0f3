"""Checks a DecodeState once, and passes its pointers to kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from pygen.ops import _checks as checks
from pygen.ops._checks import Like
from pygen.rng import lock_of

if TYPE_CHECKING:
    from pygen.ops._beam_state import BeamState
    from pygen.ops._state import DecodeState

_ARGUMENTS = (
    "append_ptr",
    "append_stride",
    "append_offset",
    "history_ptr",
    "history_stride",
    "finished_ptr",
    "num_generated_ptr",
    "unfinished_ptr",
    "eos_ptr",
    "eos_count",
    "pad_token_id",
    "state_steps_ptr",
)


def check_state(state: DecodeState, like: Like) -> None:
    """Checks the tensors of a DecodeState, as far as a kernel that writes to them depends on it."""
    words, capacity = "(rows, capacity)", state.token_ids.shape[-1]
    for name, value in (("state.token_ids", state.token_ids), ("state.history", state.history)):
        checks.check_tensor(name, value)
        checks.check_dtype(name, value, torch.int64)
        checks.check_shape(name, value, words, (like.rows, capacity))
        checks.check_device(name, value, like.device)
        checks.check_last_stride(name, value)
        checks.check_rows_apart(name, value)
    checks.check_output("state.num_generated", state.num_generated, torch.int64, "(rows,)", (like.rows,), like)
    checks.check_output("state.finished", state.finished, torch.bool, "(rows,)", (like.rows,), like)
    checks.check_output("state.unfinished", state.unfinished, torch.int64, "(1,)", (1,), like)
    if state.eos_token_ids is not None:
        count = (state.eos_token_ids.numel(),)
        checks.check_output("state.eos_token_ids", state.eos_token_ids, torch.int64, "(n,)", count, like)
    check_captured_fields(state, like)
    if not 0 <= state.prompt_length <= capacity:
        raise ValueError(f"`state.prompt_length` must be in [0, {capacity}], got {state.prompt_length}")


def check_captured_fields(state: DecodeState | BeamState, like: Like) -> None:
    """Checks the fields that a captured step keeps on the device: the step counter and the generator's state."""
    if state.steps is not None:
        checks.check_output("state.steps", state.steps, torch.int64, "(rows,)", (like.rows,), like)
    if state.generator_state is not None:
        on_host = like.device.type == "cpu"
        size = torch.default_generator.get_state().numel() if on_host else 2
        dtype = torch.uint8 if on_host else torch.int64
        checks.check_output("state.generator_state", state.generator_state, dtype, f"({size},)", (size,), like)


@contextmanager
def generator_of(state: DecodeState | BeamState | None, generator: torch.Generator) -> Iterator[torch.Generator]:
    """Yields the generator for torch's own draws: `generator`, or one that continues `state.generator_state`."""
    saved = None if state is None else state.generator_state
    if saved is None:
        with lock_of(generator):
            yield generator
        return
    continued = torch.Generator(saved.device)
    continued.set_state(saved.cpu().view(torch.uint8))
    yield continued
    saved.copy_(continued.get_state().view(saved.dtype))


def state_arguments(state: DecodeState | None) -> dict[str, int]:
    """Returns keyword arguments for pygen._C.SamplePlan. The tensors must outlive the plan."""
    arguments = dict.fromkeys(_ARGUMENTS, 0)
    if state is None:
        return arguments
    arguments["append_ptr"] = state.token_ids.data_ptr()
    arguments["append_stride"] = state.token_ids.stride(0)
    arguments["append_offset"] = state.prompt_length
    arguments["finished_ptr"] = state.finished.data_ptr()
    arguments["num_generated_ptr"] = state.num_generated.data_ptr()
    arguments["unfinished_ptr"] = state.unfinished.data_ptr()
    arguments["pad_token_id"] = state.pad_token_id
    if state.history is not state.token_ids:
        arguments["history_ptr"] = state.history.data_ptr()
        arguments["history_stride"] = state.history.stride(0)
    if state.eos_token_ids is not None:
        arguments["eos_ptr"] = state.eos_token_ids.data_ptr()
        arguments["eos_count"] = state.eos_token_ids.numel()
    if state.steps is not None:
        arguments["state_steps_ptr"] = state.steps.data_ptr()
    return arguments
