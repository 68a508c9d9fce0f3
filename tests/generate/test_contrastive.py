"""Contrastive search: against its definition, and against recorded results of transformers 4.55."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import pygen
from pygen.decode.contrastive_scores import Context, contrastive_scores
from pygen.generate import generate
from tests.generate.models import hf_model
from tests.helpers import naive_contrasts
from tests.helpers.generation import generate_output, generate_tokens
from tests.oracles import cases
from tests.oracles.replay import assert_as_recorded, assert_same_models
from tests.shadow import readings
from tests.shadow.architectures import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 20], [0, 0, 0, 3, 40, 11]])
MASK = (IDS != 0).long()
FOUR: dict[str, Any] = {"penalty_alpha": 0.6, "top_k": 4, "pad_token_id": 0}


def search(**settings: Any) -> Any:
    model = cases.seeded_model("llama")
    return generate(model, IDS, attention_mask=MASK, **{"max_new_tokens": 12, **FOUR, **settings})


def test_models_are_those_of_the_recording() -> None:
    assert_same_models("contrastive")


@pytest.mark.parametrize("name", cases.CONTRASTIVE)
def test_calls_give_what_transformers_4_55_gave(name: str) -> None:
    assert_as_recorded("contrastive", name)


# Full attention, sliding windows, and recurrent states: in the cache, beside attention, and in the modules.
@pytest.mark.parametrize(
    "name",
    [
        "LlamaForCausalLM",
        "Gemma3ForCausalLM",
        "MambaForCausalLM",
        "JambaForCausalLM",
        "RecurrentGemmaForCausalLM",
    ],
)
def test_tokens_are_those_of_the_definition(name: str) -> None:
    model = tiny_model(name)
    prompts = [[5, 9, 4, 17, 30], [12, 3, 3, 40, 8]]
    settings: dict[str, Any] = {"penalty_alpha": 0.5, "top_k": 3, "max_new_tokens": 5, "pad_token_id": 0}
    found = generate_tokens(model, torch.tensor(prompts), **settings)

    def expected() -> list[list[int]]:
        search = functools.partial(naive_contrasts.contrastive, model, penalty_alpha=0.5, top_k=3, steps=5)
        return [prompt + search(prompt) for prompt in prompts]

    if found.tolist() != expected():
        # Candidates need a cache of full layers. With it, some releases read texts beyond the window differently.
        reader = readings.Reader(model, window=False)
        assert not reader.reads_alike(found[:, :-1], 5)
        with reader.by_token(5):
            assert found.tolist() == expected()


def test_scores_and_similarity_by_hand() -> None:
    context = Context(torch.tensor([[[9.0, 9.0], [3.0, 4.0], [0.0, 2.0]]]), torch.tensor([[0, 1, 1]]), 1000)
    candidates = torch.tensor([[[1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]])
    similarity = context.similarity(candidates)
    assert similarity.tolist() == [pytest.approx([1.4 / 2**0.5, 0.0, 0.0])]
    context.append(torch.tensor([[-2.0, 0.0]]))
    assert context.similarity(candidates)[0, 1] == pytest.approx(1.0)
    scores = contrastive_scores(torch.tensor([[0.5, 0.25, 0.0]]).log(), similarity, 0.6)
    assert scores.tolist() == [pytest.approx([0.4 * 0.5 - 0.6 * 1.4 / 2**0.5, 0.1, -float("inf")])]


def test_a_context_grows_and_hides_rows_that_are_padding() -> None:
    context = Context(torch.ones(1, 1, 2), torch.zeros(1, 1), 1)
    assert context.similarity(torch.ones(1, 1, 2)).tolist() == [[-1.0]]
    for _ in range(5):
        context.append(torch.tensor([[1.0, -1.0]]))
    assert context.similarity(torch.tensor([[[2.0, -2.0]]])).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"low_memory": True},
        {"use_cache": False},
        {"use_cache": False, "low_memory": True},
        {"prefill_chunk_size": 2},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "low_memory": True},
    ],
    ids=str,
)
def test_memory_and_caches_do_not_change_the_tokens(settings: dict[str, Any]) -> None:
    assert torch.equal(search(**settings), search())


def test_low_memory_reads_one_candidate_per_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, read = torch.nn.functional.embedding, []

    def seen(ids: Tensor, *args: Any) -> Tensor:
        read.append(tuple(ids.shape))
        return embedding(ids, *args)

    monkeypatch.setattr(torch.nn.functional, "embedding", seen)
    search(low_memory=True, max_new_tokens=2)
    assert read == [(2, 6), *[(2, 1)] * (4 + 1 + 4)]
    read.clear()
    search(max_new_tokens=2)
    assert read == [(2, 6), (8, 1), (8, 1)]


@pytest.mark.parametrize("low_memory", [False, True])
def test_outputs(low_memory: bool) -> None:
    settings = {"output_hidden_states": True, "output_scores": True, "output_logprobs": True, "top_logprobs": 6}
    output = search(return_dict_in_generate=True, low_memory=low_memory, eos_token_id=8, max_new_tokens=5, **settings)
    tokens = output.sequences[:, IDS.shape[1] :]
    logprobs = torch.stack(output.scores, dim=1).log_softmax(-1)
    ended = (tokens == 8).cumsum(1) - (tokens == 8).int() > 0
    expected = logprobs.gather(2, tokens[..., None])[..., 0].masked_fill(ended, 0.0)
    torch.testing.assert_close(output.logprobs, expected, rtol=1e-4, atol=1e-5)
    assert output.top_logprobs.token_ids.shape == (2, 5, 6)
    assert output.finish_reason == ["eos" if 8 in row else "length" for row in tokens.tolist()]
    assert [states[-1].shape for states in output.hidden_states] == [(2, 6, 32), *[(2, 1, 32)] * 4]
    # The returned states and cache belong to the returned text.
    model = cases.seeded_model("llama")
    with torch.no_grad():
        mask = torch.cat([MASK, torch.ones_like(tokens)], dim=1)
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        read = model(output.sequences, attention_mask=mask, position_ids=position_ids, output_hidden_states=True)
    kept = torch.cat([states[-1] for states in output.hidden_states], dim=1)
    visible = mask[:, :-1].bool() & ~torch.cat([torch.zeros_like(MASK, dtype=torch.bool), ended[:, 1:]], dim=1)
    torch.testing.assert_close(kept[visible], read.hidden_states[-1][:, :-1][visible], rtol=1e-4, atol=1e-4)
    assert output.past_key_values.get_seq_length() == output.sequences.shape[1] - 1
    go_on: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 3, "pad_token_id": 0}
    row = int(ended[0].any())
    without = generate_tokens(model, output.sequences, **go_on)
    assert torch.equal(
        generate_tokens(model, output.sequences, past_key_values=output.past_key_values, **go_on)[row], without[row]
    )


def test_a_banned_token_never_follows() -> None:
    """transformers picks a banned token if it resembles the text less than the allowed tokens."""
    allowed = [[21, 22, 23], [33, 34]]
    result = search(prefix_allowed_tokens_fn=lambda row, ids: allowed[row], penalty_alpha=0.99)
    assert {*result[0, 6:].tolist()} <= {*allowed[0]}
    assert {*result[1, 6:].tolist()} <= {*allowed[1]}


def test_half_precision_is_compared_in_float32() -> None:
    states = torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    candidates = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = torch.nn.functional.cosine_similarity(states.double()[:, None], candidates.double()[:, :, None], dim=-1)
    similarity = Context(states, None, 1).similarity(candidates)
    torch.testing.assert_close(similarity, exact.amax(-1).float(), rtol=1e-5, atol=1e-6)


def test_more_candidates_than_tokens() -> None:
    assert torch.equal(search(top_k=200, max_new_tokens=4), search(top_k=cases.VOCAB_SIZE, max_new_tokens=4))


def test_streamers_criteria_and_the_cache_of_the_caller() -> None:
    class Collect:
        seen: list[Tensor] = []

        def put(self, tokens: Tensor) -> None:
            self.seen.append(tokens)

        def end(self) -> None:
            self.seen.append(torch.tensor([-1]))

    def third(ids: Tensor, scores: Any) -> Tensor:
        return torch.tensor([ids.shape[1] >= 9, ids.shape[1] >= 11])

    cache: Any = transformers.DynamicCache(config=cases.seeded_model("llama").config)
    result = search(streamer=Collect(), stopping_criteria=[third], past_key_values=cache, eos_token_id=59)
    expected = search()[:, :11].clone()
    expected[0, 9:] = 0
    assert torch.equal(result, expected)
    assert [tuple(tokens.shape) for tokens in Collect.seen] == [(2, 6), *[(2,)] * 5, (1,)]
    assert cache.get_seq_length() == 10 and cache.layers[0].keys.shape[0] == 2


def test_embeddings_and_patched_models() -> None:
    model = cases.seeded_model("llama")
    embeds = model.get_input_embeddings()(IDS)
    expected = search()
    assert torch.equal(
        generate_tokens(model, inputs_embeds=embeds, attention_mask=MASK, max_new_tokens=12, **FOUR), expected[:, 6:]
    )
    with pygen.patch(model):
        assert torch.equal(model.generate(IDS, attention_mask=MASK, max_new_tokens=12, **FOUR), expected)


def test_a_loop_of_the_callers_searches_by_itself() -> None:
    seen: dict[str, Any] = {}

    def loop(model: Any, input_ids: Tensor, **arguments: Any) -> Tensor:
        seen.update(arguments)
        return input_ids

    search(custom_generate=loop)
    assert seen["generation_config"].penalty_alpha == 0.6
    assert "output_hidden_states" not in seen
    assert seen["past_key_values" if "past_key_values" in seen else "cache"].get_seq_length() == 0


def test_positions_end_before_the_candidates_of_the_last_token() -> None:
    model = hf_model("gpt2")
    prompt = torch.randint(3, 60, (1, 60), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="generating up to 4"):
        assert generate_tokens(model, prompt, **FOUR, max_new_tokens=10).shape == (1, 64)
    with pytest.raises(ValueError, match="no position behind the prompts"):
        generate(model, prompt.repeat(1, 2)[:, :64], **FOUR, max_new_tokens=1)


class Contrasted(nn.Module):
    """A plain module with hidden states and a tuple cache."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = hf_model("llama")

    def forward(self, input_ids: Tensor, past_key_values: Any = None, output_hidden_states: bool = False) -> Any:
        cache = transformers.DynamicCache(past_key_values)
        output = self.inner(input_ids, past_key_values=cache, output_hidden_states=output_hidden_states)
        pairs = tuple((layer.keys, layer.values) for layer in output.past_key_values.layers)
        return {"logits": output.logits, "past_key_values": pairs, "hidden_states": output.hidden_states}


def test_plain_modules() -> None:
    prompt = IDS[:1]
    expected = generate_tokens(hf_model("llama"), prompt, max_new_tokens=6, **FOUR)
    assert torch.equal(generate_tokens(Contrasted(), prompt, max_new_tokens=6, **FOUR), expected)
    with pytest.raises(ValueError, match="`low_memory` must be False for `model`"):
        generate(Contrasted(), prompt, max_new_tokens=6, low_memory=True, **FOUR)
    low = generate_tokens(Contrasted(), prompt, max_new_tokens=6, low_memory=True, use_cache=False, **FOUR)
    assert torch.equal(low, expected)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prompt_lookup_num_tokens": 3}, ValueError, "`penalty_alpha` must be 0 with `prompt_lookup_num_tokens`"),
    ({"num_return_sequences": 2}, ValueError, "`num_return_sequences` must be 1"),
    ({"num_beams": 2, "low_memory": True}, NotImplementedError, "`low_memory`=True"),
    ({"penalty_alpha": -1.0}, ValueError, r"`penalty_alpha` must be .*got -1.0"),
]


@pytest.mark.parametrize(("settings", "kind", "text"), REFUSED, ids=[text for _, _, text in REFUSED])
def test_refusals(settings: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        search(**settings)


def test_a_cache_that_has_seen_something_is_refused() -> None:
    model = cases.seeded_model("llama")
    cache = transformers.DynamicCache(config=model.config)
    model(IDS[:, :3], past_key_values=cache)
    with pytest.raises(ValueError, match="`past_key_values` must be empty with `penalty_alpha`"):
        search(past_key_values=cache)
    assert cache.get_seq_length() == 3


@pytest.mark.parametrize("name", ["OpenAIGPTLMHeadModel", "RecurrentGemmaForCausalLM"])
def test_a_model_that_leaves_layers_of_its_cache_empty(name: str) -> None:
    model = tiny_model(name)
    expected = generate_tokens(model, IDS[:1], max_new_tokens=4, **FOUR)
    output: Any = generate_output(model, IDS[:1], max_new_tokens=4, return_dict_in_generate=True, **FOUR)
    assert torch.equal(output.sequences, expected)


def test_an_empty_cache_is_taken_back() -> None:
    model = tiny_model("OpenAIGPTLMHeadModel")
    expected = generate_tokens(model, IDS[:1], max_new_tokens=4, use_cache=False, **FOUR)
    assert torch.equal(generate_tokens(model, IDS[:1], max_new_tokens=4, low_memory=True, **FOUR), expected)


def test_states_that_cannot_be_taken_back_are_refused_with_low_memory() -> None:
    with pytest.raises(ValueError, match="`low_memory` must be False for `model`"):
        generate(tiny_model("MambaForCausalLM"), IDS, max_new_tokens=3, low_memory=True, **FOUR)


def test_explain() -> None:
    explained = pygen.explain(cases.seeded_model("llama"), IDS, max_new_tokens=3, **FOUR)
    assert (explained.mode, explained.rows) == ("contrastive_search", 8)
    assert not explained.ignored
    assert "the 4 best, read in one forward" in str(explained)
    sampled = pygen.explain(cases.seeded_model("llama"), IDS, max_new_tokens=3, do_sample=True, **FOUR)
    assert "acts in contrastive search only" in sampled.ignored["penalty_alpha"]
