"""Per-row values, seeds, and the independence of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pygen import rng
from pygen.generate import generate
from tests.generate.models import TableModel, cached_model, hf_model
from tests.helpers.generation import generate_output, generate_tokens

PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
SAMPLING: dict[str, Any] = {"do_sample": True, "max_new_tokens": 6, "top_k": 0}


def flat_table(vocab_size: int = 50) -> TableModel:
    return TableModel(torch.zeros(vocab_size, vocab_size))


def test_a_row_depends_on_its_seed_alone() -> None:
    together = generate_tokens(cached_model(), PROMPTS, seed=[11, 12, 13], **SAMPLING)
    for row, seed in enumerate([11, 12, 13]):
        alone = generate_tokens(cached_model(), PROMPTS[row : row + 1], seed=[seed], **SAMPLING)
        assert torch.equal(alone[0], together[row])
    shuffled = generate_tokens(cached_model(), PROMPTS[[2, 0, 1]], seed=[13, 11, 12], **SAMPLING)
    assert torch.equal(shuffled, together[[2, 0, 1]])


def test_padding_does_not_enter_the_noise() -> None:
    ids = torch.tensor([[0, 0, 1, 2, 3]])
    padded = generate_tokens(cached_model(), ids, pad_token_id=0, seed=[5], **SAMPLING)
    assert torch.equal(padded[:, 2:], generate_tokens(cached_model(), ids[:, 2:], seed=[5], **SAMPLING))


def test_one_seed_is_spread_over_the_rows() -> None:
    drawn = generate_tokens(flat_table(), PROMPTS, seed=7, **SAMPLING)
    assert len({tuple(row) for row in drawn[:, 3:].tolist()}) == 3
    seeds = [rng.row_seed(7, row) for row in range(3)]
    assert torch.equal(drawn, generate_tokens(flat_table(), PROMPTS, seed=seeds, **SAMPLING))
    assert torch.equal(drawn, generate_tokens(flat_table(), PROMPTS, seed=7, **SAMPLING))
    assert not torch.equal(drawn, generate_tokens(flat_table(), PROMPTS, seed=8, **SAMPLING))


def test_a_seed_leaves_torch_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generate(flat_table(), PROMPTS, seed=7, **SAMPLING)
    generate(flat_table(), PROMPTS, max_new_tokens=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_generator_replaces_the_default_one() -> None:
    torch.manual_seed(21)
    default = generate_tokens(flat_table(), PROMPTS, **SAMPLING)
    own = torch.Generator().manual_seed(21)
    before = torch.get_rng_state()
    assert torch.equal(generate_tokens(flat_table(), PROMPTS, generator=own, **SAMPLING), default)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [0.5, 1.0, 2.0]),
        ("top_k", [1, 3, 0]),
        ("top_p", [0.3, 1.0, 0.8]),
        ("min_p", [0.0, 0.2, 0.5]),
        ("typical_p", [0.3, 1.0, 0.8]),
        ("epsilon_cutoff", [0.0, 0.02, 0.1]),
        ("eta_cutoff", [0.0, 0.02, 0.1]),
        ("top_h", [0.3, 0.9, 0.6]),
        ("top_n_sigma", [0.0, 2.5, 0.5]),
        ("repetition_penalty", [1.0, 2.0, 0.5]),
        ("presence_penalty", [0.0, 1.0, -1.0]),
        ("frequency_penalty", [0.0, 1.0, -1.0]),
        ("no_repeat_ngram_size", [0, 1, 2]),
    ],
)
def test_one_value_per_row(name: str, values: list[Any], as_tensor: bool) -> None:
    settings = {**SAMPLING, "return_dict_in_generate": True, "output_scores": True}
    given = torch.tensor(values) if as_tensor else values
    together = generate_output(cached_model(), PROMPTS, seed=[1, 2, 3], **{**settings, name: given})
    for row, value in enumerate(values):
        alone = generate_output(cached_model(), PROMPTS[row : row + 1], seed=[row + 1], **{**settings, name: value})
        assert torch.equal(alone.sequences[0], together.sequences[row])
        for x, y in zip(alone.scores, together.scores, strict=True):
            torch.testing.assert_close(x[0], y[row])


def test_do_sample_per_row_and_temperature_zero() -> None:
    mixed = generate_tokens(cached_model(), PROMPTS, seed=1, **{**SAMPLING, "do_sample": [True, False, True]})
    sampled = generate_tokens(cached_model(), PROMPTS, seed=1, **SAMPLING)
    greedy = generate_tokens(cached_model(), PROMPTS, max_new_tokens=6)
    assert torch.equal(mixed[1], greedy[1])
    assert torch.equal(mixed[[0, 2]], sampled[[0, 2]])
    assert torch.equal(generate_tokens(cached_model(), PROMPTS, temperature=[1.0, 0, 1.0], seed=1, **SAMPLING), mixed)
    none = generate_tokens(cached_model(), PROMPTS, do_sample=[False, False, False], max_new_tokens=6)
    assert torch.equal(none, greedy)


def test_one_value_per_prompt_or_per_returned_row() -> None:
    settings = {**SAMPLING, "num_return_sequences": 2, "seed": 4}
    per_prompt = generate_tokens(cached_model(), PROMPTS, temperature=[0.5, 1.0, 2.0], **settings)
    per_row = generate_tokens(cached_model(), PROMPTS, temperature=[0.5, 0.5, 1.0, 1.0, 2.0, 2.0], **settings)
    assert torch.equal(per_prompt, per_row)
    assert per_row.shape == (6, 9)


def test_presence_and_frequency_by_hand() -> None:
    """The model always scores 2, 1, 0. Tokens of the prompt do not count."""
    model, prompt = TableModel(torch.tensor([[2.0, 1.0, 0.0]] * 3)), torch.tensor([[0, 1, 2, 0]])

    def new_tokens(**penalty: Any) -> list[int]:
        return generate_tokens(model, prompt, max_new_tokens=5, **penalty)[0, 4:].tolist()

    assert new_tokens() == [0, 0, 0, 0, 0]
    # 2 1 0 | .5 1 0 | .5 -.5 0, and so on: a presence penalty applies once.
    assert new_tokens(presence_penalty=1.5) == [0, 1, 0, 0, 0]
    # 2 1 0 | .5 1 0 | .5 -.5 0 | -1 -.5 0 | -1 -.5 -1.5
    assert new_tokens(frequency_penalty=1.5) == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_copies_share_one_prefill(family: str) -> None:
    model = hf_model(family)
    shapes: list[tuple[int, ...]] = []
    handle = model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        ids = torch.randint(4, 90, (2, 5), generator=torch.Generator().manual_seed(0))
        drawn = generate_tokens(model, ids, num_return_sequences=3, seed=3, **SAMPLING)
    finally:
        handle.remove()
    assert shapes == [(2, 5)] + [(6, 1)] * 5
    assert torch.equal(drawn, generate_tokens(model, ids.repeat_interleave(3, 0), seed=3, **SAMPLING))
