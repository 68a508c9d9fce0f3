"""Whole beam searches over a table, against hypotheses as plain lists, with caches that follow the beams."""

from __future__ import annotations

import functools
import random
from typing import Any, NamedTuple

import pytest
import torch

from pygen.ops import BeamState, beam_finalize, prepare_beam_step
from tests.helpers.beams import Caches, Hypothesis, ToyModel, search, walked
from tests.helpers.extra_backends import EMULATED

SEARCHES = 320
PAD = 77


class Search(NamedTuple):
    model: ToyModel
    prompts: torch.Tensor
    num_beams: int
    settings: dict[str, Any]
    finished: list[list[Hypothesis]]
    num_steps: int


@functools.cache
def searched(seed: int) -> Search:
    """Returns a random search and the result of the lists. Sums of its log-probabilities tie only by chance."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    num_eos = draw.choice([0, 1, 1, 2, 3])
    num_beams = draw.choice([1, 2, 2, 3, 4, 5, 8, 16])
    # With fewer than num_candidates tokens, the first step would continue beams that do not exist.
    vocab_size = draw.randint(max(2, 1 + num_eos), 14)
    table = torch.randn(97, vocab_size, generator=generator) * draw.choice([0.3, 1, 3])
    prompts = torch.randint(vocab_size, (draw.randint(1, 3), draw.randint(1, 4)), generator=generator)
    settings = {
        "max_new_tokens": draw.randint(1, 10),
        "eos_token_ids": draw.sample(range(vocab_size), num_eos),
        "length_penalty": draw.choice([-1.0, -0.5, 0.0, 0.7, 1.0, 2.0]),
        "early_stopping": draw.choice([False, True, "never"]),
    }
    model = ToyModel(table.log_softmax(1))
    items, num_steps = search(model, prompts.numpy(), num_beams, **settings)
    return Search(model, prompts, num_beams, settings, [item.finished for item in items], num_steps)


def test_searches_against_lists(backend: str) -> None:
    """Tokens, scores, beams and step counts are equal bit for bit, as are sequences and caches at every step."""
    for seed in range(SEARCHES if backend == "cpu" else SEARCHES // (30 if EMULATED else 6)):
        wanted = searched(seed)
        state, num_steps = run(wanted, backend)
        assert num_steps == wanted.num_steps, seed
        check_result(state, wanted, seed)


def run(wanted: Search, backend: str) -> tuple[BeamState, int]:
    settings = dict(wanted.settings)
    state = BeamState.create(
        wanted.prompts,
        settings.pop("max_new_tokens"),
        wanted.num_beams,
        eos_token_ids=settings.pop("eos_token_ids"),
        pad_token_id=PAD,
    )
    caches = Caches(state)
    example = torch.empty(state.rows, wanted.model.table.shape[1])
    prepared = prepare_beam_step(example, state, normalized=True, **settings, backend=backend)
    for step in range(state.max_new_tokens):
        log_probs = wanted.model(state.tokens(step).numpy())
        out = prepared(torch.from_numpy(log_probs), step=step)
        assert (out.status == 0).all()
        assert out.token_ids.equal(state.token_ids[:, state.prompt_length + step])
        assert state.sequences(step + 1)[:, state.prompt_length :].equal(walked(state, step))
        caches.follow(out, step)
        if state.unfinished.item() == 0:
            break
    return state, step + 1


def check_result(state: BeamState, wanted: Search, seed: int) -> None:
    returned = [hypothesis for of_prompt in wanted.finished for hypothesis in of_prompt]
    longest = max(len(hypothesis.tokens) for hypothesis in returned)
    output = beam_finalize(state, wanted.num_beams)
    prompts = wanted.prompts.repeat_interleave(wanted.num_beams, dim=0)
    tokens = torch.tensor([[*h.tokens, *[PAD] * (longest - len(h.tokens))] for h in returned], dtype=torch.int64)
    parents = [[*h.parents, *[-1] * (longest - len(h.parents))] for h in returned]
    assert output.sequences.equal(torch.cat([prompts, tokens], dim=1)), seed
    assert output.sequences_scores.tolist() == [float(hypothesis.score) for hypothesis in returned], seed
    assert output.beam_indices.tolist() == parents, seed
    assert state.finished.flatten().tolist() == [hypothesis.ended for hypothesis in returned], seed


def test_the_searches_are_of_every_kind() -> None:
    """The searches end early under every rule, and with hypotheses of different lengths."""
    searches = [searched(seed) for seed in range(SEARCHES)]
    early = [s for s in searches if s.num_steps < s.settings["max_new_tokens"]]
    mixed = [s for s in searches if len({len(h.tokens) for of_prompt in s.finished for h in of_prompt if h.ended}) > 2]
    assert len(early) > SEARCHES / 8 and len(mixed) > SEARCHES / 8
    for early_stopping in (False, True, "never"):
        assert sum(s.settings["early_stopping"] == early_stopping for s in early) > 10


@pytest.mark.parametrize("num_beams", [64, 256])
def test_many_beams(backend: str, num_beams: int) -> None:
    generator = torch.Generator().manual_seed(num_beams)
    model = ToyModel(torch.randn(97, 40, generator=generator).log_softmax(1))
    settings = {"max_new_tokens": 4, "eos_token_ids": [3], "length_penalty": 1.0, "early_stopping": False}
    prompts = torch.tensor([[5, 6]])
    (item,), num_steps = search(model, prompts.numpy(), num_beams, **settings)
    wanted = Search(model, prompts, num_beams, settings, [item.finished], num_steps)
    state, steps = run(wanted, backend)
    assert steps == num_steps
    check_result(state, wanted, num_beams)
