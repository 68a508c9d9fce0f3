"""Every op on small inputs, each backend against the reference in plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pygen import ops
from pygen.backends import interprets_triton
from pygen.ops import DISPATCHERS, BeamState

_REFERENCE = "torch"
_ROWS = 8


@dataclass(frozen=True)
class Result:
    """problem: why the backend is wrong or failed, or None. seconds: of its call, compilation included."""

    op: str
    backend: str
    problem: str | None
    seconds: float


def self_test(device: torch.device) -> Iterator[Result]:
    """Runs every op with every backend that can run it on `device`, and compares tokens, removed entries and scores."""
    vocab_size = 515 if interprets_triton() else 32_000  # the interpreter takes minutes for more
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(_ROWS, vocab_size, generator=generator) * 3).to(device)
    for op, run in _RUNS.items():
        expected = run(logits, _REFERENCE)
        for backend, reason in DISPATCHERS[op].reasons(device).items():
            if reason is not None or backend == _REFERENCE:
                continue
            start = time.perf_counter()
            try:
                problem = _difference(run(logits, backend), expected)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            yield Result(op, backend, problem, time.perf_counter() - start)


def _difference(found: list[Tensor], expected: list[Tensor]) -> str | None:
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours.is_floating_point():
            if not torch.equal(ours.isfinite(), theirs.isfinite()):
                return f"result {number} removes other entries than the reference"
            error = (ours - theirs).nan_to_num(0, 0, 0).abs().max().item()
            if error > 1e-4 * max(1.0, theirs.nan_to_num(0, 0, 0).abs().max().item()):
                return f"result {number} is {error:.2g} from the reference"
        elif not torch.equal(ours, theirs):
            wrong = int((ours != theirs).sum())
            return f"result {number} differs from the reference in {wrong} of {ours.numel()} places"
    return None


def _history(logits: Tensor) -> Tensor:
    return torch.arange(_ROWS * 16, device=logits.device).view(_ROWS, 16) % logits.shape[1]


def _process_logits(logits: Tensor, backend: str) -> list[Tensor]:
    filtered = ops.process_logits(
        logits,
        temperature=0.8,
        top_k=50,
        top_p=0.9,
        repetition_penalty=1.2,
        input_ids=_history(logits),
        backend=backend,
    )
    return [filtered, ops.process_logits(logits, min_p=0.05, typical_p=0.9, backend=backend)]


def _sample(logits: Tensor, backend: str) -> list[Tensor]:
    results = [
        ops.sample(logits, do_sample=False, logprobs=2, backend=backend),
        ops.sample(logits, temperature=0.8, top_k=50, top_p=0.9, seed=7, logprobs=2, backend=backend),
        ops.sample(logits, temperature=1.3, seed=8, logprobs=1, backend=backend),
    ]
    return [tensor for out in results for tensor in (out.token_ids, out.status, out.logprobs) if tensor is not None]


def _token_logprobs(logits: Tensor, backend: str) -> list[Tensor]:
    out = ops.token_logprobs(logits, _history(logits)[:, :3].contiguous(), top=4, backend=backend)
    return [out.logprobs, *(out.top_logprobs or ())]


def _verify_draft(logits: Tensor, backend: str) -> list[Tensor]:
    target = logits.view(2, _ROWS // 2, -1)
    drafts = target[:, :-1].topk(2, dim=-1).indices[..., 1].contiguous()
    greedy = ops.verify_draft(target, drafts, do_sample=False, backend=backend)
    drawn = ops.verify_draft(target, drafts, target[:, :-1] * 0.9, seed=5, backend=backend)
    return [*greedy, *drawn]


def _search(logits: Tensor, backend: str) -> tuple[list[Tensor], BeamState]:
    state = BeamState.create(_history(logits)[:2, :4].contiguous(), 3, _ROWS // 2, eos_token_ids=[5])
    outputs = [
        ops.beam_step(logits.roll(step, dims=1), state, step=step, repetition_penalty=1.2, backend=backend)
        for step in range(3)
    ]
    return [tensor for output in outputs for tensor in output], state


def _beam_step(logits: Tensor, backend: str) -> list[Tensor]:
    outputs, state = _search(logits, backend)
    return [*outputs, state.running_scores, state.finished_scores, state.finished_tokens]


def _beam_finalize(logits: Tensor, backend: str) -> list[Tensor]:
    return [*ops.beam_finalize(_search(logits, _REFERENCE)[1], 2, backend=backend)]


def _reorder_cache(logits: Tensor, backend: str) -> list[Tensor]:
    cache = logits[:, : 4 * 8 * 16].reshape(_ROWS, 4, 8, 16).clone()
    source = torch.tensor([1, 0, 2, 2, 5, 6, 4, 7], device=logits.device)
    ops.reorder_cache(cache, source, 2, 7, backend=backend)
    return [cache]


_RUNS: dict[str, Callable[[Tensor, str], list[Tensor]]] = {
    "sample": _sample,
    "process_logits": _process_logits,
    "token_logprobs": _token_logprobs,
    "verify_draft": _verify_draft,
    "beam_step": _beam_step,
    "beam_finalize": _beam_finalize,
    "reorder_cache": _reorder_cache,
}
