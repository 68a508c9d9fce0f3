"""`output_logprobs="raw"`: ln softmax of the model's logits, whatever shapes the scores that tokens are drawn from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pygen.generate import generate
from pygen.streaming import stream
from tests.generate.models import VOCAB_SIZE, TableModel, encoder_decoder, hf_model
from tests.helpers.generation import generate_output
from tests.runtime.calls import same

IDS = torch.randint(1, VOCAB_SIZE, (2, 5), generator=torch.Generator().manual_seed(0))
WANTED: dict[str, Any] = {
    "max_new_tokens": 8,
    "pad_token_id": 0,
    "eos_token_id": [*range(40, 50)],
    "return_dict_in_generate": True,
    "output_logprobs": "raw",
    "top_logprobs": 3,
}
SHAPED: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.4, "sequence_bias": [[[7], 3.0]]}
DRAWN: dict[str, Any] = {"do_sample": True, "seed": 3, **SHAPED}


def favour(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores + torch.linspace(0, 2, scores.shape[1])


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"repetition_penalty": 1.4},
    "sampling": {**DRAWN, "num_return_sequences": 2},
    "processor": {**DRAWN, "logits_processor": [favour]},
    "guidance": {"guidance_scale": 1.5},
    "lookup": {**DRAWN, "prompt_lookup_num_tokens": 2},
    "speculation": {"do_sample": True, **SHAPED, "assistant_model": hf_model("llama")},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4, "repetition_penalty": 1.4},
    "layers": {"dola_layers": "low", "repetition_penalty": 1.4},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "repetition_penalty": 1.4},
    "beam sampling": {"num_beams": 3, **DRAWN, "logits_processor": [favour]},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "no_repeat_ngram_size": 2},
    "words": {"num_beams": 3, "force_words_ids": [[7, 9]], "repetition_penalty": 1.4},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_as_the_logits_say(name: str) -> None:
    model, settings = hf_model("llama"), {**WANTED, **SETTINGS[name]}
    torch.manual_seed(0)
    output = generate_output(model, IDS, output_logits=True, **settings)
    tokens = output.sequences[:, IDS.shape[1] :]
    logprobs = torch.stack(output.logits).log_softmax(-1)
    if "num_beams" in settings:
        ended = output.beam_indices < 0
        expected = logprobs[torch.arange(tokens.shape[1]), output.beam_indices.clamp(min=0).long()]
    else:
        ends = torch.isin(tokens, torch.tensor(settings["eos_token_id"])).int()
        ended, expected = ends.cumsum(1) - ends > 0, logprobs.transpose(0, 1)
    of_tokens = expected.gather(2, tokens[..., None])[..., 0].masked_fill(ended, 0.0)
    torch.testing.assert_close(output.logprobs, of_tokens, rtol=1e-5, atol=1e-5)
    best = expected.topk(3).values.masked_fill(ended[..., None], -math.inf)
    torch.testing.assert_close(output.top_logprobs.logprobs, best, rtol=1e-5, atol=1e-5)
    # They change no token, and differ from those that were drawn from.
    torch.manual_seed(0)
    processed = generate_output(model, IDS, **{**settings, "output_logprobs": "processed"})
    assert torch.equal(processed.sequences, output.sequences)
    assert not same(processed.logprobs, output.logprobs)


def test_encoder_decoder_models() -> None:
    settings = {**WANTED, **DRAWN, "decoder_start_token_id": 1, "output_logits": True}
    output = generate_output(encoder_decoder("t5"), IDS, **settings)
    expected = torch.stack(output.logits, dim=1).log_softmax(-1).gather(2, output.sequences[:, 1:, None])[..., 0]
    torch.testing.assert_close(output.logprobs, expected.where(output.logprobs != 0, 0.0))


def test_rows_without_a_choice() -> None:
    """A row of only banned tokens still has logits; one with NaN has no log-probabilities."""
    table = torch.randn((10, 10), generator=torch.Generator().manual_seed(1))
    table[5, 3] = math.nan
    output = generate_output(
        TableModel(table), torch.tensor([[1], [5]]), **{**WANTED, "eos_token_id": 3},
        suppress_tokens=[*range(10)], on_invalid="eos", output_logits=True,
    )  # fmt: skip
    assert output.sequences.tolist() == [[1, 3], [5, 3]]
    assert output.logprobs[0].item() == pytest.approx(table[1].log_softmax(-1)[3].item())
    assert output.logprobs[1].isnan().all() and output.top_logprobs.token_ids[1].tolist() == [[-1] * 3]


@pytest.mark.parametrize("settings", [DRAWN, {"num_beams": 3}])
def test_streamed(settings: dict[str, Any]) -> None:
    settings = {**WANTED, **settings, "top_logprobs": None}
    output = generate_output(hf_model("llama"), IDS[:1], **settings)
    events = list(stream(hf_model("llama"), IDS[:1], **settings))
    assert [event.logprob for event in events] == output.logprobs[0].tolist() and output.top_logprobs is None


def test_refused() -> None:
    with pytest.raises(ValueError, match="`output_logprobs='raw'` needs `return_dict_in_generate=True`"):
        generate(hf_model("llama"), IDS, **{**WANTED, "return_dict_in_generate": False})
