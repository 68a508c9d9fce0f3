"""Plain modules: the forms of a forward, and the arguments that it receives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pygen.generate import generate
from tests.generate.models import CachedModel, SumCache, TableModel, cached_model, counting_table
from tests.helpers.generation import generate_tokens

PROMPTS = torch.tensor([[1, 2, 3], [7, 7, 4]])


def test_table_by_hand() -> None:
    assert generate_tokens(counting_table(), torch.tensor([[3], [8]]), max_new_tokens=3).tolist() == [
        [3, 4, 5, 6],
        [8, 9, 0, 1],
    ]


def test_greedy_takes_the_lowest_of_equal_scores() -> None:
    assert generate_tokens(TableModel(torch.zeros(5, 5)), torch.tensor([[4]]), max_new_tokens=2).tolist() == [[4, 0, 0]]


def test_without_a_cache_the_whole_sequence_is_forwarded() -> None:
    model = counting_table()
    generate(model, PROMPTS, max_new_tokens=3)
    assert model.calls == [(2, 3), (2, 4), (2, 5)]


def test_copies_are_prefilled_once() -> None:
    model = counting_table()
    generate(model, PROMPTS, max_new_tokens=2, do_sample=True, num_return_sequences=3)
    assert model.calls == [(2, 3), (6, 4)]


@pytest.mark.parametrize("returns", ["tuple", "dict"])
def test_a_cache_of_any_kind_is_carried(returns: str) -> None:
    model = cached_model(returns)
    model.lengths.clear()
    cached = generate_tokens(model, PROMPTS, max_new_tokens=6)
    assert model.lengths == [3, 1, 1, 1, 1, 1]
    model.lengths.clear()
    assert torch.equal(cached, generate_tokens(model, PROMPTS, max_new_tokens=6, use_cache=False))
    assert model.lengths == [3, 4, 5, 6, 7, 8]


def test_logits_of_the_last_position_alone() -> None:
    model = cached_model("last")
    assert torch.equal(
        generate_tokens(model, PROMPTS, max_new_tokens=5), generate_tokens(cached_model(), PROMPTS, max_new_tokens=5)
    )


@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padding_changes_nothing(use_cache: bool) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 5, "use_cache": use_cache, "repetition_penalty": 1.5}
    alone = generate_tokens(cached_model(), PROMPTS[:1], **settings)
    ids = torch.tensor([[0, 0, 1, 2, 3], [9, 8, 7, 6, 5]])
    by_pad = generate_tokens(cached_model(), ids, pad_token_id=0, **settings)
    by_mask = generate_tokens(cached_model(), ids, attention_mask=(ids != 0).long(), **settings)
    assert torch.equal(by_pad[0, 2:], alone[0])
    assert torch.equal(by_pad, by_mask)


@pytest.mark.parametrize("use_cache", [True, False])
def test_copies_with_a_mask(use_cache: bool) -> None:
    ids = torch.tensor([[0, 0, 1, 2, 3], [9, 8, 7, 6, 5]])
    settings: dict[str, Any] = {"pad_token_id": 0, "do_sample": True, "max_new_tokens": 4, "use_cache": use_cache}
    copies = generate_tokens(cached_model(), ids, num_return_sequences=2, seed=[5, 6, 7, 8], **settings)
    by_hand = generate_tokens(cached_model(), ids.repeat_interleave(2, 0), seed=[5, 6, 7, 8], **settings)
    assert torch.equal(copies, by_hand)


def test_extra_inputs_are_passed_and_expanded() -> None:
    class Biased(nn.Module):
        def forward(self, input_ids: Tensor, row_bias: Tensor, scale: float = 1.0) -> Tensor:
            assert row_bias.shape[0] == input_ids.shape[0]
            return (row_bias * scale)[:, None].expand(-1, input_ids.shape[1], -1)

    bias = torch.eye(6)[:2] * 1000
    drawn = generate_tokens(
        Biased(), PROMPTS, row_bias=bias, scale=2.0, max_new_tokens=2, do_sample=True, num_return_sequences=2
    )
    assert drawn[:, 3:].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_of_logits(dtype: torch.dtype) -> None:
    model = counting_table()
    model.table = model.table.to(dtype)
    assert generate_tokens(model, torch.tensor([[3]]), max_new_tokens=2).tolist() == [[3, 4, 5]]


def test_without_input_ids_rows_start_from_bos() -> None:
    assert generate_tokens(counting_table(), max_new_tokens=2, bos_token_id=4).tolist() == [[4, 5, 6]]


def test_model_settings_come_from_its_generation_config() -> None:
    from pygen.config.config import GenerationConfig

    model = counting_table()
    model.generation_config = GenerationConfig(max_new_tokens=2, eos_token_id=5)
    assert generate_tokens(model, torch.tensor([[1]])).tolist() == [[1, 2, 3]]
    assert generate_tokens(model, torch.tensor([[4]])).tolist() == [[4, 5]]


@pytest.mark.parametrize("training", [True, False])
def test_mode_gradients_and_attributes_stay(training: bool) -> None:
    model = CachedModel().train(training)
    before = dict(vars(model))
    result = generate_tokens(model, PROMPTS, max_new_tokens=2)
    assert model.training is training
    assert vars(model).keys() == before.keys()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not result.requires_grad


class NoIds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, input_ids: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("gpt2", TypeError, "`model` must be a torch.nn.Module, got str"),
        (NoIds(), TypeError, "`model`=NoIds: its forward must take `input_ids`"),
        (Returns(3), TypeError, "`model` must return a tensor, .* got int"),
        (Returns(torch.zeros(1, 3, 4, dtype=torch.int64)), TypeError, "logits must be a floating-point tensor, got"),
        (Returns((None, None)), TypeError, "logits must be a floating-point tensor, got NoneType"),
        (Returns(torch.zeros(4)), ValueError, r"logits must have shape \(1, length, vocab_size\) .* got \(4,\)"),
        (Returns(torch.zeros(2, 3, 4)), ValueError, r"logits must have shape \(1, length, vocab_size\)"),
    ],
)
def test_refused_models(model: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generate(model, torch.tensor([[1, 2, 3]]), max_new_tokens=1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"output_attentions": True}, "`output_attentions`=True needs a model of transformers"),
        ({"prefill_chunk_size": 2}, "`prefill_chunk_size`=2 needs a model of transformers"),
        ({"cache_implementation": "static"}, "`cache_implementation`='static' needs a model of transformers"),
        ({"cache_config": {"nbits": 4}}, "`cache_config`={'nbits': 4} needs a model of transformers"),
        ({"past_key_values": SumCache(torch.zeros(2, 12), 3)}, "`past_key_values`: a plain module cannot be continued"),
        ({"inputs_embeds": torch.zeros(2, 3, 12)}, "`inputs_embeds`: a plain module starts from `input_ids`"),
    ],
)
def test_features_of_transformers_models_only(setting: dict[str, Any], message: str) -> None:
    class Takes(CachedModel):
        def forward(  # type: ignore[override]
            self, input_ids: Tensor, inputs_embeds: Any = None, past_key_values: Any = None
        ) -> Any:
            raise AssertionError("must not run")

    with pytest.raises(NotImplementedError, match=message):
        generate(Takes(), PROMPTS, max_new_tokens=2, **setting)
