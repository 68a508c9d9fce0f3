"""beam_step: hand-checked steps, every kernel against the reference, draws against torch.multinomial."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen import rng
from pygen.ops import BeamState, beam_step, prepare_beam_step
from tests.conftest import CPU_ISAS
from tests.helpers.beam_hypotheses import HYPOTHESES
from tests.helpers.beam_rows import ROWS
from tests.helpers.beam_steps import assert_step
from tests.helpers.beams import BAND, candidates_of, continuation_values, copied, difference, is_close_call
from tests.helpers.logits import make_logits, strided_rows
from tests.helpers.transformers_oracle import processed

CONFIGURATIONS = 200
FEW_CONFIGURATIONS = 25


def test_steps_by_hand(backend: str) -> None:
    for hand in (*HYPOTHESES, *ROWS):
        assert_step(hand, backend)


def on_every_isa() -> Iterator[str]:
    from pygen import _C

    current = _C.cpu_isa()
    for isa in CPU_ISAS:
        _C.set_cpu_isa(isa)
        yield isa
    _C.set_cpu_isa(current)


Steps = Iterator[tuple[Tensor, dict[str, Any]]]


def configuration(seed: int) -> tuple[BeamState, dict[str, Any], Steps]:
    """Returns a state, the knobs of a search, and logits and noise of its steps."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    batch_size, num_beams = draw.randint(1, 3), draw.choice([1, 2, 3, 4, 8])
    vocab_size, prompt = draw.choice([1, 2, 17, 64, 101, 130, 1000]), (batch_size, draw.choice([1, 3]))
    state = BeamState.create(
        torch.randint(vocab_size, prompt, generator=generator),
        draw.choice([1, 3, 6]),
        num_beams,
        eos_token_ids=draw.choice([None, [1], [1, 0], [0, 1, 2]]),
        visible=(torch.rand(prompt, generator=generator) > 0.4).long() if draw.random() < 0.4 else None,
    )
    knobs = {
        "length_penalty": draw.choice([-1.0, 0.0, 0.5, 1.0, 2.0]),
        "early_stopping": draw.choice([False, True, "never"]),
        **random_shaping(draw, generator, state.rows, vocab_size),
    }
    return state, knobs, random_steps(draw, generator, state, vocab_size, draws="do_sample" in knobs)


def random_shaping(draw: random.Random, generator: torch.Generator, rows: int, vocab_size: int) -> dict[str, Any]:
    def maybe(share: float, **knobs: Any) -> dict[str, Any]:
        return knobs if draw.random() < share else {}

    def per_row(low: float, high: float) -> float | Tensor:
        values = low + (high - low) * torch.rand(rows, generator=generator)
        return values if draw.random() < 0.4 else float(values[0])

    shape = draw.choice([(vocab_size,), (rows, vocab_size)])
    words = torch.randint(-(2**31), 2**31, ((vocab_size + 31) // 32,), generator=generator)
    filters = {"top_k": draw.choice([0, 3, 50]), "top_p": draw.choice([1.0, 0.8]), "min_tokens_to_keep": 2}
    return {
        **maybe(0.3, normalized=True),
        **maybe(0.3, repetition_penalty=per_row(0.7, 1.8)),
        **maybe(0.3, presence_penalty=per_row(-1, 1), frequency_penalty=per_row(-1, 1)),
        **maybe(0.3, no_repeat_ngram_size=draw.choice([1, 2])),
        **maybe(0.2, suppress=[0, 3]),
        **maybe(0.3, bias=torch.randn(shape, generator=generator)),
        **maybe(0.2, token_bitmask=words.int()),
        **maybe(0.4, do_sample=True, sort_draws=draw.random() < 0.5, temperature=per_row(0.5, 1.5), **filters),
    }


def random_steps(
    draw: random.Random, generator: torch.Generator, state: BeamState, vocab_size: int, draws: bool
) -> Steps:
    shape = (state.rows, vocab_size)
    dtype = draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    spread, rounded = draw.choice([0.1, 1, 5]), draw.random() < 0.2
    for _ in range(state.max_new_tokens):
        logits = torch.randn(shape, generator=generator) * spread
        if rounded:
            logits = logits.round()
        for value in (-torch.inf, torch.nan, torch.inf):
            if draw.random() < 0.05:
                columns = slice(None) if value == -torch.inf else draw.randrange(vocab_size)
                logits[draw.randrange(state.rows), columns] = value
        logits = logits.to(dtype)
        noise = {"noise": torch.empty(shape).exponential_(generator=generator)} if draws else {}
        yield strided_rows(logits) if draw.random() < 0.3 else logits, noise


def test_the_kernels_of_all_instruction_sets_equal_the_reference() -> None:
    check_configurations(range(CONFIGURATIONS), lambda: ((isa, "cpu") for isa in on_every_isa()))


def test_a_kernel_equals_the_reference(kernel_backend: str) -> None:
    check_configurations(range(FEW_CONFIGURATIONS), lambda: iter([(kernel_backend, kernel_backend)]))


def check_configurations(seeds: range, kernels: Callable[[], Iterator[tuple[str, str]]]) -> None:
    """Compares `kernels`, (name, backend) pairs, with the reference.

    Every step starts from the reference's state, and searches continue past their end. Results may differ where
    rounding decides, which must be rare.
    """
    num_steps = num_different = 0
    for seed in seeds:
        state, knobs, steps = configuration(seed)
        for step, (logits, noise) in enumerate(steps):
            before = copied(state)
            expected = state, beam_step(logits, state, step=step, **knobs, **noise, backend="torch")
            for name, backend in kernels():
                actual_state = copied(before)
                actual = actual_state, beam_step(logits, actual_state, step=step, **knobs, **noise, backend=backend)
                found = difference(actual, expected)
                num_steps += 1
                if found:
                    shaping = {name: knobs[name] for name in knobs.keys() - {"length_penalty", "early_stopping"}}
                    sums, values = continuation_values(logits, before, step=step, **shaping, **noise)
                    close = is_close_call(before, sums, values, step, knobs)
                    assert close, f"configuration {seed}, step {step}, {name}: {found}"
                    num_different += 1
    assert num_different <= max(num_steps / 1000, 1), f"{num_different} of {num_steps}"


def advanced_state(num_beams: int, vocab_size: int, batch_size: int = 1, seed: int = 0) -> BeamState:
    """Returns a state before step 1.

    Every row has its own scores and tokens and holds its number in the prompt. The order of beams is not that of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    state = BeamState.create(torch.zeros(batch_size, 2, dtype=torch.int64), 3, num_beams, eos_token_ids=[1])
    state.token_ids[:, 0] = torch.arange(state.rows)
    state.token_ids[:, 1:3] = torch.randint(vocab_size, (state.rows, 2), generator=generator)
    state.running_scores.copy_(-torch.rand(state.slots.shape, generator=generator).cumsum(1))
    for b in range(batch_size):
        state.slots[b] = torch.randperm(num_beams, generator=generator) + b * num_beams
    return state


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50257, torch.float16), (128256, torch.float32)])
def test_large_vocabularies(vocab_size: int, dtype: torch.dtype) -> None:
    state = advanced_state(4, vocab_size, batch_size=2)
    logits = make_logits("normal", 8, vocab_size, dtype=dtype)
    penalty: dict[str, Any] = {"repetition_penalty": 1.3}
    _, values = continuation_values(logits, state, step=1, **penalty)
    for _ in on_every_isa():
        assert_best(candidates_of(logits, state, step=1, **penalty, backend="cpu"), state, values)


@pytest.mark.parametrize("num_beams", [40, 256])
def test_many_beams(kernel_backend: str, num_beams: int) -> None:
    state = advanced_state(num_beams, 1000, batch_size=2)
    logits = make_logits("normal", 2 * num_beams, 1000)
    _, values = continuation_values(logits, state, step=1)
    assert_best(candidates_of(logits, state, step=1, backend=kernel_backend), state, values)


def test_more_continuations_than_multinomial_takes() -> None:
    """torch.multinomial refuses transformers' draw of beams beyond 2 ** 24 categories."""
    state, generator = advanced_state(256, 65600), torch.Generator().manual_seed(1)
    logits = make_logits("normal", 256, 65600, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="number of categories"):
        torch.multinomial(torch.ones(1).expand(1, logits.numel()), 2)
    noise = torch.empty(logits.shape).exponential_(generator=generator)
    sums, values = continuation_values(logits, state, step=1, noise=noise)
    assert_best(candidates_of(logits, state, step=1, backend="cpu"), state, sums)
    draws: dict[str, Any] = {"do_sample": True, "rng": "torch", "generator": generator.manual_seed(1)}
    assert_best(candidates_of(logits, state, step=1, **draws, backend="cpu"), state, values, order=sums)


def assert_best(
    candidates: tuple[Tensor, Tensor], state: BeamState, values: Tensor, order: Tensor | None = None
) -> None:
    """Asserts that the candidates have the largest values (B, n * vocab_size), up to BAND.

    They must be sorted by `order`, or by the values without it.
    """
    token_ids, rows = candidates
    beams = (state.slots[:, None] == rows[..., None]).int().argmax(dim=2)
    places = beams * (values.shape[1] // state.num_beams) + token_ids
    assert all(len(set(of_prompt)) == len(of_prompt) for of_prompt in places.tolist())
    found = values.gather(1, places)
    band = BAND * (1 + found.abs())
    ordered = found if order is None else order.gather(1, places)
    assert (ordered[:, 1:] <= ordered[:, :-1] + band[:, 1:]).all()
    assert ((values > (found + band).amin(dim=1, keepdim=True)).sum(dim=1) < state.num_candidates).all()


FILTERS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "common": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_tokens_to_keep": 2},
    "penalties": {"temperature": 1.3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "ties": {"temperature": 0.7, "top_p": 0.6, "min_tokens_to_keep": 2},
}


@pytest.mark.parametrize("sort_draws", [True, False])
@pytest.mark.parametrize("filters", FILTERS)
def test_draws_are_those_of_multinomial(backend: str, filters: str, sort_draws: bool) -> None:
    """Beams are drawn as in transformers: without replacement, from the softmax of accumulated scores.

    Since 5.24 transformers sorts the draws by score. The generator's final state is the same.
    """
    knobs, vocab_size = FILTERS[filters], 211
    num_swapped = 0
    for seed in range(40 if backend in ("cpu", "torch") else 4):
        state = advanced_state(3, vocab_size, batch_size=2, seed=seed)
        logits = make_logits("ties" if filters == "ties" else "normal", 6, vocab_size, seed=seed) * 2
        ours, theirs = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        draws: dict[str, Any] = {"do_sample": True, "rng": "torch", "generator": ours, "sort_draws": sort_draws}
        drawn = candidates_of(logits, state, step=1, **knobs, **draws, backend=backend)
        scores = processed(logits.log_softmax(-1), {**knobs, "input_ids": state.tokens(1)})
        sums = (scores[state.slots] + state.running_scores[..., None]).flatten(1)
        noise = torch.empty_like(sums).exponential_(generator=torch.Generator().manual_seed(seed))
        wanted = torch.multinomial(sums.softmax(-1), state.num_candidates, generator=theirs)
        assert ours.get_state().equal(theirs.get_state())
        if sort_draws:
            wanted = wanted.gather(1, sums.gather(1, wanted).sort(descending=True).indices)
        rows = state.slots.gather(1, wanted // vocab_size)
        num_swapped += not (drawn[0].equal(wanted % vocab_size) and drawn[1].equal(rows))
        assert_best(drawn, state, sums.double() - noise.double().log(), order=sums if sort_draws else None)
    assert num_swapped <= 1


@pytest.mark.parametrize("vocab_size", [1, 17, 313])
def test_the_generator_moves_by_rows_times_vocabulary(backend: str, vocab_size: int) -> None:
    logits = make_logits("normal", 6, vocab_size)
    logits[4] = -torch.inf
    logits[3, 0] = torch.nan
    generator = torch.Generator().manual_seed(3)
    knobs: dict[str, Any] = {"rng": "torch", "generator": generator, "top_k": 1, "backend": backend}
    before = generator.get_state()
    beam_step(logits, advanced_state(3, vocab_size, 2), step=1, **knobs)
    assert generator.get_state().equal(before)
    beam_step(logits, advanced_state(3, vocab_size, 2), step=1, do_sample=True, **knobs)
    alone = torch.Generator().manual_seed(3)
    torch.empty(6, vocab_size).exponential_(generator=alone)
    assert generator.get_state().equal(alone.get_state())


def test_philox_noise_is_keyed_by_beam_and_step(backend: str) -> None:
    logits = make_logits("normal", 6, 300)
    state = advanced_state(3, 300, 2)
    noise = rng.philox_exponential(rng.row_seeds(9, 6), torch.full((6,), 1), 300)
    given = candidates_of(logits, state, step=1, do_sample=True, noise=noise, backend="torch")
    for seed in (9, rng.row_seeds(9, 6)):
        drawn = candidates_of(logits, state, step=1, do_sample=True, seed=seed, backend=backend)
        assert all(ours.equal(wanted) for ours, wanted in zip(drawn, given, strict=True))


def test_normalized_takes_log_probabilities(backend: str) -> None:
    logits = make_logits("normal", 6, 300)
    states = [advanced_state(3, 300, 2) for _ in range(2)]
    first = beam_step(logits, states[0], step=1, repetition_penalty=1.4, backend=backend)
    log_probs = logits.log_softmax(-1)
    other = beam_step(log_probs, states[1], step=1, repetition_penalty=1.4, normalized=True, backend=backend)
    assert difference((states[0], first), (states[1], other)) == ""


def test_stopping_criteria(backend: str) -> None:
    """The op calls it once with the candidates' sequences. A candidate that it stops ends as at an EOS."""
    state = advanced_state(2, 4)
    state.slots.copy_(torch.tensor([[1, 0]]))
    state.running_scores.copy_(torch.tensor([[-1, -1.5]]))
    state.token_ids[:, :3] = torch.tensor([[0, 5, 6], [1, 7, 8]])
    log_probs = torch.tensor([[-2.0, -9, -9, -9], [-1, -9, -9, -2.25]])
    shown = []

    def third_token(sequences: Tensor) -> Tensor:
        shown.append(sequences.tolist())
        return sequences[:, -1] == 3

    knobs: dict[str, Any] = {"step": 1, "normalized": True, "length_penalty": 0.0, "backend": backend}
    beam_step(log_probs, state, stopping_criteria=third_token, **knobs)
    assert shown == [[[1, 7, 8, 0], [1, 7, 8, 3], [0, 5, 6, 0], [1, 7, 8, 1]]]
    assert state.finished_scores[0, 0] == -3.25 and state.finished_tokens[0, 0] == 3
    assert state.step_tokens[1].tolist() == [0, 0] and state.running_scores.tolist() == [[-2, -3.5]]
    beam_step(log_probs, state, stopping_criteria=lambda sequences: True, **{**knobs, "step": 2})
    assert state.unfinished.item() == 0


def test_a_refused_answer_of_a_criterion_changes_nothing(backend: str) -> None:
    wrong: list[tuple[Any, type[Exception], str]] = [
        (3, TypeError, "`stopping_criteria(candidates)` must be bool, got int64"),
        (torch.zeros(4), TypeError, "`stopping_criteria(candidates)` must be bool, got float32"),
        (
            torch.zeros(2, dtype=torch.bool),
            ValueError,
            "`stopping_criteria(candidates)` must have shape (B * K,) = (4,), got (2,)",
        ),
    ]
    state = advanced_state(2, 4)
    for answer, error, message in wrong:
        before = copied(state)
        with pytest.raises(error) as raised:
            criterion: dict[str, Any] = {"stopping_criteria": lambda _, answer=answer: answer}
            beam_step(torch.zeros(2, 4), state, step=1, **criterion, backend=backend)
        assert str(raised.value) == message
        for name, value in vars(before).items():
            assert not isinstance(value, Tensor) or value.equal(getattr(state, name)), name


def test_no_rows(backend: str) -> None:
    state = BeamState.create(torch.empty(0, 3, dtype=torch.int64), 2, 4)
    out = beam_step(torch.empty(0, 10), state, backend=backend)
    assert [tensor.shape for tensor in out] == [(0,)] * 4
    assert state.unfinished.tolist() == [0]


def test_a_prepared_call_equals_fresh_ones(backend: str) -> None:
    """Logits may change their stride, and the op draws a missing seed once."""
    torch.manual_seed(4)
    prepared_state, state = advanced_state(3, 50, 2), advanced_state(3, 50, 2)
    knobs: dict[str, Any] = {"do_sample": True, "top_p": 0.9, "no_repeat_ngram_size": 2, "backend": backend}
    torch.manual_seed(4)
    prepared = prepare_beam_step(make_logits("normal", 6, 50), prepared_state, **knobs)
    torch.manual_seed(4)
    seed = rng.draw_seed(None)
    for step in (1, 2):
        logits = make_logits("normal", 6, 50, seed=step)
        out = prepared(strided_rows(logits) if step == 2 else logits, step=step)
        assert out is prepared.out
        fresh = beam_step(logits, state, step=step, seed=seed, **knobs)
        assert difference((prepared_state, out), (state, fresh)) == ""
