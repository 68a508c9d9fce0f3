"""`grammar=` with the real xgrammar and llguidance: every search, streams and batches keep to the grammar."""

from __future__ import annotations

import json
import re
from typing import Any

import llguidance
import llguidance.hf
import pytest
import xgrammar

import pygen
from tests.clients import models

EBNF = 'root ::= "(" [ab]+ ")"'
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 3, "temperature": 2.0},
    "torch's noise": {"do_sample": True},
    "copies": {"do_sample": True, "seed": 1, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True, "seed": 4},
    "drafts": {"prompt_lookup_num_tokens": 3},
    "sampled drafts": {"prompt_lookup_num_tokens": 3, "do_sample": True, "seed": 2},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "do_sample": True, "seed": 2},
    "first tokens": {"min_new_tokens": 3, "do_sample": True, "seed": 5},
    "kept": {"do_sample": True, "seed": 2, "top_k": 3, "output_kept": True},
}


@pytest.fixture(scope="module")
def model() -> Any:
    return models.model()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.byte_tokenizer()


def grammar_of(kind: str, tokenizer: Any, model: Any) -> Any:
    """The same grammar in every form."""
    size = model.config.vocab_size
    if kind == "regex":
        return {"regex": r"\([ab]+\)"}
    if kind == "xgrammar":
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
        return xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_grammar(EBNF))
    if kind == "llguidance":
        own = llguidance.hf.from_tokenizer(tokenizer, size)
        return llguidance.LLMatcher(own, llguidance.LLMatcher.grammar_from_regex(r"\([ab]+\)"))
    return {"ebnf": EBNF}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("kind", ["ebnf", "regex", "xgrammar", "llguidance"])
def test_every_text_follows_the_grammar(name: str, kind: str, model: Any, tokenizer: Any) -> None:
    grammar = grammar_of(kind, tokenizer, model)
    inputs = tokenizer(["xy", "abxy"], return_tensors="pt", padding=True, return_token_type_ids=False)
    settings: dict[str, Any] = {"max_new_tokens": 9, "grammar": grammar, "tokenizer": tokenizer, **SEARCHES[name]}
    output: Any = pygen.generate(model, **inputs, **settings, return_dict_in_generate=True)
    texts = tokenizer.batch_decode(output.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for text in texts:
        assert re.fullmatch(r"\([ab]*\)?", text), text
    again: Any = pygen.generate(model, **inputs, **settings, return_dict_in_generate=True)
    if name not in ("torch's noise",):
        assert again.sequences.equal(output.sequences), "the caller's matcher has moved"


def test_a_json_schema_gives_valid_texts(model: Any, tokenizer: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": [1, 2]}}, "required": ["a", "b"]}
    prompts = [{"prompt": "xy" * n, "seed": n} for n in range(1, 7)]
    settings: dict[str, Any] = {"grammar": {"json_schema": schema}, "do_sample": True, "max_new_tokens": 60}
    results = [*pygen.generate_batch(model, prompts, tokenizer=tokenizer, rows=3, **settings)]
    ended = [result for result in results if result.finish_reason == "eos"]
    assert len(ended) >= 4
    for result in ended:
        assert result.text is not None
        found = json.loads(result.text)
        assert isinstance(found["a"], bool)
        assert found["b"] in (1, 2)
    for prompt, result in zip(prompts, results, strict=True):
        ids = tokenizer(prompt["prompt"], return_tensors="pt").input_ids
        alone: Any = pygen.generate(model, ids, seed=prompt["seed"], tokenizer=tokenizer, **settings)
        assert alone[0, ids.shape[1] :][: len(result.token_ids)].tolist() == result.token_ids


def test_prompts_may_have_grammars_of_their_own(model: Any, tokenizer: Any) -> None:
    grammars = [{"regex": "a{3}"}, {"regex": "b{3}"}]
    inputs = tokenizer(["xy", "xy"], return_tensors="pt", return_token_type_ids=False)
    tokens: Any = pygen.generate(model, **inputs, grammar=grammars, tokenizer=tokenizer, max_new_tokens=4, num_beams=2)
    assert tokenizer.batch_decode(tokens[:, 2:], skip_special_tokens=True) == ["aaa", "bbb"]
    events = pygen.stream(model, **inputs, grammar=grammars, tokenizer=tokenizer, max_new_tokens=4)
    texts = ["", ""]
    for event in events:
        texts[event.row] += "" if event.finish_reason == "eos" else event.text or ""
    assert texts == ["aaa", "bbb"]


@pytest.mark.parametrize(
    ("grammar", "error", "message"),
    [
        ({"regex": "a", "ebnf": "b"}, ValueError, "exactly one of the keys json_schema, regex, ebnf"),
        ({"lark": "a"}, ValueError, "exactly one of the keys"),
        ({"ebnf": "root ::= ("}, ValueError, "`grammar`: xgrammar cannot compile this ebnf"),
        ("a+", TypeError, "must be a dict with one of"),
        ([{"regex": "a"}], ValueError, r"one or a list of one per prompt \(2\), got 1"),
    ],
)
def test_refusals(grammar: Any, error: type[Exception], message: str, model: Any, tokenizer: Any) -> None:
    inputs = tokenizer(["xy", "xy"], return_tensors="pt", return_token_type_ids=False)
    with pytest.raises(error, match=message):
        pygen.generate(model, **inputs, grammar=grammar, tokenizer=tokenizer, max_new_tokens=4)


def test_other_searches_are_refused_by_name(model: Any, tokenizer: Any) -> None:
    inputs = tokenizer(["xy"], return_tensors="pt", return_token_type_ids=False)
    with pytest.raises(NotImplementedError, match="`grammar` is not available in contrastive search"):
        pygen.generate(
            model, **inputs, grammar={"regex": "a"}, tokenizer=tokenizer, max_new_tokens=4, penalty_alpha=0.5, top_k=3
        )


def test_without_a_tokenizer_nothing_can_be_compiled(model: Any, tokenizer: Any) -> None:
    inputs = tokenizer(["xy"], return_tensors="pt", return_token_type_ids=False)
    with pytest.raises(ValueError, match="needs the model's tokenizer"):
        pygen.generate(model, **inputs, grammar={"regex": "a"}, max_new_tokens=4)
