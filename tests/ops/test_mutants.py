"""Mutants of the reference, each one edit away from it, and a short suite that must detect every one.

The suite compares the reference with hand-checked rows, transformers, torch.multinomial and the kernels. It uses the
tables and rules of the full suite.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import pygen.reference
from pygen.ops import DecodeState, prepare_sample, process_logits, sample
from tests.helpers.faults import Fault, fault, plant, source_of
from tests.helpers.hand_rows import HAND_ROWS, RACES
from tests.helpers.kept_sets import assert_same_scores, unfiltered
from tests.helpers.logits import make_logits
from tests.helpers.transformers_oracle import drawn, processed
from tests.ops.test_process_logits import SETTINGS

SHAPE, DRAW, RNG = "pygen.reference.process_logits", "pygen.reference.sample", "pygen.rng"
APPEND = "pygen.ops._bookkeeping"
MODULES = (RNG, SHAPE, DRAW, APPEND)


def swapped(first: str, second: str) -> Fault:
    """Swaps two neighbouring filters."""
    lines = [line for line in source_of(SHAPE).splitlines() if "        s = keep_" in line]
    (one,) = (line for line in lines if f"keep_{first}(" in line)
    (other,) = (line for line in lines if f"keep_{second}(" in line)
    return fault(f"{second} before {first}", SHAPE, (f"{one}\n{other}", f"{other}\n{one}"))


FAULTS = [
    # penalties and bans
    fault("repetition penalty with the sign reversed", SHAPE, ("torch.where(x < 0,", "torch.where(x > 0,")),
    fault("repetition penalty always divides", SHAPE, ("x * repetition_penalty, x /", "x / repetition_penalty, x /")),
    fault("presence counts the prompt", SHAPE, (">= prompt_length)", ">= 0)")),
    fault("frequency counts an id once", SHAPE, ("> 0, x - count * frequency", "> 0, x - frequency")),
    fault("presence is added", SHAPE, ("* frequency - presence, x)", "* frequency + presence, x)")),
    fault("the last n-gram is not seen", SHAPE, ("range(len(ids) - ngram_size + 1)", "range(len(ids) - ngram_size)")),
    fault("padding completes an n-gram", SHAPE, ("if all(0 <= token_id < len(x) for token_id in suffix):", "if True:")),
    fault("bits in the wrong order", SHAPE, (">> (token_ids % 32)", ">> (31 - token_ids % 32)")),
    fault("bits inverted", SHAPE, ("masked_fill(allowed == 0", "masked_fill(allowed == 1")),
    fault("bias forgotten", SHAPE, ("x = x + _row_of(bias, r)", "x = x + 0")),
    # temperature and rows
    fault(
        "temperature multiplies",
        SHAPE,
        ('s = x / fitting_temperature(knob["temperature"], x)', 's = x * knob["temperature"]'),
    ),
    fault(
        "a tiny temperature overflows", SHAPE, ("isfinite() else magnitude * 2.0**-100", "isfinite() else temperature")
    ),
    fault(
        "the noise is lost beside large scores",
        DRAW,
        ("race = shifted - exponential", "race = scores.double() - exponential"),
    ),
    fault(
        "temperature after the filters",
        SHAPE,
        ('s = x / fitting_temperature(knob["temperature"], x)', "s = x"),
        ("        scores[r] = s\n", '        scores[r] = s / knob["temperature"]\n'),
    ),
    fault("greedy rows are filtered", SHAPE, ('bool(_at(do_sample, r)) and knob["temperature"] > 0', "True")),
    fault("the knobs of row 0 for every row", SHAPE, ("return value[row].item()", "return value[0].item()")),
    fault("NaN goes unnoticed", SHAPE, ("if x.isnan().any():", "if False:")),
    fault("+inf goes unnoticed", SHAPE, ("if (x == math.inf).any():", "if False:")),
    # filters
    fault(
        "top_k keeps one more",
        SHAPE,
        ("max(top_k, min_tokens_to_keep), len", "max(top_k + 1, min_tokens_to_keep), len"),
    ),
    fault(
        "ties at the k-th are dropped",
        SHAPE,
        ("return s.masked_fill(s < s.topk(k).values[-1], -math.inf)", "return _keep_only(s, _descending(s)[:k])"),
    ),
    fault("top_k ignores min_tokens_to_keep", SHAPE, ("min(max(top_k, min_tokens_to_keep)", "min(max(top_k, 1)")),
    fault(
        "top_p drops the token that crosses", SHAPE, ("torch.cat([p.new_zeros(1), p.cumsum(0)[:-1]])", "p.cumsum(0)")
    ),
    fault("1 - top_p for top_p", SHAPE, ("kept = mass_before < top_p", "kept = mass_before < 1 - top_p")),
    fault("top_p continues when reached exactly", SHAPE, ("kept = mass_before < top_p", "kept = mass_before <= top_p")),
    fault(
        "top_p ignores min_tokens_to_keep", SHAPE, ("    kept[:min_tokens_to_keep] = True\n", "    kept[:1] = True\n")
    ),
    fault(
        "top_p keeps the lowest ids of tied scores",
        SHAPE,
        ("order = torch.sort(s, stable=True).indices.flip(0)", "order = _descending(s)"),
    ),
    fault(
        "min_p and top_h keep the highest ids of tied scores",
        SHAPE,
        (
            "return torch.sort(s, descending=True, stable=True).indices",
            "return torch.sort(s, stable=True).indices.flip(0)",
        ),
    ),
    fault(
        "typical_p keeps the highest ids of tied scores",
        SHAPE,
        (
            "order = torch.sort(distance, stable=True).indices",
            "order = torch.sort(distance, descending=True, stable=True).indices.flip(0)",
        ),
    ),
    fault("min_p is absolute", SHAPE, ("p >= min_p * p.max()", "p >= min_p")),
    fault(
        "typical_p without the absolute value",
        SHAPE,
        ("torch.special.entr(p).sum()).abs()", "torch.special.entr(p).sum())"),
    ),
    fault("typical_p stops one early", SHAPE, ("min(below, len(s) - 1)", "max(below - 1, 0)")),
    fault(
        "epsilon keeps the most probable only",
        SHAPE,
        ("cutoff) | (s >= s.topk(min_tokens_to_keep)", "cutoff) | (s >= s.topk(1)"),
    ),
    fault("eta without the square root", SHAPE, ("math.sqrt(eta_cutoff) * math", "eta_cutoff * math")),
    fault("eta with the entropy's sign reversed", SHAPE, ("math.exp(-entropy)", "math.exp(entropy)")),
    fault("top_n_sigma divides by one less", SHAPE, ("std(correction=0)", "std()")),
    fault("top_n_sigma counts from the mean", SHAPE, ("left.max() - n", "left.mean() - n")),
    fault("a score at the threshold of top_n_sigma goes", SHAPE, ("s.double() >= cut", "s.double() > cut")),
    fault(
        "top_n_sigma ignores min_tokens_to_keep",
        SHAPE,
        ("(s.double() >= cut) | (s >= s.topk(min_tokens_to_keep).values[-1])", "s.double() >= cut"),
    ),
    swapped("top_n_sigma", "top_h"),
    fault("top_h looks at all tokens", SHAPE, ("TOP_H_CANDIDATES = 100", "TOP_H_CANDIDATES = 10**6")),
    fault("top_h sums masses", SHAPE, ("torch.special.entr(p).cumsum(0)", "p.cumsum(0)")),
    fault("top_h may keep nothing", SHAPE, ("    kept[0] = True\n", "")),
    swapped("top_h", "top_k"),
    swapped("top_k", "top_p"),
    swapped("top_p", "min_p"),
    swapped("min_p", "typical"),
    swapped("typical", "epsilon"),
    swapped("epsilon", "eta"),
    # draws
    fault("noise with the wrong sign", DRAW, ("shifted - exponential", "shifted + exponential")),
    fault("race of probabilities without noise", DRAW, ("- exponential.double().log()", "- 0 * exponential.double()")),
    fault("removed tokens may win", DRAW, ("race.masked_fill(scores == -math.inf, -math.inf)", "race.clamp(min=-80)")),
    fault("ties go to the highest id", DRAW, ("token_ids, values.shape[1]).amin(dim=1)", "token_ids, -1).amax(dim=1)")),
    fault("greedy rows are drawn", DRAW, ("torch.where(drawn, race_winners", "torch.where(drawn | True, race_winners")),
    fault("noise not keyed by id", RNG, ("counter = (blocks[None, :],", "counter = (blocks[None, :] * 0,")),
    fault("noise not keyed by step", RNG, ("(steps & _MASK32)[:, None]", "(steps & 0)[:, None]")),
    fault("the noise of row 0 for every row", RNG, ("key = ((seeds & _MASK32)", "key = ((seeds[:1] & _MASK32)")),
    fault("the high half of the seed is ignored", RNG, ("_shift_right(seeds, 32)[", "_shift_right(seeds, 63)[")),
    fault("nine rounds", RNG, ("_PHILOX_ROUNDS = 10", "_PHILOX_ROUNDS = 9")),
    fault("-ln u for -ln(1 - u)", RNG, ("-torch.log1p(-uniform)", "-torch.log(uniform)")),
    fault(
        "not torch's noise", RNG, (".exponential_(generator=generator)", ".uniform_(generator=generator).log_().neg_()")
    ),
    # results
    fault("logprobs that are not normalised", DRAW, ("torch.log_softmax(scores.double(), dim=1)", "scores")),
    fault(
        "removed tokens among the best", DRAW, ("order.masked_fill(scores.gather(1, order) == -math.inf, -1)", "order")
    ),
    fault("finished rows continue", APPEND, ("    token_ids.masked_fill_(state.finished, state.pad_token_id)\n", "")),
    fault("finished rows are counted", APPEND, ("state.num_generated += ~state.finished", "state.num_generated += 1")),
    fault("no end of sequence", APPEND, ("state.finished |= torch.isin(", "state.finished & torch.isin(")),
    fault(
        "the history is not written", APPEND, ("        state.history[:, state.prompt_length + step] = token_ids\n", "")
    ),
]


@pytest.mark.parametrize("planted", FAULTS, ids=[planted.name for planted in FAULTS])
def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch, planted: Fault) -> None:
    plant(monkeypatch, planted, MODULES)
    with pytest.raises(AssertionError):
        run_checks()


def test_the_reference_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, fault("none", RNG), MODULES)
    assert pygen.reference.sample is sys.modules[DRAW]
    run_checks()


def run_checks() -> None:
    check_hand_rows()
    check_transformers()
    check_draws()
    check_torch_noise()
    check_logprobs()
    check_state()


def check_hand_rows() -> None:
    for row in HAND_ROWS:
        scores = process_logits(torch.tensor([row.logits]).float(), **row.knobs, backend="torch")
        wanted = torch.tensor([row.scores], dtype=torch.float32)
        torch.testing.assert_close(scores, wanted, rtol=2e-7, atol=0, equal_nan=True, msg=row.fact)
    for race in RACES:
        noise = torch.tensor([race.noise], dtype=torch.float32)
        tokens = sample(torch.tensor([race.logits]).float(), noise=noise, **race.knobs, backend="torch").token_ids
        assert tokens.tolist() == [race.token_id], race.fact


def check_transformers() -> None:
    for kind in ("normal", "ties"):
        logits = make_logits(kind, 2, 300, seed=3)
        for knobs in SETTINGS.values():
            before_filters = processed(logits, unfiltered(knobs))
            oracle = processed(logits, knobs)
            assert_same_scores(process_logits(logits, **knobs, backend="torch"), oracle, before_filters, knobs)


def check_draws() -> None:
    """Checks the kernel's tokens, row by row and over several steps: 200 races, none of them close."""
    logits = make_logits("normal", 10, 90, seed=1)
    knobs: dict[str, Any] = {
        "top_k": torch.arange(10) * 9,
        "do_sample": torch.arange(10) != 4,
        "seed": torch.arange(10) << 30,
    }
    for step in range(20):
        expected = sample(logits, **knobs, step=step, backend="cpu")
        result = sample(logits, **knobs, step=step, backend="torch")
        assert result.token_ids.equal(expected.token_ids) and result.status.equal(expected.status)


def check_torch_noise() -> None:
    logits = make_logits("normal", 3, 90, seed=2)
    ours, theirs = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    for _ in range(20):
        tokens = sample(logits, top_k=20, rng="torch", generator=ours, backend="torch").token_ids
        assert tokens.equal(drawn(processed(logits, {"top_k": 20}), theirs))


def check_logprobs() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, -90.0]])
    logprobs = torch.log_softmax(logits[:, :2], 1)
    out = sample(logits, top_k=2, seed=1, logprobs=3, backend="torch")
    assert out.logprobs is not None and out.top_logprobs is not None
    torch.testing.assert_close(out.logprobs[0], logprobs[0, out.token_ids[0]])
    torch.testing.assert_close(out.top_logprobs.logprobs[:, :2], logprobs)
    assert out.top_logprobs.token_ids.tolist() == [[0, 1, -1]]


def check_state() -> None:
    """Checks three steps of two rows. The first row ends at once; the second must not repeat itself."""
    visible = torch.tensor([[1, 0], [1, 0]])
    state = DecodeState.create(torch.tensor([[0, 1], [0, 1]]), 3, eos_token_ids=[8], pad_token_id=7, visible=visible)
    logits = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0, 9.0], [0, 0, 3, 2, 1, 0, 0, 0, 0]])
    prepared = prepare_sample(logits, do_sample=False, no_repeat_ngram_size=1, state=state, backend="torch")
    for step in range(3):
        prepared(logits, step=step)
    assert state.token_ids[:, 2:].tolist() == [[8, 7, 7], [2, 3, 4]]
    assert state.history[:, 2:].equal(state.token_ids[:, 2:])
    assert state.num_generated.tolist() == [1, 3]
    assert state.finished.tolist() == [True, False] and state.unfinished.tolist() == [1]
