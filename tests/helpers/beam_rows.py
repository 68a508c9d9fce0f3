"""Hand-checked steps: rows, beams that die, processed scores, and draws."""

from __future__ import annotations

from math import exp, inf, log, nan
from typing import Any

import torch

from pygen.ops._beam_state import NEVER_WINS as NEVER
from tests.helpers.beam_steps import PROMPT, SECOND, HandStep

LN2 = log(2)


def row_steps() -> list[HandStep]:
    return [
        HandStep(
            "the first child stays in its row, the second takes that of the beam without a child",
            [[-1, -1.5], [-9, -9], [-1, -9]],
            {
                "parents": [[0, 0, 2]],
                "slots": [[0, 1, 2]],
                "out.token_ids": [0, 1, 0],
                "out.source_rows": [0, 0, 2],
                "out.shared": [2, 1, 2],
                "generated": [[5, 5, 0], [5, 5, 1], [7, 7, 0]],
                "shared": [[[0, 2, 0], [2, 0, 0], [0, 0, 0]]],
            },
            {
                "running_scores": [[-1, -2, -3]],
                "generated": [[5, 5], [5, 6], [7, 7]],
                "shared": [[[0, 1, 0], [1, 0, 0], [0, 0, 0]]],
            },
            {"num_beams": 3},
            {"step": 2},
        ),
        HandStep(
            "a beam's logits are those of the row that holds it",
            [[-9, -9], [-1, -9], [-1, -1.5]],
            {
                "parents": [[0, 0, 2]],
                "slots": [[2, 0, 1]],
                "out.token_ids": [1, 0, 0],
                "out.source_rows": [2, 1, 2],
                "generated": [[4, 0], [4, 1], [6, 0]],
            },
            {"running_scores": [[-1, -2, -3]], "slots": [[2, 0, 1]], "generated": [[5], [6], [4]]},
            {"num_beams": 3},
            {"step": 1},
        ),
        HandStep(
            "a child moves to the free row that has most in common with it",
            [[-1, -2], [-3, -4], [-9, -9], [-9, -9]],
            {
                "parents": [[0, 0, 1, 1]],
                "slots": [[0, 3, 1, 2]],
                "out.source_rows": [0, 1, 1, 0],
                "out.shared": [3, 3, 0, 2],
                "generated": [[5, 5, 5, 0], [5, 5, 5, 1], [6, 6, 6, 0], [6, 6, 6, 1]],
                "shared": [[[0, 0, 0, 3], [0, 0, 3, 0], [0, 3, 0, 0], [3, 0, 0, 0]]],
            },
            {
                "running_scores": [[0, 0, 0, 0]],
                "generated": [[5, 5, 5], [6, 6, 6], [5, 7, 7], [5, 5, 8]],
                "shared": [[[0, 0, 1, 2], [0, 0, 0, 0], [1, 0, 0, 1], [2, 0, 1, 0]]],
            },
            {"num_beams": 4},
            {"step": 3},
        ),
        HandStep(
            "with equally much in common, to the first",
            [[-1, -2], [-9, -9], [-9, -9], [-3, -4]],
            {"parents": [[0, 0, 3, 3]], "slots": [[0, 1, 3, 2]], "out.source_rows": [0, 0, 3, 3]},
            {"running_scores": [[0, 0, 0, 0]]},
            {"num_beams": 4},
            {"step": 1},
        ),
    ]


def lost_rows() -> list[HandStep]:
    masked = [-inf, -inf, -inf]
    return [
        HandStep(
            "a beam without a continuation dies and feeds the pad token",
            [[-1, -inf, -inf], masked],
            {
                "tokens": [[0, 1]],
                "parents": [[0, 1]],
                "running_scores": [[-2, -inf]],
                "out.token_ids": [0, 1],
                "out.status": [0, 0],
                "open": [True],
                "unfinished": [1],
            },
            SECOND,
            {"pad_token_id": 1},
            {"step": 1},
        ),
        HandStep(
            "a search is over when its last continuation ended, even with a free slot",
            [[-inf, -inf, -1], masked],
            {"finished_scores": [[-1, NEVER]], "running_scores": [[NEVER, -inf]], "open": [True], "unfinished": [0]},
            SECOND,
            {"eos_token_ids": [2]},
            {"step": 1},
        ),
        HandStep(
            "a prompt that has nothing left says so",
            [masked, masked],
            {
                "tokens": [[1, 1]],
                "running_scores": [[-inf, -inf]],
                "out.status": [2, 2],
                "open": [False],
                "unfinished": [0],
                "finished": [[False, False]],
            },
            {},
            {"pad_token_id": 1},
        ),
        HandStep(
            "but not if it has a hypothesis",
            [masked, masked],
            {"out.status": [0, 0], "finished_scores": [[-1, NEVER]], "unfinished": [0]},
            {**SECOND, "finished": [[True, False]], "finished_scores": [[-1, NEVER]]},
            {},
            {"step": 1},
        ),
        HandStep(
            "one prompt of two",
            [[-1, -2, -3], [-1, -1, -1], masked, masked],
            {"out.status": [0, 0, 2, 2], "tokens": [[0, 1], [0, 0]], "open": [True, False], "unfinished": [1]},
            {},
            {"prompt_ids": [PROMPT, PROMPT]},
        ),
        HandStep(
            "a row with NaN loses its continuations and is reported",
            [[nan, -1, -1], [-1, -2, -3]],
            {"tokens": [[0, 1]], "parents": [[1, 1]], "running_scores": [[-3, -4]], "out.status": [1, 0]},
            SECOND,
            {},
            {"step": 1},
        ),
        HandStep(
            "so does a row with +inf",
            [[-1, -2, -3], [-1, inf, -inf]],
            {"tokens": [[0, 1]], "parents": [[0, 0]], "running_scores": [[-2, -3]], "out.status": [0, 3]},
            SECOND,
            {},
            {"step": 1},
        ),
        HandStep(
            "a closed prompt reports nothing",
            [[nan, -1, -1], [-1, inf, -3]],
            {"out.status": [0, 0], "open": [False]},
            {**SECOND, "open": [False]},
            {},
            {"step": 1},
        ),
    ]


def shaped_steps() -> list[HandStep]:
    # Probabilities 1/2, 1/4, 1/8, 1/8.
    halves = [[3 * LN2, 2 * LN2, LN2, LN2]] * 2
    penalty = {"normalized": False, "repetition_penalty": 4.0}
    return [
        HandStep(
            "scores are log-probabilities",
            halves,
            {"tokens": [[0, 1]], "running_scores": [[-LN2, -2 * LN2]]},
            knobs={"normalized": False},
        ),
        HandStep(
            "a penalty acts on them and not on the logits: -ln 2 becomes -4 ln 2",
            halves,
            {"tokens": [[1, 2]], "running_scores": [[-2 * LN2, -3 * LN2]]},
            create={"prompt_ids": [[0]]},
            knobs=penalty,
        ),
        HandStep(
            "a position that `visible` hides is not penalised",
            halves,
            {"tokens": [[0, 1]], "running_scores": [[-LN2, -2 * LN2]]},
            create={"prompt_ids": [[0]], "visible": torch.tensor([[0]])},
            knobs=penalty,
        ),
        HandStep(
            "a presence penalty counts what was generated: token 1 and not token 0",
            [[-1, -1.5, -9, -9], [-9, -9, -9, -9]],
            {"tokens": [[0, 1]], "running_scores": [[-2, -4.5]]},
            {**SECOND, "generated": [[1], [1]]},
            {"prompt_ids": [[0]]},
            {"step": 1, "presence_penalty": 2.0},
        ),
        HandStep(
            "a beam may not repeat its own tokens: row 0 lacks token 0 and row 1 token 1",
            [[-1, -2, -3, -4], [-1, -2, -3, -4]],
            {
                "tokens": [[0, 1]],
                "parents": [[1, 0]],
                "running_scores": [[-1.25, -2]],
                "slots": [[1, 0]],
                "out.token_ids": [1, 0],
                "out.source_rows": [0, 1],
                "generated": [[1, 0], [0, 1]],
            },
            {"running_scores": [[0, -0.25]], "generated": [[0], [1]]},
            knobs={"step": 1, "no_repeat_ngram_size": 1},
        ),
        HandStep(
            "the temperature acts in draws only",
            halves,
            {"running_scores": [[-LN2, -2 * LN2]]},
            knobs={"normalized": False, "temperature": 0.5, "top_k": 1},
        ),
    ]


def draws() -> list[HandStep]:
    """The race of score - ln E."""
    far = exp(9)
    one: dict[str, Any] = {"num_beams": 1}
    return [
        HandStep(
            "the race decides: -5, -2, -3",
            [[-1, -2, -3]],
            {"tokens": [[1]], "running_scores": [[-2]]},
            create=one,
            knobs={"noise": [[exp(4), 1.0, 1.0]]},
        ),
        HandStep(
            "of the drawn continuations the best score goes on: -2.5 and -2 leave the second behind",
            [[-1, -2, -3]],
            {"tokens": [[0]], "running_scores": [[-1]]},
            create=one,
            knobs={"noise": [[exp(1.5), 1.0, far]]},
        ),
        HandStep(
            "an EOS that is drawn second ranks first if its score is the best",
            [[-1, -2, -3]],
            {"tokens": [[1]], "running_scores": [[-2]], "finished": [[True]], "finished_scores": [[-1]]},
            create={**one, "eos_token_ids": [0]},
            knobs={"noise": [[exp(1.5), 1.0, far]]},
        ),
        HandStep(
            "in the order of the draw it ranks second, whatever its score",
            [[-1, -2, -3]],
            {"tokens": [[1]], "running_scores": [[-2]], "finished": [[False]]},
            create={**one, "eos_token_ids": [0]},
            knobs={"noise": [[exp(1.5), 1.0, far]], "sort_draws": False},
        ),
        HandStep(
            "nothing is drawn twice",
            [[-1, -9]],
            {"tokens": [[1]], "running_scores": [[-9]], "finished_scores": [[-1]]},
            create={**one, "eos_token_ids": [0]},
            knobs={"noise": [[1.0, 1.0]]},
        ),
        HandStep(
            "noise belongs to a beam, wherever its row is",
            [[-2, -2, -2, -2], [-2, -2, -2, -2]],
            {"tokens": [[0, 1]], "parents": [[0, 1]], "out.token_ids": [1, 0]},
            {"running_scores": [[-1, -1]], "slots": [[1, 0]]},
            knobs={"step": 1, "noise": [[1.0, far, far, far], [2.0, 1.5, far, far]]},
        ),
        HandStep(
            "a draw divides by the temperature",
            [[-1, -2, -3]],
            {"tokens": [[0]], "running_scores": [[-2]]},
            create=one,
            knobs={"noise": [[1.0, 1.0, 1.0]], "temperature": 0.5},
        ),
    ]


ROWS = [*row_steps(), *lost_rows(), *shaped_steps(), *draws()]
