"""What every setting of a `GenerationConfig` may hold: one table, used alike for objects and for files."""

from __future__ import annotations

import itertools
import math
import numbers
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
_INT64_LIMIT = 2**63

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


@dataclass(frozen=True)
class Rule:
    """`accepts(value)` decides, `allowed` says it in words; `per_row` also allows one such value per row, in code."""

    allowed: str
    accepts: Callable[[Any], bool]
    per_row: bool = False

    def problem(self, name: str, value: Any, *, in_file: bool = False) -> str | None:
        """The message for a refused value, or None. `None` is always allowed: it means unset."""
        value = plain(value)
        if value is None or self.accepts(value):
            return None
        allowed = self.allowed
        if self.per_row and not in_file:
            if isinstance(value, (list, tuple)) and value and all(map(self.accepts, value)):
                return None
            allowed += ", or a sequence of them, one per row"
        return f"`{name}` must be {allowed}, got {shown(value)}"


def shown(value: Any) -> str:
    """`repr`, cut to a length that fits an error message."""
    try:
        return _repr.repr(value)
    except ValueError:  # an int with more digits than Python will print
        return f"{type(value).__name__} too large to print"


def plain(value: Any) -> Any:
    """A tensor, array or array scalar as Python numbers (a tensor on a GPU is read, once); anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_number(value: Any) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


def _is_integral(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_integral(value) and -_INT64_LIMIT <= value < _INT64_LIMIT


def number(interval: str = "(-inf, inf)", *, per_row: bool = False) -> Rule:
    """A finite int or float inside `interval`, written as in mathematics: `"(0, 1]"`."""
    low, high = map(float, interval[1:-1].split(","))
    open_low, open_high = interval[0] == "(", interval[-1] == ")"

    def accepts(value: Any) -> bool:
        if not _is_number(value):
            return False
        return bool((low < value if open_low else low <= value) and (value < high if open_high else value <= high))

    if high < math.inf:
        allowed = f"a number in {interval}"
    elif low > -math.inf:
        allowed = f"a finite number {'>' if open_low else '>='} {low:g}"
    else:
        allowed = "a finite number"
    return Rule(allowed, accepts, per_row)


def integer(low: int | None = None, high: int = _INT64_LIMIT - 1, *, per_row: bool = False) -> Rule:
    """An integer (not a bool) in `[low, high]`, within 64 bits."""
    if high < _INT64_LIMIT - 1:
        allowed = f"an integer in [{low}, {high}]"
    else:
        allowed = "a 64-bit integer" if low is None else f"a 64-bit integer >= {low}"
    return Rule(allowed, lambda value: _is_integer(value) and (low is None or low <= value) and value <= high, per_row)


def one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(map(repr, choices))}", lambda value: isinstance(value, str) and value in choices)


def instance_of_named(name: str, allowed: str) -> Rule:
    """By class name, so that transformers' own class of that name passes without an import of transformers."""
    return Rule(allowed, lambda value: any(base.__name__ == name for base in type(value).__mro__))


def _is_ids(value: Any, *, low: int | None = None, empty: bool = True) -> bool:
    if not isinstance(value, (list, tuple)) or not (empty or value):
        return False
    if value and set(map(type, value)) == {int}:  # lists may be long
        return bool((-_INT64_LIMIT if low is None else low) <= min(value) and max(value) < _INT64_LIMIT)
    return all(map(integer(low).accepts, value))


def is_id_lists(value: Any) -> bool:
    """Whether it is a non-empty list or tuple of non-empty lists or tuples of ids >= 0."""
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(ids, (list, tuple)) for ids in value):
        return False
    return all(value) and _is_ids(list(itertools.chain.from_iterable(value)), low=0)


def _is_sequence_bias(value: Any) -> bool:
    if isinstance(value, dict):
        is_tuple = all(isinstance(ids, tuple) for ids in value)
        return is_tuple and is_id_lists(list(value)) and all(map(_is_number, value.values()))
    if not isinstance(value, (list, tuple)):
        return False
    if not all(isinstance(item, (list, tuple)) and len(item) == 2 for item in value):
        return False
    return is_id_lists([ids for ids, _ in value]) and all(_is_number(bias) for _, bias in value)


def _is_decay(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and _is_integer(value[0]) and _is_number(value[1])


def _is_stop_strings(value: Any) -> bool:
    strings = [value] if isinstance(value, str) else value
    return isinstance(strings, (list, tuple)) and all(isinstance(text, str) and text for text in strings)


_BOOLEAN = Rule("a boolean", lambda value: isinstance(value, bool))
_TEXT = Rule("a string", lambda value: isinstance(value, str))
_DICT = Rule(
    "a dict with string keys", lambda value: isinstance(value, dict) and all(isinstance(k, str) for k in value)
)
_LIST = Rule("a list", lambda value: isinstance(value, (list, tuple)))
_IDS = Rule("a list of integer token ids", _is_ids)
_ID_OR_IDS = Rule(
    "an integer token id or a non-empty list of them", lambda value: _is_integer(value) or _is_ids(value, empty=False)
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
    "do_sample": _BOOLEAN,
    "num_beams": integer(1),
    # Cache
    "use_cache": _BOOLEAN,
    "cache_implementation": one_of(*CACHE_IMPLEMENTATIONS),
    "cache_config": _DICT,
    # Shaping of the logits
    "temperature": number("[0, inf)", per_row=True),
    "top_k": integer(0, per_row=True),
    "top_p": number("[0, 1]", per_row=True),
    "min_p": number("[0, 1]", per_row=True),
    "top_h": number("(0, 1]", per_row=True),
    "typical_p": number("(0, 1]", per_row=True),
    "epsilon_cutoff": number("[0, 1)", per_row=True),
    "eta_cutoff": number("[0, 1)", per_row=True),
    "repetition_penalty": number("(0, inf)", per_row=True),
    "encoder_repetition_penalty": number("(0, inf)"),
    "length_penalty": number(),
    "no_repeat_ngram_size": integer(0, per_row=True),
    "bad_words_ids": Rule("a non-empty list of non-empty lists of token ids >= 0", is_id_lists),
    "renormalize_logits": _BOOLEAN,
    "forced_bos_token_id": integer(),
    "forced_eos_token_id": _ID_OR_IDS,
    "remove_invalid_values": _BOOLEAN,
    "exponential_decay_length_penalty": Rule("a pair (start: an integer, factor: a finite number)", _is_decay),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "sequence_bias": Rule(
        "a non-empty dict {(ids): bias} or list [[[ids], bias], ...] with ids >= 0 and finite biases", _is_sequence_bias
    ),
    "token_healing": _BOOLEAN,
    "guidance_scale": number(),
    "watermarking_config": instance_of_named(
        "BaseWatermarkingConfig", "a WatermarkingConfig, a SynthIDTextWatermarkingConfig or a dict of their fields"
    ),
    # Output
    "num_return_sequences": integer(1),
    "output_attentions": _BOOLEAN,
    "output_hidden_states": _BOOLEAN,
    "output_scores": _BOOLEAN,
    "output_logits": _BOOLEAN,
    "return_dict_in_generate": _BOOLEAN,
    # Special tokens; a negative pad id is a minor issue, so no lower end here
    "pad_token_id": integer(),
    "bos_token_id": integer(),
    "eos_token_id": _ID_OR_IDS,
    # Encoder-decoder models
    "encoder_no_repeat_ngram_size": integer(0),
    "decoder_start_token_id": _ID_OR_IDS,
    # Assisted decoding
    "is_assistant": _BOOLEAN,
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
    "disable_compile": _BOOLEAN,
    "continuous_batching_config": Rule(
        "a dict with string keys or a ContinuousBatchingConfig",
        lambda value: _DICT.accepts(value) or type(value).__name__ == "ContinuousBatchingConfig",
    ),
    # Searches that left the core of transformers
    "low_memory": _BOOLEAN,
    "penalty_alpha": number("[0, inf)"),
    "dola_layers": Rule(
        "'low', 'high' or a list of layer numbers >= 0",
        lambda value: value in ("low", "high") if isinstance(value, str) else _is_ids(value, low=0),
    ),
    "diversity_penalty": number(),
    "num_beam_groups": integer(1),
    "constraints": _LIST,
    "force_words_ids": _LIST,
    "prefill_chunk_size": integer(1),
}

METADATA_RULES: dict[str, Rule] = {
    "_commit_hash": _TEXT,
    "_from_model_config": _BOOLEAN,
    "transformers_version": _TEXT,
}

# Keywords of generate() beyond transformers 5.6.1: no settings of a fresh config, but checked where one holds them.
EXTENSION_RULES: dict[str, Rule] = {
    "presence_penalty": number(per_row=True),
    "frequency_penalty": number(per_row=True),
    "seed": Rule(
        "an integer in [0, 2**64)",
        lambda value: _is_integral(value) and 0 <= value < 2**64,
        per_row=True,
    ),
    "output_logprobs": _BOOLEAN,
    "top_logprobs": integer(0),
    "on_invalid": one_of("raise", "greedy", "eos"),
    # Of later releases of transformers
    "max_cache_len": integer(1),
    "use_mtp": _BOOLEAN,
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
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
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
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
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
SAMPLING_ONLY: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "top_k": 50,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}

_ALL_RULES = {**RULES, **METADATA_RULES, **EXTENSION_RULES}


def check_settings(settings: Mapping[str, Any], *, in_file: bool = False) -> None:
    """Refuse (`ValueError`) the first setting whose type or range is not allowed; unknown names pass."""
    for name, rule in _ALL_RULES.items():
        value = settings.get(name)
        if value is not None and (problem := rule.problem(name, value, in_file=in_file)):
            raise ValueError(problem)


def check_fields(owner: str, values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """The same for the fields of a config inside the config; here None is no value."""
    for name, rule in rules.items():
        value = values[name]
        if value is None or not rule.accepts(plain(value)):
            raise ValueError(f"`{owner}.{name}` must be {rule.allowed}, got {shown(value)}")
