"""`GenerationConfig`: the settings of a generation, with Hugging Face's names, defaults and files."""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any

from pygen.config.files import ConfigFiles, dtype_name, json_text
from pygen.config.issues import minor_issues
from pygen.config.rules import (
    DEFAULTS,
    GENERATE_ARGUMENTS,
    METADATA_RULES,
    RULES,
    check_settings,
)
from pygen.config.types import CompileConfig, GenerationMode, normalised
from pygen.config.watermark import BaseWatermarkingConfig, SynthIDTextWatermarkingConfig, WatermarkingConfig
from pygen.notices import log
from pygen.rules import plain, shown

__all__ = [
    "DEFAULTS",
    "BaseWatermarkingConfig",
    "CompileConfig",
    "GenerationConfig",
    "GenerationMode",
    "SynthIDTextWatermarkingConfig",
    "WatermarkingConfig",
]

logger = logging.getLogger("pygen.config")

# The release of transformers whose settings and files these are; written into files as their version key.
TRANSFORMERS_VERSION = "5.6.1"
METADATA_FIELDS = ("_from_model_config", "_commit_hash", "_original_object_hash", "transformers_version")


def contrasts(config: GenerationConfig) -> bool:
    """Whether a search with one beam is contrastive search."""
    top_k = plain(config.top_k)
    return config.do_sample is not True and (config.penalty_alpha or 0) > 0 and isinstance(top_k, int) and top_k > 1


@functools.lru_cache(maxsize=1024)
def _log_once(level: int, message: str) -> None:
    log(logger, message, level)


class GenerationConfig(ConfigFiles):
    """The settings of a generation, under transformers' names, with a rule of type and range for each.

    Every setting is None until given. `generate()` fills the others from the model's config, then from
    `pygen.config.DEFAULTS`. Unknown keywords become attributes, for settings of particular models.

    ```
    config = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9)
    config.update(top_k=20)
    config.save_pretrained("folder")
    GenerationConfig.from_pretrained("folder") == config
    ```

    Types and ranges are those of `pygen.config.rules.RULES`. Settings that are knobs of an op (`pygen.knobs.SETTINGS`)
    also take one value per row as a list, tuple or 1-D tensor (kept as a list); such a config cannot be saved. Raises
    `ValueError`, naming key, value and allowed range, for a wrong type or range, a keyword that would hide a method,
    and contradictory settings; nothing changes then. An integer is accepted wherever a float is.
    """

    extra_output_flags = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")

    max_length: int | None
    max_new_tokens: int | None
    min_length: int | None
    min_new_tokens: int | None
    early_stopping: bool | str | None
    max_time: float | None
    stop_strings: str | list[str] | None

    do_sample: bool | None
    num_beams: int | None

    use_cache: bool | None
    cache_implementation: str | None
    cache_config: dict[str, Any] | None

    temperature: float | list[float] | None
    top_k: int | list[int] | None
    top_p: float | list[float] | None
    min_p: float | list[float] | None
    top_h: float | list[float] | None
    typical_p: float | list[float] | None
    epsilon_cutoff: float | list[float] | None
    eta_cutoff: float | list[float] | None
    repetition_penalty: float | list[float] | None
    encoder_repetition_penalty: float | None
    length_penalty: float | None
    no_repeat_ngram_size: int | list[int] | None
    bad_words_ids: list[list[int]] | None
    renormalize_logits: bool | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | list[int] | None
    remove_invalid_values: bool | None
    exponential_decay_length_penalty: tuple[int, float] | None
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    sequence_bias: dict[tuple[int, ...], float] | list[list[list[int] | float]] | None
    token_healing: bool | None
    guidance_scale: float | None
    watermarking_config: BaseWatermarkingConfig | None

    num_return_sequences: int | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    output_scores: bool | None
    output_logits: bool | None
    return_dict_in_generate: bool | None

    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | list[int] | None

    encoder_no_repeat_ngram_size: int | None
    decoder_start_token_id: int | list[int] | None

    is_assistant: bool | None
    num_assistant_tokens: int | None
    num_assistant_tokens_schedule: str | None
    assistant_confidence_threshold: float | None
    prompt_lookup_num_tokens: int | None
    max_matching_ngram_size: int | None
    assistant_early_exit: int | None
    assistant_lookbehind: int | None
    target_lookbehind: int | None

    compile_config: CompileConfig | None
    disable_compile: bool | None
    continuous_batching_config: Any
    prefill_chunk_size: int | None

    low_memory: bool | None
    penalty_alpha: float | None
    dola_layers: str | list[int] | None
    diversity_penalty: float | None
    num_beam_groups: int | None
    constraints: list[object] | None
    force_words_ids: list[list[int] | list[list[int]]] | None

    _commit_hash: str | None
    _from_model_config: bool | None
    transformers_version: str | None
    _original_object_hash: int

    def __init__(self, /, **kwargs: Any) -> None:
        settings = {name: normalised(name, kwargs.pop(name, None)) for name in (*RULES, *METADATA_RULES)}
        if settings["_from_model_config"]:
            if kwargs.get("force_bos_token_to_be_generated"):
                settings["forced_bos_token_id"] = settings["bos_token_id"]
                _log_once(logging.WARNING, "Set `forced_bos_token_id` instead of `force_bos_token_to_be_generated`.")
            kwargs = {}
        vars(self).update(settings)
        for name, value in kwargs.items():
            self._refuse_reserved(name, value)
            setattr(self, name, normalised(name, value))
        self.validate()

    @classmethod
    def _refuse_reserved(cls, name: str, value: object) -> None:
        hides = hasattr(GenerationConfig, name) or callable(getattr(cls, name, None))
        if hides or (name.startswith("__") and name.endswith("__")):
            raise ValueError(f"`{name}` must not be set: it would hide a part of {cls.__name__}, got {shown(value)}")

    def __hash__(self) -> int:
        return hash(self._fingerprint(use_diff=True))

    def __eq__(self, other: object) -> bool:
        """Whether all settings are equal. An explicit default differs from an unset setting; metadata is ignored."""
        if not isinstance(other, GenerationConfig):
            return False
        return self._fingerprint(use_diff=False) == other._fingerprint(use_diff=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self._fingerprint(use_diff=True)}"

    def _fingerprint(self, *, use_diff: bool) -> str:
        """`to_json_string(ignore_metadata=True)`, which also accepts values that JSON cannot write."""
        settings = {
            name: value
            for name, value in vars(self).items()
            if name not in METADATA_FIELDS and not (use_diff and value is None and name in RULES)
        }
        return json_text(settings, default=lambda value: repr(value) if plain(value) is value else plain(value))

    @staticmethod
    def default_values() -> dict[str, Any]:
        """A copy of `DEFAULTS`."""
        return copy.deepcopy(DEFAULTS)

    def get_generation_mode(self, assistant_model: object = None) -> GenerationMode:
        """The mode that these settings choose; an `assistant_model` makes greedy search and sampling assisted."""
        if self.constraints is not None or self.force_words_ids is not None:
            mode = GenerationMode.CONSTRAINED_BEAM_SEARCH
        elif self.num_beams in (None, 1):
            if self.do_sample is True:
                mode = GenerationMode.SAMPLE
            elif contrasts(self):
                mode = GenerationMode.CONTRASTIVE_SEARCH
            else:
                mode = GenerationMode.GREEDY_SEARCH
        elif self.num_beam_groups is not None and self.num_beam_groups > 1:
            mode = GenerationMode.GROUP_BEAM_SEARCH
        else:
            mode = GenerationMode.BEAM_SAMPLE if self.do_sample is True else GenerationMode.BEAM_SEARCH

        drafting = (assistant_model, self.prompt_lookup_num_tokens, self.assistant_early_exit)
        extensions = (
            (any(value is not None for value in drafting), GenerationMode.ASSISTED_GENERATION),
            (self.dola_layers is not None, GenerationMode.DOLA_GENERATION),
        )
        for asked, extension in extensions:
            if not asked:
                continue
            if mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
                mode = extension
            else:
                log(logger, f"{extension.value} extends greedy search and sampling only; {mode.value} ignores it")
        return mode

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Check every setting, alone and together with the others.

        Raises `ValueError` for a wrong type or range (see `pygen.config.rules`), for more returned sequences than the
        search has, and for an argument of `generate()` kept in the config. Settings without effect, and a negative
        `pad_token_id`, are logged once per distinct message; with `strict=True` they raise `ValueError`. Where
        `user_set_attributes` chooses the search (`do_sample`, `num_beams`), only settings in that set are reported.
        """
        check_settings(vars(self))
        if self.watermarking_config is not None:
            self.watermarking_config.validate()
        for name in GENERATE_ARGUMENTS:
            if hasattr(self, name):
                raise ValueError(
                    f"`{name}` must be given to generate(), not kept in a config, got {shown(getattr(self, name))}"
                )
        sequences, beams = self.num_return_sequences, self.num_beams or 1
        if sequences is not None and sequences > 1:
            if beams == 1 and not self.do_sample:
                raise ValueError(
                    f"`num_return_sequences` must be 1 without do_sample=True or num_beams > 1, got {sequences}"
                )
            if beams > 1 and sequences > beams:
                raise ValueError(f"`num_return_sequences` must be in [1, num_beams={beams}], got {sequences}")

        issues = minor_issues(self, user_set_attributes or set())
        if not issues:
            return
        details = "\n".join(f"- `{name}`: {text}" for name, text in issues.items())
        details += "\nSome of these may come from the `generation_config.json` of the model."
        if strict:
            raise ValueError(f"GenerationConfig is invalid:\n{details}")
        _log_once(logging.WARNING, f"The following generation flags are not valid and may be ignored: {list(issues)}.")
        _log_once(logging.INFO, details)

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Set the settings named in `kwargs`, also to None, and return the entries that name no setting.

        `defaults_only`: set only settings that are None. `allow_custom_entries`: unknown names become new attributes.
        """
        changes = {}
        for name, value in kwargs.items():
            if hasattr(type(self), name):
                self._refuse_reserved(name, value)
            if name in vars(self) or hasattr(self, name):
                if not defaults_only or getattr(self, name) is None:
                    changes[name] = normalised(name, value)
            elif allow_custom_entries:
                changes[name] = normalised(name, value)
        before = dict(vars(self))
        try:
            for name, value in changes.items():
                setattr(self, name, value)
            self.validate()
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        return {name: value for name, value in kwargs.items() if name not in changes}

    def dict_dtype_to_str(self, d: dict[str, Any]) -> None:
        """Replace every `dtype` entry, also in dicts inside, by its short name: torch.float32 -> "float32"."""
        if "dtype" in d:
            d["dtype"] = dtype_name(d["dtype"])
        for value in d.values():
            if isinstance(value, dict):
                self.dict_dtype_to_str(value)

    def to_dict(self) -> dict[str, Any]:
        """All settings, unset ones included, as an independent dict."""
        settings = copy.deepcopy(vars(self))
        settings.pop("_commit_hash", None)
        settings.pop("_original_object_hash", None)
        settings["transformers_version"] = TRANSFORMERS_VERSION
        self.dict_dtype_to_str(settings)
        return settings

    def to_diff_dict(self) -> dict[str, Any]:
        """The settings that differ from a new config, custom attributes and the version."""
        known = RULES.keys() | METADATA_RULES.keys()
        return {name: value for name, value in self.to_dict().items() if value is not None or name not in known}

    def to_json_string(
        self, use_diff: bool = True, ignore_metadata: bool = False, keys_to_pop: list[str] | None = None
    ) -> str:
        """`to_diff_dict()` (or `to_dict()`) as JSON: two spaces, sorted keys, newline at the end.

        Equal to what transformers 5.6.1 writes. Raises `TypeError` for values that JSON cannot hold.
        """
        settings = self.to_diff_dict() if use_diff else self.to_dict()
        for name in (*(keys_to_pop or ()), *(METADATA_FIELDS if ignore_metadata else ())):
            settings.pop(name, None)
        return json_text(settings)

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """The generation settings inside a model's config (an object with `to_dict()`, or a dict).

        Unset settings come from the config of its text decoder; any `output_*` flag sets `return_dict_in_generate`.
        `model_config` stays unchanged.
        """
        settings = model_config if isinstance(model_config, dict) else model_config.to_dict()
        settings = {name: value for name, value in settings.items() if value is not None}
        config: GenerationConfig = cls.from_dict({**settings, "_from_model_config": True})
        if isinstance(model_config, dict):
            inner = [model_config.get(name) for name in ("decoder", "generator", "text_config")]
            decoder: Any = next((part for part in inner if part), {})
        else:
            text_config = getattr(model_config, "get_text_config", None)
            decoder = text_config(decoder=True).to_dict() if text_config else {}
        if isinstance(decoder, dict):
            config.update(
                defaults_only=True, **{name: decoder[name] for name in RULES if decoder.get(name) is not None}
            )
        if any(getattr(config, flag) for flag in cls.extra_output_flags):
            config.return_dict_in_generate = True
        config._original_object_hash = hash(config)
        return config

    @classmethod
    def from_transformers(cls, config: Any) -> GenerationConfig:
        """The settings of a transformers `GenerationConfig` as a pygen config; a pygen config is returned unchanged.

        Raises `TypeError` for anything else and `ValueError` for settings that pygen refuses.
        """
        if isinstance(config, GenerationConfig):
            return config
        if not any(base.__name__ == "GenerationConfig" for base in type(config).__mro__):
            raise TypeError(f"`generation_config` must be a GenerationConfig, got {type(config).__name__}")
        # A later release may declare settings unknown here. Unset, they would only make equal configs unequal.
        declared = vars(type(config)())
        settings = {
            name: value
            for name, value in config.to_dict().items()
            if name not in METADATA_FIELDS
            and not name.endswith("_token_tensor")
            and not (value is None and name in declared)
        }
        result = cls(**settings)
        for name in ("_commit_hash", "_from_model_config"):
            setattr(result, name, getattr(config, name, None))
        return result
