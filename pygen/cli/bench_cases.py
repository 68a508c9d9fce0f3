"""The steps that `pygen bench` measures: each in pygen, and as one writes it in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygen import ops
from pygen.ops import DISPATCHERS, BeamState

_PENALTY, _TEMPERATURE, _TOP_K, _TOP_P = 1.1, 0.7, 50, 0.9
_SHAPING: dict[str, Any] = {
    "repetition_penalty": _PENALTY, "temperature": _TEMPERATURE, "top_k": _TOP_K, "top_p": _TOP_P
}  # fmt: skip
_BEAMS = 4


@dataclass(frozen=True)
class Case:
    """One step. `problem()` says why the two ways differ, or None."""

    op: str
    step: str
    device: torch.device
    plain: Callable[[], object]
    ours: Callable[[], object]
    problem: Callable[[], str | None]

    @property
    def backend(self) -> str:
        return DISPATCHERS[self.op].choose(self.device)[0]


def cases(rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Every step for `rows` rows of logits."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, vocab_size, generator=generator) * 3).to(device, dtype)
    history = torch.randint(vocab_size, (rows, 256), generator=generator).to(device)

    def greedy() -> Tensor:
        return ops.sample(logits, do_sample=False).token_ids

    yield Case(
        "sample", "greedy", device, lambda: logits.argmax(-1), greedy,
        lambda: _same(logits.gather(1, greedy()[:, None]), logits.max(-1, keepdim=True).values),
    )  # fmt: skip

    def draw() -> Tensor:
        return ops.sample(logits, **_SHAPING, input_ids=history, seed=1).token_ids

    yield Case(
        "sample", "penalty, temperature, top-k, top-p", device,
        lambda: torch.multinomial(_shaped(logits, history).softmax(-1), 1), draw,
        lambda: None if _shaped(logits, history).gather(1, draw()[:, None]).isfinite().all() else "removed tokens",
    )  # fmt: skip

    def shape() -> Tensor:
        return ops.process_logits(logits, **_SHAPING, input_ids=history)

    yield Case(
        "process_logits", "the same without the draw", device, lambda: _shaped(logits, history), shape,
        lambda: _same(shape(), _shaped(logits, history)),
    )  # fmt: skip

    def logprobs() -> Tensor:
        return ops.token_logprobs(logits, history[:, 0]).logprobs

    def plain_logprobs() -> Tensor:
        return logits.float().log_softmax(-1).gather(1, history[:, :1])[:, 0]

    yield Case(
        "token_logprobs", "one token of a row", device, plain_logprobs, logprobs,
        lambda: _same(logprobs(), plain_logprobs()),
    )  # fmt: skip
    if rows % _BEAMS == 0:
        yield _beams(logits, device)
    yield _cache(rows, dtype, device)


def _beams(logits: Tensor, device: torch.device) -> Case:
    """A step in the middle of a search; the plain step only finds the candidates."""
    prompts = len(logits) // _BEAMS
    running = torch.arange(len(logits), device=device).view(prompts, _BEAMS) * -0.01
    state = BeamState.create(torch.zeros((prompts, 1), dtype=torch.int64, device=device), 1, _BEAMS)

    def plain() -> Tensor:
        scores = logits.float().log_softmax(-1).view(prompts, _BEAMS, -1) + running[..., None]
        return scores.view(prompts, -1).topk(2 * _BEAMS).values

    def ours() -> Tensor:
        state.running_scores.copy_(running)
        ops.beam_step(logits, state)
        # The one step of the state is its last, so that all candidates are finished hypotheses.
        best = state.finished_scores.clone()
        state.finished_scores.fill_(-1e9)
        state.finished.zero_()
        state.open.fill_(True)
        state.unfinished.fill_(prompts)
        return best

    return Case(
        "beam_step", f"{_BEAMS} beams of a prompt", device, plain, ours,
        lambda: _same(ours(), plain()[:, :_BEAMS]),
    )  # fmt: skip


def _cache(rows: int, dtype: torch.dtype, device: torch.device) -> Case:
    """The caches of 4 layers: a quarter of the rows move, and only the positions after the prompt."""
    layers = [torch.randn(rows, 8, 256, 64, device=device).to(dtype) for _ in range(4)]
    source = torch.arange(rows, device=device)
    source[::4] = source[::4].roll(1)

    def ours() -> None:
        ops.reorder_cache(layers, source, 192)

    def problem() -> str | None:
        expected = [torch.cat([layer[:, :, :192], layer[source, :, 192:]], dim=2) for layer in layers]
        ours()
        return None if all(map(torch.equal, layers, expected)) else "rows are not where they belong"

    return Case(
        "reorder_cache", "192 + 64 positions, 1 row in 4", device,
        lambda: [layer.index_select(0, source) for layer in layers], ours, problem,
    )  # fmt: skip


def _shaped(logits: Tensor, history: Tensor) -> Tensor:
    """Repetition penalty, temperature, top-k and top-p, as loops in plain torch do them."""
    scores = logits.float()
    seen = scores.gather(1, history)
    scores = scores.scatter(1, history, torch.where(seen < 0, seen * _PENALTY, seen / _PENALTY)) / _TEMPERATURE
    scores = scores.masked_fill(scores < scores.topk(_TOP_K).values[:, -1:], -torch.inf)
    ascending, order = scores.sort(stable=True)
    removed = ascending.softmax(-1).cumsum(-1) <= 1 - _TOP_P
    removed[:, -1] = False
    return scores.masked_fill(removed.scatter(1, order, removed), -torch.inf)


def _same(ours: Tensor, theirs: Tensor) -> str | None:
    if not torch.equal(ours.isfinite(), theirs.isfinite()):
        return "other entries are removed"
    return None if torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3) else "other values"
