"""`pygen.patch`: which `generate` runs, what an undo leaves, the order of patches, and copies of models."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TextGenerationPipeline,
    WhisperForConditionalGeneration,
)

import pygen
from tests.generate.models import VOCAB_SIZE, CachedModel, TableModel, hf_model

IDS = torch.tensor([[5, 6, 7], [8, 9, 3]])
BASE = transformers.GenerationMixin


class OwnGenerate(LlamaForCausalLM):
    """Overrides `generate` as many multimodal models do: prepares inputs and calls super()."""

    def generate(self, *args: Any, shift: int = 0, **kwargs: Any) -> Any:
        prepared: Any = super()
        tokens = prepared.generate(*args, **kwargs)
        return tokens + shift


def own_generate() -> OwnGenerate:
    torch.manual_seed(0)
    model = OwnGenerate(hf_model("llama").config)
    model.eval()
    return model


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    classes = (BASE, LlamaForCausalLM, GPT2LMHeadModel, OwnGenerate, PreTrainedModel, CachedModel)
    places = [*classes, hf_model("llama"), hf_model("gpt2")]
    before = [dict(vars(place)) for place in places]
    yield
    assert [dict(vars(place)) for place in places] == before
    assert [list(vars(place)) for place in places] == [list(names) for names in before]


def is_pygens(generate: Any) -> bool:
    """Returns whether pygen runs the call: only pygen accepts `seed`."""
    try:
        generate(IDS, max_new_tokens=1, do_sample=True, seed=3)
    except ValueError as error:
        assert "seed" in str(error)
        return False
    return True


def test_an_instance() -> None:
    model, other = hf_model("llama"), copy.deepcopy(hf_model("llama"))
    expected = model.generate(IDS, max_new_tokens=4)
    patch = pygen.patch(model)
    assert is_pygens(model.generate)
    assert not is_pygens(other.generate)
    assert torch.equal(model.generate(IDS, max_new_tokens=4), expected)
    patch.undo()
    assert not is_pygens(model.generate)


@pytest.mark.parametrize(("target", "gpt2_too"), [(LlamaForCausalLM, False), (PreTrainedModel, True), (BASE, True)])
def test_a_class(target: type, gpt2_too: bool) -> None:
    with pygen.patch(target):
        assert is_pygens(hf_model("llama").generate)
        assert is_pygens(hf_model("gpt2").generate) == gpt2_too
    assert not is_pygens(hf_model("llama").generate)


def test_positional_arguments_and_signature() -> None:
    """In transformers' order: inputs, generation_config, logits_processor, stopping_criteria, ..."""
    model = hf_model("llama")

    def forbid(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(1, torch.arange(50), -torch.inf)

    def stop(input_ids: Tensor, scores: Any) -> bool:
        return input_ids.shape[1] == 5

    arguments = (IDS, transformers.GenerationConfig(max_new_tokens=9, pad_token_id=0), [forbid], [stop])
    expected, signature = model.generate(*arguments), inspect.signature(model.generate)
    with pygen.patch(model):
        assert torch.equal(model.generate(*arguments), expected)
        assert names(inspect.signature(model.generate)) == names(signature)
    with pygen.patch(LlamaForCausalLM):
        assert torch.equal(model.generate(*arguments), expected)
        assert names(inspect.signature(model.generate)) == names(signature)


def names(signature: inspect.Signature) -> list[tuple[Any, ...]]:
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


def test_pipelines_follow() -> None:
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    model = LlamaForCausalLM(hf_model("llama").config).eval()
    pipeline = TextGenerationPipeline(model=model, tokenizer=tokenizer)
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": True}
    torch.manual_seed(0)
    expected = pipeline("w5 w6", **settings)
    torch.manual_seed(0)
    with pygen.patch(model):
        assert pipeline("w5 w6", **settings) == expected
        assert pipeline("w5 w6", seed=3, **settings) == pipeline("w5 w6", seed=3, **settings)


TARGETS: dict[str, Callable[[], Any]] = {
    "instance": lambda: hf_model("llama"),
    "class": lambda: LlamaForCausalLM,
    "base": lambda: BASE,
}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_any_order(order: tuple[int, ...]) -> None:
    model = hf_model("llama")
    patches = [pygen.patch(TARGETS[name]()) for name in ("class", "instance", "base", "instance")]
    for count, number in enumerate(order):
        assert is_pygens(model.generate), count
        patches[number].undo()
        patches[number].undo()  # a second undo changes nothing
    assert not is_pygens(model.generate)


def test_an_error_inside_undoes() -> None:
    model = hf_model("llama")
    with pytest.raises(ZeroDivisionError), pygen.patch(model) as patch:
        assert "active" in repr(patch)
        raise ZeroDivisionError
    assert repr(patch) == "<pygen.patch of a LlamaForCausalLM: undone>"


def test_earlier_generates_come_back() -> None:
    model = hf_model("gpt2")
    vars(model)["generate"] = own = object()
    with pygen.patch(model):
        assert is_pygens(model.generate)
    assert vars(model).pop("generate") is own

    class Plain(TableModel):
        def generate(self) -> str:
            return "its own"

    plain: Any = Plain(torch.eye(5).roll(1, 1))
    with pygen.patch(Plain):
        assert plain.generate(torch.tensor([[1]]), max_new_tokens=2).tolist() == [[1, 2, 3]]
    assert plain.generate() == "its own"


def test_something_else_on_top_is_not_removed() -> None:
    model = hf_model("gpt2")
    patch = pygen.patch(model)
    ours, vars(model)["generate"] = vars(model)["generate"], "theirs"
    with pytest.raises(RuntimeError, match=r"`generate` of a GPT2LMHeadModel has been replaced .* by 'theirs'"):
        patch.undo()
    assert vars(model)["generate"] == "theirs"
    vars(model)["generate"] = ours
    patch.undo()


def test_a_class_that_overrides_generate() -> None:
    """An override below a patched base stays in force; a patch never drops it silently."""
    model = own_generate()
    expected = model.generate(IDS, max_new_tokens=3, shift=1)
    with pygen.patch(BASE):
        assert torch.equal(model.generate(IDS, max_new_tokens=3, shift=1), expected)
        assert is_pygens(model.generate)
        with pytest.raises(NotImplementedError, match="its own `generate`"):
            pygen.generate(model, IDS, max_new_tokens=3)
    for target in (model, OwnGenerate, WhisperForConditionalGeneration):
        with pytest.raises(NotImplementedError, match=r"its own `generate` would be lost; .* transformers.GenerationM"):
            pygen.patch(target)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_patched_too(how: str) -> None:
    model = LlamaForCausalLM(hf_model("llama").config).eval()  # later releases cannot pickle a used model
    with pygen.patch(model):
        twin = copied(model, how)
    assert not is_pygens(model.generate)
    assert is_pygens(twin.generate)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert twin.generate(IDS, max_new_tokens=1)[:, -1].tolist() == [0, 0]  # from the twin's weights
    pygen.patch(twin).undo()
    assert "generate" not in vars(twin)
    assert not is_pygens(twin.generate)


def copied(model: Any, how: str) -> Any:
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_plain_modules() -> None:
    model: Any = TableModel(torch.eye(5).roll(1, 1))
    with pygen.patch(model), pygen.patch(CachedModel):
        assert model.generate(torch.tensor([[1]]), max_new_tokens=2).tolist() == [[1, 2, 3]]
        cached: Any = CachedModel()
        assert cached.generate(IDS, max_new_tokens=2).shape == (2, 5)
    assert not hasattr(model, "generate")
    assert not hasattr(CachedModel, "generate")


def test_compiled_models() -> None:
    compiled: Any = torch.compile(copy.deepcopy(hf_model("llama")), backend="eager")
    with pygen.patch(compiled), pytest.raises(TypeError, match="`input_ids` must be a tensor, got str"):
        compiled.generate("no ids")
    assert compiled.generate.__func__ is LlamaForCausalLM.generate


@pytest.mark.parametrize("target", ["gpt2", None, int, {"a": 1}, torch.zeros(2)])
def test_refused(target: Any) -> None:
    with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module or a class of them, got "):
        pygen.patch(target)
