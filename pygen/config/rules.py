"""What every setting of a `GenerationConfig` may hold: one table for objects and files alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pygen import knobs
from pygen.rules import (
    Rule,
    instance_of_named,
    integer,
    is_id_lists,
    is_ids,
    is_integer,
    is_integral,
    is_number,
    number,
    one_of,
    plain,
    shown,
)

CACHE_IMPLEMENTATIONS = (
    "static",
    "offloaded_static",
    "sliding_window",
    "hybrid",
    "hybrid_chunked",
    "offloaded_hybrid",
    "offloaded_hybrid_chunked",
    "dynamic",
    "dynamic_full",
    "offloaded",
    "quantized",
    "paged",
)
STATIC_CACHES = CACHE_IMPLEMENTATIONS[:7]
# Arguments of generate() that people put into a config by mistake.
GENERATE_ARGUMENTS = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)


def _is_sequence_bias(value: object) -> bool:
    if isinstance(value, dict):
        is_tuple = all(isinstance(ids, tuple) for ids in value)
        return is_tuple and is_id_lists(list(value)) and all(map(is_number, value.values()))
    if not isinstance(value, (list, tuple)):
        return False
    if not all(isinstance(item, (list, tuple)) and len(item) == 2 for item in value):
        return False
    return is_id_lists([ids for ids, _ in value]) and all(is_number(bias) for _, bias in value)


def _is_decay(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and is_integer(value[0]) and is_number(value[1])


def _is_stop_strings(value: object) -> bool:
    strings = [value] if isinstance(value, str) else value
    return isinstance(strings, (list, tuple)) and all(isinstance(text, str) and text for text in strings)


BOOLEAN = Rule("a boolean", lambda value: isinstance(value, bool))
_TEXT = Rule("a string", lambda value: isinstance(value, str))
_DICT = Rule(
    "a dict with string keys", lambda value: isinstance(value, dict) and all(isinstance(k, str) for k in value)
)
_LIST = Rule("a list", lambda value: isinstance(value, (list, tuple)))
_IDS = Rule("a list of integer token ids", is_ids)
_MARKER = Rule(
    "a non-empty string or a non-empty list of token ids >= 0",
    lambda value: value != "" if isinstance(value, str) else is_ids(value, empty=False) and min(value) >= 0,
)
_ID_OR_IDS = Rule(
    "an integer token id or a non-empty list of them", lambda value: is_integer(value) or is_ids(value, empty=False)
)

RULES: dict[str, Rule] = {
    # Length
    "max_length": integer(0),
    "max_new_tokens": integer(1),
    "min_length": integer(0),
    "min_new_tokens": integer(0),
    "early_stopping": Rule("a boolean or 'never'", lambda value: isinstance(value, bool) or value == "never"),
    "max_time": number("[0, inf)"),
    "stop_strings": Rule("a non-empty string or a list of non-empty strings", _is_stop_strings),
    # Strategy
    "do_sample": BOOLEAN,
    "num_beams": integer(1),
    # Cache
    "use_cache": BOOLEAN,
    "cache_implementation": one_of(*CACHE_IMPLEMENTATIONS),
    "cache_config": _DICT,
    # Shaping of the logits
    **{knob.name: knob.rule for knob in knobs.SETTINGS if not knob.is_extension},
    "encoder_repetition_penalty": number("(0, inf)"),
    "length_penalty": number(),
    "bad_words_ids": Rule("a non-empty list of non-empty lists of token ids >= 0", is_id_lists),
    "renormalize_logits": BOOLEAN,
    "forced_bos_token_id": integer(),
    "forced_eos_token_id": _ID_OR_IDS,
    "remove_invalid_values": BOOLEAN,
    "exponential_decay_length_penalty": Rule("a pair (start: an integer, factor: a finite number)", _is_decay),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "sequence_bias": Rule(
        "a non-empty dict {(ids): bias} or list [[[ids], bias], ...] with ids >= 0 and finite biases", _is_sequence_bias
    ),
    "token_healing": BOOLEAN,
    "guidance_scale": number(),
    "watermarking_config": instance_of_named(
        "BaseWatermarkingConfig", "a WatermarkingConfig, a SynthIDTextWatermarkingConfig or a dict of their fields"
    ),
    # Output
    "num_return_sequences": integer(1),
    "output_attentions": BOOLEAN,
    "output_hidden_states": BOOLEAN,
    "output_scores": BOOLEAN,
    "output_logits": BOOLEAN,
    "return_dict_in_generate": BOOLEAN,
    # Special tokens; a negative pad id is a minor issue, so no lower end here
    "pad_token_id": integer(),
    "bos_token_id": integer(),
    "eos_token_id": _ID_OR_IDS,
    # Encoder-decoder models
    "encoder_no_repeat_ngram_size": integer(0),
    "decoder_start_token_id": _ID_OR_IDS,
    # Assisted decoding
    "is_assistant": BOOLEAN,
    "num_assistant_tokens": integer(1),
    "num_assistant_tokens_schedule": one_of("constant", "heuristic", "heuristic_transient"),
    "assistant_confidence_threshold": number("[0, 1]"),
    "prompt_lookup_num_tokens": integer(1),
    "max_matching_ngram_size": integer(1),
    "assistant_early_exit": integer(1),
    "assistant_lookbehind": integer(1),
    "target_lookbehind": integer(1),
    # Performance
    "compile_config": instance_of_named("CompileConfig", "a CompileConfig (set in code, never in a file)"),
    "disable_compile": BOOLEAN,
    "continuous_batching_config": Rule(
        "a dict with string keys or a ContinuousBatchingConfig",
        lambda value: _DICT.accepts(value) or type(value).__name__ == "ContinuousBatchingConfig",
    ),
    # Searches that left the core of transformers
    "low_memory": BOOLEAN,
    "penalty_alpha": number("[0, inf)"),
    "dola_layers": Rule(
        "'low', 'high' or a list of layer numbers >= 0",
        lambda value: value in ("low", "high") if isinstance(value, str) else is_ids(value, low=0),
    ),
    "diversity_penalty": number(),
    "num_beam_groups": integer(1),
    "constraints": _LIST,
    "force_words_ids": _LIST,
    "prefill_chunk_size": integer(1),
}

METADATA_RULES: dict[str, Rule] = {
    "_commit_hash": _TEXT,
    "_from_model_config": BOOLEAN,
    "transformers_version": _TEXT,
}

# Keywords of generate() beyond transformers 5.6.1: no settings of a fresh config, but checked where one holds them.
EXTENSION_RULES: dict[str, Rule] = {
    **{knob.name: knob.rule for knob in knobs.SETTINGS if knob.is_extension},
    "seed": Rule(
        "an integer in [0, 2**64)",
        lambda value: is_integral(value) and 0 <= value < 2**64,
        per_row=True,
    ),
    "output_logprobs": Rule(
        "a boolean, 'processed' or 'raw'",
        lambda value: isinstance(value, bool) or (isinstance(value, str) and value in ("processed", "raw")),
    ),
    "top_logprobs": integer(0),
    "output_kept": BOOLEAN,
    "kept_limit": integer(1),
    "thinking_budget": integer(0),
    "thinking_start": _MARKER,
    "thinking_end": _MARKER,
    "on_invalid": one_of("raise", "greedy", "eos"),
    # Of later releases of transformers
    "max_cache_len": integer(1),
    "use_mtp": BOOLEAN,
    "assistant_ensemble_weight": number("(0, 1)"),
    "speculation_type": one_of("dflash"),
}

# What an unset setting means once generate() runs; settings without an entry stay None.
DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "min_length": 0,
    "do_sample": False,
    "use_cache": True,
    "early_stopping": False,
    "num_beams": 1,
    **{knob.name: knob.default for knob in knobs.SETTINGS if knob.default is not None and not knob.is_extension},
    "length_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "num_return_sequences": 1,
    "output_scores": False,
    "return_dict_in_generate": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "encoder_repetition_penalty": 1.0,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}

# Settings that only act when sampling, with the values that say "off".
SAMPLING_ONLY: dict[str, Any] = {knob.name: knob.default for knob in knobs.WARPERS}

_ALL_RULES = {**RULES, **METADATA_RULES, **EXTENSION_RULES}


def setting_problems(settings: Mapping[str, object], *, in_file: bool = False) -> Iterator[str]:
    """A message for every setting whose type or range is not allowed; unknown names pass."""
    for name, rule in _ALL_RULES.items():
        value = settings.get(name)
        if value is not None and (problem := rule.problem(name, value, in_file=in_file)):
            yield problem


def check_settings(settings: Mapping[str, object], *, in_file: bool = False) -> None:
    """Refuse (`ValueError`) the first setting whose type or range is not allowed; unknown names pass."""
    for problem in setting_problems(settings, in_file=in_file):
        raise ValueError(problem)


def check_fields(owner: str, values: Mapping[str, object], rules: Mapping[str, Rule]) -> None:
    """The same for the fields of a config inside the config; here None is no value."""
    for name, rule in rules.items():
        value = values[name]
        if value is None or not rule.accepts(plain(value)):
            raise ValueError(f"`{owner}.{name}` must be {rule.allowed}, got {shown(value)}")
