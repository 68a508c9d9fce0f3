"""Candidate generators: alone, in transformers' loop, and with another tokenizer."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
import transformers.generation.candidate_generator as theirs
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    SuppressTokensLogitsProcessor,
)

from pygen import candidates
from pygen.candidates.universal import continued
from pygen.generate import generate
from tests.generate.models import hf_model
from tests.helpers.generation import generate_tokens

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IDS = torch.tensor([[5, 17, 40, 8, 9, 61]])
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a small model drafts the tokens of a large model",
    "the model checks the drafts of the small model",
]


@pytest.mark.skipif(transformers.__version__ != "5.6.1", reason="the signatures are those of 5.6.1")
@pytest.mark.parametrize("name", candidates.__all__)
def test_signatures(name: str) -> None:
    """Compares with 5.6.1's. `get_candidates` also takes the keywords that later releases pass."""
    ours, other = getattr(candidates, name), getattr(theirs, name)
    for method in ("__init__", "get_candidates", "update_candidate_strategy", "get_translator", "get_target_ids"):
        assert hasattr(ours, method) == hasattr(other, method)
        if hasattr(other, method):
            expected = _parameters(getattr(other, method))
            if method == "get_candidates":
                expected.append(("kwargs", inspect.Parameter.VAR_KEYWORD, inspect.Parameter.empty))
            assert _parameters(getattr(ours, method)) == expected


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(
    ("text", "settings", "drafts"),
    [
        ([1, 2, 3, 4, 1, 2], {}, [3, 4, 1, 2]),
        ([1, 2, 3, 4, 1, 2], {"num_output_tokens": 2}, [3, 4]),
        ([1, 2, 7, 9, 2, 8, 1, 2], {"num_output_tokens": 1}, [7]),
        ([1, 2, 7, 9, 2, 8, 3, 2], {"num_output_tokens": 1}, [7]),
        ([1, 2, 3, 4, 1, 2], {"eos_token_id": torch.tensor([4])}, [3]),
        ([1, 2, 3, 4, 1, 2], {"eos_token_id": torch.tensor([3])}, []),
        ([1, 2, 3, 4, 1, 2], {"max_length": 7}, []),
        ([1, 2, 3, 4], {}, []),
        ([1], {}, []),
    ],
)
def test_prompt_lookup(text: list[int], settings: dict[str, Any], drafts: list[int]) -> None:
    generator = candidates.PromptLookupCandidateGenerator(**settings)
    found, scores = generator.get_candidates(torch.tensor([text]))
    assert found.tolist() == [text + drafts] and scores is None


def test_prompt_lookup_is_transformers() -> None:
    draw = random.Random(1)
    for _ in range(300):
        ids = torch.tensor([[draw.randrange(6) for _ in range(draw.randint(1, 14))]])
        arguments: dict[str, Any] = {
            "eos_token_id": torch.tensor([5]),
            "num_output_tokens": draw.randint(1, 6),
            "max_matching_ngram_size": draw.randint(1, 4),
            "max_length": 40,
            "logits_processor": LogitsProcessorList([SuppressTokensLogitsProcessor([draw.randrange(6)], "cpu")]),
            "vocab_size": 6,
        }
        ours = candidates.PromptLookupCandidateGenerator(**arguments)
        other: Any = theirs.PromptLookupCandidateGenerator(**arguments)
        assert torch.equal(ours.get_candidates(ids)[0], other.get_candidates(ids)[0]), ids


def test_rows_of_a_lookup_get_as_many_drafts() -> None:
    generator = candidates.PromptLookupCandidateGenerator()
    found, _ = generator.get_candidates(torch.tensor([[1, 2, 3, 4, 1, 2], [1, 5, 7, 8, 5, 7]]))
    assert found.tolist() == [[1, 2, 3, 4, 1, 2, 3, 4, 1], [1, 5, 7, 8, 5, 7, 8, 5, 7]]


@pytest.mark.parametrize("name", ["num_output_tokens", "max_matching_ngram_size"])
def test_lookups_of_nothing_are_refused(name: str) -> None:
    wrong: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be > 0, got 0"):
        candidates.PromptLookupCandidateGenerator(**wrong)


def test_the_base_class_names_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match="CandidateGenerator must define `get_candidates`"):
        candidates.CandidateGenerator().get_candidates(IDS)


@functools.cache
def noisy() -> Any:
    model = copy.deepcopy(hf_model("llama"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
    return model


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.7, "top_k": 20}])
@pytest.mark.parametrize("kind", ["AssistedCandidateGenerator", "EarlyExitCandidateGenerator"])
def test_the_loop_of_transformers_takes_them(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.generation.utils as utils

    model = copy.deepcopy(hf_model("llama"))
    call: dict[str, Any] = {"max_new_tokens": 14, "eos_token_id": 3, "pad_token_id": 0, **settings}
    drafts = {"assistant_model": noisy()} if kind.startswith("Assisted") else {"assistant_early_exit": 1}
    torch.manual_seed(0)
    expected = model.generate(IDS, **call, **drafts)
    rounds: list[int] = []
    ours = getattr(candidates, kind)

    def counted(generator: Any, input_ids: Tensor) -> Any:
        rounds.append(input_ids.shape[1])
        return ours.get_candidates(generator, input_ids)

    monkeypatch.setattr(utils, kind, type("Counted", (ours,), {"get_candidates": counted}))
    torch.manual_seed(0)
    assert torch.equal(model.generate(IDS, **call, **drafts), expected)
    assert rounds and len(rounds) < 14


@functools.cache
def tokenizer(size: int) -> Any:
    model = Tokenizer(BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = [*"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<e>"], show_progress=False
    )
    model.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<e>", pad_token="<e>")


@functools.cache
def language_model(size: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def other_vocabulary() -> tuple[Any, Tensor, dict[str, Any]]:
    """Returns (model, prompt, arguments of an assistant that uses 50 of the model's 80 tokens)."""
    prompt = tokenizer(80)("the quick model drafts ", return_tensors="pt")["input_ids"]
    drafts = {
        "assistant_model": language_model(50, 1),
        "tokenizer": tokenizer(80),
        "assistant_tokenizer": tokenizer(50),
    }
    return language_model(80, 0), prompt, drafts


@pytest.mark.parametrize("settings", [{}, {"eos_token_id": [9, 40]}, {"repetition_penalty": 1.3}, {"seed": 3}], ids=str)
@pytest.mark.parametrize("lookbehind", [1, 3, 10])
def test_another_tokenizer_changes_no_token(settings: dict[str, Any], lookbehind: int) -> None:
    model, prompt, drafts = other_vocabulary()
    call: dict[str, Any] = {"max_new_tokens": 40, "pad_token_id": 0, "do_sample": "seed" in settings, **settings}
    windows: dict[str, Any] = {
        "assistant_lookbehind": lookbehind,
        "target_lookbehind": lookbehind,
        "num_assistant_tokens": 4,
    }
    drafted = generate_tokens(model, prompt, **call, **drafts, **windows, assistant_confidence_threshold=0.0)
    assert torch.equal(drafted, generate_tokens(model, prompt, **call))


def test_text_that_survives_a_round_trip_is_drafted() -> None:
    """The model assists itself: every draft is right, in the first round and after it."""
    model, prompt, _ = other_vocabulary()
    model = copy.deepcopy(model)
    # Decoded texts lack special tokens, so the model must not choose one.
    model.lm_head.weight.data[tokenizer(80).eos_token_id] = 0
    expected = generate_tokens(model, prompt, max_new_tokens=30, pad_token_id=0)
    text = tokenizer(80).decode(expected[0])
    assert tokenizer(80)(text)["input_ids"] == expected[0].tolist()
    model.generation_config = GenerationConfig(num_assistant_tokens=4, assistant_confidence_threshold=0.0)
    generator = candidates.AssistedCandidateGeneratorDifferentTokenizers(
        prompt, model, tokenizer(80), tokenizer(80), GenerationConfig(max_length=expected.shape[1]), {}
    )
    for length in range(prompt.shape[1], expected.shape[1] - 5, 5):
        found, _ = generator.get_candidates(expected[:, :length])
        assert torch.equal(found, expected[:, : length + 4])


@pytest.mark.parametrize(
    ("known", "window", "expected"),
    [
        ([1, 2, 3], [2, 3, 4], (3, [4])),
        ([1, 2, 3], [1, 2, 9, 8], (2, [9, 8])),
        ([1, 2, 3], [7, 8], (3, [7, 8])),
        ([], [7], (0, [7])),
        ([1, 2, 1, 2], [1, 2, 5], (2, [5])),
    ],
)
def test_a_window_continues(known: list[int], window: list[int], expected: tuple[int, list[int]]) -> None:
    assert continued(known, window) == expected


@pytest.mark.parametrize("prune", [False, True])
def test_translator(prune: bool) -> None:
    model, tokens = language_model(50, 1), (tokenizer(80), tokenizer(50))
    own, of_target = tokens[1].get_vocab(), tokens[0].get_vocab()
    translator = candidates.AssistantToTargetTranslator(*tokens, 80, model, prune)
    spelt = {of_target[token]: token_id for token, token_id in own.items() if token in of_target}
    assert translator.target_to_assistant_input_ids == spelt and len(spelt) > 26
    logits = torch.randn(2, 50)
    overlap = translator.assistant_overlap_token_ids
    given = logits[:, overlap] if translator.assistant_prune_lm_head else logits
    translated = translator.get_target_logits(given)
    for target_id in range(80):
        column = logits[:, spelt[target_id]] if target_id in spelt else torch.full((2,), -torch.inf)
        assert torch.equal(translated[:, target_id], column)
    ids = translator.get_target_ids(torch.tensor([[1]]), torch.tensor([[70]]), torch.tensor([[1, 5]]))
    chosen = int(overlap[5]) if translator.assistant_prune_lm_head else 5
    assert ids.tolist() == [[70, {v: k for k, v in spelt.items()}[chosen]]]


def test_translators_are_kept_as_long_as_their_tokenizers() -> None:
    cache = candidates.AssistantVocabTranslatorCache
    target, other = copy.deepcopy(tokenizer(80)), copy.deepcopy(tokenizer(50))
    first = cache.get_translator(target, other, 80)
    assert cache.get_translator(target, other, 80) is first
    assert cache.get_translator(target, other, 90) is not first
    before = len(cache._cache)
    del target
    gc.collect()
    cache.cleanup()
    assert len(cache._cache) == before - 1


def test_shared_tokens_follow_the_models_distribution() -> None:
    model, prompt, drafts = other_vocabulary()
    call: dict[str, Any] = {"do_sample": True, "top_k": 4, "max_new_tokens": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    weights = [copy.deepcopy(parameter) for parameter in drafts["assistant_model"].parameters()]
    drafts = {**drafts, "num_assistant_tokens": 1, "assistant_confidence_threshold": 0.0}
    drafted = [
        generate_tokens(model, prompt, **call, **drafts)[:, -2:]
        for call["num_return_sequences"] in [1] * 300 + [30] * 10
    ]
    del call["num_return_sequences"]
    plain = generate_tokens(model, prompt.repeat(20000, 1), **call)[:, -2]
    share = [torch.bincount(tokens, minlength=80) / len(tokens) for tokens in (torch.cat(drafted)[:, 0], plain)]
    assert (share[0] - share[1]).abs().sum() / 2 < 0.08
    now = list(drafts["assistant_model"].parameters())
    assert len(now) == len(weights) and all(map(torch.equal, now, weights))


def test_generators_with_another_tokenizer_take_one_row() -> None:
    model, prompt, drafts = other_vocabulary()
    with pytest.raises(ValueError, match="`input_ids` must have one row, got 2"):
        candidates.AssistedCandidateGeneratorDifferentTokenizers(
            prompt.repeat(2, 1), model, drafts["tokenizer"], drafts["assistant_tokenizer"], GenerationConfig(), {}
        )


def prompts() -> tuple[Tensor, Tensor]:
    """Returns three prompts of the larger tokenizer, left-padded with token 7, and their mask."""
    texts = ["the quick model drafts ", "the lazy dog ", "a small model checks the drafts of "]
    rows = [tokenizer(80)(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    return (
        torch.tensor([[7] * (width - len(row)) + row for row in rows]),
        torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eos_token_id": [*range(5, 25)]},
        {"seed": 3},
        {"seed": 3, "num_return_sequences": 2, "temperature": [1, 2, 0]},
    ],
    ids=str,
)
@pytest.mark.parametrize("lookbehind", [1, 10])
def test_batches_with_another_tokenizer(settings: dict[str, Any], lookbehind: int) -> None:
    model, _, drafts = other_vocabulary()
    ids, mask = prompts()
    call: dict[str, Any] = {
        "attention_mask": mask,
        "max_new_tokens": 25,
        "pad_token_id": 0,
        "do_sample": "seed" in settings,
        **settings,
    }
    windows: dict[str, Any] = {
        "assistant_lookbehind": lookbehind,
        "target_lookbehind": lookbehind,
        "num_assistant_tokens": 4,
    }
    drafted = generate_tokens(model, ids, **call, **drafts, **windows, assistant_confidence_threshold=0.0)
    assert torch.equal(drafted, generate_tokens(model, ids, **call))


def test_rows_of_other_lengths_are_drafted() -> None:
    """A copy of the model with a wider head assists it: the drafts of every row are right."""
    model, _, _ = other_vocabulary()
    model = copy.deepcopy(model)
    model.lm_head.weight.data[tokenizer(80).eos_token_id] = 0
    helper, rounds = copy.deepcopy(model), []
    helper.resize_token_embeddings(90)
    helper.lm_head.weight.data[80:] = 0
    model.register_forward_pre_hook(lambda *args: rounds.append(1))
    ids, mask = prompts()
    both: dict[str, Any] = {"tokenizer": tokenizer(80), "assistant_tokenizer": tokenizer(80), "assistant_model": helper}
    settings: dict[str, Any] = {"num_assistant_tokens": 4, "assistant_confidence_threshold": 0.0, "max_new_tokens": 16}
    generate(model, ids, attention_mask=mask, pad_token_id=0, **both, **settings)
    assert len(rounds) <= 8


def test_a_value_that_isnt_a_tokenizer_is_refused() -> None:
    model, prompt, drafts = other_vocabulary()
    with pytest.raises(TypeError, match="`assistant_tokenizer` must be a tokenizer of transformers, got str"):
        generate(model, prompt, max_new_tokens=3, **drafts | {"assistant_tokenizer": "name"})
