"""The result of a beam search: its best hypotheses, traced from the last token back to the first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pygen.backends import Dispatcher
from pygen.ops import _checks as checks
from pygen.ops import _cuda as cuda
from pygen.ops import _traced as traced
from pygen.ops._beam_state import BeamState
from pygen.ops._beam_state_checks import check_beam_state, check_is_beam_state
from pygen.ops._outputs import BeamOutput
from pygen.ops._traced import is_tracing


def beam_finalize(state: BeamState, num_return_sequences: int = 1, *, backend: str = "auto") -> BeamOutput:
    """Returns the first `num_return_sequences` finished hypotheses of every prompt, and leaves `state` unchanged.

    For rank i of prompt b::

        token, beam = finished_tokens[b, i], finished_parents[b, i]
        for step in range(finished_steps[b, i], -1, -1):
            sequence[prompt_length + step], beam_indices[step] = token, beam
            token, beam = step_tokens[step - 1, beam], step_parents[step - 1, beam]

    Shorter hypotheses end in `pad_token_id`, and in -1 in `beam_indices`. The longest returned hypothesis sets the
    width of both. A missing hypothesis (`finished_steps` -1) returns the prompt.

    Arguments:
        state: a `BeamState`.
        num_return_sequences: in [1, state.num_beams].
        backend: "auto", "cpu", "cuda", "triton" or "torch".

    Raises TypeError for types and dtypes, ValueError for values and shapes, also if a trace leaves the beams of its
    prompt, and BackendError if the backend cannot run.
    """
    if is_tracing():
        return traced.beam_finalize(state, num_return_sequences, backend=backend)
    check_is_beam_state(state)
    device = state.token_ids.device
    check_beam_state(state, checks.Like(state.token_ids.shape[0], 0, device))
    if not 1 <= checks.count("num_return_sequences", num_return_sequences) <= state.num_beams:
        raise ValueError(f"`num_return_sequences` must be in [1, {state.num_beams}], got {num_return_sequences}")
    longest = _longest(state, num_return_sequences)
    _, entry = _dispatch.resolve(device, backend)
    sequences, beam_indices = entry(state, num_return_sequences, longest)
    _check_walks(state, num_return_sequences, beam_indices)
    return BeamOutput(sequences, state.finished_scores[:, :num_return_sequences].clone().flatten(), beam_indices)


def _longest(state: BeamState, num_return_sequences: int) -> int:
    steps = state.finished_steps[:, :num_return_sequences]
    last_step = state.step_capacity - 1
    low, high = [bound.item() for bound in steps.aminmax()] if steps.numel() > 0 else (-1, -1)
    if low < -1 or high > last_step:
        raise ValueError(f"`state.finished_steps` must be in [-1, {last_step}], got {low if low < -1 else high}")
    return int(high) + 1


def _check_walks(state: BeamState, num_return_sequences: int, beam_indices: Tensor) -> None:
    steps = state.finished_steps[:, :num_return_sequences].reshape(-1, 1)
    walked = torch.arange(beam_indices.shape[1], device=steps.device) <= steps
    prompts = torch.arange(len(steps), device=steps.device)[:, None] // num_return_sequences
    astray = walked & (beam_indices // state.num_beams != prompts)
    # Traces go from the last step to the first, so a trace first leaves its prompt here.
    for row, step in astray.nonzero()[-1:].tolist():
        beam, prompt = int(beam_indices[row, step]), row // num_return_sequences
        raise ValueError(
            f"`state` must have parents within their prompt, got beam {beam} in step {step} of prompt {prompt}"
        )


def _cpu(state: BeamState, num_return_sequences: int, longest: int) -> tuple[Tensor, Tensor]:
    from pygen import _C

    outputs, arguments = _arguments(state, num_return_sequences, longest)
    _C.beam_finalize(torch.get_num_threads(), **arguments)
    return outputs


def _cuda(state: BeamState, num_return_sequences: int, longest: int) -> tuple[Tensor, Tensor]:
    outputs, arguments = _arguments(state, num_return_sequences, longest)
    with cuda.on(state.token_ids.device) as (ordinal, stream):
        cuda.kernels().launch_beam_finalize(ordinal, stream, **arguments)
    return outputs


def _triton(state: BeamState, num_return_sequences: int, longest: int) -> tuple[Tensor, Tensor]:
    from pygen.triton_kernels.beam_finalize import beam_finalize as kernel

    outputs, _ = _arguments(state, num_return_sequences, longest)
    kernel(state, num_return_sequences, longest, *outputs)
    return outputs


def _arguments(
    state: BeamState, num_return_sequences: int, longest: int
) -> tuple[tuple[Tensor, Tensor], dict[str, int]]:
    """Allocates the sequences and the beam indices; also returns the kernel's keyword arguments."""
    rows, device = state.batch_size * num_return_sequences, state.token_ids.device
    sequences = torch.empty((rows, state.prompt_length + longest), dtype=torch.int64, device=device)
    beam_indices = torch.empty((rows, longest), dtype=torch.int32, device=device)
    arguments = {
        "batch_size": state.batch_size,
        "num_beams": state.num_beams,
        "num_return_sequences": num_return_sequences,
        "prompt_length": state.prompt_length,
        "width": longest,
        "pad_token_id": state.pad_token_id,
        "token_ids_ptr": state.token_ids.data_ptr(),
        "token_ids_stride": state.token_ids.stride(0),
        "step_tokens_ptr": state.step_tokens.data_ptr(),
        "step_parents_ptr": state.step_parents.data_ptr(),
        "finished_steps_ptr": state.finished_steps.data_ptr(),
        "finished_tokens_ptr": state.finished_tokens.data_ptr(),
        "finished_parents_ptr": state.finished_parents.data_ptr(),
        "sequences_ptr": sequences.data_ptr(),
        "beam_indices_ptr": beam_indices.data_ptr(),
    }
    return (sequences, beam_indices), arguments


def _torch(state: BeamState, num_return_sequences: int, longest: int) -> tuple[Tensor, Tensor]:
    from pygen.reference.beam_finalize import beam_finalize as reference

    output = reference(state, num_return_sequences)
    return output.sequences, output.beam_indices


_dispatch: Dispatcher[Callable[[BeamState, int, int], tuple[Tensor, Tensor]]] = Dispatcher(
    "beam_finalize", cpu=_cpu, cuda=_cuda, triton=_triton, torch=_torch
)
