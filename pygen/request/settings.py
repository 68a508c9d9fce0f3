"""The settings of one call of `generate`, merged by priority, and the lengths and special tokens that follow."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygen import knobs
from pygen.config.config import DEFAULTS, GenerationConfig, GenerationMode, contrasts
from pygen.config.rules import CACHE_IMPLEMENTATIONS, EXTENSION_RULES
from pygen.notices import log, warn
from pygen.request.protocols import GenerationSettings

logger = logging.getLogger(__name__)

_METADATA = ("transformers_version", "continuous_batching_config")

# setting: (its neutral values, the feature that any other value needs)
_UNAVAILABLE: dict[str, tuple[tuple[object, ...], str]] = {
    "use_mtp": ((None, False), "multi-token prediction"),
    "speculation_type": ((None,), "drafting by an assistant that reads the model's hidden states"),
    "assistant_ensemble_weight": ((None,), "the ensemble of model and assistant"),
    "cache_implementation": ((None, *(set(CACHE_IMPLEMENTATIONS) - {"paged"})), "continuous batching"),
}

_EXTENSION_DEFAULTS: dict[str, object] = {
    **{knob.name: knob.default for knob in knobs.SETTINGS if knob.is_extension},
    "on_invalid": "raise",
}


@dataclass(frozen=True)
class Settings:
    """The merged settings of a call, and the arguments that are left for the model.

    do_sample: as the caller set it, a bool or one per row; `config.do_sample` is True where any row samples.
    model_kwargs: the arguments that aren't settings.
    sources: for every setting that is not None, "argument", "generation_config", "model" or "default".
    """

    config: GenerationConfig
    do_sample: object
    model_kwargs: dict[str, Any]
    sources: dict[str, str]

    def is_default(self, name: str) -> bool:
        return self.sources.get(name, "default") == "default"


def resolve_settings(model_config: object, generation_config: object, kwargs: Mapping[str, object]) -> Settings:
    """Merges by priority: arguments, then `generation_config`, then the model's own, then the defaults.

    None in a config means unset. None as an argument sets None, which turns the setting off. Other arguments are for
    the model. The function modifies none of its arguments.

    Errors: TypeError for a config without `to_dict`.
    """
    layers = [("default", {**DEFAULTS, **_EXTENSION_DEFAULTS})]
    layers += [("model", _as_dict("model.generation_config", model_config))]
    layers += [("generation_config", _as_dict("generation_config", generation_config))]
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        for name, value in layer.items():
            if value is not None:
                settings[name], sources[name] = value, source
    names = _known_names() | _UNAVAILABLE.keys() | settings.keys()
    for name in kwargs.keys() & names:
        settings[name], sources[name] = kwargs[name], "argument"
        if kwargs[name] is None:
            del sources[name]
    # Config files of models with sliding windows have this name; a dynamic cache chooses such layers by default now.
    if settings.get("cache_implementation") == "hybrid":
        settings["cache_implementation"] = None

    do_sample = settings.get("do_sample")
    if isinstance(do_sample, (list, tuple, Tensor)):
        settings["do_sample"] = bool(torch.as_tensor(do_sample, device="cpu").any())
    return Settings(
        config=GenerationConfig(**settings),
        do_sample=do_sample,
        model_kwargs={name: value for name, value in kwargs.items() if name not in names},
        sources=sources,
    )


def _known_names() -> set[str]:
    return {name for name in vars(GenerationConfig()) if not name.startswith("_")} | EXTENSION_RULES.keys()


def _as_dict(name: str, config: object) -> dict[str, object]:
    if config is None:
        return {}
    if not hasattr(config, "to_dict"):
        raise TypeError(f"`{name}` must be a GenerationConfig, got {type(config).__name__}")
    return {
        name: value for name, value in config.to_dict().items() if not name.startswith("_") and name not in _METADATA
    }


def refuse_unavailable(config: GenerationConfig) -> None:
    """NotImplementedError for the first setting that needs a feature which this version does not have."""
    unavailable = dict(_UNAVAILABLE)
    if (config.num_beams or 1) > 1:
        unavailable["low_memory"] = ((None, False), "a search that reads one beam after the other")
    for name, (neutral, what) in unavailable.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise NotImplementedError(f"`{name}`={value!r}: {what} is not available in this version")


def refuse_mixed_searches(config: GenerationConfig, assistant_model: object) -> None:
    """ValueError where drafts or `dola_layers`, which extend greedy search and sampling, meet another search."""
    drafting = {"assistant_model": assistant_model}
    drafting |= {name: getattr(config, name) for name in ("prompt_lookup_num_tokens", "assistant_early_exit")}
    asked = next((name for name, value in drafting.items() if value is not None), None)
    if config.dola_layers is not None:
        if asked is not None:
            raise ValueError(
                f"`dola_layers` must be None with `{asked}`, whose drafts only the last layer checks, got "
                f"{config.dola_layers!r}"
            )
        asked = "dola_layers"
    if asked is None:
        return
    way = "whose layers continue" if asked == "dola_layers" else "whose drafts continue"
    if (config.num_beams or 1) > 1:
        raise ValueError(
            f"`num_beams` must be 1 with `{asked}`, {way} one text, got {config.num_beams}; "
            f"leave `{asked}` out for beams"
        )
    if config.constraints is not None or config.force_words_ids is not None:
        name = "constraints" if config.constraints is not None else "force_words_ids"
        raise ValueError(
            f"`{name}` must be None with `{asked}`: constraints need beams, and {way.removeprefix('whose ')} one text"
        )
    if contrasts(config):
        raise ValueError(
            f"`penalty_alpha` must be 0 with `{asked}`: contrastive search chooses a token by its similarity to the "
            f"text, not by its score alone, got {config.penalty_alpha}"
        )


def advise(settings: Settings, mode: GenerationMode) -> None:
    """Warns of a `penalty_alpha` that the search of `mode` ignores, and of DoLa without a repetition penalty."""
    penalty = settings.config.repetition_penalty
    if mode is GenerationMode.DOLA_GENERATION and isinstance(penalty, (int, float)) and penalty < 1.2:
        log(logger, f"`dola_layers` tends to repeat; `repetition_penalty` should be 1.2 or more, got {penalty}.")
    alpha = settings.config.penalty_alpha
    if alpha and mode is not GenerationMode.CONTRASTIVE_SEARCH:
        log(
            logger,
            f"`penalty_alpha`={alpha} acts in contrastive search only, which needs `do_sample`=False, `num_beams`=1 "
            f"and `top_k` > 1: {mode.value} ignores it.",
        )


@dataclass(frozen=True)
class Lengths:
    """At most `max_new_tokens` >= 1 steps; no end-of-sequence token in the first `min_new_tokens` of them."""

    max_new_tokens: int
    min_new_tokens: int


def resolve_lengths(
    settings: Settings,
    prompt_length: int,
    max_position_embeddings: int | None,
    *,
    embeds_length: int = 0,
    prompt_name: str = "input_ids",
) -> Lengths:
    """`max_new_tokens` overrides `max_length`, which includes the prompt. The default is 20 new tokens, or as many as
    the model has positions for.

    embeds_length: the number of embeddings without ids; `max_length` and `min_length` count them.
    prompt_name: the name of the prompt in messages.

    Errors: ValueError where the prompt is not shorter than `max_length`. UserWarning for the default length, and for a
    minimum above the maximum.
    """
    config = settings.config
    max_length: int = config.max_length if config.max_length is not None else DEFAULTS["max_length"]
    uses_default = settings.is_default("max_length")
    if config.max_new_tokens is not None:
        if not uses_default:
            log(
                logger,
                f"Both `max_new_tokens` (={config.max_new_tokens}) and `max_length` (={max_length}) are set; "
                "`max_new_tokens` decides.",
            )
        max_length = prompt_length + config.max_new_tokens
    elif uses_default:
        max_length += prompt_length
        if max_position_embeddings is not None:
            max_length = min(max_length, max_position_embeddings)
        warn(f"Neither `max_new_tokens` nor `max_length` is set: generating up to {max_length - prompt_length} tokens.")
    else:
        max_length -= embeds_length
    if prompt_length >= max_length:
        raise ValueError(
            f"`max_length` must be larger than the length of `{prompt_name}` ({prompt_length + embeds_length}), "
            f"got {max_length + embeds_length}"
        )

    min_length = config.min_length or 0
    name = "min_length"
    if config.min_new_tokens is not None:
        if not settings.is_default("min_length"):
            log(
                logger,
                f"Both `min_new_tokens` (={config.min_new_tokens}) and `min_length` (={min_length}) are set; "
                "`min_new_tokens` decides.",
            )
        name, min_length = "min_new_tokens", prompt_length + config.min_new_tokens
    else:
        min_length = max(min_length - embeds_length, 0)
    if min_length > max_length:
        warn(f"`{name}` asks for {min_length} tokens with the prompt, but generation stops at {max_length}.")
    return Lengths(max_length - prompt_length, max(min_length - prompt_length, 0))


def within_positions(lengths: Lengths, available: int, model: object) -> Lengths:
    """At most `available` tokens, since the model has positions for no more. UserWarning where that cuts the call."""
    if available >= lengths.max_new_tokens:
        return lengths
    if available < 1:
        raise ValueError(
            f"`model`={type(model).__name__} has no position behind the prompts, where candidates are read"
        )
    asked = lengths.max_new_tokens
    warn(f"{type(model).__name__} has no positions for {asked} new tokens: generating up to {available}.")
    return Lengths(available, lengths.min_new_tokens)


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a call; None means that it has no such token.

    eos: the ids that end a row.
    pad: the id that finished rows emit.
    decoder_start: the id that a decoder starts from, or one per prompt.
    """

    eos: list[int] | None
    pad: int | None
    bos: int | None
    decoder_start: int | list[int] | None


def resolve_special_tokens(config: GenerationSettings) -> SpecialTokens:
    """`pad_token_id` defaults to the first end-of-sequence id >= 0, `decoder_start_token_id` to `bos_token_id`."""
    eos = _ids(config.eos_token_id)
    pad = _ids(config.pad_token_id)
    bos = _ids(config.bos_token_id)
    if eos and min(eos) < 0:
        log(logger, f"`eos_token_id` should hold ids >= 0, got {eos}; a negative id never ends a row.")
    start = config.decoder_start_token_id
    return SpecialTokens(
        eos=eos,
        pad=pad[0] if pad else next((token_id for token_id in eos if token_id >= 0), eos[0]) if eos else None,
        bos=bos[0] if bos else None,
        decoder_start=bos[0] if start is None and bos else start,
    )


def _ids(value: object) -> list[int] | None:
    if value is None:
        return None
    ids = torch.as_tensor(value, device="cpu").reshape(-1).tolist()
    return [int(token_id) for token_id in ids] or None


def config_for_hooks(config: GenerationConfig, tokens: SpecialTokens, device: torch.device) -> GenerationConfig:
    """A copy of `config` as the hooks of models and a caller's decoding loop expect it.

    It also has the special tokens as tensors, `_eos_token_tensor` (n,) or None for example. `num_beams` and
    `num_return_sequences` are numbers.
    """
    result = copy.copy(config)
    result.num_beams = config.num_beams or 1
    result.num_return_sequences = config.num_return_sequences or 1
    result.cache_config = dict(config.cache_config) if config.cache_config is not None else None
    special = {"bos": tokens.bos, "eos": tokens.eos, "pad": tokens.pad, "decoder_start": tokens.decoder_start}
    for name, value in special.items():
        tensor = None if value is None else torch.as_tensor(value, dtype=torch.int64, device=device)
        setattr(result, f"_{name}_token_tensor", tensor)
    return result
