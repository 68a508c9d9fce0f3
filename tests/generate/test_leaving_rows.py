"""Rows that have ended leave the batch: everything but the number of rows that the model reads stays the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM

import pygen
from pygen.decode.leaving import LEAST_ROWS, pays
from pygen.generate import generate
from pygen.processors import LogitsProcessor
from tests.generate.models import CachedModel, TableModel, cached_model, counting_table, encoder_decoder, hf_model
from tests.helpers.generation import generate_output, generate_tokens

ROWS, PROMPT, NEW = 12, 6, 16
EOS, PAD = 7, 0
# Products over fewer rows round differently, and the scores of these models spread over some tens.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def prompts(rows: int = ROWS) -> dict[str, Any]:
    """Texts of several lengths, padded on the left; the longest is among those that run to the end."""
    ids = torch.randint(10, 100, (rows, PROMPT), generator=torch.Generator().manual_seed(5))
    mask = torch.arange(PROMPT) >= torch.arange(rows)[:, None] % 4
    return {"input_ids": ids.where(mask, PAD), "attention_mask": mask.long()}


class EndsAt:
    """Ends row r after lengths[r] tokens; notes the shapes that it is called with."""

    def __init__(self, lengths: list[int], prompt: int = PROMPT) -> None:
        self.lengths, self.prompt = torch.tensor(lengths), prompt
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        self.shapes.append(tuple(input_ids.shape))
        return input_ids.shape[1] - self.prompt >= self.lengths


# Rows end alone and together, the first and the last row too; several run to the end.
LENGTHS = [1, 16, 3, 3, 3, 8, 9, 2, 16, 5, 12, 4]


@contextmanager
def read_rows(model: nn.Module) -> Iterator[list[int]]:
    """The number of rows of every forward in the block."""
    rows: list[int] = []

    def note(module: nn.Module, args: object, kwargs: Any, output: Any) -> None:
        rows.append(output.logits.shape[0])

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def settings(**more: Any) -> dict[str, Any]:
    common = {"max_new_tokens": NEW, "eos_token_id": EOS, "pad_token_id": PAD, "return_dict_in_generate": True}
    return {**common, "output_logprobs": True, "top_logprobs": 2, **more}


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False, "repetition_penalty": 1.3},
    "seed": {"do_sample": True, "seed": 3, "top_k": 30, "temperature": [0.7 + r / 20 for r in range(ROWS)]},
    "torch": {"do_sample": True, "top_p": 0.9},
    "torch, no filter": {"do_sample": True, "top_k": 0},
}


def both(model: Any, inputs: dict[str, Any], **knobs: Any) -> tuple[Any, Any, list[int]]:
    """The outputs with and without compaction, and the rows that the model read with it."""
    outputs, states, prompt = [], [], PROMPT
    if model.config.is_encoder_decoder:
        knobs, prompt = {"decoder_start_token_id": 1, **knobs}, 1
    with read_rows(model) as rows:
        for compact in (True, False):
            torch.manual_seed(11)
            counted = len(rows)
            criteria = [EndsAt(LENGTHS, prompt)]
            outputs.append(
                generate_output(model, **inputs, compact_rows=compact, stopping_criteria=criteria, **settings(**knobs))
            )
            states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert len(rows) == 2 * counted
    assert set(rows[counted:]) <= {ROWS, rows[0]}
    return outputs[0], outputs[1], rows[:counted]


def lengths(output: Any) -> Tensor:
    """(rows,): the tokens that each row has, which may have met an EOS token first."""
    is_eos = output.sequences[:, -NEW:] == EOS
    by_token = torch.where(is_eos.any(1), is_eos.int().argmax(1) + 1, NEW)
    return torch.minimum(by_token, torch.tensor(LENGTHS))


def check_same(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.sequences, theirs.sequences)
    assert ours.finish_reason == theirs.finish_reason
    torch.testing.assert_close(ours.logprobs, theirs.logprobs, **CLOSE)
    assert torch.equal(ours.top_logprobs.token_ids, theirs.top_logprobs.token_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_the_call_returns_the_same(family: str, kind: str) -> None:
    model = encoder_decoder(family) if family in ("t5", "bart") else hf_model(family)
    ours, theirs, rows = both(model, prompts(), **KINDS[kind])
    check_same(ours, theirs)
    assert rows[0] == ROWS and rows[-1] < ROWS / 2 and rows == sorted(rows, reverse=True)


def test_without_a_cache_and_with_copies() -> None:
    inputs = {name: value[:4] for name, value in prompts().items()}
    ours, theirs, rows = both(hf_model("llama"), inputs, num_return_sequences=3, use_cache=False, **KINDS["torch"])
    check_same(ours, theirs)
    assert rows[:2] == [4, ROWS] and rows[-1] < ROWS / 2


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_records_have_all_rows(family: str) -> None:
    """A row's records agree as long as it runs; then scores and logits repeat, and zeros fill the other records."""
    model = encoder_decoder(family) if family == "t5" else hf_model(family)
    flags = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        ours, theirs, _ = both(model, prompts(), **KINDS["seed"], **dict.fromkeys(flags, True))
    finally:
        model.set_attn_implementation(before)
    check_same(ours, theirs)
    ended_after = lengths(ours)
    prefix = "decoder_" if family == "t5" else ""
    for name in ("scores", "logits", f"{prefix}attentions", f"{prefix}hidden_states"):
        assert len(ours[name]) == len(theirs[name])
        for step, (mine, other) in enumerate(zip(ours[name], theirs[name], strict=True)):
            for x, y in zip(*((item if isinstance(item, tuple) else (item,)) for item in (mine, other)), strict=True):
                assert x.shape == y.shape
                running = ended_after > step
                torch.testing.assert_close(x[running], y[running], **CLOSE)
                assert name == "scores" or x.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "t5", "window"])
def test_the_returned_cache_has_all_rows(family: str) -> None:
    """Each row has the keys and values of its text, up to its last token, and zeros after them."""
    if family == "window":
        torch.manual_seed(3)
        sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 101}
        config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=9)
        model: Any = MistralForCausalLM(config).eval()
    else:
        model = encoder_decoder(family) if family == "t5" else hf_model(family)
    ours, theirs, _ = both(model, prompts(), **KINDS["seed"])
    check_same(ours, theirs)
    mine, other = (getattr(x.past_key_values, "self_attention_cache", x.past_key_values) for x in (ours, theirs))
    assert [type(layer) for layer in mine.layers] == [type(layer) for layer in other.layers]
    prompt = 1 if family == "t5" else PROMPT
    for layer, expected in zip(mine.layers, other.layers, strict=True):
        assert layer.get_seq_length() == expected.get_seq_length() == prompt + NEW - 1
        first = expected.get_seq_length() - expected.keys.shape[2]
        for row, length in enumerate(lengths(ours).tolist()):
            kept = max(min(prompt + length, prompt + NEW - 1) - first, 0)
            for x, y in ((layer.keys, expected.keys), (layer.values, expected.values)):
                assert x.shape == y.shape
                torch.testing.assert_close(x[row, :, :kept], y[row, :, :kept], **CLOSE)
    assert not layer.keys[0, :, -3:].any() and other.layers[-1].keys[0, :, -3:].any()
    if family == "t5":
        crossed = (x.past_key_values.cross_attention_cache.layers[-1] for x in (ours, theirs))
        torch.testing.assert_close(*(layer.keys for layer in crossed), **CLOSE)


def test_a_conversation_goes_on_from_the_cache() -> None:
    model, given = hf_model("llama"), prompts()
    ours, theirs, _ = both(model, given, **KINDS["greedy"])
    more = torch.randint(10, 100, (ROWS, 3))
    generated = torch.arange(NEW) < lengths(ours)[:, None]
    mask = torch.cat([given["attention_mask"], generated.long(), torch.ones_like(more)], 1)
    knobs = settings(max_new_tokens=8, output_logprobs=False, top_logprobs=None)
    texts = [
        generate_output(
            model,
            torch.cat([x.sequences, more], 1),
            attention_mask=mask,
            past_key_values=x.past_key_values,
            compact_rows=x is ours,
            stopping_criteria=[EndsAt([(r % 4) * 2 + 1 for r in range(ROWS)], PROMPT + NEW + 3)],
            **knobs,
        )
        for x in (ours, theirs)
    ]
    assert torch.equal(texts[0].sequences, texts[1].sequences)
    assert ours.past_key_values.layers[0].keys.shape == theirs.past_key_values.layers[0].keys.shape


def test_an_error_gives_a_callers_cache_all_rows() -> None:
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    steps: list[int] = []

    def fail(input_ids: Tensor, scores: object) -> bool:
        steps.append(cache.layers[0].keys.shape[0])
        if len(steps) == 10:
            raise ArithmeticError
        return False

    with pytest.raises(ArithmeticError):
        generate(
            hf_model("llama"),
            **prompts(),
            past_key_values=cache,
            compact_rows=True,
            stopping_criteria=[EndsAt(LENGTHS), fail],
            **settings(),
        )
    assert steps[0] == ROWS and steps[-1] < ROWS and cache.layers[0].keys.shape[0] == ROWS


class Sees(LogitsProcessor):
    """Bans the row's previous token; notes shapes."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.shapes += [tuple(input_ids.shape), tuple(scores.shape)]
        assert not scores.isnan().any()
        return scores.scatter(1, input_ids[:, -1:], -torch.inf)


class Streams:
    def __init__(self) -> None:
        self.steps: list[tuple[list[int], list[str | None]]] = []

    def put(self, tokens: Tensor) -> None:
        self.steps.append((tokens.flatten().tolist(), []))

    def put_step(self, tokens: Tensor, logprobs: Tensor | None, reasons: list[str | None]) -> None:
        self.steps.append((tokens.tolist(), reasons))

    def end(self) -> None:
        self.steps.append(([], []))


def test_callbacks_see_all_rows() -> None:
    seen: list[Any] = []
    for compact in (True, False):
        processor, criterion, streamer = Sees(), EndsAt(LENGTHS), Streams()
        allowed = lambda number, ids: list(range(10, 60 + number))  # noqa: E731
        with read_rows(hf_model("llama")) as rows:
            tokens = generate_tokens(
                hf_model("llama"),
                **prompts(),
                **settings(return_dict_in_generate=False, output_logprobs=False, top_logprobs=None),
                compact_rows=compact,
                logits_processor=[processor],
                stopping_criteria=[criterion],
                streamer=streamer,
                prefix_allowed_tokens_fn=allowed,
            )
        seen.append((tokens.tolist(), processor.shapes, criterion.shapes, streamer.steps))
        assert (rows[-1] < ROWS) == compact
    assert seen[0] == seen[1]


@pytest.mark.parametrize("step", [1, 4, 9])
def test_cancel(step: int) -> None:
    found = []
    for compact in (True, False):
        cancel = threading.Event()

        def stop(input_ids: Tensor, scores: object, cancel: threading.Event = cancel) -> bool:
            if input_ids.shape[1] == PROMPT + step:
                cancel.set()
            return False

        criteria: list[Any] = [EndsAt(LENGTHS), stop]
        output = generate_output(
            hf_model("llama"),
            **prompts(),
            **settings(),
            cancel=cancel,
            compact_rows=compact,
            stopping_criteria=criteria,
        )
        found.append((output.sequences.tolist(), output.finish_reason, output.past_key_values.layers[0].keys.shape))
    assert found[0] == found[1]


def test_rows_end_by_token() -> None:
    model = hf_model("gpt2")
    knobs = settings(eos_token_id=list(range(20)), max_new_tokens=40, **KINDS["torch, no filter"])
    found = []
    for compact in (True, "auto", False):
        torch.manual_seed(2)
        with read_rows(model) as rows:
            found.append(generate_output(model, **prompts(), **knobs, compact_rows=compact))
        assert (rows[-1] < ROWS) == (compact is not False)
    check_same(found[0], found[2])
    check_same(found[1], found[2])


def test_the_cache_shrinks() -> None:
    """The buffers that a forward writes hold the running rows only."""
    model, sizes = hf_model("llama"), []

    def note(module: nn.Module, args: object, kwargs: Any, output: Any) -> None:
        layer = output.past_key_values.layers[0]
        sizes.append((output.logits.shape[0], layer.keys.untyped_storage().nbytes()))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        generate(
            model,
            **prompts(),
            **settings(return_dict_in_generate=False, output_logprobs=False, top_logprobs=None),
            compact_rows=True,
            stopping_criteria=[EndsAt(LENGTHS)],
        )
    finally:
        handle.remove()
    per_row = {size / rows for rows, size in sizes}
    assert len({rows for rows, _ in sizes}) > 3 and len(per_row) == 1


class Offset(CachedModel):
    """Keeps a state of its rows to itself, as models with three-dimensional positions do."""

    def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
        if input_ids.shape[1] == 2:
            self.offset = torch.arange(len(input_ids))
        logits = self.head(self.embedding(input_ids))
        return logits + self.offset[:, None, None] * torch.linspace(0, 0.1, logits.shape[-1])


def modules() -> dict[str, tuple[Callable[[], nn.Module], str]]:
    torch.manual_seed(1)
    return {
        "no cache": (lambda: counting_table(101).eval(), ""),
        "unknown cache": (lambda: cached_model().eval(), "the cache of CachedModel has no method `reorder_cache`"),
        "own state": (lambda: Offset().eval(), "Offset keeps states of its rows to itself"),
    }


@pytest.mark.parametrize("name", modules())
def test_modules(name: str) -> None:
    build, reason = modules()[name]
    model: Any = build()
    ids = torch.arange(ROWS)[:, None].expand(-1, 2) % 20
    knobs: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": 22, "pad_token_id": 0}
    found = {
        compact: generate_tokens(model, ids, stopping_criteria=[EndsAt(LENGTHS, 2)], compact_rows=compact, **knobs)
        for compact in ("auto", False)
    }
    assert torch.equal(found["auto"], found[False])
    if reason:
        with pytest.raises(NotImplementedError, match=f"`compact_rows`=True: {reason}"):
            generate(model, ids, compact_rows=True, **knobs)
    else:
        assert isinstance(model, TableModel)
        assert model.calls[NEW - 1][0] < ROWS / 2 and model.calls[-1][0] == ROWS


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "beams": ({"num_beams": 2}, "rows stay in beam search"),
    "drafts": ({"prompt_lookup_num_tokens": 2}, "rows stay in assisted generation"),
    "static": ({"cache_implementation": "static"}, "`cache_implementation`='static' is another cache"),
    "own loop": ({"custom_generate": lambda model, input_ids, **_: input_ids}, "`custom_generate` decodes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_rows_cannot_leave(name: str) -> None:
    knobs, reason = REFUSED[name]
    knobs = {**settings(output_logprobs=False, top_logprobs=None), **knobs}
    model, given = hf_model("llama"), prompts(5)
    with pytest.raises(NotImplementedError, match=f"`compact_rows`=True: {reason}"):
        generate(model, **given, compact_rows=True, **knobs)
    if name != "own loop":
        generate(model, **given, **knobs)
        assert reason in pygen.explain(model, **given, **knobs).ended_rows


def test_compiled_and_training_models_are_refused() -> None:
    model = hf_model("llama")
    compiled: Any = torch.compile(model)
    with pytest.raises(NotImplementedError, match="is compiled, for one number of rows"):
        generate(compiled, **prompts(), compact_rows=True, **settings())
    model.train()
    try:
        with pytest.raises(NotImplementedError, match="is in training mode"):
            generate(model, **prompts(), compact_rows=True, **settings())
    finally:
        model.eval()


def test_explain_says_whether_rows_leave() -> None:
    model = hf_model("llama")
    knobs = {**settings(), "output_scores": True}

    def said(rows: int = ROWS, **more: Any) -> str:
        return pygen.explain(model, **prompts(rows), **{**settings(), **more}).ended_rows

    assert said() == "leave the batch"
    assert "ended ones leave the batch" in str(pygen.explain(model, **prompts(), **settings()))
    assert said(compact_rows=False) == "stay in the batch: `compact_rows`=False"
    assert said(rows=LEAST_ROWS - 1) == f"stay in the batch: it pays from {LEAST_ROWS} rows on"
    assert said(rows=LEAST_ROWS - 1, compact_rows=True) == "leave the batch"
    assert said(output_scores=True).startswith("stay in the batch: `output_scores` records")
    assert said(**{**knobs, "compact_rows": True}) == "leave the batch"
    assert said(eos_token_id=-1, pad_token_id=-1).startswith("stay in the batch: without `eos_token_id`")


@pytest.mark.parametrize("value", [None, 1, "yes", "True"])
def test_values_of_compact_rows(value: Any) -> None:
    with pytest.raises(ValueError, match="`compact_rows` must be True, False or 'auto', got"):
        generate(hf_model("llama"), **prompts(), compact_rows=value, **settings())


def test_when_rows_leave() -> None:
    """A quarter must have ended; two and three rows cost what four do."""
    for at_any_size in (False, True):
        assert [rows for rows in range(33) if pays(rows, 32, at_any_size=at_any_size)] == [
            rows for rows in range(1, 25) if at_any_size or rows not in (2, 3)
        ]
    assert not pays(0, 4, at_any_size=True) and not pays(4, 5, at_any_size=True) and pays(3, 5, at_any_size=True)
