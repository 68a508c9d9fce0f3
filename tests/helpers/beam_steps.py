"""Defines a hand-checked step of beam search, and runs it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pygen.ops import BeamState, BeamStepOutput, beam_step

PROMPT = [9, 9, 9]
# Two beams with scores -1 and -2.
SECOND: dict[str, Any] = {"running_scores": [[-1, -2]]}


class HandStep(NamedTuple):
    """A step with the expected result.

    `log_probs` are by row. `before` and `after` hold fields of the state; "out.*" names fields of the result. Three
    more keys are easier to read: "generated", by row before and by beam after; "tokens" and "parents" of the new beams.
    """

    fact: str
    log_probs: list[list[float]]
    after: dict[str, Any]
    before: dict[str, Any] = {}
    create: dict[str, Any] = {}
    knobs: dict[str, Any] = {}


def play(hand: HandStep, backend: str) -> tuple[BeamState, BeamStepOutput]:
    """Runs the step; returns the state after it, and the result."""
    create = {"prompt_ids": [PROMPT], "max_new_tokens": 4, "num_beams": 2, **hand.create}
    knobs = {"normalized": True, "step": 0, **hand.knobs}
    if "noise" in knobs:
        knobs = {**knobs, "noise": torch.tensor(knobs["noise"]), "do_sample": True}
    prompt_ids = torch.tensor(create.pop("prompt_ids"))
    state = BeamState.create(prompt_ids, create.pop("max_new_tokens"), create.pop("num_beams"), **create)
    generated = slice(state.prompt_length, state.prompt_length + knobs["step"])
    state.token_ids[:, generated] = torch.tensor(hand.before.get("generated", 0))
    state.history[:, generated] = state.token_ids[:, generated]
    for name in hand.before.keys() - {"generated"}:
        value = getattr(state, name)
        value.copy_(torch.tensor(hand.before[name], dtype=value.dtype))
    return state, beam_step(torch.tensor(hand.log_probs, dtype=torch.float32), state, **knobs, backend=backend)


def assert_step(hand: HandStep, backend: str) -> None:
    state, out = play(hand, backend)
    step, shape = hand.knobs.get("step", 0), state.slots.shape
    first_of_prompt = torch.arange(shape[0])[:, None] * shape[1]
    for name, wanted in hand.after.items():
        if name == "generated":
            value = state.sequences(step + 1)[:, state.prompt_length :]
        elif name == "tokens":
            value = state.step_tokens[step].view(shape)
        elif name == "parents":
            value = state.step_parents[step].view(shape) - first_of_prompt
        elif name.startswith("out."):
            value = getattr(out, name.removeprefix("out."))
        else:
            value = getattr(state, name)
        wanted = torch.tensor(wanted, dtype=value.dtype)
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=0, msg=f"{hand.fact}: {name} is {value.tolist()}")
