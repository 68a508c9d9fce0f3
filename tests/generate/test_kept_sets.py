"""`output_kept`: the sets of survivors that tokens were drawn from, by row and step."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from pygen.decode import kept as collecting
from pygen.decode.kept import KeptCollector
from pygen.generate import generate
from pygen.ops import KeptRows
from pygen.outputs import KeptSets
from pygen.streaming import stream
from tests.generate.models import VOCAB_SIZE, TableModel, encoder_decoder, hf_model
from tests.helpers.generation import generate_output

IDS = torch.randint(1, VOCAB_SIZE, (2, 5), generator=torch.Generator().manual_seed(0))
WANTED: dict[str, Any] = {
    "max_new_tokens": 8,
    "pad_token_id": 0,
    "eos_token_id": [*range(40, 50)],
    "return_dict_in_generate": True,
    "output_kept": True,
}
FILTERED: dict[str, Any] = {"do_sample": True, "seed": 3, "temperature": 0.7, "top_p": 0.8}
NUCLEUS: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.8}


def favour(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores + torch.linspace(0, 2, scores.shape[1])


def five_best(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores.masked_fill(scores < scores.topk(5).values[:, -1:], -math.inf)


SETTINGS: dict[str, dict[str, Any]] = {
    "nucleus": FILTERED,
    "every filter": {**FILTERED, "top_k": 30, "min_p": 0.01, "typical_p": 0.9, "top_n_sigma": 3.0, "eta_cutoff": 1e-3},
    "torch noise": {**NUCLEUS, "num_return_sequences": 2},
    "shaped": {**FILTERED, "repetition_penalty": 1.4, "suppress_tokens": [3], "min_new_tokens": 3},
    "per row": {"do_sample": [True, False], "top_k": [7, 0], "top_p": [0.9, 1.0], "seed": 1},
    "greedy": {"repetition_penalty": 1.3},
    "processor, then filter": {**FILTERED, "logits_processor": [favour]},
    "processor that filters": {"do_sample": True, "seed": 1, "logits_processor": [five_best]},
    "lookup": {**FILTERED, "prompt_lookup_num_tokens": 2},
    "lookup, torch noise": {**NUCLEUS, "prompt_lookup_num_tokens": 2},
    "speculation": {**NUCLEUS, "top_k": 9, "assistant_model": hf_model("llama")},
    "speculation, a greedy row": {**NUCLEUS, "temperature": [0.7, 0.0], "assistant_model": hf_model("llama")},
    "layers": {**FILTERED, "dola_layers": "low"},
    "limited": {**FILTERED, "temperature": 2.0, "kept_limit": 8},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_as_the_scores_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finite scores of a drawn row survive; a greedy row keeps its token; after its end a row keeps nothing."""
    monkeypatch.setattr(collecting, "_STEPS", 3)
    settings = {**WANTED, **SETTINGS[name]}
    torch.manual_seed(0)
    output = generate_output(hf_model("llama"), IDS, output_scores=True, output_logprobs=True, **settings)
    kept, tokens = output.kept, output.sequences[:, IDS.shape[1] :]
    scores = torch.stack(output.scores, dim=1)
    ends = torch.isin(tokens, torch.tensor(settings["eos_token_id"])).int()
    ended = ends.cumsum(1) - ends > 0
    assert kept.counts.shape == kept.log_mass.shape == kept.complete.shape == tokens.shape
    greedy = [settings.get("do_sample") is None] * len(tokens)
    greedy = greedy if "row" not in name else [False, True]
    limit, marked = settings.get("kept_limit", 1024), 0
    for row, step in [(row, step) for row in range(len(tokens)) for step in range(tokens.shape[1])]:
        survivors = (scores[row, step] > -math.inf).nonzero()[:, 0]
        expected = tokens[row, step, None] if greedy[row] else survivors
        expected = expected if not ended[row, step] else survivors[:0]
        assert bool(kept.complete[row, step]) == (len(expected) <= limit)
        marked += len(expected) > limit
        assert kept[row, step].tolist() == ([] if len(expected) > limit else expected.tolist())
        if ended[row, step]:
            assert kept.log_mass[row, step] == -math.inf
        elif not greedy[row]:
            torch.testing.assert_close(kept.log_mass[row, step], scores[row, step].logsumexp(0), rtol=1e-5, atol=1e-5)
            of_token = scores[row, step, tokens[row, step]] - kept.log_mass[row, step]
            torch.testing.assert_close(of_token, output.logprobs[row, step], rtol=1e-5, atol=1e-5)
    assert (marked > 0) == (limit < 1024)
    # They change no token.
    torch.manual_seed(0)
    plain = generate_output(hf_model("llama"), IDS, **{**settings, "output_kept": None, "kept_limit": None})
    assert plain.sequences.equal(output.sequences) and plain.kept is None


def test_encoder_decoder_models() -> None:
    settings = {**WANTED, **FILTERED, "decoder_start_token_id": 1, "output_scores": True}
    output = generate_output(encoder_decoder("t5"), IDS, **settings)
    assert output.kept[1, 0].tolist() == (output.scores[0][1] > -math.inf).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("on_invalid", ["greedy", "eos"])
def test_a_row_without_a_choice_keeps_nothing(on_invalid: str) -> None:
    table = torch.randn((10, 10), generator=torch.Generator().manual_seed(1))
    table[5, 3] = math.nan
    settings = {**WANTED, **FILTERED, "eos_token_id": 9, "max_new_tokens": 1, "on_invalid": on_invalid}
    kept = generate_output(TableModel(table), torch.tensor([[1], [5]]), **settings).kept
    assert kept.counts[0] > 0 and kept.counts[1] == 0 and kept.complete.all() and kept.log_mass[1] == -math.inf


def test_streamed() -> None:
    events = stream(hf_model("llama"), IDS, output_kept=True, max_new_tokens=3, **FILTERED)
    tokens: dict[int, list[int]] = {}
    while True:
        try:
            event = next(events)
        except StopIteration as ending:
            output: Any = ending.value
            break
        tokens[event.row] = [*tokens.get(event.row, []), event.token_id]
    assert all(tokens[row][step] in output.kept[row, step] for row in range(2) for step in range(3))


def test_no_step() -> None:
    cancel = threading.Event()
    cancel.set()
    kept = generate_output(hf_model("llama"), IDS, cancel=cancel, **WANTED, **FILTERED).kept
    assert kept.log_mass.shape == (2, 0) and kept.offsets.tolist() == [0] and len(kept.token_ids) == 0


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"return_dict_in_generate": False}, ValueError, "`output_kept=True` needs `return_dict_in_generate=True`"),
        ({"output_kept": None, "kept_limit": 5}, ValueError, "`kept_limit`=5 needs `output_kept=True`"),
        ({"kept_limit": 0}, ValueError, "`kept_limit` must be"),
        ({"do_sample": True, "top_k": 0}, ValueError, "`output_kept` must be False where"),
        ({"do_sample": True, "top_k": 0, "repetition_penalty": 1.2}, ValueError, "`output_kept` must be False where"),
        ({"num_beams": 2}, NotImplementedError, "`output_kept`=True is not available in beam search"),
        ({"num_beams": 2, **FILTERED}, NotImplementedError, "not available in beam sample"),
        ({"penalty_alpha": 0.5, "top_k": 4}, NotImplementedError, "not available in contrastive search"),
    ],
)
def test_refused_before_the_model_runs(settings: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = TableModel(torch.zeros(10, 10))
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(kind, match=message):
        generate(model, torch.tensor([[1], [5]]), **{**WANTED, **settings})


def rows_of(steps: list[list[list[int]]], width: int) -> list[KeptRows]:
    """By step and row."""
    return [
        KeptRows(
            torch.tensor([(row + [-1] * width)[:width] for row in step], dtype=torch.int32),
            torch.tensor([len(row) for row in step], dtype=torch.int32),
            torch.tensor([float(sum(row)) for row in step]),
        )
        for step in steps
    ]


@pytest.mark.parametrize("buffer", [1, 2, 64])
def test_the_collector_sorts_by_row(buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step is one too many."""
    monkeypatch.setattr(collecting, "_STEPS", buffer)
    steps = [[[4], [5, 6, 7, 8], [9]], [[], [1], [2, 3, 4]], [[7], [8], [9]], [[0], [1], [2]]]
    collector = KeptCollector(3, torch.device("cpu"))
    for kept in rows_of(steps, width=3):
        collector.add(kept)

    def read(sets: KeptSets) -> list[list[list[int]]]:
        rows, length = sets.log_mass.shape
        return [[sets[row, step].tolist() for step in range(length)] for row in range(rows)]

    sets = collector.sets(3)
    assert read(sets) == [[[4], [], [7]], [[], [1], [8]], [[9], [2, 3, 4], [9]]]
    assert sets.complete.tolist() == [[True] * 3, [False, True, True], [True] * 3]
    assert sets.log_mass.tolist() == [[4, 0, 7], [26, 1, 8], [9, 9, 9]]
    chosen = torch.tensor([2, 0])
    some = sets.select(chosen)
    assert read(some) == [read(sets)[row] for row in (2, 0)]
    assert some.log_mass.equal(sets.log_mass[chosen]) and some.complete.equal(sets.complete[chosen])
    row = sets.row(-1)
    assert (row.token_ids.tolist(), row.offsets.tolist()) == ([9, 2, 3, 4, 9], [0, 1, 4, 5])
    assert row.complete.tolist() == [True] * 3 and sets[-1, -1].tolist() == [9]
    assert sets.to("cpu").counts.equal(sets.counts)
    for at in ((3, 0), (0, 3), (0, -4)):
        with pytest.raises(IndexError, match="`kept` has 3 rows and 3 steps, got"):
            sets[at]
    with pytest.raises(IndexError, match="`kept` has 3 rows, got -4"):
        sets.row(-4)
