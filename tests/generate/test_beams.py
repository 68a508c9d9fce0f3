"""Beams in `generate`: caches, criteria, streaming, seeds, outputs, and refusals."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pygen.generate import generate
from pygen.streaming import stream
from tests.generate.models import VOCAB_SIZE, TableModel, encoder_decoder, hf_model
from tests.helpers.generation import generate_output, generate_tokens

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])
PLAIN: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 8, "pad_token_id": 3}


def both(**settings: Any) -> tuple[Any, Any]:
    """Returns (pygen's, transformers') output for two prompts of the small Llama."""
    model = hf_model("llama")
    settings = {**PLAIN, "return_dict_in_generate": True, "output_scores": True, **settings}
    torch.manual_seed(0)
    ours = generate_output(model, IDS, **settings)
    torch.manual_seed(0)
    return ours, model.generate(IDS, attention_mask=torch.ones_like(IDS), **settings)


def assert_same(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(ours.beam_indices, theirs.beam_indices)
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores)


@pytest.mark.parametrize("implementation", ["static", "dynamic"])
def test_every_cache_gives_the_same_beams(implementation: str) -> None:
    ours, theirs = both(cache_implementation=implementation, num_return_sequences=2)
    assert_same(ours, theirs)


def test_many_beams() -> None:
    ours, theirs = both(num_beams=64, num_return_sequences=64, max_new_tokens=4)
    assert_same(ours, theirs)


class TupleCacheModel(nn.Module):
    """Attention over the last tokens' embeddings with a cache that is a plain tuple."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding = nn.Embedding(VOCAB_SIZE, 16)
        self.head = nn.Linear(16, VOCAB_SIZE)

    def forward(self, input_ids: Tensor, past_key_values: Any = None) -> Any:
        keys = self.embedding(input_ids)[:, None]
        if past_key_values is not None:
            keys = torch.cat([past_key_values[0][0], keys], dim=2)
        weights = torch.softmax(keys[:, :, -1:] @ keys.transpose(2, 3), dim=-1)
        return self.head((weights @ keys)[:, 0] * 3.0), ((keys, keys.clone()),)


class NoCacheModel(TupleCacheModel):
    def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
        return super().forward(input_ids)[0]


def test_plain_modules_with_a_tuple_for_a_cache_and_without_one() -> None:
    with_cache = generate_tokens(TupleCacheModel(), IDS, **PLAIN)
    assert torch.equal(with_cache, generate_tokens(NoCacheModel(), IDS, **PLAIN))


def test_a_cache_that_cannot_be_reordered_is_an_error() -> None:
    class Opaque(TupleCacheModel):
        def forward(self, input_ids: Tensor, past_key_values: Any = None) -> Any:
            logits, cache = super().forward(input_ids, past_key_values and past_key_values["cache"])
            return logits, {"cache": cache}

    with pytest.raises(TypeError, match="`cache` must have a method `reorder_cache`, got dict"):
        generate(Opaque(), IDS, **PLAIN)
    assert generate_tokens(Opaque(), IDS, use_cache=False, **PLAIN).shape == (2, 11)


def ends_in_a_multiple_of_five(input_ids: Tensor, scores: Any) -> Tensor:
    return input_ids[:, -1] % 5 == 0


def test_criteria_end_hypotheses() -> None:
    ours, theirs = both(stopping_criteria=[ends_in_a_multiple_of_five], num_return_sequences=4)
    assert torch.equal(ours.beam_indices, theirs.beam_indices)
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores)
    # Without an EOS id transformers pads with -1, whatever the pad id is.
    assert torch.equal(ours.sequences, theirs.sequences.masked_fill(theirs.sequences == -1, 3))
    assert set(ours.finish_reason) <= {"stop", "length"}


def test_criteria_see_the_scores_of_every_step() -> None:
    seen = []

    def watch(input_ids: Tensor, scores: Any) -> bool:
        seen.append((tuple(input_ids.shape), len(scores), tuple(scores[-1].shape)))
        return False

    both_beams: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 3}
    generate(
        hf_model("llama"), IDS, stopping_criteria=[watch], return_dict_in_generate=True, output_scores=True,
        pad_token_id=3, **both_beams,
    )  # fmt: skip
    assert seen == [((8, 3 + step), step, (4, VOCAB_SIZE)) for step in (1, 2, 3)]


def test_time_limit_and_cancel_return_the_best_so_far() -> None:
    model = hf_model("llama")
    one = generate_tokens(model, IDS, **{**PLAIN, "max_new_tokens": 1})
    assert torch.equal(generate_tokens(model, IDS, max_time=1e-9, **PLAIN), one)
    cancel = threading.Event()

    def cancel_at_once(input_ids: Tensor, scores: Tensor) -> Tensor:
        cancel.set()
        return scores

    assert torch.equal(generate_tokens(model, IDS, cancel=cancel, logits_processor=[cancel_at_once], **PLAIN), one)


class Collect:
    def __init__(self) -> None:
        self.chunks: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.chunks.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("eos_token_id", [None, [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_streamed_tokens_are_those_of_the_best_hypothesis(family: str, eos_token_id: Any) -> None:
    for prompt in range(4, 24):
        streamer = Collect()
        settings = {**PLAIN, "max_new_tokens": 12, "eos_token_id": eos_token_id}
        best = generate_tokens(hf_model(family), torch.tensor([[prompt, 6]]), streamer=streamer, **settings)
        assert streamer.chunks[0] == [prompt, 6]
        assert list(itertools.chain(*streamer.chunks)) == best[0].tolist()
        assert streamer.ended == 1


def test_events_of_beams() -> None:
    settings = {**PLAIN, "max_new_tokens": 12, "eos_token_id": list(range(20, 60))}
    for prompt in range(4, 14):
        ids = torch.tensor([[prompt, 6]])
        best = generate_output(hf_model("llama"), ids, return_dict_in_generate=True, **settings)
        events = list(stream(hf_model("llama"), ids, **settings))
        assert [event.token_id for event in events] == best.sequences[0, 2:].tolist()
        reasons = [event.finish_reason for event in events]
        assert reasons == [None] * (len(events) - 1) + best.finish_reason


def test_tokens_are_streamed_as_soon_as_all_beams_share_them() -> None:
    # Every beam has 2 after 1, so the first tokens are final long before the end.
    table = torch.full((10, 10), -20.0)
    table[torch.arange(10), (torch.arange(10) + 1) % 10] = 5.0
    table[9] = torch.tensor([5.0, 4.9, -20, -20, -20, -20, -20, -20, -20, -20])
    streamer = Collect()
    generate(TableModel(table), torch.tensor([[1]]), streamer=streamer, num_beams=2, max_new_tokens=12, pad_token_id=0)
    assert len(streamer.chunks) > 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streamer": Collect()}, "`streamer` must get one prompt and one returned sequence"),
        ({"do_sample": [True, False]}, "`do_sample` must be one bool"),
        ({"num_return_sequences": 5}, "num_return_sequences"),
        ({"max_length": 3, "max_new_tokens": None}, "`max_length` must be larger"),
        ({"do_sample": True, "temperature": 0.0}, "`temperature` must be finite and > 0"),
        ({"do_sample": True, "seed": [1, 2, 3]}, r"`seed` must be an int or one per prompt \(2\), got 3"),
        ({"length_penalty": float("nan")}, "`length_penalty`"),
        ({"early_stopping": "maybe"}, "`early_stopping`"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(hf_model("llama"), IDS, **{**PLAIN, **settings})


def test_no_beams_are_greedy_search() -> None:
    model = hf_model("llama")
    greedy = generate_tokens(model, IDS, max_new_tokens=5, pad_token_id=3)
    for num_beams in (1, None):
        assert torch.equal(generate_tokens(model, IDS, max_new_tokens=5, pad_token_id=3, num_beams=num_beams), greedy)


def test_pad_id_zero_stays() -> None:
    model, settings = hf_model("gpt2"), {**PLAIN, "eos_token_id": list(range(20, 60)), "num_return_sequences": 4}
    padded_with_three = generate_tokens(model, IDS, **settings)
    zeros = generate_tokens(model, IDS, **{**settings, "pad_token_id": 0})
    new = padded_with_three[:, IDS.shape[1] :]
    ends = (new[:, :, None] == torch.arange(20, 60)).any(-1).int().cumsum(1)
    after_end = ends.cumsum(1) > 1
    assert bool(after_end.any())
    assert bool((zeros[:, IDS.shape[1] :][after_end] == 0).all())
    assert torch.equal(zeros[:, IDS.shape[1] :][~after_end], new[~after_end])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 5])
def test_invalid_rows_are_named_or_dropped(value: float, row: int) -> None:
    class Broken(NoCacheModel):
        calls = 0

        def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
            logits = super().forward(input_ids).clone()
            self.calls += 1
            if self.calls == 3:
                logits[row, -1, 17] = value
            return logits

    with pytest.raises(RuntimeError, match=rf"row {row} at step 2 hold .* first at token id 17"):
        generate(Broken(), IDS, **PLAIN)
    sequences = generate_tokens(Broken(), IDS, on_invalid="greedy", **PLAIN)
    assert sequences.shape == (2, 11)
    assert bool((sequences >= 0).all() and (sequences < VOCAB_SIZE).all())


def test_a_prompt_without_an_allowed_token_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="row 0 at step 0 hold no token that is allowed"):
        generate(hf_model("llama"), IDS, suppress_tokens=list(range(VOCAB_SIZE)), **PLAIN)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_seeded_beams_do_not_depend_on_the_batch(family: str) -> None:
    model = encoder_decoder(family) if family == "t5" else hf_model(family)
    settings = {**PLAIN, "do_sample": True, "temperature": 2.0, "top_k": 0}
    settings |= {"decoder_start_token_id": 1} if family == "t5" else {}
    together = generate_tokens(model, IDS, seed=[7, 8], **settings)
    for prompt in range(2):
        alone = generate_tokens(model, IDS[prompt : prompt + 1], seed=[7 + prompt], **settings)
        assert torch.equal(together[prompt : prompt + 1], alone)
    assert not torch.equal(together, generate_tokens(model, IDS, seed=[9, 10], **settings))


class Fails(Exception):
    pass


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("where", ["logits_processor", "stopping_criteria", "streamer"])
def test_an_error_at_any_step_leaves_the_model_usable(where: str, step: int) -> None:
    model, prompt = hf_model("qwen2"), IDS[:1]
    expected = generate_tokens(model, prompt, **PLAIN)
    calls = 0

    def fail(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Fails
        return args[1] if where == "logits_processor" else False

    class FailingStreamer(Collect):
        def put(self, value: Tensor) -> None:
            fail(value, value)

    broken: dict[str, Any] = {where: FailingStreamer() if where == "streamer" else [fail]}
    if where == "streamer":
        # Beams of so short a text agree on little: only the prompt and the end are final.
        calls = max(0, step - 1)
    with pytest.raises(Fails):
        generate(model, prompt, **broken, **PLAIN)
    assert torch.equal(generate_tokens(model, prompt, **PLAIN), expected)
