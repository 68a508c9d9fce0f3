"""The noise that a call draws with: arguments of the ops, from a seed or a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pygen import rng
from pygen.plan.stages import Knobs

if TYPE_CHECKING:
    from pygen.call.call import Call


def row_noise(call: Call) -> Knobs:
    """Arguments of `sample`."""
    seed, rows = getattr(call.config, "seed", None), call.rows
    if seed is not None and call.generator is not None:
        raise ValueError("`seed` and `generator` exclude each other")
    if call.config.do_sample is not True:
        return {}
    if seed is None:
        return {"rng": "torch", "generator": call.generator}
    if isinstance(seed, (list, tuple)) and len(seed) != rows:
        raise ValueError(f"`seed` must be an int or one per returned row ({rows}), got {len(seed)}")
    return {"rng": "philox", "seed": seed}


def beam_noise(call: Call) -> Knobs:
    """Arguments of `beam_step`: with seeds, the noise of a beam depends on its prompt's seed and its rank alone."""
    config = call.config
    if config.do_sample is not True:
        return {}
    seed = getattr(config, "seed", None)
    if seed is None:
        return {"rng": "torch", "generator": call.generator, "sort_draws": call.adapter.sorts_drawn_beams}
    if call.generator is not None:
        raise ValueError("`seed` and `generator` exclude each other")
    if isinstance(seed, int):
        seed = [rng.row_seed(seed, prompt) for prompt in range(call.batch_size)]
    if len(seed) != call.batch_size:
        raise ValueError(f"`seed` must be an int or one per prompt ({call.batch_size}), got {len(seed)}")
    of_beams = torch.cat([rng.row_seeds(of_prompt, call.num_copies) for of_prompt in seed])
    return {"rng": "philox", "seed": of_beams.to(call.prompt.input_ids.device)}
