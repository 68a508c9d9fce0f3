"""`pygen.rollout`: a trainer's log-probabilities are those of the sampler, and have the right gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pygen
from pygen.ops import KeptTokens
from pygen.outputs import KeptSets
from pygen.rollout import renormalized_logprobs
from tests.generate.models import VOCAB_SIZE, hf_model
from tests.helpers.generation import generate_output

PROMPTS = torch.randint(1, VOCAB_SIZE, (3, 6), generator=torch.Generator().manual_seed(0))
LENGTH = PROMPTS.shape[1]
WANTED: dict[str, Any] = {
    "max_new_tokens": 10,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_kept": True,
    "output_logprobs": True,
}


def sets_of(rows: list[list[list[int]]], incomplete: tuple[tuple[int, int], ...] = ()) -> KeptSets:
    """By row and step."""
    counts = torch.tensor([len(ids) for row in rows for ids in row])
    complete = torch.ones((len(rows), len(rows[0])), dtype=torch.bool)
    for at in incomplete:
        complete[at] = False
    ids = torch.tensor([token for row in rows for ids in row for token in ids], dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return KeptSets(ids, offsets, torch.zeros(complete.shape), complete)


def normalized(z: Tensor, ids: list[int], token: int) -> float:
    return float(z[token] - z[ids].logsumexp(0))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 12, "min_p": 0.02, "num_return_sequences": 2},
        {"temperature": [0.7, 0.0, 1.5], "top_p": [0.9, 1.0, 0.8]},
    ],
)
@pytest.mark.parametrize("ends", [[], [*range(40, 60)]])
def test_an_unchanged_model_gives_what_was_sampled(settings: dict[str, Any], ends: list[int]) -> None:
    model = hf_model("llama")
    output = generate_output(model, PROMPTS, do_sample=True, seed=1, eos_token_id=ends or None, **WANTED, **settings)
    logits = model(output.sequences).logits[:, LENGTH - 1 : -1]
    temperature: Any = settings["temperature"]
    temperature = torch.tensor(temperature)[:, None] if isinstance(temperature, list) else temperature
    tokens = output.sequences[:, LENGTH:]
    found = renormalized_logprobs(logits, tokens, output.kept, temperature=temperature)
    # A greedy row keeps its token alone, so that it is certain.
    drawn = torch.as_tensor(temperature).expand(len(tokens), 1) > 0
    torch.testing.assert_close(found, output.logprobs.where(drawn, 0.0), rtol=1e-5, atol=1e-5)
    assert bool((found == 0).all(1).any()) == (not drawn.all())
    # Row by row it is the same.
    of_row = temperature[1] if isinstance(temperature, Tensor) else temperature
    row = renormalized_logprobs(logits[1], tokens[1], output.kept.row(1), temperature=of_row)
    assert row.equal(found[1])
    found.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    model.zero_grad()


def test_what_else_shapes_scores_is_the_trainers_to_apply() -> None:
    model, bias = hf_model("llama"), 2.0
    settings = {**WANTED, "do_sample": True, "seed": 1, "top_p": 0.9, "sequence_bias": [[[7], bias]]}
    output = generate_output(model, PROMPTS, **settings)
    logits = model(output.sequences).logits[:, LENGTH - 1 : -1].detach()
    tokens = output.sequences[:, LENGTH:]
    assert not torch.allclose(renormalized_logprobs(logits, tokens, output.kept), output.logprobs)
    logits[..., 7] += bias
    found = renormalized_logprobs(logits, tokens, output.kept)
    torch.testing.assert_close(found, output.logprobs, rtol=1e-5, atol=1e-5)


def test_a_set_of_the_op() -> None:
    logits = torch.randn((4, 50), generator=torch.Generator().manual_seed(0))
    output = pygen.ops.sample(logits, temperature=0.8, top_p=0.7, seed=1, logprobs=1, output_kept=True)
    assert isinstance(output.kept, KeptTokens) and output.logprobs is not None
    found = renormalized_logprobs(logits, output.token_ids, output.kept, temperature=0.8)
    torch.testing.assert_close(found, output.logprobs, rtol=1e-5, atol=1e-6)


def test_by_hand() -> None:
    """Empty sets give 0, an incomplete one the log-probability over the vocabulary, whatever the dtype."""
    logits = torch.randn((2, 3, 9), generator=torch.Generator().manual_seed(0))
    kept = sets_of([[[1, 4], [], [3]], [[], [0, 2, 8], []]], incomplete=((1, 0),))
    tokens = torch.tensor([[4, 0, 3], [5, 2, 7]])
    expected = torch.zeros(2, 3)
    z = logits / 0.5
    expected[0, 0], expected[1, 1] = normalized(z[0, 0], [1, 4], 4), normalized(z[1, 1], [0, 2, 8], 2)
    expected[1, 0] = z[1, 0].log_softmax(0)[5]
    for dtype, close in ((torch.float32, 1e-6), (torch.float64, 1e-6), (torch.bfloat16, 0.05)):
        found = renormalized_logprobs(logits.to(dtype), tokens.int(), kept, temperature=0.5)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.float(), expected, rtol=close, atol=close)
    large = renormalized_logprobs(logits * 1e30, tokens, kept)
    assert bool(large.isfinite().all())


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 2, 6), generator=generator, dtype=torch.float64, requires_grad=True)
    kept = sets_of([[[1, 4, 5], []], [[], [2, 3]]], incomplete=((1, 0),))
    tokens, temperature = torch.tensor([[4, 0], [5, 2]]), torch.tensor([[0.7], [1.5]])

    def function(logits: Tensor) -> Tensor:
        return renormalized_logprobs(logits, tokens, kept, temperature=temperature)

    assert torch.autograd.gradcheck(function, (logits,)) and torch.autograd.gradgradcheck(function, (logits,))
    (gradient,) = torch.autograd.grad(function(logits).sum(), logits)
    assert gradient[0, 1].eq(0).all() and gradient[0, 0].nonzero()[:, 0].tolist() == [1, 4, 5]


def test_memory_is_that_of_the_sets() -> None:
    """A table over the vocabulary would have 2**26 numbers, and so would a copy of the logits, which are a view."""
    logits = torch.zeros(1, 1, 1 << 20).expand(1, 64, 1 << 20)
    kept = sets_of([[[7, 900_000]] * 64])
    tokens = torch.full((1, 64), 7)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = renormalized_logprobs(logits, tokens, kept)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.events()) < 1 << 20
    torch.testing.assert_close(found, torch.full((1, 64), -math.log(2)))


KEPT = sets_of([[[1, 4], [2]]])
MARKED = sets_of([[[1, 4], []]], incomplete=((0, 1),))
CALL: dict[str, Any] = {"logits": torch.zeros(1, 2, 9), "tokens": torch.tensor([[4, 2]]), "kept": KEPT}


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"logits": [1.0]}, TypeError, "`logits` must be a floating-point tensor, got list"),
        (
            {"logits": torch.zeros(1, 2, 9).int()},
            TypeError,
            "`logits` must be a floating-point tensor, got torch.int32",
        ),
        ({"tokens": torch.zeros(1, 2)}, TypeError, "`tokens` must be a tensor of integers, got torch.float32"),
        ({"kept": [[1]]}, TypeError, "`kept` must be KeptSets or KeptTokens, got list"),
        ({"tokens": torch.tensor([4, 2])}, ValueError, r"`logits` must have shape .*, got \(1, 2, 9\) and \(2,\)"),
        (
            {"kept": sets_of([[[1]]])},
            ValueError,
            r"`kept` must have a set for each of the tokens, \(1, 2\), got \(1, 1\)",
        ),
        ({"kept": KEPT.row(0)}, ValueError, r"`kept` must have a set for each of the tokens, \(1, 2\), got \(2,\)"),
        ({"tokens": torch.tensor([[4, 1]])}, ValueError, r"`tokens` must be among the kept ids .*, got 1 at \(0, 1\)"),
        ({"logits": torch.zeros(1, 2, 4)}, ValueError, "`kept.token_ids` must hold ids .* below the vocabulary size 4"),
        (
            {"kept": MARKED, "tokens": torch.tensor([[4, 9]])},
            ValueError,
            "`tokens` must hold ids .* size 9",
        ),
        ({"temperature": -1.0}, ValueError, "`temperature` must be finite and >= 0"),
        (
            {"temperature": torch.ones(3)},
            ValueError,
            r"`temperature` must broadcast to the shape \(1, 2\) .*, got \(3,\)",
        ),
    ],
)
def test_refused(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        renormalized_logprobs(**{**CALL, **changed})
