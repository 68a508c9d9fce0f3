"""As the temperature falls to 0, a draw becomes uniform among the largest scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.ops import BeamState, RowStatus, beam_step, process_logits, sample, verify_draft
from tests.helpers.draws import chi_squared_p_value
from tests.helpers.extra_backends import EMULATED
from tests.helpers.transformers_oracle import drawn, processed

# Emulated GPU kernels are slow.
ROWS = 12 if EMULATED else 600
TEMPERATURES = (1e-5, 1e-15, 1e-40) if EMULATED else (1e-5, 1e-9, 1e-15, 1e-30, 1e-38, 1e-40, 1e-45, 1e-60)
LARGEST = (7.0,) if EMULATED else (7.0, -7.0, 3e38, -1e10)
BEST = (3, 70, 140)
FILTERS: tuple[dict[str, Any], ...] = ({}, {"top_k": 5}, {"min_p": 0.1}, {"typical_p": 0.9}, {"top_h": 1.0})


def tied_logits(largest: float, rows: int = ROWS) -> Tensor:
    """Returns (rows, 150): the largest score three times, and others that are a little or much smaller."""
    logits = torch.linspace(-30, -1, 150).repeat(rows, 1) + largest
    logits[:, 9] = torch.tensor(largest).nextafter(torch.tensor(-math.inf)) - abs(largest) * 1e-3
    logits[:, BEST] = largest
    return logits


def assert_uniform(token_ids: Tensor, best: tuple[int, ...] = BEST) -> None:
    counts = torch.stack([(token_ids == token_id).sum() for token_id in best])
    assert counts.sum() == token_ids.numel(), "a token that is not the best was drawn"
    assert chi_squared_p_value(counts, torch.full((len(best),), 1 / len(best), dtype=torch.float64)) > 1e-6


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_draws_are_uniform_among_the_best(backend: str, temperature: float) -> None:
    for largest in LARGEST:
        # Filters take different paths, and a draw without filters takes another.
        knobs = FILTERS[TEMPERATURES.index(temperature) % len(FILTERS)] if largest == 7.0 else {}
        logits = tied_logits(largest).clamp(min=-3e38)
        best = tuple((logits[0] == largest).nonzero()[:, 0].tolist())
        out = sample(logits, temperature=temperature, seed=list(range(ROWS)), logprobs=1, **knobs, backend=backend)
        assert out.logprobs is not None and (out.status == RowStatus.OK).all()
        assert_uniform(out.token_ids, best)
        torch.testing.assert_close(out.logprobs, torch.full((ROWS,), -math.log(len(best))))
        assert_uniform(sample(logits, temperature=temperature, seed=7 + torch.arange(ROWS), backend=backend)[0], best)


@pytest.mark.parametrize("form", [torch.tensor, list])
def test_every_row_has_its_own(backend: str, form: Callable[[list[float]], Any]) -> None:
    temperature = form([1e-40 if form is torch.tensor else 1e-60, 1.0, 0.0, 1e-12])
    logits = tied_logits(7.0, rows=4)
    out = sample(logits, temperature=temperature, seed=1, backend=backend)
    assert out.status.tolist() == [RowStatus.OK] * 4 and out.token_ids[2] == BEST[0]
    scores = process_logits(logits, temperature=temperature, top_k=3, backend=backend)
    assert scores.isfinite().sum(dim=1).tolist() == [3, 3, 150, 3]


@pytest.mark.parametrize("temperature", [1e-9, 1e-15, 1e-36])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_tokens_of_transformers(backend: str, temperature: float, top_p: float) -> None:
    knobs: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    logits = tied_logits(7.0, rows=1)
    scores = processed(logits, knobs)
    ours, theirs = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    for _ in range(12):
        token_ids = sample(logits, **knobs, rng="torch", generator=ours, backend=backend).token_ids
        assert token_ids.equal(drawn(scores, theirs))
    assert ours.get_state().equal(theirs.get_state())


@pytest.mark.parametrize("temperature", [1e-15, 1e-40])
def test_beams(backend: str, temperature: float) -> None:
    prompts = ROWS // 2
    logits = tied_logits(7.0, rows=2 * prompts)
    for running in (0.0, -1e5):
        state = BeamState.create(torch.zeros(prompts, 1, dtype=torch.int64), 2, 2)
        state.running_scores.fill_(running)
        out = beam_step(
            logits, state, do_sample=True, temperature=temperature, seed=list(range(2 * prompts)), backend=backend
        )
        assert (out.status == RowStatus.OK).all()
        assert_uniform(state.step_tokens[0])


@pytest.mark.parametrize("temperature", [1e-15, 1e-40])
def test_drafts(backend: str, temperature: float) -> None:
    logits = tied_logits(7.0)[:, None].expand(ROWS, 2, 150).contiguous()
    drafts = torch.full((ROWS, 1), BEST[1])
    # The draft is certain, so it passes with the target's probability, 1/3; otherwise another of the best follows.
    out = verify_draft(logits, drafts, temperature=temperature, seed=list(range(ROWS)), backend=backend)
    assert (out.status == RowStatus.OK).all()
    first = torch.where(out.accepted_lengths > 0, BEST[1], out.token_ids)
    assert_uniform(first)
    drafts_of = logits[:, :1].clone()
    drafts_of[..., BEST[0]] = 8.0
    # The draft distribution lacks the token, so it always passes.
    out = verify_draft(logits, drafts, drafts_of, temperature=temperature, seed=list(range(ROWS)), backend=backend)
    assert (out.status == RowStatus.OK).all() and (out.accepted_lengths == 1).all()
