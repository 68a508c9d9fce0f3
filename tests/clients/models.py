"""A small model with a word tokenizer, built without downloads."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel as ByteLevelSplit
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests.generate.models import VOCAB_SIZE, hf_model

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def model(family: str = "llama") -> Any:
    result = copy.deepcopy(hf_model(family))
    result.generation_config.update(pad_token_id=0, eos_token_id=2)
    return result


def tokenizer(*words: str) -> Any:
    """Returns a tokenizer that knows `words`, and fills the model's vocabulary with w0, w1, ...."""
    words = (*SPECIAL, *words)
    words = (*words, *(f"w{number}" for number in range(VOCAB_SIZE - len(words))))
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    result = PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **names)
    result.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return result


def byte_tokenizer() -> Any:
    """Returns a tokenizer of single ASCII characters, as packages with grammars read them."""
    characters = [*(chr(code) for code in range(33, 127)), "\u0120"]  # the last one is a space in byte-level BPE
    words = [*SPECIAL, *characters, *(f"w{number}" for number in range(VOCAB_SIZE - len(SPECIAL) - len(characters)))]
    inner = Tokenizer(BPE(vocab={word: number for number, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = ByteLevelSplit(add_prefix_space=False), ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **names)


def parameters(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
