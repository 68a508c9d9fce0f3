"""What the loops need of an adapter: decoding several columns at once, rewinding, and reordering rows."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from pygen.config.config import GenerationMode
from pygen.models.adapter import ModelAdapter, adapt
from pygen.request.settings import resolve_settings, resolve_special_tokens
from tests.generate.models import (
    FAMILIES,
    CachedModel,
    SumCache,
    cached_model,
    counting_table,
    encoder_decoder,
    hf_model,
)

IDS = torch.tensor([[0, 5, 6, 7], [8, 9, 10, 11]])


def started(model: Any, mode: GenerationMode, copies: int = 1, **kwargs: Any) -> Any:
    """Returns (adapter, prompt), ready for the prefill."""
    adapter: ModelAdapter = adapt(model)
    settings = resolve_settings(None, None, {"pad_token_id": 0, "decoder_start_token_id": 1, **kwargs})
    tokens = resolve_special_tokens(settings.config)
    prompt = adapter.prompt(IDS, settings.model_kwargs, settings.config, tokens)
    adapter.start(prompt, mode=mode, num_copies=copies, max_new_tokens=8)
    return adapter, prompt.input_ids.repeat_interleave(copies, dim=0)


def extended(ids: Tensor, count: int) -> Tensor:
    more = torch.arange(ids.shape[0] * count).view(ids.shape[0], count) % 19 + 1
    return torch.cat([ids, more], dim=1)


MODELS: dict[str, Any] = {
    **{family: functools.partial(hf_model, family) for family in FAMILIES},
    **{family: functools.partial(encoder_decoder, family) for family in ("t5", "bart")},
    "plain": lambda: counting_table(101),
    "plain with a cache": cached_model,
}


CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 3e-4}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_columns_decoded_at_once_forgotten_and_decoded_again(name: str, use_cache: bool) -> None:
    settings: dict[str, Any] = {"mode": GenerationMode.ASSISTED_GENERATION, "use_cache": use_cache}
    adapter, ids = started(MODELS[name](), **settings)
    text, length = extended(ids, 4), ids.shape[1]
    one_by_one = [adapter.prefill(ids), *(adapter.decode(text[:, : length + n]) for n in (1, 2, 3, 4))]

    adapter, ids = started(MODELS[name](), **settings)
    torch.testing.assert_close(adapter.prefill(ids), one_by_one[0], **CLOSE)
    assert adapter.can_crop
    adapter.decode_tail(extended(ids, 3).flip(1), 3)
    adapter.crop(3)
    torch.testing.assert_close(
        adapter.decode_tail(text[:, : length + 2], 2), torch.stack(one_by_one[1:3], dim=1), **CLOSE
    )
    adapter.crop(1)
    torch.testing.assert_close(adapter.decode_tail(text, 3), torch.stack(one_by_one[2:], dim=1), **CLOSE)


@torch.no_grad()
def test_records_have_an_entry_per_forward() -> None:
    settings: dict[str, Any] = {"return_dict_in_generate": True, "output_hidden_states": True}
    adapter, ids = started(hf_model("llama"), GenerationMode.ASSISTED_GENERATION, **settings)
    adapter.prefill(ids)
    adapter.decode_tail(extended(ids, 3), 3)
    adapter.crop(2)
    adapter.decode(extended(ids, 2))
    assert [states[-1].shape[1] for states in adapter.records["hidden_states"]] == [4, 3, 1]
    assert adapter.cache.get_seq_length() == 6


class Gathers(CachedModel):
    """A model with a hook that reorders its cache for beams."""

    def _reorder_cache(self, cache: SumCache, rows: Tensor) -> SumCache:
        return SumCache(cache.total[rows], cache.length)


class GatheringCache(SumCache):
    def reorder_cache(self, rows: Tensor) -> None:
        self.total = self.total[rows]


class ReturnsGatheringCache(CachedModel):
    def forward(  # type: ignore[override]
        self, input_ids: Any, attention_mask: Any, position_ids: Any, past_key_values: Any = None
    ) -> Any:
        logits, cache = super().forward(input_ids, attention_mask, position_ids, past_key_values, use_cache=True)
        return logits, GatheringCache(cache.total, cache.length)


def gathering_gpt2() -> Any:
    class Gathering(GPT2LMHeadModel):
        def _reorder_cache(self, cache: Any, rows: Tensor) -> Any:
            cache.reorder_cache(rows)
            return cache

    model = Gathering(hf_model("gpt2").config)
    model.load_state_dict(hf_model("gpt2").state_dict())
    return model.eval()


BEAM_MODELS: dict[str, Any] = {
    "llama": functools.partial(hf_model, "llama"),
    "bart": functools.partial(encoder_decoder, "bart"),
    "the model's hook": gathering_gpt2,
    "a plain module's hook": Gathers,
    "a plain module's cache": ReturnsGatheringCache,
}


@pytest.mark.parametrize("name", BEAM_MODELS)
@torch.no_grad()
def test_rows_go_on_from_other_rows(name: str) -> None:
    model = BEAM_MODELS[name]()
    settings: dict[str, Any] = {"mode": GenerationMode.BEAM_SEARCH, "copies": 2}
    adapter, ids = started(model, **settings)
    adapter.prefill(ids)
    text = extended(ids, 2)
    adapter.decode(text[:, :-1])
    rows = torch.tensor([1, 0, 2, 2])
    adapter.reorder(rows, torch.zeros(4, dtype=torch.int64), 1)
    moved = torch.cat([text[rows, :-1], text[:, -1:]], dim=1)
    after = adapter.decode(moved)

    adapter, ids = started(model, **settings)
    adapter.prefill(ids)
    adapter.decode(moved[:, :-1])
    torch.testing.assert_close(after, adapter.decode(moved), **CLOSE)


class TransposedCache(CachedModel):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> Any:  # type: ignore[override]
        keys = torch.zeros(input_ids.shape[0], input_ids.shape[1], 2, 4)
        return torch.zeros(*input_ids.shape, 9), ((keys, keys),)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (cached_model(), "`cache` must have a method `reorder_cache`, got SumCache"),
        (TransposedCache(), r"must hold tensors \(rows, heads, positions, head_dim\), got \(4, 4, 2, 4\) after 4 "),
    ],
    ids=["unknown", "transposed"],
)
def test_caches_that_no_beam_can_use(model: Any, message: str) -> None:
    adapter, ids = started(model, GenerationMode.BEAM_SEARCH, copies=2)
    with pytest.raises(TypeError, match=message), torch.no_grad():
        adapter.prefill(ids)
