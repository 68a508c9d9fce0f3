"""Settings that are valid but have no effect together with the rest of a config."""

from __future__ import annotations

from typing import Any

from pygen.config.rules import SAMPLING_ONLY, STATIC_CACHES
from pygen.rules import plain


def minor_issues(config: Any, chosen: set[str]) -> dict[str, str]:
    """By setting of a GenerationConfig without effect, the reason; see `GenerationConfig.validate`.

    chosen: the settings that the caller set. Where they choose the search, other settings are not reported.
    """
    issues = {}
    if config.pad_token_id is not None and config.pad_token_id < 0:
        issues["pad_token_id"] = f"should be >= 0 but is {config.pad_token_id}; padding a batch will fail"
    if config.do_sample is not True:
        for name, neutral in SAMPLING_ONLY.items():
            value = getattr(config, name, None)
            if name == "top_k" and config.penalty_alpha:
                continue  # contrastive search has as many candidates
            if ("do_sample" not in chosen or name in chosen) and _differs(value, neutral):
                issues[name] = (
                    f"`do_sample` is not True but `{name}` is set to `{value}`, which acts in sampling only; "
                    f"set `do_sample=True` or unset `{name}`"
                )
    if config.num_beams in (None, 1):
        for name, neutral in {"early_stopping": False, "length_penalty": 1.0}.items():
            if ("num_beams" not in chosen or name in chosen) and _differs(value := getattr(config, name), neutral):
                issues[name] = (
                    f"`num_beams` is {config.num_beams} but `{name}` is set to `{value}`, which acts in beam search "
                    f"only; set `num_beams>1` or unset `{name}`"
                )
    if config.use_cache is False:
        for name in ("cache_implementation", "cache_config"):
            if (value := getattr(config, name)) is not None:
                issues[name] = f"`use_cache` is False, so `{name}` set to `{value}` has no effect"
    longest, kind = getattr(config, "max_cache_len", None), config.cache_implementation
    if longest is not None and kind not in STATIC_CACHES:
        issues["max_cache_len"] = (
            f"`cache_implementation` is {kind!r} but `max_cache_len` is set to `{longest}`, which acts on static "
            f"caches only"
        )
    if config.return_dict_in_generate is not True:
        for name in config.extra_output_flags:
            if getattr(config, name) is True:
                issues[name] = f"`return_dict_in_generate` is not True, so `{name}` has no effect"
    return issues


def _differs(value: object, neutral: object) -> bool:
    """Whether a setting, in any row, is set to a value other than `neutral`."""
    value = plain(value)
    return value is not None and any(v != neutral for v in (value if isinstance(value, (list, tuple)) else [value]))
