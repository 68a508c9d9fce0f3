"""Assisted decoding of `pygen.generate`: against transformers' own, and against the same call without drafts."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, MistralConfig, MistralForCausalLM, WhisperForCausalLM
from transformers.cache_utils import StaticCache

from pygen.generate import generate
from pygen.streamers.text import BaseStreamer
from tests.generate.against_transformers import EVERYTHING
from tests.generate.models import VOCAB_SIZE, counting_table, encoder_decoder, hf_model
from tests.helpers.generation import generate_output, generate_tokens

MODELS = ("llama", "gpt2", "t5")
CASES_PER_MODEL = 60
CASES_PER_TEST = 20
IDS = torch.tensor([[5, 17, 40, 8, 9, 61]])

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def target(name: str) -> Any:
    return encoder_decoder("t5") if name == "t5" else hf_model(name)


@functools.cache
def assistant(name: str, noise: float = 0.03) -> Any:
    """Returns the model with noise in its weights, so that many of its guesses are right."""
    model = copy.deepcopy(target(name))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
    return model


@pytest.fixture(autouse=True)
def assistants_as_they_were() -> Iterator[None]:
    """Checks that no test leaves a change on the models."""
    models = [target(name) for name in MODELS] + [assistant(name) for name in MODELS]
    before = [copy.deepcopy(model.generation_config.to_dict()) for model in models]
    layers = [model.config.num_hidden_layers for model in models]
    yield
    assert [model.generation_config.to_dict() for model in models] == before
    assert [model.config.num_hidden_layers for model in models] == layers


def make_case(name: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (arguments, settings of the assistant) of one configuration, a function of its number."""
    draw = random.Random(f"assisted {name} {number}")
    length = draw.randint(1, 8)
    ids = [draw.randrange(4, VOCAB_SIZE) for _ in range(length)]
    source = draw.choice(["assistant", "assistant", "assistant", "lookup", "exit"])
    if source == "lookup":
        ids = (ids[:3] * 5)[: draw.randint(4, 12)]
    case: dict[str, Any] = {"input_ids": torch.tensor([ids]), "max_new_tokens": draw.choice([1, 2, 7, 16])}
    # Since 5.18 assistants do not see generated tokens that equal the pad id, unless the pad id is an EOS id.
    eos = [number % 90 + 5 + i for i in range(draw.choice([1, 1, 8]))]
    case |= {"pad_token_id": eos[0], "eos_token_id": eos}
    # transformers stops at once if the prompt ends with an EOS id.
    case["eos_token_id"] = [token for token in case["eos_token_id"] if token not in ids] or [3]
    if name == "t5":
        case["decoder_start_token_id"] = 1
    own: dict[str, Any] = {}
    if source == "lookup":
        case |= {"prompt_lookup_num_tokens": draw.choice([1, 3, 10])}
        case |= draw.choice([{}, {"max_matching_ngram_size": 1}, {"max_matching_ngram_size": 4}])
    elif source == "exit" and name == "llama":
        case["assistant_early_exit"] = 1
    else:
        case["assistant_model"] = None
        own["num_assistant_tokens"] = draw.choice([1, 2, 5, 20])
        own["num_assistant_tokens_schedule"] = draw.choice(["constant", "heuristic", "heuristic_transient"])
        own["assistant_confidence_threshold"] = draw.choice([0.0, 0.4, 0.8])
    if draw.random() < 0.3:
        case["repetition_penalty"] = draw.choice([0.8, 1.3])
    if source != "lookup" and draw.random() < 0.3:
        case["no_repeat_ngram_size"] = 2
        case["suppress_tokens"] = draw.sample(range(3, VOCAB_SIZE), 10)
    if draw.random() < 0.2:
        case["min_new_tokens"] = min(3, case["max_new_tokens"])
    # With a cache, transformers' encoder-decoder assistants read the whole text again and draft other tokens.
    if draw.random() < 0.6 and (name != "t5" or source == "lookup"):
        case["do_sample"] = True
        case |= draw.choice([{}, {"temperature": 0.5}, {"temperature": 1.5, "top_k": 20}])
        if source != "lookup":
            case |= draw.choice([{}, {"top_p": 0.8}, {"min_p": 0.05}])
    return case, own


def run(name: str, number: int, call: Any) -> tuple[Tensor, int | None]:
    """Returns the tokens, and the number of drafts that the assistant stores for its next call."""
    case, own = make_case(name, number)
    if "assistant_model" not in case:
        torch.manual_seed(number)
        return call(target(name), **case), None
    helper = case["assistant_model"] = assistant(name)
    config, helper.generation_config = helper.generation_config, GenerationConfig(**own)
    try:
        torch.manual_seed(number)
        tokens = call(target(name), **case)
        return tokens, helper.generation_config.num_assistant_tokens
    finally:
        helper.generation_config = config


@pytest.mark.parametrize(
    ("name", "first"), [(name, first) for name in MODELS for first in range(0, CASES_PER_MODEL, CASES_PER_TEST)]
)
def test_the_tokens_are_those_of_transformers(name: str, first: int) -> None:
    for number in range(first, first + CASES_PER_TEST):
        theirs, remembered = run(name, number, GenerationMixin.generate)
        ours, count = run(name, number, generate)
        # A correct lookup may take transformers past the end.
        theirs = theirs[:, : ours.shape[1]] if "prompt_lookup_num_tokens" in make_case(name, number)[0] else theirs
        assert torch.equal(ours, theirs), f"{name} {number}: {make_case(name, number)}\n{ours}\n{theirs}"
        assert count == remembered or name == "t5", f"{name} {number}: {make_case(name, number)}"


SOURCES: list[dict[str, Any]] = [
    {"assistant_model": "noisy"},
    {"assistant_model": "noisy", "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic"},
    {"prompt_lookup_num_tokens": 3},
    {"assistant_early_exit": 1},
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"eos_token_id": [17, 5, 60, 70, 30, 44, 12]},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"do_sample": True, "seed": 4, "top_p": 0.9},
    {"do_sample": True, "seed": [4, 5, 6], "temperature": [0.5, 0.0, 1.5], "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("source", SOURCES, ids=range(len(SOURCES)))
def test_batches_and_seeds_get_the_tokens_of_a_call_without_drafts(
    source: dict[str, Any], settings: dict[str, Any]
) -> None:
    model = hf_model("llama")
    ids = torch.randint(4, VOCAB_SIZE, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 6, [0, 0] + [1] * 4, [0] * 4 + [1] * 2])
    call: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 14, "pad_token_id": 0} | settings
    drafts: dict[str, Any] = {name: assistant("llama") if value == "noisy" else value for name, value in source.items()}
    assert torch.equal(generate_tokens(model, ids, **call, **drafts), generate_tokens(model, ids, **call))


@pytest.mark.parametrize(
    "settings", [{}, {"repetition_penalty": 1.4}, {"temperature": [0.5, 0, 1, 1, 1.5, 1]}], ids=str
)
@pytest.mark.parametrize("source", SOURCES, ids=range(len(SOURCES)))
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_every_copy_of_a_prompt_has_drafts(name: str, source: dict[str, Any], settings: dict[str, Any]) -> None:
    """Prompts of several lengths, whose copies end at different positions."""
    if name == "t5" and "assistant_early_exit" in source:
        source = {"assistant_model": "noisy", "assistant_confidence_threshold": 0.6}
    ids = torch.tensor([[5, 17, 40, 5, 17], [0, 0, 9, 61, 9]])
    call: dict[str, Any] = {
        "attention_mask": (ids > 0).long(),
        "max_new_tokens": 10,
        "pad_token_id": 0,
        "eos_token_id": [*range(3, 15)],
    }
    call |= {"do_sample": True, "seed": 4, "num_return_sequences": 3, "return_dict_in_generate": True}
    call |= {"output_scores": True, "output_logprobs": True} | settings
    call |= {"decoder_start_token_id": 1} if name == "t5" else {}
    drafts: dict[str, Any] = {key: assistant(name) if value == "noisy" else value for key, value in source.items()}
    ours, plain = generate_output(target(name), ids, **call, **drafts), generate_output(target(name), ids, **call)
    assert torch.equal(ours.sequences, plain.sequences) and len(plain.sequences.unique(dim=0)) >= 4
    assert ours.finish_reason == plain.finish_reason
    assert ours.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
    torch.testing.assert_close(ours.logprobs, plain.logprobs, rtol=1e-4, atol=1e-4)
    new = plain.sequences[:, -len(plain.scores) :]
    ended = ((new > 2) & (new < 15)).int().cumsum(1).roll(1, 1)
    for step, (mine, others) in enumerate(zip(ours.scores, plain.scores, strict=True)):
        goes_on = (ended[:, step] == 0) if step else slice(None)
        torch.testing.assert_close(mine[goes_on], others[goes_on], rtol=1e-4, atol=1e-4)


def flat(value: Any) -> list[Tensor]:
    return [tensor for item in value for tensor in flat(item)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("source", SOURCES[::2], ids=["assistant", "lookup"])
@pytest.mark.parametrize("name", MODELS)
def test_every_token_has_its_scores_and_states(name: str, source: dict[str, Any]) -> None:
    model = copy.deepcopy(target(name))
    model.set_attn_implementation("eager")
    drafts = {key: assistant(name) if value == "noisy" else value for key, value in source.items()}
    call = {
        "max_new_tokens": 12,
        "pad_token_id": 0,
        "output_logprobs": True,
        "top_logprobs": 2,
        "eos_token_id": 3,
        **EVERYTHING,
    }
    if name == "t5":
        call["decoder_start_token_id"] = 1
    ours, plain = generate_output(model, IDS, **call, **drafts), generate_output(model, IDS, **call)
    assert ours.keys() == plain.keys() and ours.finish_reason == plain.finish_reason
    assert ours.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
    for field in (*(set(plain) - {"past_key_values", "cache"}), "logprobs", "top_logprobs"):
        mine, others = flat(getattr(ours, field)), flat(getattr(plain, field))
        assert len(mine) == len(others), field
        for x, y in zip(mine, others, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    theirs = GenerationMixin.generate(
        model, IDS, **{key: value for key, value in call.items() if "logprobs" not in key}, **drafts
    )
    for field in set(theirs) - {"past_key_values", "cache", "sequences"}:
        assert [x.shape for x in flat(ours[field])] == [x.shape for x in flat(theirs[field])], field


@pytest.mark.parametrize(
    ("source", "copies"),
    [({"assistant_model": "noisy"}, 1), ({"assistant_model": "noisy"}, 2000), ({"prompt_lookup_num_tokens": 2}, 1)],
    ids=["p/q", "p/q of copies", "p"],
)
def test_sampled_rows_follow_the_models_distribution(source: dict[str, Any], copies: int) -> None:
    """Checks the second token of many rows; the drafts have another distribution."""
    drafts = {name: assistant("llama", 0.2) if value == "noisy" else value for name, value in source.items()}
    ids = torch.tensor([[5, 17, 5]]).repeat(4000 // copies, 1)
    counts = []
    for extra in (drafts, {}):
        torch.manual_seed(1)
        call: dict[str, Any] = {
            "do_sample": True,
            "top_k": 5,
            "max_new_tokens": 2,
            "pad_token_id": 0,
            "num_return_sequences": copies,
        }
        tokens = generate_tokens(hf_model("llama"), ids, **call, **extra)
        counts.append(torch.bincount(tokens[:, -1], minlength=VOCAB_SIZE).float() / len(tokens))
    assert (counts[0] - counts[1]).abs().sum() / 2 < 0.04


def test_sampling_without_rejection_follows_the_assistant() -> None:
    """Shows that the check above can fail: without rejections, the tokens follow the assistant's distribution."""
    ids = torch.tensor([[5, 17, 5]]).repeat(4000, 1)
    tokens = [
        generate_tokens(model, ids, do_sample=True, top_k=5, max_new_tokens=2, pad_token_id=0)[:, -1]
        for model in (hf_model("llama"), assistant("llama", 0.2))
    ]
    counts = [torch.bincount(of_model, minlength=VOCAB_SIZE).float() / len(ids) for of_model in tokens]
    assert (counts[0] - counts[1]).abs().sum() / 2 > 0.1


class Chunks(BaseStreamer):
    def __init__(self) -> None:
        self.chunks: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.chunks.append(value)

    def end(self) -> None:
        self.ended += 1


def test_streamers_get_chunks() -> None:
    call = {"max_new_tokens": 12, "pad_token_id": 0, "assistant_model": assistant("llama")}
    ours, theirs = Chunks(), Chunks()
    tokens = generate_tokens(hf_model("llama"), IDS, streamer=ours, **call)
    GenerationMixin.generate(hf_model("llama"), IDS, streamer=cast(Any, theirs), **call)
    assert [chunk.tolist() for chunk in ours.chunks] == [chunk.tolist() for chunk in theirs.chunks]
    assert torch.equal(torch.cat(ours.chunks, dim=1), tokens) and len(ours.chunks) < 13 and ours.ended == 1


def test_criteria_end_inside_a_chunk() -> None:
    call: dict[str, Any] = {"max_new_tokens": 12, "pad_token_id": 0}
    plain = generate_tokens(hf_model("llama"), IDS, **call)
    lengths: list[int] = []

    def fourth(input_ids: Tensor, scores: Any) -> bool:
        lengths.append(input_ids.shape[1])
        return input_ids.shape[1] == 10

    same = copy.deepcopy(hf_model("llama"))
    output = generate_output(
        hf_model("llama"), IDS, **call, assistant_model=same, stopping_criteria=[fourth], return_dict_in_generate=True
    )
    assert torch.equal(output.sequences, plain[:, :10])
    assert lengths == [7, 8, 9, 10] and output.finish_reason == ["stop"]
    assert output.past_key_values.get_seq_length() == 9


def forwards(model: Any) -> list[int]:
    """Records the input lengths of the forwards of `model` from now on."""
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return lengths


def test_settings_of_the_call_win_over_the_assistants() -> None:
    model, helper = copy.deepcopy(hf_model("llama")), copy.deepcopy(hf_model("llama"))
    helper.generation_config = GenerationConfig(num_assistant_tokens=2, assistant_confidence_threshold=0.0)
    call = {"max_new_tokens": 12, "pad_token_id": 0, "assistant_model": helper}
    lengths = forwards(model)
    generate(model, IDS, **call)
    generate(model, IDS, **call, num_assistant_tokens=5)
    # The prompt, then the last token with the drafts, all of which are right.
    assert lengths == [6, 2, 3, 3, 3, 6, 5, 6]
    assert helper.generation_config.num_assistant_tokens == 2


def test_only_the_assistants_own_heuristic_is_remembered() -> None:
    helper = copy.deepcopy(hf_model("llama"))
    helper.generation_config = GenerationConfig(
        num_assistant_tokens=2, num_assistant_tokens_schedule="heuristic", assistant_confidence_threshold=0.0
    )
    call = {"max_new_tokens": 7, "pad_token_id": 0, "assistant_model": helper}
    generate(hf_model("llama"), IDS, **call, num_assistant_tokens=3)
    assert helper.generation_config.num_assistant_tokens == 2
    generate(hf_model("llama"), IDS, **call)
    assert helper.generation_config.num_assistant_tokens == 6


def test_a_plain_module_assists_and_is_assisted() -> None:
    ids = torch.tensor([[1, 2, 3]])
    model, helper = counting_table(20), counting_table(20)
    output = generate_tokens(model, ids, max_new_tokens=8, assistant_model=helper, num_assistant_tokens=4)
    assert output.tolist() == [list(range(1, 12))]
    assert len(model.calls) == 3


def whisper_decoder(model: Any) -> Any:
    """Returns the decoder of `model` as a separate model with the same weights."""
    config = copy.deepcopy(model.config)
    config.is_decoder, config.is_encoder_decoder = True, False
    decoder = WhisperForCausalLM(config).eval()
    decoder.load_state_dict(model.state_dict(), strict=False)
    return decoder


def test_a_decoder_reads_the_models_encoder() -> None:
    model = copy.deepcopy(encoder_decoder("whisper"))
    features = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(2))
    helper = whisper_decoder(model)
    read: list[bool] = []
    helper.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["encoder_outputs"] is not None), with_kwargs=True
    )
    call: dict[str, Any] = {"max_new_tokens": 10, "decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 3}
    lengths: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    tokens = generate_tokens(model, features, assistant_model=helper, assistant_confidence_threshold=0.0, **call)
    assert torch.equal(tokens, generate_tokens(model, features, **call))
    assert read and all(read) and lengths[:2] == [1, 9]
    call |= {"do_sample": True, "seed": 3, "num_return_sequences": 3}
    copies = generate_tokens(model, features.repeat(2, 1, 1), assistant_model=helper, **call)
    assert torch.equal(copies, generate_tokens(model, features.repeat(2, 1, 1), **call))


@pytest.mark.parametrize(("name", "helper"), [("t5", "llama"), ("bart", "t5"), ("t5", "gpt2")])
def test_other_families_assist_an_encoder_decoder(name: str, helper: str) -> None:
    model = encoder_decoder(name)
    ids = torch.cat([IDS, IDS + 1])
    call: dict[str, Any] = {
        "max_new_tokens": 10,
        "decoder_start_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": [3, 30, 31],
    }
    drafted = generate_tokens(model, ids, assistant_model=target(helper), **call)
    assert torch.equal(drafted, generate_tokens(model, ids, **call))


def test_prompt_lookup_starts_from_embeddings() -> None:
    model = hf_model("llama")
    call = {"inputs_embeds": model.get_input_embeddings()(IDS), "max_new_tokens": 9, "pad_token_id": 0}
    assert torch.equal(generate_tokens(model, prompt_lookup_num_tokens=2, **call), generate_tokens(model, **call))
    with pytest.raises(ValueError, match="`assistant_model` needs a prompt of `input_ids`"):
        generate(model, assistant_model=assistant("llama"), **call)


def test_guidance_is_for_the_model_alone() -> None:
    call: dict[str, Any] = {"max_new_tokens": 9, "pad_token_id": 0, "guidance_scale": 1.5}
    drafted = generate_tokens(hf_model("llama"), IDS, assistant_model=assistant("llama"), **call)
    assert torch.equal(drafted, generate_tokens(hf_model("llama"), IDS, **call))


@pytest.mark.parametrize("broken", ["model", "assistant"])
@pytest.mark.parametrize("how", ["assistant", "early exit"])
def test_models_are_usable_after_an_error(broken: str, how: str) -> None:
    model, helper = copy.deepcopy(hf_model("llama")), copy.deepcopy(hf_model("llama"))
    drafts: dict[str, Any] = {"assistant_model": helper} if how == "assistant" else {"assistant_early_exit": 1}
    call = {"max_new_tokens": 12, "pad_token_id": 0, **drafts}
    before = generate_tokens(model, IDS, **call)
    failing = helper if broken == "assistant" and how == "assistant" else model
    for number in (1, 2, 3, 4):
        left = [number]

        def fail(module: Any, args: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise RuntimeError("out of memory")

        handle = failing.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            generate(model, IDS, **call)
        handle.remove()
        assert torch.equal(generate_tokens(model, IDS, **call), before)
        assert model.config.num_hidden_layers == 2


ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("cache", {"use_cache": False}, "`use_cache` must be True with drafts, got False"),
    ("tokenizer", {"assistant_tokenizer": object()}, "`assistant_tokenizer` must be left out .* vocabulary of 101"),
    ("number", {"num_assistant_tokens": 0}, "`num_assistant_tokens`"),
]


@pytest.mark.parametrize(("arguments", "message"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    model = copy.deepcopy(hf_model("llama"))
    lengths = forwards(model)
    with pytest.raises(ValueError, match=message):
        generate(model, IDS, assistant_model=assistant("llama"), max_new_tokens=3, pad_token_id=0, **arguments)
    assert lengths == []


@pytest.mark.parametrize("kind", ["static", "dynamic_full", None])
@pytest.mark.parametrize("window", [None, 6])
def test_every_cache_serves_drafts(kind: str | None, window: int | None) -> None:
    """All layers keep all positions, sliding windows too, because a rejected draft may need dropped ones again."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    }
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=window, pad_token_id=0)).eval()
    helper = copy.deepcopy(model)
    with torch.no_grad():
        helper.lm_head.weight.add_(0.01 * torch.randn_like(helper.lm_head.weight))
    call: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None, "return_dict_in_generate": True}
    output = generate_output(model, IDS, assistant_model=helper, cache_implementation=kind, **call)
    assert torch.equal(output.sequences, generate_output(model, IDS, **call).sequences)
    kinds = {type(layer).__name__ for layer in output.cache.layers}
    assert kinds == {"StaticLayer" if kind == "static" else "DynamicLayer"}
    assert int(output.cache.get_seq_length()) == output.sequences.shape[1] - 1


def test_a_static_cache_that_is_given_serves_drafts() -> None:
    model = hf_model("llama")
    cache = StaticCache(config=model.config, max_cache_len=30)
    call: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    drafted = generate_tokens(model, IDS, prompt_lookup_num_tokens=2, past_key_values=cache, **call)
    assert torch.equal(drafted, generate_tokens(model, IDS, **call))
    assert int(cache.get_seq_length()) == drafted.shape[1] - 1


def test_lookups_never_reach_beyond_the_end() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, 1, 2]])
    model = counting_table(6)
    model.table[5] = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0, 0.0])
    output = generate_output(model, ids, max_new_tokens=4, prompt_lookup_num_tokens=5, return_dict_in_generate=True)
    assert output.sequences.tolist() == [[1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1]] and output.finish_reason == ["length"]
    assert len(model.calls) == 2


def test_the_text_may_end_with_an_end_token() -> None:
    call: dict[str, Any] = {"max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": 61}
    plain = generate_tokens(hf_model("llama"), IDS, **call)
    assert torch.equal(generate_tokens(hf_model("llama"), IDS, assistant_model=assistant("llama"), **call), plain)
    assert plain.shape[1] > IDS.shape[1]
