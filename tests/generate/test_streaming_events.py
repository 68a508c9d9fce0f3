"""`stream`: events by step and row, text piece by piece, errors, closing."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import pygen
from pygen.streamers.row_text import RowText
from pygen.streaming import StreamEvent, stream
from tests.generate.models import counting_table, hf_model
from tests.generate.test_streamers import WORDS, WordTokenizer, fail_at
from tests.helpers.generation import generate_output, generate_tokens
from tests.helpers.tokenizers import KINDS, TEXT

PROMPTS = torch.tensor([[1], [4], [7]])


def running() -> bool:
    return any(thread.name == "pygen.stream" for thread in threading.enumerate())


def test_events_by_step_and_row() -> None:
    """Ended rows yield nothing more; the last event of a row says why it ended."""
    events = list(stream(counting_table(), PROMPTS, eos_token_id=[3, 5], pad_token_id=0, max_new_tokens=3))
    assert [(e.row, e.token_id, e.finish_reason) for e in events] == [
        *[(0, 2, None), (1, 5, "eos"), (2, 8, None)],
        *[(0, 3, "eos"), (2, 9, None)],
        *[(2, 0, "length")],
    ]
    assert all(event.text is None and event.logprob is None for event in events)


def test_text_of_every_row() -> None:
    events = list(stream(counting_table(), PROMPTS, tokenizer=WordTokenizer(), max_new_tokens=4))
    for row, prompt in enumerate(PROMPTS.flatten().tolist()):
        text = "".join(e.text or "" for e in events if e.row == row)
        assert text == "".join(WORDS[(prompt + 1 + i) % 10] for i in range(4))


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 5, "num_return_sequences": 2}])
def test_tokens_and_logprobs_of_generate(settings: dict[str, Any]) -> None:
    model, ids = hf_model("gpt2"), torch.tensor([[5, 6], [7, 8]])
    settings = {**settings, "eos_token_id": list(range(20)), "pad_token_id": 0, "max_new_tokens": 12}
    expected = generate_output(model, ids, **settings, output_logprobs=True, return_dict_in_generate=True)
    events = list(stream(model, ids, **settings, output_logprobs=True))
    for row in range(len(expected.sequences)):
        mine = [e for e in events if e.row == row]
        assert [e.token_id for e in mine] == expected.sequences[row, 2 : 2 + len(mine)].tolist()
        assert [e.logprob for e in mine] == expected.logprobs[row, : len(mine)].tolist()
        assert expected.logprobs[row, len(mine) :].count_nonzero() == 0
        assert [e.finish_reason for e in mine] == [None] * (len(mine) - 1) + [expected.finish_reason[row]]


def test_the_output_is_returned() -> None:
    def outer() -> Any:
        output: Any = yield from stream(counting_table(), PROMPTS, max_new_tokens=2)
        assert torch.equal(output, generate_tokens(counting_table(), PROMPTS, max_new_tokens=2))

    assert len(list(outer())) == 6


def test_stopped_rows_end_though_the_others_make_them_go_on() -> None:
    """In `generate`, as in transformers, a stopped row emits more tokens if there is no end-of-sequence token."""
    events = list(
        stream(counting_table(), PROMPTS, stopping_criteria=[lambda ids, scores: ids[:, -1] == 3], max_new_tokens=4)
    )
    assert [e.token_id for e in events if e.row == 0] == [2, 3]
    assert [e.finish_reason for e in events if e.finish_reason] == ["stop", "length", "length"]


def test_stop_strings_take_the_tokenizer() -> None:
    tokenizer = KINDS["byte_level"]()
    model = counting_table(len(tokenizer))
    events = list(stream(model, torch.tensor([[0]]), tokenizer=tokenizer, stop_strings="cde", max_new_tokens=300))
    text = "".join(e.text or "" for e in events)
    assert text.endswith("cde") and text.count("cde") == 1
    assert events[-1].finish_reason == "stop"


@pytest.mark.parametrize(("length", "count"), [(2, 0), (4, 6)])
def test_errors_come_behind_the_events_before(length: int, count: int) -> None:
    events: list[StreamEvent] = []
    with pytest.raises(KeyError, match="from the user"):
        for event in stream(counting_table(), PROMPTS, stopping_criteria=[fail_at(length)], max_new_tokens=9):
            events.append(event)
    assert len(events) == count


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_new_tokens": 0}, ValueError),
        ({"streamer": pygen.TextStreamer(WordTokenizer())}, TypeError),
        ({"temprature": 0.5}, ValueError),
    ],
)
def test_refused_calls(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        next(stream(counting_table(), PROMPTS, **arguments))
    assert not running()


def test_closing_cancels() -> None:
    model, steps = hf_model("gpt2"), []

    def count(input_ids: Tensor, scores: Any) -> bool:
        steps.append(1)
        return False

    for event in stream(model, torch.tensor([[5]]), stopping_criteria=[count], max_new_tokens=60):
        assert event.row == 0
        break
    assert not running()
    seen = len(steps)
    assert seen < 60

    iterator = stream(model, torch.tensor([[5]]), max_new_tokens=60)
    next(iterator)
    iterator.close()
    assert not running()
    with pytest.raises(StopIteration):
        next(iterator)


def test_nothing_runs_before_the_first_event() -> None:
    model = counting_table()
    stream(model, PROMPTS, max_new_tokens=2).close()
    assert model.calls == []


def test_the_callers_event_cancels_too() -> None:
    cancel = threading.Event()

    def set_at_3(input_ids: Tensor, scores: Any) -> bool:
        if input_ids.shape[1] == 3:
            cancel.set()
        return False

    events = list(stream(counting_table(), PROMPTS[:1], stopping_criteria=[set_at_3], cancel=cancel, max_new_tokens=50))
    assert [e.finish_reason for e in events] == [None, "stop"]


def test_the_thread_works_as_the_caller_would() -> None:
    """The thread inherits the backend of a `with` block, and autocast."""
    seen: list[Any] = []

    def look(input_ids: Tensor, scores: Any) -> bool:
        seen.append((pygen.backends._chosen.get(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return True

    with pygen.use_backend("torch"), torch.autocast("cpu", dtype=torch.float16):
        list(stream(counting_table(), PROMPTS, stopping_criteria=[look], max_new_tokens=3))
    assert seen == [("torch", True, torch.float16)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [False, True])
def test_pieces_make_up_the_decoded_row(kind: str, skip: bool) -> None:
    """Uses random tokens, with parts of characters and special tokens among them, and text."""
    tokenizer, draw = KINDS[kind](), random.Random(4)
    everything = sorted(tokenizer.get_vocab().values())
    text_ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    odd = [i for i in everything if tokenizer.decode([i]) in ("", " ", "�") or i in tokenizer.all_special_ids]
    for trial in range(60):
        pools = [everything, text_ids, odd or everything]
        ids = [draw.choice(draw.choice(pools)) for _ in range(draw.randrange(70))]
        if trial % 3 == 0:
            start = draw.randrange(len(text_ids))
            ids = text_ids[start : start + draw.randrange(120)]
        row = RowText(tokenizer, {"skip_special_tokens": skip})
        pieces = [row.add([token_id]) for token_id in ids]
        assert "".join([*pieces, row.finish()]) == tokenizer.decode(ids, skip_special_tokens=skip), ids


def test_incomplete_characters_are_held_back() -> None:
    tokenizer = KINDS["byte_level"]()
    fox = [tokenizer.convert_tokens_to_ids(letter) for letter in "ðŁ¦Ĭ"]
    row = RowText(tokenizer, {})
    assert [row.add([token_id]) for token_id in fox] == ["", "", "", "🦊"]
    assert [row.add(fox[:1]), row.finish()] == ["", "�"]


def test_only_the_last_tokens_are_decoded_again() -> None:
    class Counting:
        longest = 0

        def decode(self, ids: list[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return "x" * len(ids)

    tokenizer = Counting()
    row = RowText(tokenizer, {})
    assert "".join(row.add([0]) for _ in range(500)) == "x" * 500
    assert tokenizer.longest < 20
