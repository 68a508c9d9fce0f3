"""xgrammar: its processor for transformers constrains pygen's text to a grammar, and reads every token once."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import xgrammar
from xgrammar.contrib.hf import LogitsProcessor

import pygen
from tests.clients import models

GRAMMAR = 'root ::= "(" ("w5" | "w6")+ ")"'


def processor(tokenizer: Any, model: Any) -> LogitsProcessor:
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
    return LogitsProcessor(xgrammar.GrammarCompiler(info).compile_grammar(GRAMMAR))


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"do_sample": True, "num_return_sequences": 2}])
def test_as_transformers(settings: dict[str, Any]) -> None:
    model, tokenizer = models.model(), models.tokenizer("(", ")")
    inputs = tokenizer(["w8 w9", "w10 w11 w12"], return_tensors="pt", padding=True, return_token_type_ids=False)

    def texts(generate: Any) -> Any:
        torch.manual_seed(0)
        return generate(**inputs, max_new_tokens=8, logits_processor=[processor(tokenizer, model)], **settings)

    tokens = texts(lambda **kwargs: pygen.generate(model, **kwargs))
    assert tokens.equal(texts(model.generate))
    for text in tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
        assert re.fullmatch(r"\((w5|w6)*\)?", text.replace(" ", ""))
