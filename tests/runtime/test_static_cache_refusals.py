"""The static cache's attributes, and the arguments and models that it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen.graph.cache_refusals import CacheRefused, refusal
from pygen.graph.static_cache import EncoderDecoderStaticCache, StaticCache, bucket
from pygen.models import cache as verbs
from tests.runtime.readers import (
    DECODERS,
    MIXED,
    PAIRS,
    model_of,
)

pytestmark = pytest.mark.usefixtures("small_models")


def test_attributes_of_the_cache() -> None:
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
    """Returns the attributes that `refusal` reads, for a model that is too large or too rare to build here."""
    return SimpleNamespace(**{"config": config, "_can_compile_fullgraph": True, **attributes})


def kinds(*names: str) -> Any:
    fields: dict[str, Any] = {"num_hidden_layers": len(names), "layer_types": list(names)}
    return stand_in(transformers.LlamaConfig(**fields))


HELD = "only full and sliding-window attention can be held"
FLASH: dict[str, Any] = {"attn_implementation": "flash_attention_2"}
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
        "keeps a cache of its own class",
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
        lambda: stand_in(transformers.LlamaConfig(**FLASH)),
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


def test_importing_pygen_loads_no_transformers() -> None:
    script = "import sys, pygen, pygen.graph, pygen.graph.cache_refusals; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"
