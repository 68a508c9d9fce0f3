"""Layers that append in place: against transformers' layers under all operations, and where they are visible."""

from __future__ import annotations

import functools
import pickle
import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from pygen.generate import generate
from pygen.models import cache as verbs
from pygen.models.growing_layer import GrowingLayer, cut_to_size, grow_in_place
from pygen.models.versions import HookNames
from tests.generate.models import hf_model
from tests.helpers.generation import generate_output, generate_tokens

IDS = torch.tensor([[5, 6, 7], [8, 9, 3]])


def states(rows: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, 3, count, 4, generator=generator)
    return keys, values


def empty(most: int = 40) -> DynamicCache:
    cache = DynamicCache(config=hf_model("llama").config)
    grow_in_place(cache, most)
    return cache


def same(ours: Any, theirs: Any) -> bool:
    return bool(ours.keys.equal(theirs.keys) and ours.values.equal(theirs.values))


@pytest.mark.parametrize("seed", range(20))
def test_as_transformers(seed: int) -> None:
    draw, rows, length = random.Random(seed), 2, 0
    ours = GrowingLayer(draw.choice([1, 10, 200]))
    theirs: Any = DynamicLayer()
    for number in range(40):
        action = draw.choice(["update"] * 5 + ["crop", "repeat", "select", "reorder"])
        if action == "update" or length == 0:
            count = draw.choice([1, 1, 1, 2, 30])
            returned = [layer.update(*states(rows, count, number)) for layer in (ours, theirs)]
            length += count
            assert all(one.equal(other) for one, other in zip(*returned, strict=True))
        elif action == "crop":
            dropped = draw.randrange(1, length + 1)
            ours.crop(-dropped)
            theirs.crop(-dropped)
            length -= dropped
        elif action == "repeat" and rows <= 4:
            ours.batch_repeat_interleave(2)
            theirs.batch_repeat_interleave(2)
            rows *= 2
        elif action == "select":
            kept = torch.tensor(sorted(draw.sample(range(rows), max(1, rows - 1))))
            ours.batch_select_indices(kept)
            theirs.batch_select_indices(kept)
            rows = len(kept)
        elif action == "reorder":
            sources = torch.tensor([draw.randrange(rows) for _ in range(rows)])
            ours.reorder_cache(sources)
            theirs.reorder_cache(sources)
        assert ours.get_seq_length() == theirs.get_seq_length() == length
        assert length == 0 or same(ours, theirs)


def test_nothing_is_copied_while_capacity_remains() -> None:
    layer = GrowingLayer(max_length=100)
    layer.update(*states(2, 10))
    address = layer.keys.data_ptr()
    for _ in range(64):
        layer.update(*states(2, 1))
        assert layer.keys.data_ptr() == address
    layer.update(*states(2, 1))
    assert layer.keys.data_ptr() != address
    # The layer allocates what the call may need, and grows only if it needs more.
    assert layer.keys.stride(1) == 100 * 4
    layer.update(*states(2, 40))
    assert layer.get_seq_length() == layer.keys.shape[2] == 115


def test_beams_move_their_suffix_in_place() -> None:
    ours: Any = empty()
    theirs = DynamicCache(config=hf_model("llama").config)
    sources = torch.tensor([1, 0, 2, 2])
    for cache in (ours, theirs):
        for count in (6, 1, 1):
            for layer in range(2):
                cache.update(*states(4, count, layer), layer)
    places = [layer.keys.data_ptr() for layer in ours.layers]
    for cache in (ours, theirs):
        verbs.reorder(cache, sources, torch.zeros(4, dtype=torch.int64), 2)
    assert all(same(one, other) for one, other in zip(ours.layers, theirs.layers, strict=True))
    assert [layer.keys.data_ptr() for layer in ours.layers] == places
    assert verbs.can_expand(ours) and verbs.can_crop(ours)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[type]:
    """Returns a set that collects the layer classes that the model's forwards receive."""
    model = hf_model("llama")
    kinds: set[type] = set()
    forward = model.forward

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        kinds.update(type(layer) for layer in kwargs[HookNames(model).argument].layers)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    return kinds


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
def test_forwards_see_them_and_callers_do_not(settings: dict[str, Any], seen: set[type]) -> None:
    model = hf_model("llama")
    torch.manual_seed(0)
    tokens = generate_tokens(model, IDS, max_new_tokens=5, **settings)
    assert seen == {GrowingLayer}
    torch.manual_seed(0)
    output = generate_output(model, IDS, max_new_tokens=5, return_dict_in_generate=True, **settings)
    assert seen == {GrowingLayer} and output.sequences.equal(tokens)
    assert_plain(output.cache, len(tokens), 7)


def assert_plain(cache: Any, rows: int, length: int) -> None:
    """Asserts that nothing, memory included, shows that a cache had other layers before."""
    for layer in cache.layers:
        states: tuple[Tensor, Tensor] = layer.keys, layer.values
        assert type(layer) is DynamicLayer and vars(layer).keys() == vars(fresh()).keys()
        for tensor in states:
            assert tensor.shape[:3] == (rows, 2, length) and tensor.is_contiguous()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    model = hf_model("llama")
    assert "pygen" not in str(pickle.dumps(cache)) and type(cache) is DynamicCache
    model(torch.full((rows, 1), 5), **{HookNames(model).argument: cache})
    assert cache.get_seq_length() == length + 1


def fresh() -> DynamicLayer:
    layer = DynamicLayer()
    layer.update(*states(1, 1))
    return layer


@pytest.mark.parametrize("filled", [0, 2], ids=["empty", "filled"])
@pytest.mark.parametrize("with_config", [True, False])
def test_the_callers_cache_grows_too(filled: int, with_config: bool, seen: set[type]) -> None:
    model = hf_model("llama")
    given = DynamicCache(config=model.config) if with_config else DynamicCache()
    if filled:
        model(IDS[:, :filled], **{HookNames(model).argument: given})
    layers = [*given.layers]
    seen.clear()
    tokens = generate_tokens(model, IDS, past_key_values=given, max_new_tokens=5)
    assert GrowingLayer in seen and given.layers[: len(layers)] == layers
    assert tokens.equal(generate_tokens(model, IDS, max_new_tokens=5))
    assert_plain(given, 2, 7)


def test_the_callers_cache_is_plain_after_an_error() -> None:
    given = DynamicCache(config=hf_model("llama").config)

    def fail(input_ids: Tensor, scores: Any) -> bool:
        if input_ids.shape[1] == 6:
            raise KeyError("stop")
        return False

    with pytest.raises(KeyError, match="stop"):
        generate(hf_model("llama"), IDS, past_key_values=given, stopping_criteria=[fail], max_new_tokens=5)
    assert_plain(given, 2, 5)


def test_a_loop_of_the_callers_gets_a_plain_cache() -> None:
    def loop(model: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        return {type(layer) for layer in kwargs[HookNames(model).argument].layers}

    found: Any = generate(hf_model("llama"), IDS, custom_generate=loop, max_new_tokens=5)
    assert found == {DynamicLayer}


def test_filled_caches_grow_and_are_restored() -> None:
    filled: Any = DynamicCache(config=hf_model("llama").config)
    filled.update(*states(2, 3), 0)
    layers = [*filled.layers]
    grow_in_place(filled, 10)
    assert {type(layer) for layer in filled.layers} == {GrowingLayer} and filled.get_seq_length() == 3
    cut_to_size(filled)
    assert filled.layers == layers and filled.layers[0].keys.equal(states(2, 3)[0])
    pair = EncoderDecoderCache(DynamicCache(config=hf_model("llama").config), DynamicCache())
    grow_in_place(pair, 10)
    assert {type(layer) for layer in pair.self_attention_cache.layers} == {GrowingLayer}
    for other in (None, DynamicCache(config=hf_model("llama").config, offloading=True)):
        grow_in_place(other, 10)
        assert other is None or {type(layer) for layer in other.layers} == {DynamicLayer}
        cut_to_size(other)
