"""The static cache against transformers' dynamic cache, step by step, and generation with it."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch

from pygen.graph.static_cache import StaticCache, bucket
from pygen.models import cache as verbs
from tests.helpers.generation import generate_tokens
from tests.runtime.readers import (
    ATTENTIONS,
    CAPACITY,
    DECODERS,
    PAIRS,
    PROMPTS,
    VISIBLE,
    Readers,
    model_of,
)
from tests.runtime.tape import no_host_reads

pytestmark = pytest.mark.usefixtures("small_models")


BUCKETS = {0: 64, 1: 64, 64: 64, 65: 128, 129: 256, 193: 256, 257: 384, 385: 512, 513: 768, 769: 1024, 1024: 1024}
BUCKETS |= {1025: 1536, 3073: 4096, 98_304: 98_304, 98_305: 131_072}


@pytest.mark.parametrize(("length", "capacity"), BUCKETS.items())
def test_buckets(length: int, capacity: int) -> None:
    assert bucket(length) == capacity


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_every_step_up_to_the_last_position(family: str, attention: str) -> None:
    """Reads prompts of unequal length, then one token at a time until the cache is full, and one too many."""
    readers = Readers(family, attention)
    token = readers.read(PROMPTS, VISIBLE)
    token = readers.go_on(token, CAPACITY - PROMPTS.shape[1])
    before = [tensor.clone() for tensor in readers.buffers()]
    with pytest.raises(ValueError, match="the cache has room for 24 positions, 24 are in use, got 1 more"):
        readers.both[0].read(token)
    assert (readers.static.length, int(readers.static.device_length)) == (CAPACITY, CAPACITY)
    assert all(now.equal(then) for now, then in zip(readers.buffers(), before, strict=True))


@pytest.mark.parametrize("ends", [[0, 3, 4, 7], [0, 6, 7]])
@pytest.mark.parametrize("family", ["llama", "mistral 4", "gemma3 mixed", "t5"])
def test_prompts_in_pieces(family: str, ends: list[int]) -> None:
    readers = Readers(family)
    # Scores of a piece with only padding are meaningless.
    visible = VISIBLE if ends[1] > 5 else torch.ones_like(VISIBLE)
    for start, end in itertools.pairwise(ends):
        token = readers.read(PROMPTS[:, start:end], visible[:, start:end])
    readers.go_on(token, 4)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_a_prompt_is_read_once_and_its_copies_part(family: str, attention: str) -> None:
    """Sampled sequences move no row after the expansion, and never a buffer."""
    readers = Readers(family, attention, rows=6)
    readers.read(PROMPTS, VISIBLE)
    places = [tensor.data_ptr() for tensor in readers.buffers()]
    for reader in readers.both:
        reader.expand(2)
    readers.go_on(torch.arange(1, 7)[:, None], 6)
    assert [tensor.data_ptr() for tensor in readers.buffers()] == places
    assert readers.static.rows_in_use == 6


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_beams_move_their_suffixes_only(family: str, on_device: bool) -> None:
    readers = Readers(family, rows=6)
    ours, theirs = readers.both
    readers.read(PROMPTS, VISIBLE)
    for reader in readers.both:
        reader.expand(2)
    ours.cache.share_prefix()
    prompt = [tensor[:, :, :7].clone() for tensor in readers.buffers()]
    token, generator = torch.arange(1, 7)[:, None], torch.Generator().manual_seed(2)
    histories: list[list[int]] = [[] for _ in range(6)]
    for step in range(8):
        token = (readers.read(token) + torch.randint(7, (6, 1), generator=generator)) % 50 + 1
        histories = [[*history, step * 6 + row] for row, history in enumerate(histories)]
        source_rows = torch.randint(2, (6,), generator=generator) + torch.arange(6) // 2 * 2
        taken = [histories[row] for row in source_rows.tolist()]
        shared = torch.tensor([len({*a} & {*b}) for a, b in zip(histories, taken, strict=True)])
        histories = taken
        generated = step + 1
        if on_device:
            with no_host_reads():
                ours.cache.reorder_suffix(source_rows, shared, None)
        else:
            assert verbs.reorder(ours.cache, source_rows, shared, generated) is ours.cache
        theirs.cache.reorder_cache(source_rows)
    assert all(now[:, :, :7].equal(then) for now, then in zip(readers.buffers(), prompt, strict=True))


@pytest.mark.parametrize("how", ["count", "length"])
@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_a_crop_leaves_no_trace(family: str, how: str) -> None:
    """A crop restores a window too, because the cache keeps positions that a text outgrows."""
    readers = Readers(family)
    token = readers.read(PROMPTS, VISIBLE)
    assert verbs.can_crop(readers.static)
    for drafts in (1, 5):
        ours, length = readers.both[0], readers.length
        visible = ours.visible
        ours.read(PROMPTS[:, :drafts])
        readers.static.crop(-drafts if how == "count" else length)
        readers.static.crop(0)
        readers.static.crop(length + 1)
        ours.visible = visible
        token = readers.go_on(token, 2)


@pytest.mark.parametrize("rows", [[2, 0], [1], [2, 2, 0]])
@pytest.mark.parametrize("family", ["llama", "mistral 4", "bart"])
def test_rows_that_stay(family: str, rows: list[int]) -> None:
    readers, kept = Readers(family), torch.tensor(rows)
    token = readers.read(PROMPTS, VISIBLE)[kept]
    for reader in readers.both:
        reader.cache.batch_select_indices(kept)
        reader.visible = reader.visible[kept]
        reader.source = None if reader.source is None else reader.source[kept]
    readers.go_on(token, 3)


@pytest.mark.parametrize("family", ["llama", "gemma3 mixed", "t5"])
def test_the_next_call_finds_the_buffers_in_place_and_clean(family: str) -> None:
    first, second = Readers(family), Readers(family)
    first.go_on(first.read(PROMPTS, VISIBLE), 5)
    places = [tensor.data_ptr() for tensor in first.buffers()]
    for tensor in first.buffers():
        tensor.fill_(float("nan"))
    first.static.reset()
    assert (first.static.length, int(first.static.device_length), first.static.rows_in_use) == (0, 0, 0)
    second.both[0].cache = second.static = first.static
    if family == "t5":
        for reader in second.both:
            assert reader.source is not None
            reader.source = reader.source + 1
    second.go_on(second.read(PROMPTS.flip(1), VISIBLE), 5)
    assert [tensor.data_ptr() for tensor in second.buffers()] == places


def test_a_forward_that_failed_has_not_happened() -> None:
    readers = Readers("llama")
    token = readers.read(PROMPTS, VISIBLE)

    def fail(*arguments: Any) -> None:
        raise RuntimeError("in the middle")

    ours = readers.both[0]
    visible = ours.visible
    handle = readers.model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        ours.read(token)
    handle.remove()
    ours.visible = visible
    readers.go_on(token, 3)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_what_is_dropped_is_freed_at_once(family: str) -> None:
    readers = Readers(family)
    readers.go_on(readers.read(PROMPTS, VISIBLE), 2)
    own: Any = getattr(readers.static, "self_attention_cache", readers.static)
    places = [weakref.ref(layer._buffers[0]) for layer in own.layers]
    del own
    gc.disable()
    try:
        del readers
        assert [place() for place in places] == [None] * len(places)
    finally:
        gc.enable()


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "copies": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 2},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral 4", "gemma2 mixed", "t5"])
def test_generation_over_it(family: str, settings: str) -> None:
    model = model_of(family)
    call: dict[str, Any] = {"max_new_tokens": 8, "attention_mask": VISIBLE, **SETTINGS[settings]}
    if family == "t5":
        call["decoder_start_token_id"] = 1
    torch.manual_seed(0)
    expected = generate_tokens(model, PROMPTS, **call)
    cache = StaticCache.for_model(model, rows=6, capacity=CAPACITY)
    torch.manual_seed(0)
    assert generate_tokens(model, PROMPTS, past_key_values=cache, **call).equal(expected)
    assert cache.length == expected.shape[1] - 1


def test_transformers_generates_over_it() -> None:
    model = model_of("gemma2 mixed")
    call: dict[str, Any] = {"max_new_tokens": 8, "attention_mask": VISIBLE, "do_sample": False}
    cache = StaticCache.for_model(model, rows=3, capacity=CAPACITY)
    assert model.generate(PROMPTS, past_key_values=cache, **call).equal(model.generate(PROMPTS, **call))
