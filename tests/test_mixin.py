"""`pygen.GenerationMixin`: what a custom class needs, and every hook that it may override."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel, PreTrainedTokenizerFast

import pygen
from pygen.models.adapter import adapt
from tests.generate.models import CachedModel, SumCache, TableModel, hf_model
from tests.helpers.generation import generate_tokens, returning

PROMPTS = torch.tensor([[1, 2, 3], [7, 7, 4]])
PADDED = torch.tensor([[0, 0, 5], [7, 7, 4]])
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 6},
    "copies": {"max_new_tokens": 4, "do_sample": True, "num_return_sequences": 3, "seed": 5},
    "beams": {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2},
    "penalty": {"max_new_tokens": 5, "repetition_penalty": 1.7, "pad_token_id": 0},
}


class Table(TableModel, pygen.GenerationMixin):
    """The minimum: a forward over ids that returns logits."""


class Model(CachedModel, pygen.GenerationMixin):
    """A model with cache, mask and positions."""

    def _reorder_cache(self, past_key_values: SumCache, beam_idx: Tensor) -> SumCache:
        return SumCache(past_key_values.total[beam_idx], past_key_values.length)


def seeded(cls: type[Any]) -> Any:
    torch.manual_seed(7)
    return cls().eval()


def test_the_least_that_a_class_needs() -> None:
    model = Table(torch.eye(9).roll(1, 1))
    generate = returning(Tensor, model.generate)
    assert generate(torch.tensor([[3]]), max_new_tokens=3).tolist() == [[3, 4, 5, 6]]
    assert generate(torch.tensor([[3]]), num_beams=2, max_new_tokens=3).tolist() == [[3, 4, 5, 6]]
    assert model.can_generate()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("prompts", [PROMPTS, PADDED])
def test_same_as_without_the_mixin(settings: str, prompts: Tensor) -> None:
    plain = seeded(CachedModel)
    vars(plain)["_reorder_cache"] = lambda *arguments: Model._reorder_cache(plain, *arguments)
    expected = generate_tokens(plain, prompts, **SETTINGS[settings])
    assert torch.equal(seeded(Model).generate(prompts, **SETTINGS[settings]), expected)


def test_generation_config() -> None:
    model = seeded(Model)
    assert model.generation_config == pygen.GenerationConfig()
    model.generation_config.max_new_tokens = 2
    assert model.generate(PROMPTS).shape == (2, 5)
    model.generation_config = pygen.GenerationConfig(max_new_tokens=3)
    assert model.generate(PROMPTS).shape == (2, 6)

    class Configured(Model):
        config = SimpleNamespace(to_dict=lambda: {"eos_token_id": 4, "hidden_size": 3}, max_position_embeddings=5)

    assert seeded(Configured).generation_config.eos_token_id == 4
    with pytest.warns(UserWarning, match="generating up to 2 tokens"):
        assert seeded(Configured).generate(PROMPTS[:1]).shape[1] <= 5


def test_prepare_inputs_for_generation() -> None:
    """The default passes the arguments that forward names; an override may take and pass others."""
    seen: list[tuple[Any, ...]] = []

    class Shifted(Model):
        def prepare_inputs_for_generation(  # type: ignore[override]
            self, input_ids: Tensor, shift: int = 0, **kwargs: Any
        ) -> dict[str, Any]:
            seen.append((tuple(input_ids.shape), kwargs["next_sequence_length"], kwargs["is_first_iteration"]))
            return super().prepare_inputs_for_generation((input_ids + shift) % 23, **kwargs)

    expected = generate_tokens(seeded(Model), PROMPTS + 2, max_new_tokens=1)[:, -1]
    assert torch.equal(seeded(Shifted).generate(PROMPTS, shift=2, max_new_tokens=1)[:, -1], expected)
    seen.clear()
    seeded(Shifted).generate(PROMPTS, max_new_tokens=3)
    assert seen == [((2, 3), None, True), ((2, 4), 1, False), ((2, 5), 1, False)]
    inputs = seeded(Model).prepare_inputs_for_generation(
        PROMPTS, next_sequence_length=1, past_key_values="cache", position_ids=PROMPTS, unknown=3
    )
    assert inputs.keys() == {"input_ids", "past_key_values", "position_ids"}
    assert inputs["input_ids"].tolist() == inputs["position_ids"].tolist() == [[3], [4]]
    with pytest.raises(ValueError, match="does not use these arguments: `shift`"):
        seeded(Model).generate(PROMPTS, shift=2)


@pytest.mark.parametrize("settings", SETTINGS)
def test_update_model_kwargs_for_generation(settings: str) -> None:
    """A class may carry state from step to step. The default, written out, passes the inputs that pygen slices."""

    class Counting(Model):
        steps = 0

        def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            type(self).steps += 1
            return super()._update_model_kwargs_for_generation(*args, **kwargs)

    expected = seeded(Model).generate(PADDED, **SETTINGS[settings])
    assert torch.equal(seeded(Counting).generate(PADDED, **SETTINGS[settings]), expected)
    assert Counting.steps == SETTINGS[settings]["max_new_tokens"]


@pytest.mark.parametrize("by_outputs", [False, True])
def test_drafts_with_an_own_update_of_model_kwargs(by_outputs: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A hook that adds a column from what it knows, or from the logits: these are read token by token."""

    class Shifting(Model):
        def _update_model_kwargs_for_generation(  # type: ignore[override]
            self, outputs: Any, model_kwargs: Any, **kwargs: Any
        ) -> dict[str, Any]:
            positions = model_kwargs["position_ids"]
            updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
            step = outputs[0][:, -1:].argmax(-1) % 2 if by_outputs else positions[:, -1:] % 3
            updated["position_ids"] = torch.cat([positions, positions[:, -1:] + 1 + step], dim=1)
            return updated

    model, call = seeded(Shifting), {"max_new_tokens": 9, "pad_token_id": 0}
    prompts = torch.tensor([[1, 2, 3, 1, 2], [7, 4, 4, 7, 4]])
    expected = model.generate(prompts, **call)
    assert not torch.equal(expected, seeded(Model).generate(prompts, **call))
    assert torch.equal(model.generate(prompts, prompt_lookup_num_tokens=3, **call), expected)
    assert ("one at a time" in caplog.text) is by_outputs
    assert torch.equal(model.generate(prompts, assistant_model=seeded(Shifting), **call), expected)
    assert torch.equal(model.generate(prompts, assistant_model=seeded(Model), **call), expected)


def test_expand_inputs_for_generation() -> None:
    class Tagged(Table):
        def forward(self, input_ids: Tensor, tags: list[str]) -> Tensor:  # type: ignore[override]
            assert len(tags) == input_ids.shape[0]
            return super().forward(input_ids)

        @staticmethod
        def _expand_inputs_for_generation(  # type: ignore[override]
            expand_size: int = 1, tags: Any = None, **kwargs: Any
        ) -> Any:
            ids, kwargs = pygen.GenerationMixin._expand_inputs_for_generation(expand_size, **kwargs)
            return ids, {**kwargs, "tags": [tag for tag in tags for _ in range(expand_size)]}

    generate = returning(Tensor, Tagged(torch.zeros(9, 9)).generate)
    copies = generate(PROMPTS, tags=["a", "b"], do_sample=True, num_return_sequences=3, max_new_tokens=2)
    assert copies.shape[0] == 6


def test_expansion_by_default() -> None:
    mask = torch.tensor([[1], [2]])
    ids, kwargs = pygen.GenerationMixin._expand_inputs_for_generation(2, False, PROMPTS, mask=mask, names=["a"])
    assert ids is not None and ids.tolist() == [[1, 2, 3], [1, 2, 3], [7, 7, 4], [7, 7, 4]]
    assert (kwargs["mask"].tolist(), kwargs["names"]) == ([[1], [1], [2], [2]], ["a"])
    assert pygen.GenerationMixin._expand_inputs_for_generation(2, flag=True) == (None, {"flag": True})


def test_prepare_cache_for_generation() -> None:
    class Prepared(Model):
        def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: Any, *sizes: Any) -> None:
            self.sizes = generation_config.max_new_tokens, *sizes
            model_kwargs["past_key_values"] = SumCache(torch.zeros(1, 12), 0)

        def forward(  # type: ignore[override]
            self, input_ids: Tensor, past_key_values: SumCache | None = None, **kwargs: Any
        ) -> Any:
            assert past_key_values is not None
            kwargs.setdefault("position_ids", torch.zeros_like(input_ids))
            ones = torch.ones(input_ids.shape[0], past_key_values.length + input_ids.shape[1])
            return super().forward(input_ids, ones, kwargs["position_ids"], past_key_values, True)

    model = seeded(Prepared)
    model.generate(PROMPTS, max_new_tokens=4)
    assert model.sizes == (4, "greedy_search", 2, 6)
    with pytest.raises(AssertionError):  # the call wants no cache, so pygen makes none
        model.generate(PROMPTS, max_new_tokens=4, use_cache=False)


def test_beams_gather_the_cache() -> None:
    gathered: list[list[int]] = []

    class Recorded(Model):
        def _reorder_cache(self, past_key_values: SumCache, beam_idx: Tensor) -> SumCache:
            gathered.append(beam_idx.tolist())
            return super()._reorder_cache(past_key_values, beam_idx)

    settings = SETTINGS["beams"]
    expected = seeded(Model).generate(PROMPTS, use_cache=False, **settings)
    assert torch.equal(seeded(Recorded).generate(PROMPTS, **settings), expected)
    assert len(gathered) >= 3
    assert all(len(rows) == 6 for rows in gathered)


def test_an_idle_forward_goes_through_the_hook() -> None:
    class Renamed(Table):
        def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
            self.seen = tokens.tolist()
            return self.table[tokens]

        def prepare_inputs_for_generation(  # type: ignore[override]
            self, input_ids: Tensor, attention_mask: Any = None, **_: Any
        ) -> Any:
            assert attention_mask.shape == input_ids.shape
            return {"tokens": input_ids}

    model = Renamed(torch.eye(9).roll(1, 1))
    assert generate_tokens(model, PROMPTS, max_new_tokens=1)[:, -1].tolist() == [4, 5]
    adapt(model).idle()
    assert model.seen == [[0]]


def test_transition_scores() -> None:
    output = seeded(Model).generate(PROMPTS, max_new_tokens=3, return_dict_in_generate=True, output_scores=True)
    chosen = seeded(Model).compute_transition_scores(output.sequences, output.scores)
    assert torch.equal(chosen[:, 0], output.scores[0].max(-1).values)


def test_loops_of_the_callers_code(tmp_path: Any) -> None:
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text(
        "def generate(model, inputs, **kwargs): return inputs + 1"
    )
    model = seeded(Model)
    assert torch.equal(model.generate(PROMPTS, custom_generate=str(tmp_path), trust_remote_code=True), PROMPTS + 1)
    assert torch.equal(model.load_custom_generate(tmp_path, trust_remote_code=True)(model, PROMPTS), PROMPTS + 1)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        model.load_custom_generate(tmp_path)
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must be a folder or a repository, got None"):
        model.load_custom_generate()


def test_healing_by_its_own_model() -> None:
    words = Tokenizer(WordLevel({"_": 0, "th": 1, "the": 2, "a": 3, "then": 4}, unk_token="_"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="_")
    table = torch.zeros(5, 5)
    table[3, 4] = 3.0  # after "a" comes "then"
    assert Table(table).heal_tokens(torch.tensor([[2, 3, 1]]), tokenizer).tolist() == [[2, 3, 4]]
    with pytest.raises(ValueError, match="`heal_tokens` needs the model's `tokenizer`"):
        Table(table).heal_tokens(torch.tensor([[2, 3, 1]]))


@pytest.mark.parametrize("method", ["_sample", "_beam_search", "_get_logits_processor", "_prepare_generation_config"])
def test_methods_that_would_not_be_called_are_refused(method: str) -> None:
    cls = type("Own", (Model,), {method: lambda self: None})
    with pytest.raises(NotImplementedError, match=f"`model`=Own: its own `{method}` would not be called"):
        seeded(cls).generate(PROMPTS)


def test_models_of_transformers() -> None:
    """The mixin works on transformers' headless model classes. A class with both mixins is refused."""

    class Head(LlamaPreTrainedModel, pygen.GenerationMixin):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = LlamaModel(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.post_init()

        def forward(self, input_ids: Tensor, attention_mask: Any = None, past_key_values: Any = None) -> Any:
            outputs = self.model(input_ids, attention_mask=attention_mask, past_key_values=past_key_values)
            return {"logits": self.lm_head(outputs.last_hidden_state), "past_key_values": outputs.past_key_values}

    theirs = hf_model("llama")
    model = Head(theirs.config).eval()
    model.load_state_dict(theirs.state_dict())
    ids = torch.tensor([[0, 0, 5, 6], [8, 9, 3, 7]])
    for settings in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        settings |= {"max_new_tokens": 6, "pad_token_id": 0}
        torch.manual_seed(1)
        expected = theirs.generate(ids, **settings)
        torch.manual_seed(1)
        assert torch.equal(model.generate(ids, **settings), expected)

    class Both(pygen.GenerationMixin, LlamaForCausalLM):  # type: ignore[misc]
        pass

    with pytest.raises(TypeError, match=r"`model`=Both must not have two mixins; .* pygen.patch\(\)"):
        Both(theirs.config).generate(ids)


def test_without_transformers() -> None:
    code = """
import sys
sys.modules["transformers"] = None
import torch, pygen
class Table(torch.nn.Module, pygen.GenerationMixin):
    def forward(self, input_ids):
        return torch.eye(9).roll(1, 1)[input_ids]
print(Table().generate(torch.tensor([[3]]), max_new_tokens=2).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[[3, 4, 5]]\n"
