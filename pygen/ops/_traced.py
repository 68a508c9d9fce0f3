"""What the public functions do while torch.compile or torch.export traces them: they record one `torch.ops.pygen.*`.

Kernels need addresses, which a traced tensor does not have. `pygen.integrations.torch_library` registers the operators.
Checks happen when the graph runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pygen.ops._beam_state import BeamState
from pygen.ops._outputs import (
    BeamOutput,
    BeamStepOutput,
    DraftOutput,
    SampleOutput,
    TokenLogprobs,
    TopLogprobs,
    empty_output,
    logprobs_tensors,
    sample_output,
    tensors_of,
)
from pygen.ops._schemas import flat
from pygen.ops._state import DecodeState

Function = TypeVar("Function", bound=Callable[..., Any])

is_tracing = torch.compiler.is_compiling


def outside_graphs(reason: str) -> Callable[[Function], Function]:
    """Makes torch.compile leave its graph for the function, or with fullgraph=True refuse it for this reason.

    `torch.compiler.disable` does the same, but costs an import of the compiler and a microsecond per call.
    """

    def mark(function: Function) -> Function:
        vars(function).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)
        return function

    return mark


def sample(logits: Tensor, *, out: SampleOutput | None = None, **arguments: Any) -> SampleOutput:
    given = _flat_draw(arguments, logits)
    if out is not None:
        torch.ops.pygen.sample.out(logits, **given, out=tensors_of(out))
        return out
    op = torch.ops.pygen.sample if _draws(arguments) else torch.ops.pygen.sample_deterministic
    return sample_output(op.default(logits, **given), arguments.get("logprobs", 0), arguments.get("output_kept", False))


def preparation(prepare_sample: Function) -> Function:
    """Makes `prepare_sample` return a `PreparedSample` in a graph."""

    @functools.wraps(prepare_sample)
    def prepare(logits: Tensor, **arguments: Any) -> Any:
        return PreparedSample(**arguments) if is_tracing() else prepare_sample(logits, **arguments)

    return cast(Function, prepare)


class PreparedSample:
    """A prepared `sample` inside a graph. Every call records an operator, and without `out` returns new tensors."""

    def __init__(self, *, state: DecodeState | None = None, **arguments: Any) -> None:
        self.state, self.arguments = state, arguments

    def __call__(self, logits: Tensor, *, step: int = 0, length: int | None = None) -> SampleOutput:
        arguments = dict(self.arguments)
        if self.state is not None:
            out = arguments.pop("out", None) or _empty_output(logits, **arguments)
            given = _flat_draw({**arguments, "state": self.state, "step": step, "length": length}, logits)
            torch.ops.pygen.sample_append.default(logits, **given, out=tensors_of(out))
            return out
        if length is not None and arguments.get("input_ids") is not None:
            arguments["input_ids"] = arguments["input_ids"][:, :length]
        if arguments.get("step") is None:
            arguments["step"] = step
        return sample(logits, **arguments)


def _empty_output(
    logits: Tensor, *, logprobs: int = 0, output_kept: bool = False, kept_limit: int = 1024, **others: Any
) -> SampleOutput:
    (rows, vocab_size), device = logits.shape, logits.device
    return empty_output(rows, logprobs, device, min(kept_limit, vocab_size) if output_kept else 0)


def process_logits(logits: Tensor, *, out: Tensor | None = None, **arguments: Any) -> Tensor:
    given = flat(arguments, logits)
    if out is not None:
        torch.ops.pygen.process_logits.out(logits, **given, out=[out])
        return out
    scores: Tensor = torch.ops.pygen.process_logits.default(logits, **given)
    return scores


def token_logprobs(
    logits: Tensor, token_ids: Tensor, *, out: TokenLogprobs | None = None, **arguments: Any
) -> TokenLogprobs:
    if out is not None:
        torch.ops.pygen.token_logprobs.out(logits, token_ids, **arguments, out=logprobs_tensors(out))
        return out
    logprobs, status, *top = torch.ops.pygen.token_logprobs.default(logits, token_ids, **arguments)
    return TokenLogprobs(logprobs, TopLogprobs(*top) if top else None, status)


def verify_draft(target_logits: Tensor, draft_token_ids: Tensor, **arguments: Any) -> DraftOutput:
    given = _flat_draw(arguments, target_logits)
    op = torch.ops.pygen.verify_draft if _draws(arguments) else torch.ops.pygen.verify_draft_deterministic
    return DraftOutput(*op.default(target_logits, draft_token_ids, **given))


def beam_step(
    logits: Tensor,
    state: BeamState,
    *,
    stopping_criteria: object = None,
    early_stopping: bool | str = False,
    out: BeamStepOutput | None = None,
    **arguments: Any,
) -> BeamStepOutput:
    if stopping_criteria is not None:
        raise NotImplementedError(
            "`stopping_criteria` must be None in a compiled graph, which cannot call it between the halves of a step, "
            f"got {type(stopping_criteria).__name__}: end prompts at EOS tokens, or call `beam_step` outside"
        )
    given = _flat_draw({**arguments, "early_stopping": str(early_stopping).lower(), "state": state}, logits)
    if out is not None:
        torch.ops.pygen.beam_step.out(logits, **given, out=list(out))
        return out
    op = torch.ops.pygen.beam_step if _draws(arguments) else torch.ops.pygen.beam_step_deterministic
    return BeamStepOutput(*op.default(logits, **given))


def beam_finalize(state: BeamState, num_return_sequences: int, **arguments: Any) -> BeamOutput:
    given = flat({**arguments, "state": state}, state.token_ids)
    return BeamOutput(*torch.ops.pygen.beam_finalize.default(num_return_sequences, **given))


def reorder_cache(
    cache_tensors: Tensor | Sequence[Tensor], beam_idx: Tensor, start: int | Tensor, length: int | None, backend: str
) -> None:
    tensors = [cache_tensors] if isinstance(cache_tensors, Tensor) else list(cache_tensors)
    given = flat({"start": start, "length": length, "backend": backend}, beam_idx)
    torch.ops.pygen.reorder_cache.default(tensors, beam_idx, **given)


def _draws(arguments: dict[str, Any]) -> bool:
    """Returns whether a call draws from torch's default generator."""
    return arguments.get("do_sample") is not False and arguments.get("seed") is None and arguments.get("noise") is None


def _flat_draw(arguments: dict[str, Any], logits: Tensor) -> dict[str, Any]:
    generator = arguments.pop("generator", None)
    if generator is not None and generator is not torch.default_generator:
        raise NotImplementedError(
            "`generator` must be None in a compiled graph, which cannot hold a torch.Generator, got a torch.Generator: "
            "pass `seed`, one for each row in an int64 tensor, or use torch's default generator"
        )
    return flat(arguments, logits)
