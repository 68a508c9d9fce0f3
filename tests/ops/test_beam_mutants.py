"""Mutants of `beam_step`'s reference, and a short suite that must detect every one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pygen.ops import beam_step, prepare_beam_step
from tests.helpers.beam_hypotheses import HYPOTHESES
from tests.helpers.beam_rows import ROWS
from tests.helpers.beam_steps import assert_step
from tests.helpers.beams import difference
from tests.helpers.faults import Fault, fault, plant
from tests.helpers.logits import make_logits
from tests.ops.test_beam_search import check_result, run, searched
from tests.ops.test_beam_step import advanced_state

BEAM, NORMALISERS = "pygen.reference.beam_step", "pygen.ops._beam_normalisers"


def beam_fault(name: str, *edits: tuple[str, str]) -> Fault:
    return fault(name, BEAM, *edits)


RUNNING = "state.running_scores[b, :, None]"

FAULTS = [
    # scores
    beam_fault("no log-softmax", ("torch.log_softmax(x.double(), dim=-1).float()", "x.clone()")),
    beam_fault("log-softmax of log-probabilities", ("    if normalized:\n", "    if False:\n")),
    beam_fault(
        "penalties on logits",
        ("log_probabilities(logits, normalized)", "log_probabilities(logits, True)"),
        ("    scores[status != OK] =", "    scores = scores.log_softmax(-1)\n    scores[status != OK] ="),
    ),
    beam_fault(
        "the history ends a token early", (": state.prompt_length + step],", ": state.prompt_length + step - 1],")
    ),
    beam_fault("penalties see what is hidden", ("input_ids=state.history", "input_ids=state.token_ids")),
    beam_fault("everything is generated", ("prompt_lengths=state.prompt_length", "prompt_lengths=0")),
    # candidates
    beam_fault("the first step expands every beam", (RUNNING, f"{RUNNING} * ({RUNNING} > NEVER_WINS)")),
    beam_fault("beams restart at every step", (f" + {RUNNING}", "")),
    beam_fault(
        "a beam reads the logits of the row of its number",
        ("scores[state.slots[b]]", "scores[state.slots[b].sort().values]"),
    ),
    beam_fault(
        "of equal continuations the last comes first",
        (
            "torch.sort(values, descending=True, stable=True).indices[:count]",
            "len(values) - 1 - torch.sort(values.flip(0), descending=True, stable=True).indices[:count]",
        ),
    ),
    beam_fault("a masked token for a dead beam", ("order[sums[order] > -math.inf]", "order")),
    beam_fault(
        "too few candidates",
        (".indices[:count]\n        order = order[", ".indices[: state.num_beams]\n        order = order["),
    ),
    # draws
    beam_fault("noise by row", ("exponential[beams]", "exponential[state.slots[b]]")),
    beam_fault(
        "every prompt draws with the noise of the first", ("exponential[beams]", "exponential[: state.num_beams]")
    ),
    beam_fault(
        "drawn with replacement",
        (
            "        token_ids[b, : len(order)]",
            "        order = order[:1].expand(len(order))\n        token_ids[b, : len(order)]",
        ),
    ),
    beam_fault(
        "drawn candidates in the order of their scores",
        ("order = order[sums[order] > -math.inf]", "order = order[sums[order].argsort(descending=True, stable=True)]"),
    ),
    beam_fault(
        "noise with the wrong sign", ("(values - values.max()) - exponential", "(values - values.max()) + exponential")
    ),
    # what ends
    beam_fault(
        "one EOS id of two",
        ("torch.isin(candidates.token_ids, state.eos_token_ids)", "(candidates.token_ids == state.eos_token_ids[0])"),
    ),
    beam_fault("a step too many", ("if step + 1 == (state", "if step == (state")),
    beam_fault(
        "criteria see the beams' numbers for rows",
        (
            "state.slots.gather(1, candidates.parents.clamp(min=0)).flatten()",
            "candidates.parents.clamp(min=0).flatten()",
        ),
    ),
    beam_fault("criteria are not asked", ("    if stopping_criteria is not None:", "    if False:")),
    beam_fault("drawn candidates in the draw's order", ("if exponential is not None and sort_draws:", "if False:")),
    # finished hypotheses
    fault(
        "the prompt counts in the length",
        NORMALISERS,
        (
            "range(1, state.step_capacity + 1)",
            "range(state.prompt_length + 1, state.prompt_length + state.step_capacity + 1)",
        ),
    ),
    fault(
        "the last token does not count",
        NORMALISERS,
        ("float(length) ** length_penalty for", "float(max(length - 1, 1)) ** length_penalty for"),
    ),
    beam_fault("every candidate may join", ("(torch.arange(count, device=ends.device) < n)", "True")),
    beam_fault("a candidate that does not end joins", ("joins = ends & candidates", "joins = candidates")),
    beam_fault(
        "a full pool goes on under early_stopping=True", ("is_full = stops_when_full and", "is_full = False and")
    ),
    beam_fault("a full pool is done without early_stopping", ("is_full = stops_when_full and", "is_full =")),
    beam_fault("a closed prompt accepts", ("(is_full, not bool(state.open[b]), ~joins)", "(is_full, ~joins)")),
    beam_fault(
        "the newer of equal hypotheses stays",
        (
            "torch.cat([state.finished_scores[b], scores]), descending",
            "torch.cat([state.finished_scores[b], scores + 1e-6]), descending",
        ),
    ),
    beam_fault(
        "a stale parent of a hypothesis",
        (
            "merged(state.finished_parents, candidates.parents[b] + b * n)",
            "merged(state.finished_parents, candidates.parents[b].roll(1) + b * n)",
        ),
    ),
    beam_fault(
        "the parents of every prompt are the first's", ("candidates.parents[b] + b * n)", "candidates.parents[b])")
    ),
    beam_fault(
        "a hypothesis of the step before",
        ("torch.full_like(ends, step, dtype", "torch.full_like(ends, step - 1, dtype"),
    ),
    # running beams
    beam_fault(
        "an ended candidate runs on", ("candidates.scores[b] + ends * NEVER_WINS", "candidates.scores[b] + 0 * ends")
    ),
    beam_fault(
        "parents in the order of the candidates",
        ("candidates.parents[b][order], torch.arange", "candidates.parents[b][:n], torch.arange"),
    ),
    beam_fault(
        "a dead beam feeds token -1",
        ("torch.where(exist, candidates.token_ids[b][order], state.pad_token_id)", "candidates.token_ids[b][order]"),
    ),
    # open
    fault(
        "never: the current length",
        NORMALISERS,
        ('favourable = early_stopping == "never" and', "favourable = False and"),
    ),
    fault(
        "False: the full length",
        NORMALISERS,
        ('early_stopping == "never" and length_penalty > 0.0', "length_penalty > 0.0"),
    ),
    fault("never: the full length with any penalty", NORMALISERS, (" and length_penalty > 0.0\n", "\n")),
    beam_fault(
        "the best finished hypothesis is the bar",
        ("state.finished_scores[b].min(), NEVER", "state.finished_scores[b].max(), NEVER"),
    ),
    beam_fault("an equal score improves", ("(attainable > worst)", "(attainable >= worst)")),
    beam_fault("a closed prompt opens again", ("state.open[b] &= bool", "state.open[b] = bool")),
    beam_fault(
        "a free place does not count", ("(attainable > worst).any()", "(attainable > worst)[state.finished[b]].any()")
    ),
    beam_fault("open though every candidate ended", ("over = bool(ends.all()) or", "over = False or")),
    beam_fault(
        "over when one prompt's candidates ended", ("over = bool(ends.all())", "over = bool(ends.all(1).any())")
    ),
    beam_fault("over only when nothing is open", (" or (stops_when_full and bool(state.finished.all()))", "")),
    beam_fault("over when pools are full", ("(stops_when_full and bool", "(bool")),
    # values in device memory
    beam_fault("the step of the call though the state has one", ("        step = int(state.steps[0])\n", "")),
    beam_fault("steps are not counted", ("        state.steps += 1\n", "        pass\n")),
    beam_fault(
        "no limit", ("state.max_new_tokens if state.limit is None else int(state.limit)", "state.max_new_tokens")
    ),
    beam_fault("a step after the end", ("if int(state.unfinished) == 0:", "if False:")),
    beam_fault("given normalisers are ignored", ("if normalisers is None:", "if True:")),
    # rows
    beam_fault(
        "a row copied from its own beam", ("= table[first_row + source, copied]", "= table[first_row + target, copied]")
    ),
    beam_fault(
        "a row copied from the rank of the parent", ("        source = slots[parent]\n", "        source = parent\n")
    ),
    beam_fault(
        "a shared length one too long",
        ("output.shared[first_row + target] = common", "output.shared[first_row + target] = common + 1"),
    ),
    beam_fault(
        "a row copied from one place too far on",
        ("slice(state.prompt_length + common, state", "slice(state.prompt_length + common + 1, state"),
    ),
    beam_fault(
        "the free row with least in common",
        (
            "target = max(free, key=lambda row: (int(shared[source, row])",
            "target = max(free, key=lambda row: (-int(shared[source, row])",
        ),
    ),
    beam_fault("a moved row keeps what it had in common", ("        shared[target] = shared[source]\n", "")),
    beam_fault("siblings share nothing", ("shared[source, target] = shared[target, source] = step", "pass")),
    beam_fault(
        "the history is not moved",
        (
            "for table in (state.token_ids, state.history):\n            table[first",
            "for table in (state.token_ids,):\n            table[first",
        ),
    ),
    beam_fault(
        "tokens by beam", ("output.token_ids[state.slots[b]] =", "output.token_ids[first_row : first_row + n] =")
    ),
    beam_fault(
        "rows of prompt 0",
        (
            "output.source_rows[first_row + target] = first_row + source",
            "output.source_rows[first_row + target] = source",
        ),
    ),
    # status
    beam_fault("a closed prompt reports", ("        if was_open:\n", "        if True:\n")),
    beam_fault(
        "a prompt with nothing left is silent",
        ("(status[beams] == ALL_MASKED) & (not stuck)", "(status[beams] == ALL_MASKED)"),
    ),
    beam_fault(
        "every row without a token reports", ("(status[beams] == ALL_MASKED) & (not stuck)", "(status[beams] == -1)")
    ),
    beam_fault("a row with NaN keeps its continuations", ("    scores[status != OK] = -math.inf\n", "")),
]


@pytest.mark.parametrize("planted", FAULTS, ids=[planted.name for planted in FAULTS])
def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch, planted: Fault) -> None:
    plant(monkeypatch, planted, [NORMALISERS, BEAM])
    with pytest.raises(AssertionError):
        run_checks()


def test_the_reference_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, fault("none", BEAM), [NORMALISERS, BEAM])
    run_checks()


def run_checks() -> None:
    for hand in (*HYPOTHESES, *ROWS):
        assert_step(hand, "torch")
    check_searches()
    check_kernel()
    check_counted_steps()


def check_searches() -> None:
    """Checks searches against lists, with caches that follow the beams."""
    for seed in range(20):
        wanted = searched(seed)
        state, num_steps = run(wanted, "torch")
        assert num_steps == wanted.num_steps
        check_result(state, wanted, seed)


def check_kernel() -> None:
    """Checks the kernel's steps with a history that hides tokens, a draw, and criteria that read the sequences."""
    for seed in range(4):
        kernel, reference = (advanced_state(3, 40, batch_size=2, seed=seed) for _ in range(2))
        for state in (kernel, reference):
            state.history = state.token_ids.masked_fill(state.token_ids % 3 == 0, -1)
        knobs: dict[str, Any] = {
            "repetition_penalty": 1.5,
            "presence_penalty": 0.5,
            "do_sample": True,
            "temperature": 0.7,
            "seed": seed,
        }
        logits = make_logits("normal", 6, 40, seed=seed)
        for step in (1, 2):
            out = [
                beam_step(
                    logits, state, step=step, stopping_criteria=lambda s: s.sum(1) % 3 == 0, **knobs, backend=name
                )
                for state, name in ((kernel, "cpu"), (reference, "torch"))
            ]
            assert difference((kernel, out[0]), (reference, out[1])) == ""


def check_counted_steps() -> None:
    """Checks the kernel's steps with a step counter in memory, to a limit and past the end."""
    logits = make_logits("normal", 6, 40)
    searches = []
    for name in ("cpu", "torch"):
        state = advanced_state(3, 40, batch_size=2)
        state = dataclasses.replace(state, steps=torch.ones(6, dtype=torch.int64), limit=torch.tensor([2]))
        prepared = prepare_beam_step(logits, state, backend=name)
        prepared.normalisers.mul_(2)
        searches.append((state, prepared))
    for _ in range(2):
        kernel, reference = ((state, prepared(logits)) for state, prepared in searches)
        assert difference(kernel, reference) == ""
