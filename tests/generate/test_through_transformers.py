"""`pygen.custom_generate` and the folder for the hub, called by transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationMixin, TextIteratorStreamer

import pygen
from pygen.streamers.text import BaseStreamer
from tests.generate.against_transformers import EVERYTHING, assert_same
from tests.generate.models import encoder_decoder, hf_model
from tests.helpers.generation import generate_tokens

HUB = Path(__file__).resolve().parents[2] / "hub" / "custom_generate"
IDS = torch.tensor([[5, 6, 7, 5], [8, 9, 10, 8]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
DOORS: dict[str, dict[str, Any]] = {
    "callable": {"custom_generate": pygen.custom_generate},
    "folder": {"custom_generate": str(HUB), "trust_remote_code": True},
}


@pytest.fixture(autouse=True, scope="module")
def modules_of_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives transformers its own folder for the copies of code that it imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


each_door = pytest.mark.parametrize("door", DOORS)


def through(door: str, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns what transformers' `generate` returns with pygen as its loop, and asserts that pygen returns the same."""
    torch.manual_seed(0)
    theirs: Any = GenerationMixin.generate
    result = theirs(model, *args, **kwargs, **DOORS[door])
    torch.manual_seed(0)
    assert_same(result, pygen.generate(model, *args, **kwargs))
    return result


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "rows end": {"eos_token_id": list(range(30, 80)), "pad_token_id": 0, "min_new_tokens": 2},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
    "copies": {"do_sample": True, "num_return_sequences": 2, "attention_mask": MASK},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "eos_token_id": 4, "pad_token_id": 0},
    "drawn beams": {"num_beams": 3, "do_sample": True},
    "everything returned": {"do_sample": True, **EVERYTHING},
    "drafts": {"prompt_lookup_num_tokens": 3},
    "contrastive search, without remote code": {"penalty_alpha": 0.6, "top_k": 4},
    "a value per row, and a seed": {"do_sample": True, "top_p": [0.5, 0.9], "seed": 3, "presence_penalty": 0.5},
    "processors and criteria": {
        "do_sample": True,
        "logits_processor": [lambda ids, scores: scores * 1.1],
        "stopping_criteria": [lambda ids, scores: torch.full((ids.shape[0],), ids.shape[1] > 8)],
        "prefix_allowed_tokens_fn": lambda row, ids: list(range(4, 60)),
        "no_repeat_ngram_size": 2,
        "top_h": 0.9,
    },
    "guidance": {"guidance_scale": 1.5, "negative_prompt_ids": IDS.flip(1)},
    "a length with the prompt": {"max_length": 8, "max_new_tokens": None},
}


@pytest.mark.parametrize("name", SETTINGS)
@each_door
def test_the_tokens_of_pygen(door: str, name: str) -> None:
    through(door, hf_model("llama"), IDS, **{"max_new_tokens": 6, **SETTINGS[name]})


@each_door
def test_a_config_object_and_the_default_length(door: str) -> None:
    config = transformers.GenerationConfig(do_sample=True, top_k=7, max_new_tokens=5)
    through(door, hf_model("gpt2"), IDS, config)
    assert through(door, hf_model("gpt2"), IDS).shape == (2, 24)


@each_door
def test_embeddings_and_their_length(door: str) -> None:
    model = hf_model("llama")
    embeds = model.get_input_embeddings()(IDS).detach()
    assert through(door, model, inputs_embeds=embeds, max_length=9).shape == (2, 5)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 2, **EVERYTHING}]
)
@each_door
def test_encoder_decoders(door: str, family: str, settings: dict[str, Any]) -> None:
    model, forwards = encoder_decoder(family), []
    hook = model.get_encoder().register_forward_hook(lambda *_: forwards.append(1))
    try:
        through(door, model, IDS, decoder_start_token_id=1, max_new_tokens=5, **settings)
    finally:
        hook.remove()
    assert len(forwards) == 2  # one per call


@each_door
def test_a_cache_of_the_caller(door: str) -> None:
    model, cache = hf_model("llama"), transformers.DynamicCache(config=hf_model("llama").config)
    text = IDS
    for length in (6, 10):
        found = model.generate(text, past_key_values=cache, max_new_tokens=3, **DOORS[door])
        assert torch.equal(found, generate_tokens(model, text, max_new_tokens=3))
        assert cache.get_seq_length() == length
        text = torch.cat([found, IDS[:, :1]], dim=1)


@each_door
def test_an_assistant(door: str) -> None:
    through(door, hf_model("llama"), IDS[:1], assistant_model=hf_model("qwen2"), max_new_tokens=6)


class Seen(BaseStreamer):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.seen.append(value.tolist())

    def end(self) -> None:
        self.seen.append("end")


@each_door
def test_a_streamer_gets_prompts_tokens_and_the_end_once(door: str) -> None:
    streamer = Seen()
    tokens = through(door, hf_model("llama"), IDS, max_new_tokens=3)
    hf_model("llama").generate(IDS, max_new_tokens=3, streamer=streamer, **DOORS[door])
    assert streamer.seen == [IDS.tolist(), *tokens[:, 4:].T.tolist(), "end"]


@each_door
def test_a_streamer_ends_when_the_loop_fails(door: str) -> None:
    def fail(ids: Tensor, scores: Tensor) -> Tensor:
        raise RuntimeError("no")

    class Plain:
        def decode(self, ids: list[int], **_: object) -> str:
            return " ".join(map(str, ids))

    tokenizer: Any = Plain()
    streamer = TextIteratorStreamer(tokenizer, timeout=10)
    with pytest.raises(RuntimeError, match="^no$"):
        hf_model("llama").generate(IDS[:1], max_new_tokens=3, streamer=streamer, logits_processor=[fail], **DOORS[door])
    assert "".join(streamer).split() == ["5", "6", "7", "5"]


def test_outside_of_transformers() -> None:
    with pytest.raises(NotImplementedError, match="`custom_generate` is an argument for `generate` of a transformers"):
        pygen.custom_generate(hf_model("llama"), IDS)
    with pygen.patch(hf_model("llama")):
        tokens = hf_model("llama").generate(IDS, custom_generate=pygen.custom_generate, max_new_tokens=3)
    assert torch.equal(tokens, generate_tokens(hf_model("llama"), IDS, max_new_tokens=3))


def test_a_checkpoint_that_holds_the_folder(tmp_path: Path) -> None:
    hf_model("llama").save_pretrained(tmp_path)
    (tmp_path / "custom_generate").mkdir()
    for file in (HUB / "custom_generate").glob("*.*"):
        (tmp_path / "custom_generate" / file.name).write_text(file.read_text())
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    settings: dict[str, Any] = {"seed": 5, "do_sample": True, "max_new_tokens": 4}
    assert torch.equal(model.generate(IDS, **settings), generate_tokens(model, IDS, **settings))


def test_the_folder_names_what_it_needs() -> None:
    assert (HUB / "custom_generate" / "requirements.txt").read_text().split() == ["pygen-decode"]
    head = (HUB / "README.md").read_text().split("---")[1]
    assert "library_name: transformers" in head and "- custom_generate" in head
