"""The ops as `torch.ops.pygen.*`: what torch.compile, torch.export and other tools that trace torch's calls record.

The overload `out` of an operator writes into tensors. Where an op can draw from torch's default generator, tags of the
operator keep the compiler from merging equal calls and from capturing a call in a CUDA graph. `*_deterministic` is the
same operator without these tags, for calls that draw nothing: greedy, or with `seed` or `noise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel, register_fake
from torch.utils._pytree import _register_namedtuple

from pygen import ops
from pygen.ops._beam_state import BeamState
from pygen.ops._outputs import (
    BeamOutput,
    BeamStepOutput,
    DraftOutput,
    SampleOutput,
    TokenLogprobs,
    TopLogprobs,
    empty_draft_output,
    empty_logprobs,
    empty_output,
    logprobs_tensors,
    sample_output,
    tensors_of,
)
from pygen.ops._schemas import KNOB_NAMES, per_row, state_fields, taken_state, unflat
from pygen.ops._state import DecodeState

_LIBRARY = Library("pygen", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
# Not in a CUDA graph: a drawn seed would repeat, and the host copies a search's table of length penalties.
_HOST = (torch.Tag.cudagraph_unsafe,)
_DRAWS = (torch.Tag.nondeterministic_seeded, *_HOST)

_BACKEND = "str backend='auto'"
_TABLES = "Tensor? bias=None, Tensor? suppress=None, Tensor? token_bitmask=None"
_RESULTS = "SymInt logprobs=0, bool output_kept=False, SymInt kept_limit=1024"
_NOISE = "Tensor? noise=None, str rng='philox'"
_SHAPING = ("do_sample", *KNOB_NAMES, "prompt_lengths")
_PROCESS = f"Tensor logits, *, {per_row(*_SHAPING)}, Tensor? input_ids=None, {_TABLES}, {_BACKEND}"
_SAMPLE = (
    f"Tensor logits, *, {per_row(*_SHAPING, 'seed', 'step')}, Tensor? input_ids=None, {_TABLES}, {_NOISE}, "
    f"{_RESULTS}, {_BACKEND}"
)
_APPEND = (
    f"Tensor logits, *, {state_fields(DecodeState)}, SymInt step=0, SymInt? length=None, "
    f"{per_row(*_SHAPING, 'seed')}, {_TABLES}, {_NOISE}, {_RESULTS}, {_BACKEND}"
)
_VERIFY = (
    "Tensor target_logits, Tensor draft_token_ids, Tensor? draft_logits=None, *, "
    f"{per_row('draft_lengths', 'do_sample', 'temperature', 'seed', 'step')}, Tensor? uniforms=None, "
    f"Tensor? noise=None, {_BACKEND}"
)
_BEAM = (
    f"Tensor logits, *, {state_fields(BeamState)}, SymInt step=0, bool do_sample=False, "
    f"{per_row(*KNOB_NAMES, 'seed')}, {_TABLES}, bool normalized=False, float length_penalty=1.0, "
    f"str early_stopping='false', bool sort_draws=True, {_NOISE}, {_BACKEND}"
)
_FINALIZE = f"SymInt num_return_sequences=1, *, {state_fields(BeamState, writes=False)}, {_BACKEND}"
_SCORE = f"Tensor logits, Tensor token_ids, *, SymInt top=0, {_BACKEND}"
_OUT = "Tensor(out!)[] out"
_REORDER = f"Tensor(a!)[] cache_tensors, Tensor beam_idx, *, {per_row('start')}, SymInt? length=None, {_BACKEND}"


def _sample(logits: Tensor, **arguments: Any) -> list[Tensor]:
    if not arguments.get("output_kept", False):
        return tensors_of(ops.sample(logits, **unflat(arguments)))
    out = _sample_fake(logits, **arguments)
    _sample_out(logits, out=out, **arguments)
    return out


def _sample_out(logits: Tensor, *, out: Sequence[Tensor], **arguments: Any) -> None:
    ops.sample(logits, **unflat(arguments), out=_output(out, **arguments))


def _output(out: Sequence[Tensor], *, logprobs: int = 0, output_kept: bool = False, **others: Any) -> SampleOutput:
    return sample_output(out, logprobs, output_kept)


def _sample_append(
    logits: Tensor, *, out: Sequence[Tensor], step: int = 0, length: int | None = None, **arguments: Any
) -> None:
    state = taken_state(DecodeState, arguments)
    result = _output(out, **arguments)
    ops.prepare_sample(logits, state=state, out=result, **unflat(arguments))(logits, step=step, length=length)


def _sample_fake(
    logits: Tensor, *, logprobs: int = 0, output_kept: bool = False, kept_limit: int = 1024, **arguments: Any
) -> list[Tensor]:
    kept_width = min(kept_limit, logits.shape[1]) if output_kept else 0
    return tensors_of(empty_output(logits.shape[0], logprobs, logits.device, kept_width))


def _process_logits(logits: Tensor, **arguments: Any) -> Tensor:
    return ops.process_logits(logits, **unflat(arguments))


def _process_logits_out(logits: Tensor, *, out: Sequence[Tensor], **arguments: Any) -> None:
    ops.process_logits(logits, **unflat(arguments), out=out[0])


def _process_logits_fake(logits: Tensor, **arguments: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=torch.float32, device=logits.device)


def _token_logprobs(logits: Tensor, token_ids: Tensor, **arguments: Any) -> list[Tensor]:
    return logprobs_tensors(ops.token_logprobs(logits, token_ids, **arguments))


def _token_logprobs_out(logits: Tensor, token_ids: Tensor, *, out: Sequence[Tensor], **arguments: Any) -> None:
    logprobs, status, *top = out
    result = TokenLogprobs(logprobs, TopLogprobs(*top) if top else None, status)
    ops.token_logprobs(logits, token_ids, **arguments, out=result)


def _token_logprobs_fake(logits: Tensor, token_ids: Tensor, *, top: int = 0, backend: str = "auto") -> list[Tensor]:
    return logprobs_tensors(empty_logprobs(token_ids.shape, top, logits))


def _verify_draft(
    target_logits: Tensor, draft_token_ids: Tensor, draft_logits: Tensor | None = None, **arguments: Any
) -> tuple[Tensor, ...]:
    return tuple(ops.verify_draft(target_logits, draft_token_ids, draft_logits, **unflat(arguments)))


def _verify_draft_fake(
    target_logits: Tensor, draft_token_ids: Tensor, draft_logits: Tensor | None = None, **arguments: Any
) -> tuple[Tensor, ...]:
    return tuple(empty_draft_output(target_logits.shape[0], target_logits.device))


def _beam_step(logits: Tensor, **arguments: Any) -> tuple[Tensor, ...]:
    out = _beam_step_fake(logits)
    _beam_step_out(logits, out=out, **arguments)
    return out


def _beam_step_out(logits: Tensor, *, out: Sequence[Tensor], **arguments: Any) -> None:
    state = taken_state(BeamState, arguments)
    word = arguments.pop("early_stopping", "false")
    ops.beam_step(
        logits, state, **unflat(arguments), early_stopping=_EARLY_STOPPING.get(word, word), out=BeamStepOutput(*out)
    )


_EARLY_STOPPING: dict[str, bool | str] = {"false": False, "true": True}


def _beam_step_fake(logits: Tensor, **arguments: Any) -> tuple[Tensor, ...]:
    rows, device = logits.shape[0], logits.device
    ids = [torch.empty(rows, dtype=torch.int64, device=device) for _ in range(3)]
    return (*ids, torch.empty(rows, dtype=torch.int32, device=device))


def _beam_finalize(num_return_sequences: int = 1, *, backend: str = "auto", **state: Any) -> tuple[Tensor, ...]:
    return tuple(ops.beam_finalize(taken_state(BeamState, state), num_return_sequences, backend=backend))


def _beam_finalize_fake(num_return_sequences: int = 1, *, backend: str = "auto", **state: Any) -> tuple[Tensor, ...]:
    token_ids, rows = state["state_token_ids"], state["state_slots"].shape[0] * num_return_sequences
    longest = torch.library.get_ctx().new_dynamic_size()
    return (
        token_ids.new_empty((rows, state["state_prompt_length"] + longest)),
        token_ids.new_empty(rows, dtype=torch.float32),
        token_ids.new_empty((rows, longest), dtype=torch.int32),
    )


def _reorder_cache(cache_tensors: Sequence[Tensor], beam_idx: Tensor, **arguments: Any) -> None:
    ops.reorder_cache(cache_tensors, beam_idx, **unflat(arguments))


def _nothing(*arguments: Any, **others: Any) -> None:
    """Fakes an operator that only writes."""


# Under these names torch.export.save writes results.
for _result in (SampleOutput, TopLogprobs, TokenLogprobs, DraftOutput, BeamStepOutput, BeamOutput):
    _register_namedtuple(_result, serialized_type_name=f"pygen.ops.{_result.__name__}")


def _define(name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], *tags: torch.Tag) -> None:
    _LIBRARY.define(name + schema, tags=(*_TAGS, *tags))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    # Results have no gradient, as those of the public functions.
    _LIBRARY.impl(name, fallthrough_kernel, "Autograd")
    register_fake(f"pygen::{name}", fake, lib=_LIBRARY)


_define("sample", f"({_SAMPLE}) -> Tensor[]", _sample, _sample_fake, *_DRAWS)
_define("sample_deterministic", f"({_SAMPLE}) -> Tensor[]", _sample, _sample_fake)
_define("sample.out", f"({_SAMPLE}, {_OUT}) -> ()", _sample_out, _nothing, *_DRAWS)
_define("sample_append", f"({_APPEND}, {_OUT}) -> ()", _sample_append, _nothing, *_DRAWS)
_define("process_logits", f"({_PROCESS}) -> Tensor", _process_logits, _process_logits_fake)
_define("process_logits.out", f"({_PROCESS}, {_OUT}) -> ()", _process_logits_out, _nothing)
_define("token_logprobs", f"({_SCORE}) -> Tensor[]", _token_logprobs, _token_logprobs_fake)
_define("token_logprobs.out", f"({_SCORE}, {_OUT}) -> ()", _token_logprobs_out, _nothing)
_define("verify_draft", f"({_VERIFY}) -> (Tensor, Tensor, Tensor)", _verify_draft, _verify_draft_fake, *_DRAWS)
_define("verify_draft_deterministic", f"({_VERIFY}) -> (Tensor, Tensor, Tensor)", _verify_draft, _verify_draft_fake)
_STEP = f"({_BEAM}) -> (Tensor, Tensor, Tensor, Tensor)"
_define("beam_step", _STEP, _beam_step, _beam_step_fake, *_DRAWS)
_define("beam_step_deterministic", _STEP, _beam_step, _beam_step_fake, *_HOST)
_define("beam_step.out", f"({_BEAM}, {_OUT}) -> ()", _beam_step_out, _nothing, *_DRAWS)
_define("beam_finalize", f"({_FINALIZE}) -> (Tensor, Tensor, Tensor)", _beam_finalize, _beam_finalize_fake, *_HOST)
_define("reorder_cache", f"({_REORDER}) -> ()", _reorder_cache, _nothing)
