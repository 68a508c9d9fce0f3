"""`guidance_scale` on every kind of model, which reads the unconditional text as any text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pygen.generate import generate
from tests.generate.models import TableModel, encoder_decoder, hf_model
from tests.helpers.generation import generate_tokens

IDS, SCALE = torch.tensor([[5, 9, 7], [8, 3, 4]]), 2.0
NEGATIVE = torch.tensor([[0, 0, 33], [40, 41, 42]])
MASK = torch.tensor([[0, 0, 1], [1, 1, 1]])
COMMON: dict[str, Any] = {"max_new_tokens": 6, "pad_token_id": 0}
SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.4},
    {"prompt_lookup_num_tokens": 2},
]


def guided(unconditional: Any) -> Any:
    """Returns the processor that guides away from `unconditional(input_ids)`, logits (rows, vocab_size)."""

    def guide(input_ids: Tensor, scores: Tensor) -> Tensor:
        other: Tensor = unconditional(input_ids).log_softmax(-1)
        return other + SCALE * (scores.log_softmax(-1) - other)

    return guide


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_reads_the_negative_prompt_with_its_encoder(
    family: str, given: bool, search: dict[str, Any]
) -> None:
    """Without a negative prompt, the encoder reads the last token of the prompt."""
    model, negative = encoder_decoder(family), IDS.flip(1) if given else IDS[:, -1:]

    def unconditional(input_ids: Tensor) -> Tensor:
        read = negative.repeat_interleave(len(input_ids) // len(negative), dim=0)
        logits: Tensor = model(input_ids=read, decoder_input_ids=input_ids).logits
        return logits[:, -1]

    arguments: dict[str, Any] = {**COMMON, **search, "decoder_start_token_id": 1}
    prompts: dict[str, Any] = {"negative_prompt_ids": negative} if given else {}
    found = generate_tokens(model, IDS, guidance_scale=SCALE, **prompts, **arguments)
    assert torch.equal(found, generate_tokens(model, IDS, logits_processor=[guided(unconditional)], **arguments))


@pytest.mark.parametrize("search", SEARCHES[:2])
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_padding_of_negative_prompts_changes_nothing(family: str, search: dict[str, Any]) -> None:
    model: Any = encoder_decoder(family) if family == "t5" else hf_model(family)
    arguments: dict[str, Any] = {**COMMON, **search, "guidance_scale": SCALE}
    arguments |= {"decoder_start_token_id": 1} if family == "t5" else {}
    masks: dict[str, Any] = {"negative_prompt_attention_mask": MASK}
    found = generate_tokens(model, IDS, negative_prompt_ids=NEGATIVE, **masks, **arguments)
    alone = generate_tokens(model, IDS[:1], negative_prompt_ids=NEGATIVE[:1, 2:], **arguments)
    assert torch.equal(found[:1, : alone.shape[1]], alone)


class Forms(TableModel):
    """A plain module that returns its logits in one of the forms that `generate` accepts."""

    def __init__(self, form: str) -> None:
        super().__init__(torch.randn(23, 23, generator=torch.Generator().manual_seed(1)))
        self.form = form

    def forward(self, input_ids: Tensor) -> Any:
        logits = super().forward(input_ids)
        return {"tensor": logits, "tuple": (logits,), "dict": {"logits": logits}}[self.form]


class Placed(nn.Module):
    """A plain module whose scores depend on the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(23, 23, generator=torch.Generator().manual_seed(1)), requires_grad=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.table[input_ids] + self.table[position_ids]


@pytest.mark.parametrize("model", [*map(Forms, ("tensor", "tuple", "dict")), Placed()])
def test_plain_modules(model: Any) -> None:
    def unconditional(input_ids: Tensor) -> Tensor:
        read = input_ids[:, 2:]
        places = {"position_ids": torch.arange(read.shape[1]).expand(read.shape)} if isinstance(model, Placed) else {}
        logits = model(read, **places)
        logits = logits[0] if isinstance(logits, tuple) else logits["logits"] if isinstance(logits, dict) else logits
        last: Tensor = logits[:, -1]
        return last

    found = generate_tokens(model, IDS, guidance_scale=SCALE, **COMMON)
    assert torch.equal(found, generate_tokens(model, IDS, logits_processor=[guided(unconditional)], **COMMON))


def test_embeddings_alone_are_led_away_from_the_last_one() -> None:
    model = hf_model("llama")
    embeds = model.get_input_embeddings()(IDS)
    by_ids = generate_tokens(model, IDS, guidance_scale=SCALE, **COMMON)[:, 3:]
    assert torch.equal(generate_tokens(model, inputs_embeds=embeds, guidance_scale=SCALE, **COMMON), by_ids)


def test_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match="`guidance_scale` needs a model that reads `input_ids`, not input_f"):
        features = torch.randn(1, 8, 40)
        start: dict[str, Any] = {"decoder_start_token_id": 1, "guidance_scale": SCALE}
        generate(encoder_decoder("whisper"), input_features=features, **start, **COMMON)
    wrong: list[tuple[Any, Any, str]] = [
        (NEGATIVE.float(), None, "`negative_prompt_ids` must hold integers, got torch.float32"),
        (NEGATIVE.repeat(2, 1)[:3], None, "`negative_prompt_ids` must have a number of rows that divides"),
        (NEGATIVE, MASK[:, :2], "`negative_prompt_attention_mask` must have the shape of `negative_prompt_ids`"),
    ]
    for ids, mask, message in wrong:
        with pytest.raises((TypeError, ValueError), match=message):
            generate(
                hf_model("llama"),
                IDS,
                negative_prompt_ids=ids,
                negative_prompt_attention_mask=mask,
                guidance_scale=SCALE,
                **COMMON,
            )
