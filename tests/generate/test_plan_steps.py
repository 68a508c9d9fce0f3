"""Generated settings give the same tokens and scores, fused or as single processors."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen import processors as built
from pygen.config.config import WatermarkingConfig
from tests.generate.plans import VOCAB_SIZE, make_call, run_plan, run_processors
from tests.helpers.releases import since

CASES, CASES_PER_TEST = 480, 20
STEPS = 5
FORCED = (13, 5, 6, 7)  # forced ids, never suppressed, so that some token is always allowed


def doubled(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores * 2


def last_favoured(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores.scatter_add(1, input_ids[:, -1:], torch.ones(len(scores), 1))


def allowed(batch_id: int, ids: Tensor) -> list[int]:
    return [token_id for token_id in range(VOCAB_SIZE) if (token_id + batch_id + len(ids)) % 3]


GIVEN: list[Any] = [
    doubled,
    last_favoured,
    built.TemperatureLogitsWarper(0.7),
    transformers.TopKLogitsWarper(12),
    built.TopKLogitsWarper(9, min_tokens_to_keep=3),
    built.TopPLogitsWarper(0.9, filter_value=-50.0),
    built.TopPLogitsWarper(0.1, min_tokens_to_keep=4),
    transformers.EtaLogitsWarper(0.01),
    built.MinPLogitsWarper(0.02),
    transformers.InfNanRemoveLogitsProcessor(),
]


def make_case(number: int) -> tuple[Tensor, dict[str, Any]]:
    """Returns prompts and settings, a function of the number. Each setting is on in about a quarter of the cases."""
    draw = random.Random(number)
    batch_size, length = draw.randint(1, 3), draw.choice([1, 1, 4, 9])
    input_ids = torch.tensor([[draw.randrange(8) for _ in range(length)] for _ in range(batch_size)])

    def ids(count: int) -> list[int]:
        return draw.sample(range(VOCAB_SIZE), count)

    sequences = [ids(1), ids(1), [draw.randrange(8) for _ in range(2)], [draw.randrange(8) for _ in range(3)]]
    bias = {tuple(sequence): draw.uniform(-4, 4) for sequence in sequences[: draw.choice([2, 4])]}
    settings: dict[str, Any] = {
        "sequence_bias": draw.choice([bias, [[list(key), value] for key, value in bias.items()]]),
        "encoder_repetition_penalty": draw.choice([0.6, 1.8]),
        "repetition_penalty": draw.choice([0.6, 1.8]),
        "no_repeat_ngram_size": draw.choice([1, 2, 3]),
        "encoder_no_repeat_ngram_size": draw.choice([1, 2, 3]),
        "bad_words_ids": sequences[: draw.choice([2, 4])],
        "min_length": length + draw.randint(0, 4),
        "min_new_tokens": draw.randint(1, 4),
        "prefix_allowed_tokens_fn": allowed,
        "forced_bos_token_id": FORCED[0],
        "forced_eos_token_id": draw.choice([FORCED[1], list(FORCED[2:])]),
        "remove_invalid_values": True,
        "exponential_decay_length_penalty": (draw.randint(0, 2), draw.choice([1.2, 0.8])),
        "suppress_tokens": [token_id for token_id in ids(6) if token_id not in FORCED],
        "begin_suppress_tokens": [token_id for token_id in ids(9) if token_id not in FORCED],
        "renormalize_logits": True,
        "watermarking_config": WatermarkingConfig(bias=1.5),
    }
    settings = {name: value for name, value in settings.items() if draw.random() < 0.25}
    if since("5.18"):  # transformers forces the allowed tokens even if other settings ban all of them
        settings.pop("prefix_allowed_tokens_fn", None)
    settings["logits_processor"] = draw.sample(GIVEN, draw.choice([0, 0, 0, 1, 2, 4]))
    if draw.random() < 0.7:
        warpers = {
            "temperature": draw.choice([0.5, 1.4]),
            "top_h": draw.choice([0.4, 0.9]),
            "top_p": draw.choice([0.6, 0.95]),
            "min_p": draw.choice([0.01, 0.1]),
            "typical_p": draw.choice([0.5, 0.9]),
            "epsilon_cutoff": 0.01,
            "eta_cutoff": 0.02,
        }
        settings |= {name: value for name, value in warpers.items() if draw.random() < 0.3}
        settings |= {"do_sample": True, "top_k": draw.choice([0, 5, 50])}
        settings |= {"num_return_sequences": draw.choice([1, 2])}
    settings |= {"eos_token_id": draw.choice([5, [5, 9]]), "pad_token_id": 0, "max_new_tokens": STEPS}
    return input_ids, settings | {"return_dict_in_generate": True, "output_scores": True}


@pytest.mark.parametrize("first", range(0, CASES, CASES_PER_TEST))
def test_the_plan_does_what_its_processors_do(first: int) -> None:
    for number in range(first, first + CASES_PER_TEST):
        input_ids, settings = make_case(number)
        generator = torch.Generator().manual_seed(number)
        rows = len(input_ids) * settings.get("num_return_sequences", 1)
        logits = [torch.randn(rows, VOCAB_SIZE, generator=generator) * 2 for _ in range(STEPS)]
        tokens, scores, plan = run_plan(make_call(input_ids, **settings), logits, seed=number)
        expected_tokens, expected_scores = run_processors(make_call(input_ids, **settings), logits, seed=number)
        message = f"case {number}: {settings}, stages {[plan.stages(step) for step in range(STEPS)]}"
        assert torch.equal(tokens, expected_tokens), message
        generated, ends = tokens[:, input_ids.shape[1] :], torch.tensor(settings["eos_token_id"])
        for step, (ours, theirs) in enumerate(zip(scores, expected_scores, strict=True)):
            # pygen does not call `prefix_allowed_tokens_fn` for ended rows.
            runs = ~torch.isin(generated[:, :step], ends).any(1)
            assert torch.allclose(ours[runs], theirs[runs], rtol=2e-6, atol=2e-6), message
