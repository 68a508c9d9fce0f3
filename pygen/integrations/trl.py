"""`rollout_func`: completions for TRL's `GRPOTrainer`, with the log-probabilities that their tokens were drawn with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygen import knobs
from pygen.generate import generate

# Oldest and newest at once: TRL calls the interface experimental.
TESTED = "1.16.0"


def rollout_func(prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
    """One completion for every prompt of this process: `GRPOTrainer(..., rollout_func=rollout_func)`.

    The tokens are those of the trainer without it, under the same seed. The trainer also gets, for every completion,

    prompt_ids, completion_ids: lists of ids, the completion up to its end-of-sequence token.
    logprobs: the log-probability that each token was drawn with, after temperature and filters.
    kept: with a filter in the trainer's settings (`top_p`, `top_k`, `min_p`), the `KeptTokens` of its steps, for
        `pygen.rollout.renormalized_logprobs`. Reward functions receive it, as they receive every further field.

    Errors: NotImplementedError for prompts with images, and for trainers with tools, whose turns TRL itself continues;
    ImportError for a release of TRL that has no such trainer.
    """
    try:
        from trl.models import unwrap_model_for_generation
    except ImportError as error:
        raise ImportError(f"`rollout_func` needs trl {TESTED} or newer: pip install -U trl ({error})") from error
    if getattr(trainer, "tools", None):
        raise NotImplementedError(
            "`rollout_func` continues no turn after a tool's; use `pygen.patch(model)` with tools"
        )
    prompt_ids, images, fields = trainer._tokenize_prompts(prompts)
    if images is not None or fields:
        raise NotImplementedError("`rollout_func` takes prompts of text; use `pygen.patch(model)` with images")
    device = trainer.accelerator.device
    input_ids, attention_mask = _padded(prompt_ids, trainer._tokenizer.pad_token_id, trainer.pad_to_multiple_of)
    options = {"gather_deepspeed3_params": trainer.args.ds3_gather_for_generation}
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped, trainer.accelerator, generation_kwargs=trainer.generation_kwargs, **options
        ) as model,
        torch.no_grad(),
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
    ):
        output: Any = generate(
            model,
            input_ids.to(device),
            trainer.generation_config,
            attention_mask=attention_mask.to(device),
            output_logprobs=True,
            output_kept=_filters(trainer.generation_config),
            return_dict_in_generate=True,
        )
    lengths = _lengths(output.sequences[:, input_ids.shape[1] :], trainer.eos_token_ids)
    rows = list(enumerate(lengths))
    completions = output.sequences[:, input_ids.shape[1] :].tolist()
    logprobs = output.logprobs.tolist()
    result: dict[str, list[Any]] = {
        "prompt_ids": prompt_ids,
        "completion_ids": [completions[row][:length] for row, length in rows],
        "logprobs": [logprobs[row][:length] for row, length in rows],
    }
    if output.kept is not None:
        result["kept"] = [output.kept.row(row) for row, _ in rows]
    return result


def _padded(prompt_ids: list[list[int]], pad_token_id: int, multiple: int | None) -> tuple[Tensor, Tensor]:
    """(rows, length) ids padded on the left, to a multiple as the trainer pads, and their mask."""
    longest = max(map(len, prompt_ids))
    width = longest if multiple is None else -(-longest // multiple) * multiple
    ids = torch.full((len(prompt_ids), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(prompt_ids):
        ids[row, width - len(text) :] = torch.tensor(text, dtype=ids.dtype)
        mask[row, width - len(text) :] = 1
    return ids, mask


def _filters(config: Any) -> bool:
    """Whether a filter removes tokens, so that there are sets of survivors."""
    values = {knob.name: (getattr(config, knob.name, None), knob.neutral) for knob in knobs.FILTERS}
    return any(value is not None and value != neutral for value, neutral in values.values())


def _lengths(completions: Tensor, eos_token_ids: list[int]) -> list[int]:
    """The number of tokens of each row up to its first end-of-sequence token."""
    ends = torch.isin(completions, torch.tensor(eos_token_ids, device=completions.device))
    steps = torch.arange(1, completions.shape[1] + 1, device=completions.device)
    first = torch.where(ends, steps, completions.shape[1]).amin(dim=1)
    return [int(length) for length in first]
