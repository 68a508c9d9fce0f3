"""The static cache against transformers' dynamic one, step by step; what is refused; that no step needs the host."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from pygen import use_backend
from pygen.generate import generate
from pygen.graph.cache_refusals import CacheRefused, refusal
from pygen.graph.static_cache import EncoderDecoderStaticCache, StaticCache, bucket
from pygen.models import cache as verbs
from tests.generate.models import encoder_decoder, hf_model
from tests.runtime.tape import Tape, no_host_reads

# Left padding: three prompts of 7, 4 and 2 tokens.
VISIBLE = torch.tensor([[1] * 7, [0] * 3 + [1] * 4, [0] * 5 + [1] * 2])
PROMPTS = torch.randint(1, 60, (3, 7), generator=torch.Generator().manual_seed(0))
CAPACITY = 24

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.35,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
# Windows that end inside the prompt, after it, and behind everything.
WINDOWED: dict[str, Callable[[], Any]] = {
    "mistral 4": lambda: transformers.MistralConfig(**SIZES, sliding_window=4),
    "mistral 9": lambda: transformers.MistralConfig(**SIZES, sliding_window=9),
    "mistral 40": lambda: transformers.MistralConfig(**SIZES, sliding_window=40),
    "qwen2 mixed": lambda: transformers.Qwen2Config(
        **SIZES, sliding_window=4, use_sliding_window=True, max_window_layers=1
    ),
    "gemma2 mixed": lambda: transformers.Gemma2Config(**SIZES, sliding_window=4, layer_types=MIXED),
    "gemma3 mixed": lambda: transformers.Gemma3TextConfig(**SIZES, sliding_window=5, layer_types=MIXED),
    # The last layers have no keys of their own.
    "gemma3n shared": lambda: transformers.Gemma3nTextConfig(
        **{**SIZES, "num_hidden_layers": 5, "intermediate_size": [48] * 5},
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"],
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=60,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 5,
        altup_num_inputs=2,
    ),
}
DECODERS = ["llama", "gpt2", "qwen2", *WINDOWED]
PAIRS = ["t5", "bart", "whisper"]
ATTENTIONS = ["eager", "sdpa"]


@functools.cache
def model_of(family: str, attention: str = "sdpa") -> Any:
    if family in PAIRS:
        model = copy.deepcopy(encoder_decoder(family))
    elif family in WINDOWED:
        torch.manual_seed(len(family))
        model = transformers.AutoModelForCausalLM.from_config(WINDOWED[family]()).eval()
    else:
        model = copy.deepcopy(hf_model(family))
    # Gemma2 lost it after 5.6.1.
    model.set_attn_implementation(attention if model._supports_sdpa else "eager")
    return model


@pytest.fixture(autouse=True)
def small_models() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


class Reader:
    """A model that reads texts piece by piece over one cache."""

    def __init__(self, model: Any, cache: Any, source: Tensor | None = None) -> None:
        self.model, self.cache, self.source = model, cache, source
        self.visible = torch.ones(0, 0, dtype=torch.int64)

    def read(self, ids: Tensor, visible: Tensor | None = None) -> Tensor:
        """Scores of the next token, (rows, vocab_size)."""
        visible = torch.ones_like(ids) if visible is None else visible
        self.visible = torch.cat([self.visible.view(len(ids), -1), visible], dim=1)
        inputs: dict[str, Any] = {"past_key_values": self.cache, "use_cache": True}
        if self.source is None:
            positions = (self.visible.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            inputs |= {"input_ids": ids, "attention_mask": self.visible, "position_ids": positions}
        else:
            encoded = BaseModelOutput(last_hidden_state=self.source)
            inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": self.visible, "encoder_outputs": encoded}
        return self.model(**inputs).logits[:, -1]

    def expand(self, copies: int) -> None:
        verbs.expand(self.cache, copies)
        self.visible = self.visible.repeat_interleave(copies, dim=0)
        if self.source is not None:
            self.source = self.source.repeat_interleave(copies, dim=0)


class Readers:
    """The static cache and transformers' dynamic one side by side: every step gives the same scores."""

    def __init__(self, family: str, attention: str = "sdpa", *, rows: int = 3, capacity: int = CAPACITY) -> None:
        self.model = model_of(family, attention)
        self.static = StaticCache.for_model(self.model, rows=rows, capacity=capacity)
        theirs: Any = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        source = None
        if family in PAIRS:
            theirs = EncoderDecoderCache(DynamicCache(), DynamicCache())
            source = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(1))
        self.both = [Reader(self.model, cache, source) for cache in (self.static, theirs)]
        self.length = 0

    def read(self, ids: Tensor, visible: Tensor | None = None) -> Tensor:
        """The most likely tokens, (rows, 1)."""
        ours, theirs = (reader.read(ids, visible) for reader in self.both)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert ours.argmax(-1).equal(theirs.argmax(-1))
        self.length += ids.shape[1]
        assert self.static.length == self.length == int(self.static.device_length)
        return ours.argmax(-1)[:, None]

    def go_on(self, ids: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            ids = self.read(ids)
        return ids

    def buffers(self) -> list[Tensor]:
        own = getattr(self.static, "self_attention_cache", self.static)
        return [tensor for layer in own.layers for tensor in (layer.keys, layer.values)]


BUCKETS = {0: 64, 1: 64, 64: 64, 65: 128, 129: 256, 193: 256, 257: 384, 385: 512, 513: 768, 769: 1024, 1024: 1024}
BUCKETS |= {1025: 1536, 3073: 4096, 98_304: 98_304, 98_305: 131_072}


@pytest.mark.parametrize(("length", "capacity"), BUCKETS.items())
def test_buckets(length: int, capacity: int) -> None:
    assert bucket(length) == capacity


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_every_step_up_to_the_last_position(family: str, attention: str) -> None:
    """Prompts of unequal length, then one token at a time until the cache is full, and one too many."""
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
    # A piece of padding alone has scores that mean nothing.
    visible = VISIBLE if ends[1] > 5 else torch.ones_like(VISIBLE)
    for start, end in itertools.pairwise(ends):
        token = readers.read(PROMPTS[:, start:end], visible[:, start:end])
    readers.go_on(token, 4)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_a_prompt_is_read_once_and_its_copies_part(family: str, attention: str) -> None:
    """Sampled sequences: no row is moved after the expansion, and no buffer ever is."""
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
def test_what_was_cropped_never_was(family: str, how: str) -> None:
    """A window, too, is what it was: nothing is forgotten when a text outgrows it."""
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
    places = [
        weakref.ref(layer._buffers[0])
        for layer in getattr(readers.static, "self_attention_cache", readers.static).layers
    ]
    gc.disable()
    try:
        del readers
        assert [place() for place in places] == [None] * len(places)
    finally:
        gc.enable()


class Step:
    """A step over static buffers: it reads a token and puts the next into its place."""

    def __init__(self, reader: Reader, token: Tensor) -> None:
        rows, length = reader.visible.shape
        self.reader, self.token = reader, token.clone()
        self.visible = torch.cat([reader.visible, torch.ones(rows, CAPACITY - length, dtype=torch.int64)], dim=1)
        self.positions = reader.visible.sum(1, keepdim=True)
        self.inputs: dict[str, Any] = {"past_key_values": reader.cache, "use_cache": True}
        if reader.source is None:
            self.inputs |= {"input_ids": self.token, "attention_mask": self.visible, "position_ids": self.positions}
        else:
            encoded = BaseModelOutput(last_hidden_state=reader.source)
            self.inputs |= {"decoder_input_ids": self.token, "decoder_attention_mask": self.visible}
            self.inputs |= {"encoder_outputs": encoded}

    def __call__(self) -> None:
        logits = self.reader.model(**self.inputs).logits[:, -1]
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.positions.add_(1)


@pytest.mark.parametrize("replayed", [False, True], ids=["called", "replayed"])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_the_same_step_again_goes_on_by_itself(family: str, attention: str, replayed: bool) -> None:
    """Without a value read by the host, and also without any of the Python that the first step ran."""
    readers = Readers(family, attention)
    token = readers.read(PROMPTS, VISIBLE)
    ours, theirs = readers.both
    step, tape = Step(ours, token), Tape()
    start, steps = readers.length, CAPACITY - readers.length
    for index in range(steps):
        token = theirs.read(token).argmax(-1)[:, None]
        if not replayed:
            with no_host_reads():
                step()
        elif index == 0:
            with tape:
                step()
        else:
            tape.replay()
        assert step.token.equal(token), index
        assert int(readers.static.device_length) == start + index + 1
    if replayed:
        readers.static.advance(steps - 1)
    assert readers.static.length == CAPACITY


def test_beams_in_a_replayed_step() -> None:
    """The reordering is part of the step; how far the rows have come is counted on the device."""
    readers = Readers("llama", rows=6)
    ours, theirs = readers.both
    readers.read(PROMPTS, VISIBLE)
    for reader in readers.both:
        reader.expand(2)
    readers.static.share_prefix()
    token = torch.arange(1, 7)[:, None]
    step, tape = Step(ours, token), Tape()
    sources, shared = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    for index in range(6):
        swapped = torch.tensor([1, 0, 3, 2, 4, 4]) if index % 2 else torch.arange(6)
        sources.copy_(swapped)
        if index == 0:
            with tape, use_backend("torch"):
                step()
                readers.static.reorder_suffix(sources, shared, None)
                step.token.copy_(step.token[sources])
        else:
            tape.replay()
        token = theirs.read(token).argmax(-1)[:, None][swapped]
        theirs.cache.reorder_cache(swapped)
        assert step.token.equal(token), index


def test_a_compiled_forward_is_compiled_for_all_steps() -> None:
    """A second time where the host's length turns out to change, and never again."""
    readers = Readers("gemma2 mixed")
    ours, theirs = readers.both
    step = Step(ours, readers.read(PROMPTS, VISIBLE))
    counter, tokens = CompileCounter(), [step.token.clone()]
    forward = torch.compile(readers.model.forward, backend=counter, fullgraph=True)
    for index in range(6):
        logits = forward(**step.inputs).logits[:, -1]
        torch.testing.assert_close(logits, theirs.read(tokens[-1]), rtol=1e-4, atol=1e-4)
        tokens.append(logits.argmax(-1, keepdim=True))
        step.token.copy_(tokens[-1])
        step.positions.add_(1)
        assert readers.static.length == int(readers.static.device_length) == 8 + index
    assert counter.frame_count <= 2


def test_the_host_is_put_right() -> None:
    readers = Readers("llama")
    token = readers.read(PROMPTS, VISIBLE)
    cache = readers.static
    with no_host_reads():
        cache.advance(3)
        assert cache.length == 10 and cache.device_length is cache.get_seq_length()
        cache.set_length(7)
        assert cache.length == 7
    readers.go_on(token, 2)
    with pytest.raises(ValueError, match="24 positions, 9 are in use, got 16 more"):
        cache.advance(16)
    with pytest.raises(ValueError, match=r"`length` must be in \[0, 24\], got 25"):
        cache.set_length(25)


def test_what_it_says_of_itself() -> None:
    cache = StaticCache(MIXED, rows=2, capacity=8)
    assert (len(cache), cache.layers[0].max_cache_len, cache.is_compileable, cache.is_sliding) == (
        3,
        8,
        True,
        [True, False, True],
    )
    assert (cache.get_seq_length(), cache.get_mask_sizes(5, 0)) == (0, (5, 0))
    for layer in range(3):
        cache.update(torch.ones(1, 2, 5, 4), torch.ones(1, 2, 5, 6), layer)
    assert cache.get_seq_length().tolist() == 5 and cache.get_mask_sizes(1, 1) == (8, 0)
    assert [tuple(tensor.shape) for tensor in (cache.layers[2].keys, cache.layers[2].values)] == [
        (1, 2, 8, 4),
        (1, 2, 8, 6),
    ]
    assert verbs.can_expand(cache) and verbs.can_crop(cache)


def states(rows: int, count: int) -> tuple[Tensor, Tensor]:
    return torch.ones(rows, 1, count, 2), torch.ones(rows, 1, count, 2)


def filled(rows: int = 2) -> StaticCache:
    cache = StaticCache(["full_attention", "full_attention"], rows=4, capacity=6)
    for layer in range(2):
        cache.update(*states(rows, 4), layer)
    return cache


def pair() -> EncoderDecoderStaticCache:
    made = StaticCache.for_model(model_of("bart"), rows=2, capacity=6)
    assert isinstance(made, EncoderDecoderStaticCache)
    for layer in range(2):
        made.cross_attention_cache.update(*states(1, 5), layer)
    made.reset()
    return made


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: bucket(-1), ValueError, "`length` must be >= 0, got -1"),
    (lambda: bucket(1.5), TypeError, "`length` must be an int, got float"),  # type: ignore[arg-type]
    (lambda: StaticCache(MIXED, rows=0, capacity=4), ValueError, "`rows` must be >= 1, got 0"),
    (lambda: StaticCache(MIXED, rows=1, capacity=0), ValueError, "`capacity` must be >= 1, got 0"),
    (lambda: StaticCache(MIXED, rows=1, capacity=True), TypeError, "`capacity` must be an int, got bool"),
    (lambda: filled(5), ValueError, "the cache has 4 rows, the call needs 5"),
    (lambda: filled().update(*states(3, 1), 0), ValueError, "the cache holds 2 rows, got keys of 3"),
    (lambda: filled().update(*states(2, 3), 0), ValueError, "room for 6 positions, 4 are in use, got 3 more"),
    (lambda: filled().update(*states(2, 1), 1), ValueError, "`layer_idx` must be 0 or one more than before, got 1"),
    (lambda: filled().expand(3), ValueError, r"`num_copies` must be in \[1, 2\] for 2 of 4 rows, got 3"),
    (lambda: filled().expand(0), ValueError, r"`num_copies` must be in \[1, 2\] for 2 of 4 rows, got 0"),
    (lambda: filled().expand(-1), ValueError, "`num_copies` must be >= 0, got -1"),
    (lambda: filled().crop(-5), ValueError, "`length` must be at least -4, the positions in use, got -5"),
    (lambda: filled().set_length(7), ValueError, r"`length` must be in \[0, 6\], got 7"),
    (lambda: filled().advance(3), ValueError, "room for 6 positions, 4 are in use, got 3 more"),
    (lambda: filled().advance(-1), ValueError, "`count` must be >= 0, got -1"),
    (lambda: filled().batch_select_indices(torch.zeros(5, dtype=torch.int64)), ValueError, "4 rows, got 5 indices"),
    (lambda: filled().reorder_cache(torch.tensor([0, 2])), ValueError, r"`beam_idx` must be in \[0, 2\), got 2"),
    (
        lambda: pair().cross_attention_cache.update(*states(1, 4), 0),
        ValueError,
        "is for 5 positions of an encoder, got 4",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:40] for w in WRONG])
def test_wrong_arguments(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_refused_call_changes_nothing() -> None:
    cache = filled()
    before = [tensor.clone() for layer in cache.layers for tensor in layer._buffers]
    for call in (lambda: cache.update(*states(2, 3), 0), lambda: cache.expand(3), lambda: cache.crop(-5)):
        with pytest.raises(ValueError):
            call()
    assert (cache.length, int(cache.device_length), cache.rows_in_use) == (4, 4, 2)
    after = [tensor for layer in cache.layers for tensor in layer._buffers]
    assert all(now.equal(then) for now, then in zip(after, before, strict=True))


def stand_in(config: Any, **attributes: Any) -> Any:
    """What `refusal` looks at of a model that is too large or too rare to build here."""
    return SimpleNamespace(**{"config": config, "_can_compile_fullgraph": True, **attributes})


def kinds(*names: str) -> Any:
    return stand_in(transformers.LlamaConfig(num_hidden_layers=len(names), layer_types=list(names)))


HELD = "only full and sliding-window attention can be held"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "linear attention": (
        lambda: kinds("full_attention", "linear_attention"),
        f"layers of kind 'linear_attention'; {HELD}",
    ),
    "chunked": (lambda: kinds("chunked_attention"), f"layers of kind 'chunked_attention'; {HELD}"),
    "chunked, by its size": (
        lambda: stand_in(
            SimpleNamespace(
                get_text_config=lambda decoder: SimpleNamespace(attention_chunk_size=8, num_hidden_layers=1)
            )
        ),
        f"layers of kind 'chunked_attention'; {HELD}",
    ),
    "mamba": (
        lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1)
        ),
        "MambaForCausalLM has layers of kind '.*'; only full",
    ),
    "hybrid": (lambda: kinds("hybrid"), f"layers of kind 'hybrid'; {HELD}"),
    "own cache": (
        lambda: stand_in(transformers.LlamaConfig(), _supports_default_dynamic_cache=lambda: False),
        "keeps a cache of a class of its own",
    ),
    "positions from the keys": (
        lambda: transformers.GPTNeoForCausalLM(
            transformers.GPTNeoConfig(
                vocab_size=9, hidden_size=4, num_layers=1, num_heads=1, attention_types=[[["global"], 1]]
            )
        ),
        r"the forward of GPTNeoForCausalLM does not take a cache of fixed size \(`_can_compile_fullgraph` is False\)",
    ),
    "another encoder": (
        lambda: stand_in(transformers.GPT2Config(add_cross_attention=True)),
        "attends to an encoder that is not its own",
    ),
    "a window of the encoder's output": (
        lambda: stand_in(transformers.T5GemmaConfig()),
        "transformers keeps only a window of the encoder's output for",
    ),
    "two texts in one": (
        lambda: stand_in(transformers.T5Gemma2Config()),
        "attends to its own text and the encoder's in one",
    ),
    "flash attention": (
        lambda: stand_in(transformers.LlamaConfig(attn_implementation="flash_attention_2")),
        "`attn_implementation`='flash_attention_2' is not eager or sdpa",
    ),
    "spread": (
        lambda: stand_in(transformers.LlamaConfig(), hf_device_map={"a": 0, "b": "cpu"}),
        "are spread over 0, cpu",
    ),
    "a module": (lambda: torch.nn.Linear(1, 1), "Linear is not a model of transformers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_are_refused(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(CacheRefused, match=f"a static cache cannot be used: .*{message}"):
        StaticCache.for_model(build(), rows=1, capacity=8)


@pytest.mark.parametrize("kind", ["quantized", "offloaded", "offloaded_static"])
def test_other_kinds_of_cache_are_refused(kind: str) -> None:
    assert f"`cache_implementation`='{kind}' " in (refusal(model_of("llama"), kind) or "")
    assert refusal(model_of("llama"), "static") is None


@pytest.mark.parametrize("family", [*DECODERS, *PAIRS])
def test_models_that_are_served(family: str) -> None:
    assert refusal(model_of(family)) is None


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
    expected = generate(model, PROMPTS, **call)
    cache = StaticCache.for_model(model, rows=6, capacity=CAPACITY)
    torch.manual_seed(0)
    assert generate(model, PROMPTS, past_key_values=cache, **call).equal(expected)
    assert cache.length == expected.shape[1] - 1


def test_transformers_generates_over_it() -> None:
    model = model_of("gemma2 mixed")
    call: dict[str, Any] = {"max_new_tokens": 8, "attention_mask": VISIBLE, "do_sample": False}
    cache = StaticCache.for_model(model, rows=3, capacity=CAPACITY)
    assert model.generate(PROMPTS, past_key_values=cache, **call).equal(model.generate(PROMPTS, **call))


def test_importing_pygen_loads_no_transformers() -> None:
    script = "import sys, pygen, pygen.graph, pygen.graph.cache_refusals; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"
