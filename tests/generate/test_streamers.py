"""Streamers: the tokens they receive, the text they print, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import threading
from typing import Any, cast

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from pygen.generate import generate
from pygen.streamers.text import AsyncTextIteratorStreamer, BaseStreamer, TextIteratorStreamer, TextStreamer
from tests.generate.models import counting_table, hf_model
from tests.helpers.generation import generate_tokens
from tests.helpers.tokenizers import KINDS

WORDS = ["one ", "two", " three ", "\n", "four\n", "世", "界 ", "five", ".", "  ", ""]


class WordTokenizer:
    """Token i is word i."""

    def decode(self, ids: int | list[int], skip_empty: bool = False) -> str:
        return "".join(WORDS[i] for i in ([ids] if isinstance(ids, int) else ids))


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
def test_pieces_of_any_tokens(skip_prompt: bool) -> None:
    """Final text comes with its token; a streamer works again after its end."""
    draw, streamer = random.Random(0), Pieces(WordTokenizer(), skip_prompt=skip_prompt, skip_empty=True)
    for _ in range(50):
        values = [[draw.randrange(len(WORDS)) for _ in range(3)]]
        values += [[draw.randrange(len(WORDS))] for _ in range(draw.randrange(12))]
        streamer.pieces.clear()
        for place, value in enumerate(values):
            streamer.put(torch.tensor([value] if place == 0 else value))
        streamer.end()
        texts = ["".join(WORDS[i] for i in value) for value in values]
        assert streamer.pieces == [*((text, False) for text in texts[skip_prompt:]), ("", True)]


def byte_fallback(*pieces: str) -> Any:
    """Returns a tokenizer like Llama 2's: it strips a text's first space and writes unknown characters in bytes."""
    names = ["<unk>", *(f"<0x{value:02X}>" for value in range(256)), *pieces]
    vocabulary = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def streamed(tokenizer: Any, ids: list[int], **decode_kwargs: Any) -> list[str]:
    """Returns the pieces; asserts that they join to the decoded ids."""
    streamer = Pieces(tokenizer, **decode_kwargs)
    streamer.put(torch.tensor([ids[:1]]))
    for token_id in ids[1:]:
        streamer.put(torch.tensor([token_id]))
    streamer.end()
    pieces = [text for text, _ in streamer.pieces]
    assert "".join(pieces) == tokenizer.decode(ids, **decode_kwargs)
    return pieces


def test_spaces_behind_line_breaks_stay() -> None:
    words = ["if", "▁x", ":", "\n", "▁▁▁", "▁return", "▁x", "\n", "▁x"]
    tokenizer = byte_fallback(*dict.fromkeys(words))
    pieces = streamed(tokenizer, tokenizer.convert_tokens_to_ids(words))
    assert pieces == ["if", " x", ":", "\n", "   ", " return", " x", "\n", " x", ""]


@pytest.mark.parametrize(
    "text", ["https://example.org/a/b?c=d", "ひらがなだけのぶん", "ภาษาไทยไม่เว้นวรรค", "ab\n  cd\n\te"]
)
def test_text_without_spaces_comes_at_once(text: str) -> None:
    tokenizer = KINDS["byte_level"]()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown, pieces = "", streamed(tokenizer, ids)
    for count, piece in enumerate(pieces[:-1], start=1):
        shown += piece
        assert shown == tokenizer.decode(ids[:count]).rstrip("�")
    # Byte characters wait for the next token, because an incomplete end would change all of them.
    fallback = byte_fallback(*sorted(set(text) - set("\n\t")))
    ids = [i for letter in text for i in letter_ids(fallback, letter)]
    for count, piece in enumerate(streamed(fallback, ids)[:-1], start=1):
        assert piece == ("" if text[count - 1] in "\n\t" else text[count - 1]) or text[count - 2] in "\n\t"


def letter_ids(tokenizer: Any, letter: str) -> list[int]:
    known = tokenizer.get_vocab().get(letter)
    names = [f"<0x{byte:02X}>" for byte in letter.encode()]
    return [known] if known is not None else list(tokenizer.convert_tokens_to_ids(names))


class Cleaning:
    """A tokenizer that cleans up spaces when decoding, with the attribute of older releases."""

    clean_up_tokenization_spaces = True

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = True) -> str:
        text = "".join(self._words[i] for i in ids)
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def clean_up_tokenization(self, text: str) -> str:
        return str(transformers.PreTrainedTokenizerBase.clean_up_tokenization(cast(Any, self), text))


def test_printed_text_is_never_retracted() -> None:
    words = [" it", " '", "s", " ", ".", " do", " n", "'", "t", " new", " ?", " ' ", " x", " ,", "ve", "m", "世"]
    tokenizer, draw = Cleaning(words), random.Random(2)
    shown = 0
    for _ in range(400):
        ids = [draw.randrange(len(words)) for _ in range(draw.randint(1, 30))]
        shown += len(streamed(tokenizer, ids)[-1]) < 3
        streamed(tokenizer, ids, clean_up_tokenization_spaces=False)
    assert shown > 100
    fallback = byte_fallback(*(word.replace(" ", "▁") for word in words if word.strip()))
    fallback.clean_up_tokenization_spaces = True
    for _ in range(50):
        streamed(fallback, [draw.randrange(257, len(fallback)) for _ in range(30)])


def test_text_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    generate(counting_table(), torch.tensor([[0]]), max_new_tokens=3, streamer=TextStreamer(WordTokenizer()))
    assert capsys.readouterr().out == "one two three \n\n"


def test_a_text_streamer_takes_one_row() -> None:
    model = counting_table()
    with pytest.raises(ValueError, match="`TextStreamer` streams one row, got 2"):
        generate(model, torch.tensor([[1], [2]]), max_new_tokens=2, streamer=TextStreamer(WordTokenizer()))
    assert model.calls == []


def test_streamers_of_transformers_work() -> None:
    streamer = transformers.TextIteratorStreamer(cast(Any, WordTokenizer()), skip_prompt=True, timeout=5)
    generate(counting_table(), torch.tensor([[0]]), max_new_tokens=3, streamer=streamer)
    assert "".join(streamer) == "two three \n"


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_an_error_of_the_streamer_is_passed_on(fail_at: int) -> None:
    model = hf_model("gpt2")
    ids = torch.tensor([[5, 6]])
    expected = generate_tokens(model, ids, max_new_tokens=4)
    streamer = Collect(fail_at)
    with pytest.raises(KeyError, match="from the streamer"):
        generate(model, ids, max_new_tokens=4, streamer=streamer)
    assert streamer.ends == 1
    assert torch.equal(generate_tokens(model, ids, max_new_tokens=4), expected)


def test_the_stream_ends_when_generation_fails() -> None:
    def fail(input_ids: Tensor, scores: Tensor) -> Tensor:
        raise KeyError("from the user")

    streamer = Collect()
    with pytest.raises(KeyError, match="from the user"):
        generate(counting_table(), torch.tensor([[1]]), logits_processor=[fail], max_new_tokens=4, streamer=streamer)
    assert (len(streamer.values), streamer.ends) == (1, 1)


def fail_at(length: int) -> Any:
    def fail(input_ids: Tensor, scores: Any) -> bool:
        if input_ids.shape[1] == length:
            raise KeyError("from the user")
        return False

    return fail


@pytest.mark.parametrize("settings", [{"max_new_tokens": 0}, {"stopping_criteria": [fail_at(4)], "max_new_tokens": 5}])
def test_streamers_receive_the_error(settings: dict[str, Any]) -> None:
    """A streamer with `fail` gets the error, even of a refused call; any other gets `end`."""

    class Told(Collect):
        def fail(self, error: BaseException) -> None:
            self.error = error

    told, ended = Told(), Collect()
    for streamer in (told, ended):
        with pytest.raises((ValueError, KeyError)) as caught:
            generate(counting_table(), torch.tensor([[1]]), streamer=streamer, **settings)
        if streamer is told:
            assert told.error is caught.value
    assert (told.ends, ended.ends) == (0, 1)


def in_a_thread(streamer: Any, **settings: Any) -> threading.Thread:
    def run() -> None:
        with contextlib.suppress(KeyError, ValueError):
            generate(counting_table(), torch.tensor([[0]]), streamer=streamer, **settings)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


FAILURES: list[tuple[dict[str, Any], str, type[Exception] | None]] = [
    ({"max_new_tokens": 8}, "two three \n" + "four\n世界 five.", None),
    ({"max_new_tokens": 8, "stopping_criteria": [fail_at(6)]}, "two three \n" + "four\n", KeyError),
    ({"max_new_tokens": 8, "stopping_criteria": [fail_at(2)]}, "", KeyError),
    ({"max_new_tokens": 0}, "", ValueError),
]


@pytest.mark.parametrize(("settings", "text", "error"), FAILURES)
def test_iterator(settings: dict[str, Any], text: str, error: type[Exception] | None) -> None:
    streamer = TextIteratorStreamer(WordTokenizer(), skip_prompt=True, timeout=20)
    thread, pieces = in_a_thread(streamer, **settings), []

    def read() -> None:
        for piece in streamer:
            pieces.append(piece)

    if error is None:
        read()
    else:
        with pytest.raises(error):
            read()
    thread.join()
    assert "".join(pieces) == text


@pytest.mark.parametrize(("settings", "text", "error"), FAILURES)
def test_async_iterator(settings: dict[str, Any], text: str, error: type[Exception] | None) -> None:
    pieces: list[str] = []

    async def read() -> None:
        streamer = AsyncTextIteratorStreamer(WordTokenizer(), skip_prompt=True, timeout=20)
        thread = in_a_thread(streamer, **settings)
        try:
            async for piece in streamer:
                pieces.append(piece)
        finally:
            thread.join()

    if error is None:
        asyncio.run(read())
    else:
        with pytest.raises(error):
            asyncio.run(read())
    assert "".join(pieces) == text


def test_timeouts() -> None:
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(WordTokenizer(), timeout=0.01))

    async def read() -> None:
        await anext(AsyncTextIteratorStreamer(WordTokenizer(), timeout=0.01))

    with pytest.raises(TimeoutError):
        asyncio.run(read())


def test_an_iterator_can_be_used_again() -> None:
    streamer = TextIteratorStreamer(WordTokenizer(), timeout=20)
    for _ in range(2):
        generate(counting_table(), torch.tensor([[0]]), max_new_tokens=2, streamer=streamer)
        assert "".join(streamer) == "one two three "


def test_an_error_of_the_tokenizer_reaches_the_reader() -> None:
    class Broken:
        def decode(self, ids: list[int]) -> str:
            raise KeyError("no such id")

    streamer = TextIteratorStreamer(Broken(), timeout=20)
    thread = in_a_thread(streamer, max_new_tokens=3)
    with pytest.raises(KeyError, match="no such id"):
        list(streamer)
    thread.join()


@pytest.mark.parametrize("place", ["criterion", "processor", "streamer"])
@pytest.mark.parametrize("step", range(4))
def test_errors_leave_the_model_usable(place: str, step: int) -> None:
    """An error at any step leaves config and cache unchanged, and the next call returns the right tokens."""
    model, ids = hf_model("llama"), torch.tensor([[5, 6, 7]])
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": True, "seed": 3}
    expected = generate_tokens(model, ids, **settings)
    configs = model.config.to_dict(), model.generation_config.to_dict()
    cache = transformers.DynamicCache(config=model.config)
    model(ids[:, :-1], past_key_values=cache)

    def fail(input_ids: Tensor, scores: Tensor) -> Any:
        if input_ids.shape[1] == 3 + step + (place == "criterion"):
            raise KeyError("from the user")
        return False if place == "criterion" else scores

    places: dict[str, dict[str, Any]] = {
        "criterion": {"stopping_criteria": [fail]},
        "processor": {"logits_processor": [fail]},
        "streamer": {"streamer": Collect(step + 1)},
    }
    failing = places[place]
    for extra in ({}, {"cache_implementation": "static"}, {"past_key_values": cache}):
        with pytest.raises(KeyError, match="from the"):
            generate(model, ids, **settings, **failing, **extra)
        again = extra if "cache_implementation" in extra else {}
        assert torch.equal(generate_tokens(model, ids, **settings, **again), expected)
        if "streamer" in failing:
            failing["streamer"].values.clear()
    assert (model.config.to_dict(), model.generation_config.to_dict()) == configs
    # The cache holds exactly the tokens that the model has read. After a crop the next call continues from it.
    assert cache.get_seq_length() == 3 + step
    cache.crop(-(1 + step))
    assert torch.equal(generate_tokens(model, ids, past_key_values=cache, **settings), expected)


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    generate(counting_table(), torch.tensor([[1]]), max_new_tokens=3, progress=True)
    assert "3/3" in capsys.readouterr().err
    generate(counting_table(), torch.tensor([[1]]), max_new_tokens=3)
    assert capsys.readouterr().err == ""
