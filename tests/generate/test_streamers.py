"""Streamers: what they receive, what text they print, and how they end."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pygen.generate import generate
from pygen.streamers import BaseStreamer, TextStreamer
from tests.generate.models import counting_table, hf_model

WORDS = ["one ", "two", " three ", "\n", "four\n", "世", "界 ", "five", ".", "  ", ""]


class WordTokenizer:
    """Token i is word i."""

    def decode(self, ids: list[int], skip_empty: bool = False) -> str:
        return "".join(WORDS[i] for i in ids)


class Collect(BaseStreamer):
    def __init__(self, fail_at: int = -1) -> None:
        self.values: list[Tensor] = []
        self.ends = 0
        self.fail_at = fail_at

    def put(self, value: Tensor) -> None:
        if len(self.values) == self.fail_at:
            raise KeyError("from the streamer")
        self.values.append(value)

    def end(self) -> None:
        self.ends += 1


class Pieces(TextStreamer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[tuple[str, bool]] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append((text, stream_end))


class TheirPieces(transformers.TextStreamer):
    on_finalized_text = Pieces.on_finalized_text

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[tuple[str, bool]] = []


def test_prompt_then_tokens_then_end() -> None:
    streamer = Collect()
    generate(counting_table(), torch.tensor([[1], [4]]), eos_token_id=2, max_new_tokens=2, streamer=streamer)
    assert [v.tolist() for v in streamer.values] == [[[1], [4]], [2, 5], [2, 6]]
    assert all(v.dtype == torch.int64 for v in streamer.values)
    assert streamer.ends == 1


def test_returned_copies_are_streamed() -> None:
    streamer = Collect()
    generate(
        counting_table(),
        torch.tensor([[1]]),
        do_sample=True,
        top_k=1,
        num_return_sequences=2,
        max_new_tokens=1,
        streamer=streamer,
    )
    assert [v.tolist() for v in streamer.values] == [[[1], [1]], [2, 2]]


@pytest.mark.parametrize("skip_prompt", [False, True])
def test_text_as_transformers_prints_it(skip_prompt: bool) -> None:
    draw = random.Random(0)
    for _ in range(200):
        ours = Pieces(WordTokenizer(), skip_prompt=skip_prompt, skip_empty=True)
        theirs = TheirPieces(WordTokenizer(), skip_prompt=skip_prompt, skip_empty=True)
        for _ in range(2):  # a streamer can be used again after its end
            values = [torch.tensor([[draw.randrange(len(WORDS)) for _ in range(3)]])]
            values += [torch.tensor([draw.randrange(len(WORDS))]) for _ in range(draw.randrange(12))]
            for streamer in (ours, theirs):
                for value in values:
                    streamer.put(value)
                streamer.end()
        assert ours.pieces == theirs.pieces


def test_text_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    generate(counting_table(), torch.tensor([[0]]), max_new_tokens=3, streamer=TextStreamer(WordTokenizer()))
    assert capsys.readouterr().out == "one two three \n\n"


def test_a_text_streamer_takes_one_row() -> None:
    model = counting_table()
    with pytest.raises(ValueError, match="`TextStreamer` streams one row, got 2"):
        generate(model, torch.tensor([[1], [2]]), max_new_tokens=2, streamer=TextStreamer(WordTokenizer()))
    assert model.calls == []


def test_streamers_of_transformers_work() -> None:
    streamer = transformers.TextIteratorStreamer(WordTokenizer(), skip_prompt=True, timeout=5)
    generate(counting_table(), torch.tensor([[0]]), max_new_tokens=3, streamer=streamer)
    assert "".join(streamer) == "two three \n"


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_an_error_of_the_streamer_is_passed_on(fail_at: int) -> None:
    model = hf_model("gpt2")
    ids = torch.tensor([[5, 6]])
    expected = generate(model, ids, max_new_tokens=4)
    streamer = Collect(fail_at)
    with pytest.raises(KeyError, match="from the streamer"):
        generate(model, ids, max_new_tokens=4, streamer=streamer)
    assert streamer.ends == 1
    assert torch.equal(generate(model, ids, max_new_tokens=4), expected)


def test_the_stream_ends_when_generation_fails() -> None:
    def fail(input_ids: Tensor, scores: Tensor) -> Tensor:
        raise KeyError("from the user")

    streamer = Collect()
    with pytest.raises(KeyError, match="from the user"):
        generate(counting_table(), torch.tensor([[1]]), logits_processor=[fail], max_new_tokens=4, streamer=streamer)
    assert (len(streamer.values), streamer.ends) == (1, 1)


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    generate(counting_table(), torch.tensor([[1]]), max_new_tokens=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    generate(counting_table(), torch.tensor([[1]]), max_new_tokens=3)
    assert capsys.readouterr().err == ""
