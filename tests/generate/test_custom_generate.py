"""Custom loops: their arguments, and code from folders, which needs the caller's permission."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn

from pygen.generate import generate
from pygen.streamers.borrowed import borrowed
from pygen.streamers.text import BaseStreamer
from tests.generate.against_transformers import assert_both_same
from tests.generate.models import FAMILIES, cached_model, counting_table, encoder_decoder, hf_model
from tests.helpers.generation import generate_tokens

# A loop returns what it likes.
run_loop: Any = generate
IDS = torch.tensor([[5, 6, 7, 5], [8, 9, 10, 8]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])


def hugging_face_loop(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    extra: int = 0,
    **model_kwargs: Any,
) -> Tensor:
    """A loop in the style of the Hub's: the model's hooks, the lists, the special tokens as tensors."""
    running = torch.ones(input_ids.shape[0], dtype=torch.long)
    is_first = True
    while running.max() > 0:
        inputs = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=None if is_first else 1, is_first_iteration=is_first, **model_kwargs
        )
        outputs = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
        )
        scores = logits_processor(input_ids, outputs.logits[:, -1].float())
        tokens = scores.softmax(-1).multinomial(1)[:, 0] if generation_config.do_sample else scores.argmax(-1)
        if generation_config._eos_token_tensor is not None:
            tokens = tokens * running + generation_config._pad_token_tensor * (1 - running)
        input_ids = torch.cat([input_ids, tokens[:, None] + extra], dim=1)
        running = running & ~stopping_criteria(input_ids, None)
        is_first = False
    return input_ids


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "rows end": {"eos_token_id": list(range(30, 80)), "pad_token_id": 0, "min_new_tokens": 2},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "copies": {"do_sample": True, "num_return_sequences": 2, "attention_mask": MASK},
    "everything": {
        "do_sample": True,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "suppress_tokens": [4, 5],
        "begin_suppress_tokens": [6, 7],
        "sequence_bias": [[[8], 2.0], [[9, 10], 3.0]],
        "renormalize_logits": True,
        "min_p": 0.01,
        "typical_p": 0.95,
        "logits_processor": [lambda ids, scores: scores * 1.1],
        "stopping_criteria": [lambda ids, scores: torch.full((ids.shape[0],), ids.shape[1] > 8)],
    },
    "a custom argument": {"extra": 1},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_loop_as_transformers_calls_it(family: str, name: str) -> None:
    settings = {"max_new_tokens": 7, **SETTINGS[name]}
    drawn = assert_both_same(hf_model(family), IDS, custom_generate=hugging_face_loop, **settings)
    if name not in ("a custom argument", "rows end"):
        torch.manual_seed(0)
        assert torch.equal(drawn, generate_tokens(hf_model(family), IDS, **settings))


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_loop_for_an_encoder_decoder(settings: dict[str, Any]) -> None:
    call = {"decoder_start_token_id": 1, "max_new_tokens": 5, "custom_generate": hugging_face_loop, **settings}
    assert_both_same(encoder_decoder("bart"), IDS, **call)


def test_a_loop_for_a_plain_module() -> None:
    def once(model: nn.Module, input_ids: Tensor, logits_processor: Any, **kwargs: Any) -> Any:
        names = {name for name, value in kwargs.items() if isinstance(value, Tensor)}
        position_ids, mask = kwargs["position_ids"], kwargs["attention_mask"]
        logits, _ = model(input_ids, attention_mask=mask, position_ids=position_ids)
        return names, logits_processor(input_ids, logits[:, -1]).argmax(-1)

    ways: tuple[dict[str, Any], ...] = ({}, {"do_sample": True, "num_return_sequences": 3})
    for copies in ways:
        names, tokens = run_loop(
            cached_model(), IDS, attention_mask=MASK, custom_generate=once, max_new_tokens=2, **copies
        )
        assert names == {"attention_mask", "position_ids"}
        assert tokens.shape == (2 * copies.get("num_return_sequences", 1),)


def test_penalties_of_a_loop_do_not_see_padding() -> None:
    def scores_of(model: Any, input_ids: Tensor, logits_processor: Any, **kwargs: Any) -> Tensor:
        scores: Tensor = logits_processor(torch.cat([input_ids, IDS[:, :1]], dim=1), torch.ones(2, 101))
        return scores

    scores = generate_tokens(
        hf_model("llama"), IDS, attention_mask=MASK, custom_generate=scores_of, repetition_penalty=2.0, max_new_tokens=3
    )
    assert [(row < 1).nonzero()[:, 0].tolist() for row in scores] == [[5, 6, 7], [8, 9, 10]]


class Ends(BaseStreamer):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.seen.append(value.tolist())

    def end(self) -> None:
        self.seen.append("end")


def test_what_a_loop_may_ask_for_by_name() -> None:
    def asks(model: Any, input_ids: Tensor, streamer: Any, tokenizer: Any, setting: int, **kwargs: Any) -> Any:
        assert not {"streamer", "tokenizer", "setting"} & kwargs.keys()
        streamer.put(input_ids[:, -1])
        streamer.end()
        return tokenizer, setting

    streamer = Ends()
    result = run_loop(
        counting_table(), IDS, custom_generate=asks, streamer=streamer, tokenizer="t", setting=3, max_new_tokens=2
    )
    assert result == ("t", 3)
    assert streamer.seen == [IDS.tolist(), [5, 8], "end"]


def test_a_custom_loop_may_use_settings_that_pygen_does_not_support() -> None:
    def settings(model: Any, input_ids: Tensor, generation_config: Any, **kwargs: Any) -> Any:
        return generation_config.max_length, generation_config.compile_config is not None

    from pygen.config.config import CompileConfig

    call: dict[str, Any] = {"compile_config": CompileConfig(), "max_new_tokens": 3, "custom_generate": settings}
    assert run_loop(counting_table(), IDS, **call) == (7, True)


def test_a_borrowed_streamer() -> None:
    streamer = Ends()
    lent: Any = borrowed(streamer)
    lent.put(IDS)
    lent.end()
    lent.fail(ValueError())
    assert streamer.seen == [IDS.tolist()] == lent.seen
    assert borrowed(None) is None


CODE = """
from .neighbour import word


def generate(model, inputs, custom_word=word, **kwargs):
    return custom_word, inputs, sorted(name for name, value in kwargs.items() if value is not None)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    code = tmp_path / "custom_generate"
    code.mkdir()
    (code / "generate.py").write_text(CODE)
    (code / "neighbour.py").write_text("word = 'hello'\n")
    return tmp_path


def test_code_from_a_folder(folder: Path) -> None:
    before = set(sys.path)
    call: dict[str, Any] = {"custom_generate": str(folder), "trust_remote_code": True, "max_new_tokens": 3}
    word, ids, names = run_loop(hf_model("llama"), IDS, **call)
    assert (word, names) == ("hello", ["max_new_tokens"]) and ids is IDS
    streamer = Ends()
    more: dict[str, Any] = {**call, "custom_word": 1, "temperature": 0.5, "progress": True}
    _, _, names = run_loop(hf_model("llama"), IDS, streamer=streamer, **more)
    assert names == ["max_new_tokens", "progress", "streamer", "temperature"]
    assert streamer.seen == ["end"] and set(sys.path) == before
    (folder / "custom_generate" / "neighbour.py").write_text("word = 'again'\n")
    assert run_loop(hf_model("llama"), IDS, **call)[0] == "again"


def test_the_result_of_a_folder_is_transformers(folder: Path) -> None:
    code = "def generate(model, trust=None, **kwargs):\n    return model.generate(**kwargs)\n"
    (folder / "custom_generate" / "generate.py").write_text(code)
    settings: dict[str, Any] = {"do_sample": True, "max_new_tokens": 4, "custom_generate": str(folder)}
    assert_both_same(hf_model("llama"), IDS, trust_remote_code=True, **settings)


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": None}, {"trust_remote_code": False}])
def test_code_is_not_run_unless_allowed(folder: Path, trust: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "custom_generate" / "generate.py").write_text("raise AssertionError('must not run')")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("must not load"))
    for source in (str(folder), "somebody/something"):
        with pytest.raises(ValueError, match=f"`custom_generate`='{source}' runs the code .* `trust_remote_code=True`"):
            generate(hf_model("llama"), IDS, custom_generate=source, **trust)


def test_code_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repo_id: str, **kwargs: Any) -> str:
        asked.append((repo_id, kwargs))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    word = run_loop(hf_model("llama"), IDS, custom_generate="somebody/something", trust_remote_code=True)[0]
    assert word == "hello"
    assert asked == [("somebody/something", {"allow_patterns": "custom_generate/*"})]


def test_settings_of_a_model_choose_no_code(folder: Path) -> None:
    model = hf_model("llama")
    model.generation_config.custom_generate = str(folder)
    try:
        assert generate_tokens(model, IDS, max_new_tokens=2, trust_remote_code=True).shape == (2, 6)
    finally:
        del model.generation_config.custom_generate


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"generate.py": None}, OSError, "has no file custom_generate/generate.py"),
        ({"generate.py": "x = 1"}, AttributeError, "no attribute 'generate'"),
        ({"generate.py": "1 / 0"}, ZeroDivisionError, "division"),
        ({"requirements.txt": "torch>=1\nno-such-package # why\n"}, ImportError, "needs no-such-package$"),
        ({"requirements.txt": "torch<1"}, ImportError, "needs torch<1$"),
        ({"requirements.txt": "no-such-package; python_version < '3'"}, None, ""),
    ],
)
def test_folders_that_do_not_serve(
    folder: Path, files: dict[str, str | None], error: type[Exception] | None, message: str
) -> None:
    for name, text in files.items():
        file = folder / "custom_generate" / name
        file.unlink() if text is None else file.write_text(text)
    call: dict[str, Any] = {"custom_generate": str(folder), "trust_remote_code": True}
    if error is None:
        assert run_loop(hf_model("llama"), IDS, **call)[0] == "hello"
        return
    with pytest.raises(error, match=message):
        generate(hf_model("llama"), IDS, **call)


def test_wrong_arguments() -> None:
    number: Any = 3
    with pytest.raises(TypeError, match="`custom_generate` must be a function, a folder or a repository, got int"):
        generate(hf_model("llama"), IDS, custom_generate=number)
    with pytest.raises(ValueError, match="`custom_generate` needs one `do_sample` and a `temperature` above 0"):
        generate(
            hf_model("llama"),
            IDS,
            custom_generate=hugging_face_loop,
            do_sample=True,
            temperature=[0.0, 1.0],
            max_new_tokens=2,
        )
