"""Hand-checked steps: candidates, finished hypotheses, and when a prompt closes."""

from __future__ import annotations

from typing import Any

from pygen.ops._beam_state import NEVER_WINS as NEVER
from tests.helpers.beam_steps import PROMPT, SECOND, HandStep

# After the beams of SECOND the best continuations are token 0 at -3 and token 3 at -4.
SECOND_LOG_PROBS: list[list[float]] = [[-2, -8, -8, -3], [-9, -9, -9, -9]]
EOS = {"eos_token_ids": [3]}
FULL = {**SECOND, "finished": [[True, True]], "finished_tokens": [[7, 8]], "finished_steps": [[0, 0]]}


def first_steps() -> list[HandStep]:
    return [
        HandStep(
            "only the first of the equal beams is expanded",
            [[-1, -2, -3, -4], [-0.5, -0.5, -0.5, -0.5]],
            {
                "tokens": [[0, 1]],
                "parents": [[0, 0]],
                "running_scores": [[-1, -2]],
                "out.token_ids": [0, 1],
                "out.source_rows": [0, 0],
                "out.shared": [0, 0],
                "out.status": [0, 0],
                "generated": [[0], [1]],
                "finished": [[False, False]],
                "open": [True],
                "unfinished": [1],
            },
        ),
        HandStep(
            "an EOS among the first num_beams joins the finished hypotheses",
            [[-1, -2, -4, -1.5], [-1, -1, -1, -1]],
            {
                "finished_scores": [[-1.5, NEVER]],
                "finished": [[True, False]],
                "finished_tokens": [[3, -1]],
                "finished_steps": [[0, -1]],
                "finished_parents": [[0, -1]],
                "tokens": [[0, 1]],
                "running_scores": [[-1, -2]],
                "open": [True],
            },
            create=EOS,
        ),
        HandStep(
            "an EOS beyond them does not",
            [[-1, -2, -4, -3], [-1, -1, -1, -1]],
            {"finished": [[False, False]], "tokens": [[0, 1]], "running_scores": [[-1, -2]]},
            create=EOS,
        ),
        HandStep(
            "with two EOS ids enough candidates are looked at to go on",
            [[-3, -4, -1, -2], [-1, -1, -1, -1]],
            {
                "finished_scores": [[-1, -2]],
                "finished_tokens": [[2, 3]],
                "tokens": [[0, 1]],
                "running_scores": [[-3, -4]],
                "open": [False],
                "unfinished": [0],
            },
            create={"eos_token_ids": [2, 3]},
        ),
        HandStep(
            "the last step ends what ranks among the first num_beams",
            [[-1, -2, -3, -4], [-1, -1, -1, -1]],
            {"finished_scores": [[-1, -2]], "finished_tokens": [[0, 1]], "unfinished": [0]},
            create={"max_new_tokens": 1},
        ),
        HandStep(
            "one beam: the EOS joins, the next best token goes on and is already worse",
            [[-2, -1]],
            {"finished_scores": [[-1]], "tokens": [[0]], "running_scores": [[-2]], "open": [False], "unfinished": [0]},
            create={"num_beams": 1, "eos_token_ids": [1]},
        ),
        HandStep(
            "one token and one beam",
            [[-1]],
            {"tokens": [[0]], "running_scores": [[-1]], "open": [True], "out.token_ids": [0]},
            create={"num_beams": 1},
        ),
        HandStep(
            "one token and two beams: the second is only there in name",
            [[-1], [-1]],
            {"tokens": [[0, 0]], "parents": [[0, 1]], "running_scores": [[-1, NEVER]], "out.source_rows": [0, 1]},
        ),
        HandStep(
            "every token is an EOS",
            [[-1], [-1]],
            {
                "finished_scores": [[-1, NEVER]],
                "finished": [[True, False]],
                "running_scores": [[NEVER, 2 * NEVER]],
                "open": [False],
                "unfinished": [0],
            },
            create={"eos_token_ids": [0]},
        ),
        HandStep(
            "prompts do not see each other",
            [[-1, -2, -3, -1.5], [0, 0, 0, 0], [-9, -1.5, -2, -1], [0, 0, 0, 0]],
            {
                "tokens": [[0, 1], [1, 2]],
                "parents": [[0, 0], [0, 0]],
                "running_scores": [[-1, -2], [-1.5, -2]],
                "finished_scores": [[-1.5, NEVER], [-1, NEVER]],
                "finished_parents": [[0, -1], [2, -1]],
                "slots": [[0, 1], [2, 3]],
                "out.source_rows": [0, 0, 2, 2],
                "unfinished": [2],
            },
            create={**EOS, "prompt_ids": [PROMPT, PROMPT]},
        ),
    ]


def finished_steps() -> list[HandStep]:
    """Step 1, in which the EOS, token 3, ranks second with the sum -4."""

    def joins(fact: str, score: float, length_penalty: float) -> HandStep:
        after = {"finished_scores": [[score, NEVER]], "finished_parents": [[0, -1]], "finished_steps": [[1, -1]]}
        return ends(fact, after, SECOND, length_penalty=length_penalty)

    def ends(fact: str, after: dict[str, Any], before: dict[str, Any], **knobs: Any) -> HandStep:
        return HandStep(fact, SECOND_LOG_PROBS, after, before, EOS, {"step": 1, "length_penalty": 0.0, **knobs})

    return [
        joins("a length is 2: the EOS counts, the three tokens of the prompt do not", -2, 1.0),
        joins("length_penalty 0 leaves the sum", -4, 0.0),
        joins("length_penalty 2", -1, 2.0),
        joins("length_penalty -1", -8, -1.0),
        ends(
            "a better hypothesis replaces the worst of a full pool",
            {
                "finished_scores": [[-2, -4]],
                "finished_tokens": [[7, 3]],
                "finished_steps": [[0, 1]],
                "finished_parents": [[1, 0]],
                "finished": [[True, True]],
            },
            {**FULL, "finished_scores": [[-2, -5]], "finished_parents": [[1, 1]]},
        ),
        ends(
            "the best comes first",
            {"finished_scores": [[-4, -5]], "finished_tokens": [[3, 7]]},
            {**FULL, "finished_scores": [[-5, -6]]},
        ),
        ends(
            "a worse one is forgotten",
            {"finished_scores": [[-2, -3]], "finished_tokens": [[7, 8]]},
            {**FULL, "finished_scores": [[-2, -3]]},
        ),
        ends(
            "of equal ones the older stays",
            {"finished_scores": [[-2, -4]], "finished_tokens": [[7, 8]]},
            {**FULL, "finished_scores": [[-2, -4]]},
        ),
        ends(
            "early_stopping=True: a full pool is done",
            {"finished_scores": [[-5, -6]], "finished_tokens": [[7, 8]], "unfinished": [0]},
            {**FULL, "finished_scores": [[-5, -6]]},
            early_stopping=True,
        ),
        ends(
            "early_stopping=True: a pool that is not full takes more",
            {"finished_scores": [[-2, -4]], "finished": [[True, True]], "finished_tokens": [[7, 3]], "unfinished": [0]},
            {**FULL, "finished": [[True, False]], "finished_scores": [[-2, NEVER]]},
            early_stopping=True,
        ),
        ends(
            "a closed prompt takes nothing",
            {"finished_scores": [[-5, -6]], "finished_tokens": [[7, 8]], "open": [False], "unfinished": [0]},
            {**FULL, "finished_scores": [[-5, -6]], "open": [False]},
        ),
    ]


def open_steps() -> list[HandStep]:
    """Step 1 of at most 4. After it the best beam scores -4 and the worst finished hypothesis scores `worst`."""

    def opens(fact: str, worst: float, is_open: bool, early_stopping: bool | str, length_penalty: float) -> HandStep:
        knobs = {"step": 1, "early_stopping": early_stopping, "length_penalty": length_penalty}
        before = {**FULL, "finished_scores": [[-0.25, worst]]}
        after = {"open": [is_open], "running_scores": [[-4, -5]], "finished_scores": [[-0.25, worst]]}
        return HandStep(fact, [[-3, -4, -9, -9], [-9, -9, -9, -9]], after, before, {}, knobs)

    return [
        opens("False: -4 / 2 beats -2.5", -2.5, True, False, 1.0),
        opens("False: -4 / 2 does not beat its equal", -2, False, False, 1.0),
        opens("False: -4 / 2 does not beat -1.5", -1.5, False, False, 1.0),
        opens("True: the same rule", -2.5, True, True, 1.0),
        opens("True: the same rule closes", -1.5, False, True, 1.0),
        opens("never: -4 / 4, at the full length, beats -1.5", -1.5, True, "never", 1.0),
        opens("never: -4 / 4 does not beat -0.75", -0.75, False, "never", 1.0),
        opens("never, length_penalty 0: -4 beats -5", -5, True, "never", 0.0),
        opens("never, length_penalty 0: -4 does not beat -3", -3, False, "never", 0.0),
        opens("never, length_penalty -1: at the current length -4 * 2 beats -10", -10, True, "never", -1.0),
        opens("never, length_penalty -1: -4 * 2 does not beat -7", -7, False, "never", -1.0),
        HandStep(
            "with a free slot anything is an improvement",
            SECOND_LOG_PROBS,
            {"open": [True], "unfinished": [1]},
            {**FULL, "finished": [[True, False]], "finished_scores": [[-0.25, NEVER]]},
            knobs={"step": 1},
        ),
        HandStep(
            "a closed prompt stays closed",
            SECOND_LOG_PROBS,
            {"open": [False], "unfinished": [0], "tokens": [[0, 3]]},
            {**SECOND, "open": [False]},
            knobs={"step": 1},
        ),
    ]


def ties() -> list[HandStep]:
    return [
        HandStep(
            "of one beam's equal continuations the lower ids go on",
            [[-2, -9, -2, -9], [-1, -9, -9, -9]],
            {"tokens": [[0, 2]], "parents": [[0, 0]], "running_scores": [[-3, -3]]},
            SECOND,
            knobs={"step": 1},
        ),
        HandStep(
            "of two beams' equal continuations that of the better beam comes first",
            [[-9, -9, -9, -2], [-1, -9, -9, -9]],
            {"tokens": [[3, 0]], "parents": [[0, 1]], "running_scores": [[-3, -3]]},
            SECOND,
            knobs={"step": 1},
        ),
    ]


HYPOTHESES = [*first_steps(), *finished_steps(), *open_steps(), *ties()]
