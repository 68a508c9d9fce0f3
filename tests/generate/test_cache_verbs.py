"""The cache verbs, and the caches that they refuse. transformers' full gather checks the reordering."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    StaticCache,
    cache_utils,
)

from pygen.graph import static_cache
from pygen.graph.cache_refusals import layer_kinds
from pygen.models import cache as verbs
from tests.helpers.generation import generate_tokens


def filled(config: Any, length: int = 3) -> DynamicCache:
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        states = torch.arange(2 * length, dtype=torch.float32).view(2, 1, length, 1)
        cache.update(states, states + layer, layer)
    return cache


def test_expand_and_crop() -> None:
    cache: Any = filled(LlamaConfig(num_hidden_layers=2))
    assert verbs.can_expand(cache) and verbs.can_crop(cache)
    verbs.expand(cache, 2)
    assert cache.layers[1].keys[:, 0, :, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    verbs.crop(cache, 0)
    assert cache.get_seq_length() == 3
    verbs.crop(cache, 1)
    assert cache.get_seq_length() == 2
    assert cache.layers[0].values[:, 0, :, 0].tolist() == [[0, 1], [0, 1], [3, 4], [3, 4]]


def test_an_empty_cache_without_layers_yet() -> None:
    assert verbs.can_expand(DynamicCache())
    assert not verbs.can_crop(DynamicCache())


def test_sliding_layers_expand_but_do_not_crop() -> None:
    cache = filled(MistralConfig(num_hidden_layers=1, sliding_window=4))
    assert verbs.can_expand(cache) and not verbs.can_crop(cache)


def test_other_caches_do_neither() -> None:
    recurrent = SimpleNamespace(
        layers=[SimpleNamespace(update_recurrent_state=None, batch_repeat_interleave=None, crop=None)],
        batch_repeat_interleave=None,
        crop=None,
    )
    for cache in (StaticCache(LlamaConfig(num_hidden_layers=1), max_cache_len=4), object(), None, ((1, 2),)):
        assert not verbs.can_expand(cache)
    for cache in (recurrent, object(), None, ((1, 2),)):
        assert not verbs.can_crop(cache)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "num_return_sequences": 2}])
def test_sliding_windows_as_transformers(settings: dict[str, Any]) -> None:
    config = MistralConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    ids = torch.randint(0, 60, (2, 6))
    torch.manual_seed(1)
    expected = model.generate(ids, max_new_tokens=8, **settings)
    torch.manual_seed(1)
    assert torch.equal(generate_tokens(model, ids, max_new_tokens=8, **settings), expected)


LLAMA, MISTRAL = LlamaConfig(num_hidden_layers=2), MistralConfig(num_hidden_layers=2, sliding_window=5)
PROMPTS, BEAMS, STEPS = 2, 3, 12


def cross_attention() -> DynamicCache:
    cache = DynamicCache()
    for layer in range(2):
        cache.update(*prompt_states(4), layer)
    return cache


CACHES: dict[str, Callable[[], Any]] = {
    "dynamic": lambda: DynamicCache(config=LLAMA),
    "sliding": lambda: DynamicCache(config=MISTRAL),
    "static": lambda: StaticCache(LLAMA, max_cache_len=32),
    "static sliding": lambda: StaticCache(MISTRAL, max_cache_len=32),
    "mixed": lambda: cache_utils.Cache(
        layers=[
            cache_utils.StaticLayer(32),
            cache_utils.DynamicLayer(),
            cache_utils.StaticSlidingWindowLayer(32, 6),
            cache_utils.DynamicSlidingWindowLayer(sliding_window=4),
        ]
    ),
    "recurrent": lambda: cache_utils.Cache(
        layers=[
            cache_utils.LinearAttentionLayer(),
            cache_utils.DynamicLayer(),
            cache_utils.LinearAttentionAndFullAttentionLayer(),
        ]
    ),
    "encoder-decoder": lambda: EncoderDecoderCache(DynamicCache(config=MISTRAL), cross_attention()),
    "ours": lambda: static_cache.StaticCache(layer_kinds(MISTRAL), rows=PROMPTS * BEAMS, capacity=32),
    "ours, encoder-decoder": lambda: EncoderDecoderCache(CACHES["ours"](), cross_attention()),
}


def prompt_states(length: int) -> tuple[Tensor, Tensor]:
    """Returns keys and values of prompts. The rows of a prompt are equal."""
    torch.manual_seed(length)
    keys, values = torch.randn(2, PROMPTS, 2, length, 4).repeat_interleave(BEAMS, dim=1)
    return keys, values


def append(cache: Any, keys: Tensor, values: Tensor) -> None:
    cache = getattr(cache, "self_attention_cache", cache)
    for index, layer in enumerate(cache.layers):
        if hasattr(layer, "update_recurrent_state"):
            cache.update_conv_state(keys[:, 0].transpose(1, 2) + index, index)
            cache.update_recurrent_state(keys[:, :, -1:] * index, index)
        if not hasattr(layer, "update_recurrent_state") or hasattr(layer, "keys"):
            cache.update(keys + index, values - index, index)


def tensors_of(cache: Any) -> list[Tensor]:
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if hasattr(cache, "is_updated") else [cache]
    values = [value for part in parts for layer in part.layers for value in vars(layer).values()]
    return [tensor for value in values for tensor in (value.values() if isinstance(value, dict) else [value])
            if isinstance(tensor, Tensor)]  # fmt: skip


class Ancestry:
    """Each row's generated history, as a list of distinct numbers, under random moves among a prompt's rows."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.histories: list[list[int]] = [[] for _ in range(PROMPTS * BEAMS)]

    def grow(self) -> None:
        for row, history in enumerate(self.histories):
            history.append(len(history) * len(self.histories) + row)

    def move(self) -> tuple[Tensor, Tensor]:
        """Moves rows at random; returns source_rows and shared."""
        sources = torch.randint(BEAMS, (PROMPTS, BEAMS)) + torch.arange(PROMPTS)[:, None] * BEAMS
        taken = [self.histories[source] for source in sources.flatten()]
        # Two histories share a number only if they share all numbers before it.
        shared = [len({*one} & {*other}) for one, other in zip(self.histories, taken, strict=True)]
        self.histories = [list(history) for history in taken]
        return sources.flatten(), torch.tensor(shared)


@pytest.mark.parametrize("prompt_length", [2, 9])
@pytest.mark.parametrize("kind", CACHES)
def test_reordering_equals_a_full_gather(kind: str, prompt_length: int) -> None:
    ours, theirs, ancestry = CACHES[kind](), CACHES[kind](), Ancestry(prompt_length)
    verbs.check_reorder(ours)
    for cache in (ours, theirs):
        append(cache, *prompt_states(prompt_length))
    for step in range(STEPS):
        source_rows, shared = ancestry.move()
        assert verbs.reorder(ours, source_rows, shared, step) is ours
        theirs.reorder_cache(source_rows)
        assert all(a.equal(b) for a, b in zip(tensors_of(ours), tensors_of(theirs), strict=True)), step
        ancestry.grow()
        states = torch.randn(2, PROMPTS * BEAMS, 2, 1, 4)
        for cache in (ours, theirs):
            append(cache, *states)


def test_cross_attention_is_not_touched() -> None:
    cache = EncoderDecoderCache(filled(LLAMA), filled(LLAMA))
    before = tensors_of(cache.cross_attention_cache)
    contents = [tensor.clone() for tensor in before]
    verbs.reorder(cache, torch.tensor([1, 0]), torch.tensor([0, 0]), 3)
    after = tensors_of(cache.cross_attention_cache)
    assert all(a is b and a.equal(c) for a, b, c in zip(after, before, contents, strict=True))


@pytest.mark.parametrize("container", [tuple, list])
def test_pairs_change_in_place_and_only_after_shared_positions(container: type) -> None:
    keys = torch.arange(3.0)[:, None] * 10 + torch.arange(5.0)
    pairs = container((keys.view(3, 1, 5, 1).clone(), -keys.view(3, 1, 5, 1).repeat(1, 1, 1, 2)) for _ in range(2))
    assert verbs.reorder(pairs, torch.tensor([1, 0, 0]), torch.tensor([0, 2, 1]), 3) is pairs
    wanted = torch.tensor([[0.0, 1, 12, 13, 14], [10, 11, 12, 13, 4], [20, 21, 22, 3, 4]])
    for first, second in pairs:
        assert first.flatten(1).equal(wanted)
        assert second[..., 0].flatten(1).equal(-wanted) and second[..., 1].equal(second[..., 0])


def test_other_caches_reorder_themselves() -> None:
    class Own:
        def reorder_cache(self, source_rows: Tensor) -> None:
            self.rows = source_rows

    cache, rows = Own(), torch.tensor([1, 0])
    assert verbs.reorder(cache, rows, rows, 1) is cache and cache.rows is rows


class Rounded(cache_utils.QuantizedLayer):
    # Quantized layers inherit this method in older releases.
    reorder_cache = cache_utils.DynamicLayer.reorder_cache

    def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
        return tensor.half()

    def _dequantize(self, tensor: Tensor) -> Tensor:
        return tensor.float()


class Indexed(cache_utils.DynamicLayer):
    """Holds more than keys and values, but inherits a method that reorders only those."""

    def update(self, *states: Any, **kwargs: Any) -> Any:
        self.by_name = {"index": [states[0].clone()]}
        return super().update(*states, **kwargs)


class WithRecurrence(DynamicCache):
    def __init__(self) -> None:
        super().__init__()
        self.states = [torch.zeros(6, 2)]


STATELESS = SimpleNamespace(reorder_cache=cache_utils.DynamicCache().reorder_cache, layers=[object()])
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": (None, TypeError, "`cache` must have a method `reorder_cache`, got NoneType"),
    "an object": (object(), TypeError, "`cache` must have a method `reorder_cache`, got object"),
    "a layer without": (STATELESS, TypeError, "`cache` must have a method `reorder_cache`, got object"),
    "no pair": (((torch.zeros(1, 1, 1, 1),),), TypeError, "`cache[0]` must be a pair of key and value, got tuple"),
    "no tensor": (
        [(torch.zeros(1, 1, 1, 1), None)],
        TypeError,
        "`cache[0]` must hold tensors (rows, heads, positions, head_dim), got NoneType",
    ),
    "three dimensions": (
        ((torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)),),
        TypeError,
        "`cache[0]` must hold tensors (rows, heads, positions, head_dim), got (1, 1, 1)",
    ),
    "quantized": (
        cache_utils.Cache(layers=[Rounded()]),
        NotImplementedError,
        "`cache` cannot be reordered: `Rounded.reorder_cache` misses what is quantized",
    ),
    "a cache with more": (
        WithRecurrence(),
        NotImplementedError,
        "`cache` cannot be reordered: `WithRecurrence.reorder_cache` misses states",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_caches_without_a_reorder_are_refused(case: str) -> None:
    cache, error, message = REFUSED[case]
    rows = torch.tensor([1, 0])
    for refuse in (lambda: verbs.check_reorder(cache), lambda: verbs.reorder(cache, rows, rows, 1)):
        with pytest.raises(error) as raised:
            refuse()
        assert str(raised.value) == message


def test_a_layer_that_gains_tensors_is_refused_before_any_row_moves() -> None:
    cache: Any = cache_utils.Cache(layers=[cache_utils.DynamicLayer(), Indexed()])
    verbs.check_reorder(cache)
    append(cache, *prompt_states(3))
    before = cache.layers[0].keys.clone()
    with pytest.raises(NotImplementedError, match="`Indexed.reorder_cache` misses by_name"):
        verbs.reorder(cache, torch.arange(6).flip(0), torch.zeros(6, dtype=torch.int64), 2)
    assert cache.layers[0].keys.equal(before)
