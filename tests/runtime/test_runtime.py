"""`generate(runtime=)`: which runtime runs, every reason against a capture, and what a capture keeps."""

from __future__ import annotations

import copy
import gc
import logging
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import pygen
from pygen import BackendError
from pygen.generate import generate
from pygen.graph import captures
from pygen.graph.cuda_graph import CAPTURES
from pygen.graph.eligibility import LEAST_STEPS, compile_options
from tests.generate.models import cached_model, hf_model
from tests.helpers.generation import generate_output, generate_tokens
from tests.runtime.captures import PlainCalls

IDS = torch.tensor([[5, 6, 7], [8, 9, 3]])
LIMIT: dict[str, Any] = {"max_new_tokens": 4}


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[PlainCalls]]:
    monkeypatch.setitem(CAPTURES, "cpu", PlainCalls)
    monkeypatch.setattr(PlainCalls, "made", 0)
    yield PlainCalls
    pygen.release(llama())


def keep(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores


def never(input_ids: Tensor, scores: Any) -> bool:
    return False


def llama() -> Any:
    return hf_model("llama")


def compiled() -> Any:
    return torch.compile(copy.deepcopy(llama()))


def compiled_in_place() -> Any:
    model = copy.deepcopy(llama())
    model.compile()
    return model


def compiled_forward() -> Any:
    model = copy.deepcopy(llama())
    model.model.layers[1].forward = torch.compile(model.model.layers[1].forward)
    return model


def in_training() -> Any:
    return copy.deepcopy(llama()).train()


def hooked() -> Any:
    model = copy.deepcopy(llama())
    model.model.layers[1].register_forward_hook(lambda *arguments: None)
    return model


def on_two_devices() -> Any:
    """No forward of it runs: the reason comes first."""
    model = copy.deepcopy(llama())
    model.model.layers[1].to("meta")
    return model


def with_other_attention() -> Any:
    model = copy.deepcopy(llama())
    model.config._attn_implementation = "flex_attention"
    return model


class OwnGrowth(transformers.LlamaForCausalLM):  # type: ignore[misc]
    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return super()._update_model_kwargs_for_generation(*args, **kwargs)


def with_own_growth() -> Any:
    return OwnGrowth(copy.deepcopy(llama().config)).eval()


def with_own_reordering() -> Any:
    model = copy.deepcopy(llama())
    model._reorder_cache = lambda cache, rows: cache
    return model


DICT = {"return_dict_in_generate": True}
REASONS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "beams": (llama, {"num_beams": 2, "logits_processor": [keep]}, r"`logits_processor\[0\]` .* a call of Python"),
    "beam sampling": (llama, {"num_beams": 2, "do_sample": True, "stopping_criteria": [never]}, "criterion never is"),
    "growing": (with_own_growth, {}, "OwnGrowth extends its inputs by its own `_update_model_kwargs_for_generation`"),
    "reordering": (with_own_reordering, {"num_beams": 2}, "rows of its cache by its own `_reorder_cache`"),
    "groups": (llama, {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5}, "steps of group beam search"),
    "constraints": (llama, {"num_beams": 2, "force_words_ids": [[7]]}, "steps of constrained beam search"),
    "prompt lookup": (llama, {"prompt_lookup_num_tokens": 2}, "steps of assisted generation are not captured"),
    "processor": (llama, {"logits_processor": [keep]}, r"`logits_processor\[0\]` \(keep\) is a call of Python"),
    "watermark": (llama, {"watermarking_config": pygen.WatermarkingConfig()}, "`watermarking_config` .* of Python"),
    "order": (
        llama,
        {"logits_processor": [pygen.processors.TemperatureLogitsWarper(0.5)], "do_sample": True, "temperature": 2.0},
        "needs more than one op",
    ),
    "criterion": (llama, {"stopping_criteria": [never]}, "the stopping criterion never is a call of Python"),
    "scores": (llama, {"output_scores": True, **DICT}, "`output_scores` keeps tensors of every step"),
    "logits": (llama, {"output_logits": True, **DICT}, "`output_logits` keeps"),
    "attentions": (llama, {"output_attentions": True, **DICT}, "`output_attentions` keeps"),
    "hidden states": (llama, {"output_hidden_states": True, **DICT}, "`output_hidden_states` keeps"),
    "no cache": (llama, {"use_cache": False}, "`use_cache` is False"),
    "dynamic cache": (llama, {"cache_implementation": "dynamic"}, "`cache_implementation`='dynamic' is another"),
    "static cache": (llama, {"cache_implementation": "static", **DICT}, "has to be the static cache"),
    "module": (cached_model, {}, "CachedModel is no model of transformers"),
    "compiled": (compiled, {}, "the model is compiled already"),
    "compiled in place": (compiled_in_place, {}, "the model is compiled already"),
    "compiled forward": (compiled_forward, {}, "the model is compiled already"),
    "training": (in_training, {}, "the model is in training mode"),
    "hook": (hooked, {}, r"`model\.layers\.1` has hooks"),
    "two devices": (on_two_devices, {}, "weights of LlamaForCausalLM are on meta, and a graph runs on cpu alone"),
    "attention": (with_other_attention, {}, "`attn_implementation`='flex_attention' is not"),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name: str, capturing: Any) -> None:
    """A requested but impossible capture is refused; otherwise `explain` says why the call is eager."""
    make, settings, reason = REASONS[name]
    model, asked = make(), {**LIMIT, **settings}
    ids = IDS[:1] if "prompt_lookup_num_tokens" in asked else IDS
    with pytest.raises(BackendError, match=f"`runtime`='graph' cannot run here: .*{reason}"):
        generate(model, ids, runtime="graph", **asked)
    with pytest.raises(BackendError, match=reason):
        pygen.explain(model, ids, runtime="graph", **asked)
    asked = {**asked, "max_new_tokens": LEAST_STEPS}
    explained = pygen.explain(model, ids, **asked).runtime
    assert explained.startswith("eager: ") and re.search(reason, explained), explained
    assert capturing.made == 0


def test_a_cache_of_the_callers(capturing: Any) -> None:
    cache = generate_output(llama(), IDS, max_new_tokens=1, return_dict_in_generate=True).past_key_values
    longer = torch.ones(2, 6, dtype=torch.int64)
    with pytest.raises(BackendError, match="`past_key_values`: the cache is the caller's"):
        generate(llama(), IDS, past_key_values=cache, attention_mask=longer, runtime="graph", **LIMIT)
    assert cache.get_seq_length() == 3


def test_in_torch_the_op_reads_on_the_host(capturing: Any) -> None:
    with pygen.use_backend("torch"), pytest.raises(BackendError, match="`sample` in torch reads numbers on the host"):
        generate(llama(), IDS, runtime="graph", **LIMIT)


def test_in_triton_the_generator_is_on_the_host(capturing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pygen.use_backend("triton"):
        with pytest.raises(BackendError, match="`sample` in Triton takes torch's noise from the generator itself"):
            pygen.explain(llama(), IDS, runtime="graph", do_sample=True, **LIMIT)
        for settings in ({}, {"do_sample": True, "seed": 3}):
            assert pygen.explain(llama(), IDS, runtime="graph", **settings, **LIMIT).runtime.startswith("graph")


def test_without_a_gpu() -> None:
    model = llama()
    with pytest.raises(BackendError, match="cannot run here: it needs a CUDA model, got one on cpu"):
        generate(model, IDS, runtime="graph", **LIMIT)
    assert pygen.explain(model, IDS, max_new_tokens=99).runtime == "eager: it needs a CUDA model, got one on cpu"
    assert pygen.explain(model, IDS, max_new_tokens=99, runtime="eager").runtime == "eager: `runtime`='eager'"
    expected = generate_tokens(model, IDS, **LIMIT)
    for runtime in ("auto", "eager"):
        assert torch.equal(generate_tokens(model, IDS, runtime=runtime, **LIMIT), expected)


@pytest.mark.parametrize("value", ["Graph", "cuda", None, True, ["auto"]])
def test_wrong_values(value: Any) -> None:
    for call in (generate, pygen.explain):
        with pytest.raises(ValueError, match="`runtime` must be one of 'auto', 'eager', 'graph', got "):
            call(llama(), IDS, runtime=value, **LIMIT)


def own_loop(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
    return input_ids


def test_loops_of_others(capturing: Any) -> None:
    with pytest.raises(BackendError, match="`custom_generate` decodes"):
        generate(llama(), IDS, custom_generate=own_loop, runtime="graph", **LIMIT)


def test_auto(capturing: Any) -> None:
    """It captures if that pays, and reuses earlier captures."""
    model = llama()
    assert pygen.explain(model, IDS, **LIMIT).runtime == (
        f"eager: a capture does not pay for 4 tokens; it does from {LEAST_STEPS} on"
    )
    short = generate_tokens(model, IDS, **LIMIT)
    assert capturing.made == 0
    assert pygen.explain(model, IDS, max_new_tokens=LEAST_STEPS - 2).runtime.startswith("eager: a capture")
    generate(model, IDS, max_new_tokens=40, runtime="graph")
    assert capturing.made == 1
    assert torch.equal(generate_tokens(model, IDS, **LIMIT), short)
    assert pygen.explain(model, IDS, **LIMIT).runtime == "graph, over a cache of 64 positions"
    assert pygen.explain(model, IDS[:1], **LIMIT).runtime.startswith("eager")
    assert pygen.explain(model, IDS, max_new_tokens=LEAST_STEPS).runtime == "graph, over a cache of 128 positions"


@pytest.mark.parametrize(
    ("prompt", "steps", "capacity"),
    [(3, 62, 64), (3, 63, 128), (100, 29, 128), (100, 30, 256), (200, 57, 256), (200, 58, 384), (500, 600, 1536)],
)
def test_the_bucket_holds_what_the_model_reads(prompt: int, steps: int, capacity: int, capturing: Any) -> None:
    ids = torch.full((1, prompt), 5)
    explained = pygen.explain(llama(), ids, max_new_tokens=steps, runtime="graph")
    assert explained.runtime == f"graph, over a cache of {capacity} positions"


class Failing(PlainCalls):
    """Fails during the second run of a step."""

    def __init__(self, parts: Any, restore: Any, pool: Any) -> None:
        super().__init__(parts, restore, pool)
        parts[0]()
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_capture_that_fails(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model = copy.deepcopy(llama())
    expected = generate_tokens(model, IDS, runtime="eager", do_sample=True, seed=1, max_new_tokens=LEAST_STEPS - 3)
    monkeypatch.setitem(CAPTURES, "cpu", Failing)
    monkeypatch.setattr("pygen.graph.eligibility.LEAST_STEPS", 2)
    asked: dict[str, Any] = {"do_sample": True, "seed": 1, "max_new_tokens": LEAST_STEPS - 3}
    with pytest.raises(BackendError, match="cannot run here: the capture failed, operation not permitted"):
        generate(model, IDS, runtime="graph", **asked)
    for _ in range(2):
        assert torch.equal(generate_tokens(model, IDS, **asked), expected)
    assert caplog.text.count("could not be captured and is launched for every token: operation not permitted") == 1


def test_release(capturing: Any) -> None:
    model = llama()
    for runtime in ("graph", "graph"):
        expected = generate_tokens(model, IDS, runtime=runtime, **LIMIT)
    (slot,) = captures._slots[model].values()
    held = [weakref.ref(tensor) for tensor in slot.cache._tensors()] + [weakref.ref(slot)]
    assert len(held) == 5
    del slot
    pygen.release(model)
    gc.collect()
    assert [ref() for ref in held] == [None] * 5 and model not in captures._slots
    pygen.release(model)
    pygen.release(None)  # type: ignore[arg-type]
    assert torch.equal(generate_tokens(model, IDS, runtime="graph", **LIMIT), expected)
    assert capturing.made == 2


def test_captures_go_with_the_model(capturing: Any) -> None:
    model = copy.deepcopy(llama())
    attributes = {*vars(model)}
    generate(model, IDS, runtime="graph", do_sample=True, **LIMIT)
    (slot,) = captures._slots[model].values()
    assert {*vars(model)} == attributes
    held = weakref.ref(slot)
    del slot, model
    gc.collect()
    assert held() is None


def test_the_sizes_that_are_kept(capturing: Any) -> None:
    model = llama()
    for rows in (1, 2, 3, 4, 1, 5):
        generate(model, IDS[:1].repeat(rows, 1), runtime="graph", **LIMIT)
    assert capturing.made == 5
    assert [rows for rows, *_ in captures._slots[model]] == [3, 4, 1, 5]


class Nested:
    """Generates with the same model during a call."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        self.found: list[Any] = []

    def put(self, value: Tensor) -> None:
        try:
            self.found.append(generate_tokens(llama(), IDS, runtime=self.runtime, **LIMIT))
        except BackendError as error:
            self.found.append(str(error))

    def end(self) -> None:
        pass


def test_a_call_inside_a_call(capturing: Any) -> None:
    model = llama()
    expected = generate_tokens(model, IDS, runtime="graph", **LIMIT)
    nested = Nested("auto")
    assert torch.equal(generate_tokens(model, IDS, runtime="graph", streamer=nested, **LIMIT), expected)
    assert len(nested.found) == 5 and all(torch.equal(tokens, expected) for tokens in nested.found)
    nested = Nested("graph")
    assert torch.equal(generate_tokens(model, IDS, runtime="graph", streamer=nested, **LIMIT), expected)
    assert {*nested.found} == {"`runtime`='graph' cannot run here: another call is using the captured step"}
    assert torch.equal(generate_tokens(model, IDS, runtime="graph", **LIMIT), expected)


def test_released_in_the_middle_of_a_call(capturing: Any) -> None:
    class Releasing(Nested):
        def put(self, value: Tensor) -> None:
            pygen.release(llama())

    model = llama()
    expected = generate_tokens(model, IDS, runtime="eager", **LIMIT)
    assert torch.equal(generate_tokens(model, IDS, runtime="graph", streamer=Releasing("auto"), **LIMIT), expected)


@pytest.mark.parametrize(
    ("given", "mode", "options"),
    [
        ({}, None, None),
        ({"mode": "default"}, "default", None),
        ({"mode": "max-autotune"}, "max-autotune-no-cudagraphs", None),
        ({"options": {"epilogue_fusion": True}}, None, {"epilogue_fusion": True}),
    ],
)
def test_compile_options_leave_the_capture_to_pygen(given: Any, mode: Any, options: Any) -> None:
    config = pygen.GenerationConfig(compile_config=pygen.CompileConfig(**given))
    found = compile_options(config)
    assert found is not None
    assert (found["mode"], found["options"]) == (mode, options)
    config.disable_compile = True
    assert compile_options(config) is None


def test_eager_steps_are_not_compiled(caplog: pytest.LogCaptureFixture) -> None:
    asked: dict[str, Any] = {"compile_config": pygen.CompileConfig(backend="eager"), **LIMIT}
    with caplog.at_level(logging.WARNING):
        generate(llama(), IDS, **asked)
    assert "`compile_config` is not used: only captured steps are compiled, and it needs a CUDA model" in caplog.text
    assert pygen.explain(llama(), IDS, **asked).ignored == {"compile_config": "only captured steps are compiled"}
