"""Contrastive search: from a resolved call to its output."""

from __future__ import annotations

import torch
from torch import Tensor

from pygen.call.call import Call
from pygen.decode.contrastive_loop import CandidateChooser, contrastive
from pygen.decode.contrastive_scores import Context
from pygen.decode.lookahead import Lookahead, SequentialLookahead, TogetherLookahead
from pygen.decode.monitor import Monitor
from pygen.decode.sample import generate_tokens
from pygen.models.cache import num_positions
from pygen.models.versions import given_cache, given_cache_name
from pygen.ops import DecodeState
from pygen.outputs import GenerateOutput
from pygen.plan.plan import make_plan


def generate_contrastively(call: Call) -> Tensor | GenerateOutput:
    """Contrastive search: `penalty_alpha` > 0 with `top_k` > 1 candidates, in one forward or, with `low_memory`, one
    after the other."""
    _check(call)
    config, plan = call.config, make_plan(call)
    count = config.top_k
    assert isinstance(count, int) and config.penalty_alpha is not None
    penalty_alpha = config.penalty_alpha
    model: Lookahead
    if config.low_memory:
        model, copies = SequentialLookahead(call.adapter), call.num_copies
    else:
        model, copies = TogetherLookahead(call.adapter, count), call.num_copies * count

    def loop(state: DecodeState, monitor: Monitor) -> int:
        return contrastive(
            model,
            state,
            lambda logits: CandidateChooser(plan, logits, state, count),
            lambda states: Context(states, _visible(call, states.shape[1]), call.lengths.max_new_tokens),
            monitor,
            penalty_alpha=penalty_alpha,
            max_new_tokens=call.lengths.max_new_tokens,
        )

    # The model also reads candidates for the last token.
    longest = call.lengths.max_new_tokens + 1
    start = {"num_copies": copies, "max_new_tokens": longest, "hidden_states": True}
    return generate_tokens(call, plan, loop, Monitor, **start)


def _visible(call: Call, length: int) -> Tensor | None:
    """(rows, length), 0 where the prompts' states are those of padding; what a model puts before them is visible."""
    mask = call.prompt.mask
    if mask is None or mask.ndim != 2:
        return None
    mask = mask[:, -length:]
    before = mask.new_ones((mask.shape[0], length - mask.shape[1]))
    return torch.cat([before, mask], dim=1).repeat_interleave(call.num_copies, dim=0)


def _check(call: Call) -> None:
    kwargs = call.prompt.model_kwargs
    if num_positions(given_cache(kwargs)):
        name = given_cache_name(call.settings.model_kwargs)
        raise ValueError(
            f"`{name}` must be empty with `penalty_alpha`: candidates are compared with the hidden states of the whole "
            f"text, which a cache does not hold; leave it out"
        )
