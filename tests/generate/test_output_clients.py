"""transformers code that unpacks outputs: Whisper's `generate` and the pipelines."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedTokenizerFast,
    TextGenerationPipeline,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import pygen
from tests.generate.models import VOCAB_SIZE, hf_model


@functools.cache
def whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")
    }
    tokens: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    config = WhisperConfig(
        vocab_size=92, max_source_positions=50, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes, **tokens
    )
    model = WhisperForConditionalGeneration(config)
    model.eval()
    settings = {
        "no_timestamps_token_id": 40,
        "is_multilingual": False,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        "alignment_heads": [[0, 0], [1, 1]],
        "max_length": None,
    }
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


# With beams transformers returns the cache of the running beams, pygen that of the sequences.
CACHE_NAMES = {"past_key_values", "cache"}


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, Tensor):
        return bool(ours.shape == theirs.shape) and torch.allclose(ours, theirs, atol=1e-4)
    if isinstance(theirs, EncoderDecoderCache):
        return all(
            same([mine.keys, mine.values], [other.keys, other.values])
            for part in ("self_attention_cache", "cross_attention_cache")
            for mine, other in zip(getattr(ours, part).layers, getattr(theirs, part).layers, strict=True)
        )
    if isinstance(theirs, dict):
        names = [name for name in theirs if name not in CACHE_NAMES]
        return [*ours] == [*theirs] and all(same(ours[name], theirs[name]) for name in names)
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, float):
        return bool(ours == pytest.approx(theirs, rel=1e-4, abs=1e-4))
    return bool(ours == theirs)


EVERYTHING = {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True, "output_logits": True}


@pytest.mark.parametrize(
    ("frames", "settings"),
    [
        (100, {"return_dict_in_generate": True}),
        (100, EVERYTHING),
        (100, {"return_token_timestamps": True}),
        (100, {"return_token_timestamps": True, "return_segments": True, "num_beams": 3}),
        (100, {"num_beams": 2, "return_dict_in_generate": True, "output_scores": True, "return_timestamps": True}),
        (100, {"return_timestamps": True, "temperature": (0.0, 0.4), "logprob_threshold": -1.0}),
        (
            250,
            {
                "return_timestamps": True,
                "temperature": (0.0, 0.2, 0.4),
                "logprob_threshold": -1.0,
                "compression_ratio_threshold": 1.35,
                "no_speech_threshold": 0.6,
                "return_segments": True,
            },
        ),
    ],
)
def test_whisper_around_pygen(frames: int, settings: dict[str, Any]) -> None:
    features = torch.randn(2, 80, frames, generator=torch.Generator().manual_seed(1))
    call = {"max_new_tokens": 8, "attention_mask": torch.ones(2, frames, dtype=torch.int64), **settings}
    torch.manual_seed(0)
    theirs = whisper().generate(features, **call)
    torch.manual_seed(0)
    with pygen.patch(GenerationMixin):
        ours = whisper().generate(features, **call)
    if isinstance(theirs, Tensor):
        assert ours.equal(theirs)
        return
    assert same(ours, theirs)
    for name in CACHE_NAMES & {*theirs} if "num_beams" not in settings else ():
        assert same(ours[name], theirs[name])


@pytest.mark.parametrize(
    "extra", [{}, {"num_return_sequences": 2, "do_sample": True}, {"num_beams": 2, "do_sample": False}]
)
def test_a_pipeline_that_asks_for_scores(extra: dict[str, Any]) -> None:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", padding_side="left")
    pipeline = TextGenerationPipeline(model=hf_model("llama"), tokenizer=tokenizer)
    prompts = ["w5 w6", "w7 w8"]
    call = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True, **extra}
    torch.manual_seed(0)
    theirs = pipeline(prompts, **call)
    torch.manual_seed(0)
    with pygen.patch(GenerationMixin):
        ours = pipeline(prompts, **call)
    assert same(ours, theirs)
    assert "generated_text" in theirs[0][0]
