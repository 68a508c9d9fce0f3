"""Random prompts with their own settings, drawn again alike from the same seed."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import tokenizers
import transformers
from tokenizers import models, pre_tokenizers

from pygen.config import WatermarkingConfig
from tests.batch.models import VOCAB_SIZE

# Beginnings that prompts share.
_BEGINNINGS = tuple(tuple((7 * n + 31 * k) % VOCAB_SIZE for n in range(20 + 13 * k)) for k in range(3))
_LONGEST_PROMPT, _MOST_TOKENS = 70, 24


@functools.cache
def tokenizer() -> Any:
    """Token n is the word "wn"."""
    vocabulary = {f"w{token_id}": token_id for token_id in range(VOCAB_SIZE)}
    words = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")


class Reweighted:
    """A processor with a state: it changes other scores in every step."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.clone()
        scores[:, self._random.randrange(VOCAB_SIZE)] += 4.0
        return scores


def _allowed(modulus: int) -> Callable[[int, Any], list[int]]:
    """Allows every `modulus`-th id from the last one on."""
    return lambda _, ids: [(int(ids[-1]) + modulus * n) % VOCAB_SIZE for n in range(1, 1 + VOCAB_SIZE // modulus)]


# Each draws the value of one setting.
_SETTINGS: dict[str, Callable[[random.Random], Any]] = {
    "repetition_penalty": lambda r: r.uniform(0.6, 2.0),
    "presence_penalty": lambda r: r.uniform(-1.0, 2.0),
    "frequency_penalty": lambda r: r.uniform(-1.0, 2.0),
    "no_repeat_ngram_size": lambda r: r.randint(1, 3),
    "temperature": lambda r: r.choice((0.0, 0.3, 0.9, 2.5)),
    "top_n_sigma": lambda r: r.uniform(0.5, 4.0),
    "top_h": lambda r: r.uniform(0.1, 1.0),
    "top_k": lambda r: r.randint(1, 40),
    "top_p": lambda r: r.uniform(0.1, 1.0),
    "min_p": lambda r: r.uniform(0.0, 0.5),
    "typical_p": lambda r: r.uniform(0.1, 1.0),
    "epsilon_cutoff": lambda r: r.uniform(0.0, 0.05),
    "eta_cutoff": lambda r: r.uniform(0.0, 0.05),
    "min_new_tokens": lambda r: r.randint(1, 8),
    "min_length": lambda r: r.randint(1, 40),
    "forced_bos_token_id": lambda r: r.randrange(VOCAB_SIZE),
    "forced_eos_token_id": lambda r: r.choice((3, [3, 4])),
    "bad_words_ids": lambda r: [_ids(r, r.randint(1, 3)) for _ in range(r.randint(1, 9))],
    "sequence_bias": lambda r: {tuple(_ids(r, r.randint(1, 2))): r.uniform(-9.0, 9.0) for _ in range(5)},
    "suppress_tokens": lambda r: r.sample(range(VOCAB_SIZE), r.randint(1, 60)),
    "begin_suppress_tokens": lambda r: r.sample(range(VOCAB_SIZE), r.randint(1, 60)),
    "exponential_decay_length_penalty": lambda r: (r.randint(0, 6), r.uniform(1.01, 1.4)),
    "encoder_repetition_penalty": lambda r: r.uniform(0.7, 1.5),
    "renormalize_logits": lambda r: True,
    "remove_invalid_values": lambda r: True,
    "on_invalid": lambda r: r.choice(("raise", "greedy", "eos")),
    "watermarking_config": lambda r: WatermarkingConfig(bias=r.uniform(0.5, 4.0), context_width=r.randint(1, 2)),
    "stop_strings": lambda r: [f"w{n}" for n in r.sample(range(VOCAB_SIZE), r.randint(1, 4))] + ["w1 w2"],
    "num_return_sequences": lambda r: r.randint(2, 4),
    "output_logprobs": lambda r: r.choice((True, "processed", "raw")),
    "output_kept": lambda r: True,
    "prefix_allowed_tokens_fn": lambda r: _allowed(r.randint(2, 9)),
    "logits_processor": lambda r: [Reweighted(r.randrange(99))],
    "stopping_criteria": lambda r: [_every(r.randint(3, 30))],
}


def _every(modulus: int) -> Callable[[Any, Any], Any]:
    return lambda input_ids, scores: input_ids[:, -1] % modulus == 0


def draw_prompt(source: random.Random) -> dict[str, Any]:
    """A prompt with settings; the same one from a source in the same state, with new callables."""
    prompt: dict[str, Any] = {"max_new_tokens": source.choice((1, 2, source.randint(1, _MOST_TOKENS)))}
    prompt["do_sample"] = source.random() < 0.7
    prompt |= {name: draw(source) for name, draw in _SETTINGS.items() if source.random() < 0.13}
    if source.random() < 0.8:
        prompt["eos_token_id"] = source.choice((source.randrange(VOCAB_SIZE), _ids(source, 7)))
        prompt["pad_token_id"] = source.choice((0, VOCAB_SIZE - 1))
    # Without ids that end a text, `generate` goes on until a criterion has ended all copies.
    goes_on = "eos_token_id" not in prompt and prompt.keys() & {"stopping_criteria", "stop_strings"}
    if not prompt["do_sample"] or "logits_processor" in prompt or goes_on:
        prompt.pop("num_return_sequences", None)
    if prompt["do_sample"] and source.random() < 0.9:
        prompt["seed"] = source.randrange(2**63)
    copies = prompt.get("num_return_sequences", 1)
    for name in prompt.keys() & {"temperature", "top_k", "repetition_penalty", "typical_p"}:
        if copies > 1 and source.random() < 0.5:
            prompt[name] = [_SETTINGS[name](source) for _ in range(copies)]
    if copies > 1 and source.random() < 0.3:
        prompt["do_sample"] = [True, *(source.random() < 0.5 for _ in range(copies - 1))]
    if "output_logprobs" in prompt and source.random() < 0.5:
        prompt["top_logprobs"] = source.randint(1, 5)
    if "output_kept" in prompt and source.random() < 0.5:
        prompt["kept_limit"] = source.randint(1, 30)
    ids = _prompt_ids(source)
    if source.random() < 0.2:
        return {"prompt": " ".join(f"w{token_id}" for token_id in ids), **prompt}
    return {"input_ids": ids, **prompt}


def _prompt_ids(source: random.Random) -> list[int]:
    length = min(int(source.paretovariate(0.8)) + source.randint(0, 5), _LONGEST_PROMPT)
    if source.random() < 0.5:
        beginning = source.choice(_BEGINNINGS)
        return [*beginning[: source.randint(1, len(beginning))], *_ids(source, source.randint(0, 6))]
    return _ids(source, max(length, 1))


def _ids(source: random.Random, count: int) -> list[int]:
    return [source.randrange(VOCAB_SIZE) for _ in range(count)]
