"""Captured steps of encoder-decoder models against eager ones: tokens, noise and caches, for any encoder input."""

from __future__ import annotations

import copy
import functools
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

import pygen
from pygen import BackendError
from pygen.generate import generate
from pygen.graph import captures
from pygen.graph.cuda_graph import CAPTURES
from pygen.graph.eligibility import LEAST_STEPS
from tests.generate.models import ENCODER_DECODERS, VOCAB_SIZE, encoder_decoder
from tests.helpers.generation import generate_output, generate_tokens
from tests.runtime.calls import Collect, same
from tests.runtime.captures import PlainCalls
from tests.runtime.tape import no_host_reads

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "decoder_start_token_id": 1}
BART: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.35,
    "max_position_embeddings": 128,
    "forced_eos_token_id": None,
    **TOKENS,
}
T5: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "initializer_factor": 2.0,
    **TOKENS,
}
GEMMA: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "layer_types": ["full_attention"] * 2,
    "initializer_range": 0.35,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Any] = {
    "marian": lambda: transformers.MarianConfig(**BART, decoder_vocab_size=VOCAB_SIZE),
    "mbart": lambda: transformers.MBartConfig(**BART),
    "pegasus": lambda: transformers.PegasusConfig(**BART),
    "pegasus x": lambda: transformers.PegasusXConfig(**BART, block_size=4, num_global_tokens=2),
    "blenderbot": lambda: transformers.BlenderbotConfig(**BART),
    "small blenderbot": lambda: transformers.BlenderbotSmallConfig(**BART),
    "big bird": lambda: transformers.BigBirdPegasusConfig(**BART, attention_type="original_full"),
    "mt5": lambda: transformers.MT5Config(**T5),
    "umt5": lambda: transformers.UMT5Config(**T5),
    "t5gemma": lambda: transformers.T5GemmaConfig(
        encoder=transformers.T5GemmaModuleConfig(**GEMMA),
        decoder=transformers.T5GemmaModuleConfig(**GEMMA),
        vocab_size=VOCAB_SIZE,
        **TOKENS,
    ),
    "moonshine": lambda: transformers.MoonshineConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
        initializer_range=0.35,
        **TOKENS,
    ),
}
AUDIO = {"whisper": (8, 40), "moonshine": (2000,)}
START: dict[str, Any] = {"decoder_start_token_id": 1, "max_new_tokens": 9}
LEFT = torch.tensor([[1] * 6, [0] * 4 + [1] * 2, [0] + [1] * 5])


@functools.cache
def model_of(family: str) -> Any:
    if family in ENCODER_DECODERS:
        return encoder_decoder(family)
    torch.manual_seed(len(family))
    kind: Any = transformers.AutoModelForSpeechSeq2Seq if family in AUDIO else transformers.AutoModelForSeq2SeqLM
    model = kind.from_config(CONFIGS[family]())
    model.generation_config = transformers.GenerationConfig()
    return model.eval()


@functools.cache
def source(family: str, rows: int = 3, length: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    if family in AUDIO:
        return torch.randn(rows, *AUDIO[family], generator=generator)
    return torch.randint(1, VOCAB_SIZE, (rows, length), generator=generator)


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    for model in [*captures._slots]:
        pygen.release(model)


def run(runtime: str, model: Any, inputs: Any, **settings: Any) -> dict[str, Any]:
    """Returns all results and side effects of a call."""
    torch.manual_seed(5)
    streamer = Collect()
    settings = {**START, "return_dict_in_generate": True, "output_logprobs": True, **settings}
    output = generate_output(model, inputs, runtime=runtime, streamer=streamer, **settings)
    found = {name: value for name, value in vars(output).items() if name not in ("past_key_values", "cache")}
    cache = output.past_key_values
    assert type(cache) is EncoderDecoderCache
    for name in ("self_attention_cache", "cross_attention_cache"):
        part = getattr(cache, name)
        assert type(part) is DynamicCache
        layers: list[Any] = part.layers
        found[name] = [tensor for layer in layers if layer.is_initialized for tensor in (layer.keys, layer.values)]
    return {**found, "events": streamer.events, "generator": torch.get_rng_state(), "updated": [*cache.is_updated]}


def check(model: Any, inputs: Any, **settings: Any) -> dict[str, Any]:
    """Compares the graph path with the eager one; returns their common result."""
    eager, graph = (run(runtime, model, inputs, **settings) for runtime in ("eager", "graph"))
    assert eager.keys() == graph.keys()
    for name in eager:
        assert same(eager[name], graph[name]), (name, eager[name], graph[name])
    return eager


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
    "seeds": {"do_sample": True, "seed": [1, 2**64 - 1, 3]},
    "copies": {"do_sample": True, "num_return_sequences": 3},
    "rows end": {"do_sample": True, "eos_token_id": list(range(30, 60))},
    "a start per row": {"decoder_start_token_id": [1, 2, 3]},
    "decoder prompt": {"decoder_input_ids": torch.tensor([[1, 5], [1, 6], [1, 7]])},
    "decoder prompt, start missing, copies": {
        "decoder_input_ids": torch.tensor([[4, 5], [4, 6], [4, 7]]),
        "do_sample": True,
        "num_return_sequences": 2,
    },
    "padded decoder prompt": {
        "decoder_input_ids": torch.tensor([[1, 5, 6], [0, 1, 6], [1, 5, 7]]),
        "decoder_attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1]]),
        "repetition_penalty": 1.2,
    },
    "decoder prompt in pieces": {
        "decoder_input_ids": torch.tensor([[1, 5, 6, 7, 8]]).repeat(3, 1),
        "prefill_chunk_size": 2,
    },
    "one token": {"max_new_tokens": 1},
    "a bucket filled": {"max_new_tokens": 64},
    "compiled": {"compile_config": pygen.CompileConfig(backend="eager", mode="default")},
}


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_as_eager(family: str, name: str, capture: Any) -> None:
    mask = {} if family == "whisper" else {"attention_mask": LEFT}
    check(model_of(family), source(family), pad_token_id=0, **mask, **SETTINGS[name])
    assert capture.made == (name != "one token")


@pytest.mark.parametrize("family", [*ENCODER_DECODERS, *CONFIGS])
def test_families(family: str, capture: Any) -> None:
    """The padding of the encoder's output has no effect, with a mask or without."""
    model = model_of(family)
    before = model.config._attn_implementation
    masks = [{}] if family in AUDIO else [{}, {"attention_mask": LEFT}, {"attention_mask": LEFT.flip(1)}]
    try:
        for attention in ("eager", "sdpa") if model._supports_sdpa else ("eager",):
            model.set_attn_implementation(attention)
            for mask in masks:
                check(model, source(family), **mask, **START)
            pygen.release(model)
    finally:
        model.set_attn_implementation(before)


CALLS: list[tuple[int, dict[str, Any]]] = [
    (64, {"top_p": 0.99}),
    (6, {"attention_mask": LEFT, "top_p": 0.9}),
    (6, {"top_p": 0.8}),
    (40, {"top_p": 0.5}),
    (6, {"top_p": 0.9, "max_new_tokens": 20, "decoder_input_ids": torch.tensor([[1, 5], [1, 6], [1, 7]])}),
]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_capture_serves_later_calls(family: str, capture: Any) -> None:
    """One capture serves other texts, lengths and masks of the encoder, and other rows of the same number."""
    model = model_of(family)
    for length, settings in CALLS:
        check(model, source(family, length=length), do_sample=True, **settings)
    check(model, source(family, rows=1, length=9), do_sample=True, num_return_sequences=3, top_p=0.9)
    assert capture.made == 1
    assert [*captures._slots[model]] == [(3, 64, 72)]
    check(model, source(family, length=65), do_sample=True, top_p=0.9)
    check(model, source(family, rows=2), do_sample=True, top_p=0.9)
    assert capture.made == 3
    assert [*captures._slots[model]] == [(3, 64, 72), (3, 64, 136), (2, 64, 72)]


def test_audio_of_one_length_shares_a_capture(capture: Any) -> None:
    model = model_of("whisper")
    for seed in range(3):
        check(model, torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(seed)))
    assert capture.made == 1
    masks = (
        torch.ones(3, 2000, dtype=torch.int64),
        (torch.arange(2000) < torch.tensor([[900], [2000], [1500]])).long(),
    )
    for mask in masks[::-1]:
        check(model_of("moonshine"), source("moonshine"), attention_mask=mask)
    assert capture.made == 2


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_given_encoder_outputs(family: str, capture: Any) -> None:
    model = model_of(family)
    with torch.no_grad():
        states = model.get_encoder()(source(family)).last_hidden_state
    encoded = BaseModelOutput(last_hidden_state=states, hidden_states=(states, states))
    found = check(model, None, encoder_outputs=encoded)
    assert same(found["sequences"], run("eager", model, source(family))["sequences"])
    assert vars(encoded)["last_hidden_state"] is states and states.shape[1] == (20 if family == "whisper" else 6)
    check(model, None, encoder_outputs=BaseModelOutput(last_hidden_state=states.flip(1)))
    assert capture.made == 1


def test_embeddings_for_the_encoder(capture: Any) -> None:
    model = model_of("bart")
    for length in (4, 7):
        embeds = model.get_input_embeddings()(source("bart", length=length)).detach()
        check(model, None, inputs_embeds=embeds)
    assert capture.made == 1


def test_the_encoder_runs_once_and_nothing_of_the_caller_changes(capture: Any) -> None:
    model, lengths = model_of("t5"), []
    encoder = model.get_encoder()
    forward = encoder.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        lengths.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    mask, ids = LEFT.clone(), source("t5").clone()
    encoder.__dict__["forward"] = watched
    try:
        generate(model, ids, attention_mask=mask, num_return_sequences=2, do_sample=True, runtime="graph", **START)
    finally:
        del encoder.__dict__["forward"]
    assert lengths == [(3, 6)]
    assert mask.equal(LEFT) and ids.equal(source("t5"))


def test_cancelled_before_it_began(capture: Any) -> None:
    cancel = threading.Event()
    check(model_of("t5"), source("t5"))
    cancel.set()
    found = check(model_of("t5"), source("t5"), cancel=cancel)
    assert found["sequences"].tolist() == [[1]] * 3 and found["cross_attention_cache"] == []


class ReadsTheEncoder(transformers.T5ForConditionalGeneration):
    """Its scores also read the encoder's output directly, not only the cached keys and values."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, encoder_outputs: Any = None, **kwargs: Any
    ) -> Any:
        outputs = super().forward(input_ids, attention_mask, encoder_outputs=encoder_outputs, **kwargs)
        outputs.logits = outputs.logits + encoder_outputs.last_hidden_state.sum(1)[:, :1, None].sin() * outputs.logits
        return outputs


def test_a_model_that_reads_the_encoders_output(capture: Any) -> None:
    torch.manual_seed(2)
    model = ReadsTheEncoder(encoder_decoder("t5").config).eval()
    for length in (6, 11, 6):
        check(model, source("t5", length=length), do_sample=True)
    assert capture.made == 1


@pytest.mark.parametrize("step", [1, 4])
def test_invalid_rows(step: int, capture: Any) -> None:
    """The first row's scores turn NaN after its token at `step`; a second replay finds the id."""
    model = copy.deepcopy(model_of("bart"))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    ids = source("bart")[:1] % 50
    settings: dict[str, Any] = {**START, "suppress_tokens": list(range(1, 50)), "repetition_penalty": 5.0}
    token = int(generate_tokens(model, ids, **settings)[0, 1 + step])
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    messages = []
    for runtime in ("eager", "graph"):
        with pytest.raises(RuntimeError, match=f"at step {step + 1} ") as error:
            generate(model, ids, runtime=runtime, **settings)
        messages.append(str(error.value))
    assert messages[0] == messages[1] and capture.made == 1


class Unread(PlainCalls):
    """The forward reads no value on the host, as in transformers during a stream capture."""

    def replay(self) -> None:
        with pytest.MonkeyPatch.context() as patch, no_host_reads():
            patch.setattr(transformers.utils.import_utils, "is_cuda_stream_capturing", lambda: True)
            self._parts[0]()
        self._parts[1]()


@pytest.mark.parametrize("family", [*ENCODER_DECODERS, *CONFIGS])
def test_nothing_is_read_by_the_host(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CAPTURES, "cpu", Unread)
    check(model_of(family), source(family))


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "attentions": ({"output_attentions": True, "return_dict_in_generate": True}, "`output_attentions` keeps tensors"),
    "the encoder's text": ({"encoder_repetition_penalty": 1.3}, "`encoder_repetition_penalty` .* is a call of Python"),
    "no cache": ({"use_cache": False}, "`use_cache` is False"),
    "all hidden": ({"attention_mask": LEFT * torch.tensor([[1], [0], [1]])}, "`attention_mask` hides all of a prompt"),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CAPTURES, "cpu", PlainCalls)
    settings, reason = REASONS[name]
    with pytest.raises(BackendError, match=f"cannot run here: {reason}"):
        generate(model_of("t5"), source("t5"), runtime="graph", **START, **settings)
    explained = pygen.explain(model_of("t5"), source("t5"), **{**START, "max_new_tokens": LEAST_STEPS}, **settings)
    assert re.match(f"eager: {reason}", explained.runtime)


def test_explained_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CAPTURES, "cpu", PlainCalls)
    model, ids = model_of("t5"), source("t5")
    assert pygen.explain(model, ids, **START).runtime.startswith("eager: a capture does not pay for 9 tokens")
    generate(model, ids, runtime="graph", **START)
    for family, of in {"t5": ", and one of 72 for the encoder's output", "whisper": ""}.items():
        explained = pygen.explain(model_of(family), source(family), runtime="graph", **START)
        assert explained.runtime == f"graph, over a cache of 64 positions{of}"
    assert pygen.explain(model, source("t5", length=20), **START).runtime.startswith("graph")
    assert pygen.explain(model, source("t5", length=70), **START).runtime.startswith("eager")
    pygen.release(model)
    assert pygen.explain(model, ids, **START).runtime.startswith("eager") and model not in captures._slots
