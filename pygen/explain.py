"""`explain`: what a call of `generate` would do, and where each setting comes from, without running the model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pygen.backends import BackendError
from pygen.call.arguments import Arguments
from pygen.call.call import Call
from pygen.config.config import GenerationMode
from pygen.config.rules import EXTENSION_RULES, RULES, SAMPLING_ONLY, STATIC_CACHES
from pygen.decode.leaving import check_compact_rows, refuse_compaction, why_rows_stay
from pygen.generate import LOOPS, generate, prepare_call
from pygen.graph.eligibility import CAPTURED_MODES, check_runtime, choose_runtime
from pygen.models.module import ModuleAdapter
from pygen.models.versions import cache_parameter, given_cache
from pygen.notices import collected
from pygen.ops import DISPATCHERS
from pygen.plan.plan import Plan, make_plan, num_top_logprobs
from pygen.plan.stages import Fused
from pygen.rules import shown

_BEAM_ONLY = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty")
_ASSISTED_ONLY = (
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "prompt_lookup_num_tokens",
    "target_lookbehind",
)
_BEAM_OPS = ("beam_step", "reorder_cache", "beam_finalize")


@dataclass(frozen=True)
class Setting:
    """source: "argument", "generation_config", "model" or "default". ignored: why it has no effect in this call."""

    name: str
    value: object
    source: str
    ignored: str = ""


@dataclass(frozen=True)
class Stages:
    """The stages of the steps [first, end), a line each; `end` is None up to the end of the call."""

    first: int
    end: int | None
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """The parts of a call; `print` shows all of them.

    model: its class, and by which adapter it runs. loop: the module that runs the mode. runtime: whether a graph
        captures the steps, and if not, why.
    ended_rows: whether rows that have ended leave the batch before the others, and if not, why.
    batch_size: prompts. rows: sequences decoded at once, beams and copies included.
    max_new_tokens: the maximum of steps; min_new_tokens: steps without an end-of-sequence token.
    eos_token_ids, pad_token_id: the effective ids, or None.
    settings: every setting with a value, by name, with its source and, if it has no effect, the reason.
    stages: how scores become tokens. not_fused: one sentence per Python processor: why no op does it.
    backends: by op, the backend that runs it, and the reasons against the ones passed over.
    noise: the source of randomness. cache: the kind of KV cache.
    stopping: the conditions that end rows. notes: warnings of the call.
    """

    model: str
    mode: str
    loop: str
    runtime: str
    ended_rows: str
    batch_size: int
    rows: int
    prompt_length: int
    max_new_tokens: int
    min_new_tokens: int
    eos_token_ids: list[int] | None
    pad_token_id: int | None
    settings: tuple[Setting, ...]
    stages: tuple[Stages, ...]
    not_fused: tuple[str, ...]
    backends: dict[str, str]
    noise: str
    cache: str
    stopping: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ignored(self) -> dict[str, str]:
        """The given settings that have no effect, with the reason."""
        return {s.name: s.ignored for s in self.settings if s.ignored and s.source != "default"}

    def __getitem__(self, name: str) -> Setting:
        """The setting of that name. Raises KeyError if it has no value."""
        for setting in self.settings:
            if setting.name == name:
                return setting
        raise KeyError(name)

    def __str__(self) -> str:
        lengths = f"prompt {self.prompt_length}, then at most {self.max_new_tokens} tokens"
        if self.min_new_tokens:
            lengths += f", no end in the first {self.min_new_tokens}"
        parts = [
            ("model", [self.model]),
            ("mode", [f"{self.mode}, by {self.loop}"]),
            ("runtime", [self.runtime]),
            ("rows", [f"{self.rows} of {self.batch_size} prompts", f"ended ones {self.ended_rows}"]),
            ("lengths", [lengths]),
            ("stopping", self.stopping),
            ("cache", [self.cache]),
            ("noise", [self.noise]),
            ("scores", [line for steps in self.stages for line in _lines(steps)]),
            ("not fused", self.not_fused or ["-"]),
            ("backends", [f"{op}: {backend}" for op, backend in self.backends.items()]),
            ("settings", _table([s for s in self.settings if not s.ignored])),
            ("no effect", [f"{name}: {reason}" for name, reason in self.ignored.items()] or ["-"]),
            ("notes", self.notes or ["-"]),
        ]
        return "\n".join(
            f"{title if number == 0 else '':<11}{line}" for title, lines in parts for number, line in enumerate(lines)
        )


def explain(model: nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """What `generate(model, *args, **kwargs)` would do; raises the errors that `generate` raises before the model runs.

    The model does not run, no generator advances, a streamer receives nothing.
    """
    bound = inspect.signature(generate).bind(model, *args, **kwargs)
    arguments = Arguments(**bound.arguments)
    if arguments.custom_generate is not None:
        raise NotImplementedError("`custom_generate`: pygen cannot explain what custom code does")
    with collected() as notes, torch.no_grad():
        checked: dict[str, Any] = {
            "runtime": check_runtime(arguments.runtime),
            "compact_rows": check_compact_rows(arguments.compact_rows),
        }
        call = prepare_call(dataclasses.replace(arguments, **checked))
        refuse_compaction(call, own_loop=False)
        groups = call.config.num_beam_groups or 1
        plan = make_plan(dataclasses.replace(call, num_copies=call.num_copies // groups) if groups > 1 else call)
        runtime = choose_runtime(call, plan if call.mode in CAPTURED_MODES else None)
        stay = why_rows_stay(call, captured=runtime.name == "graph")
    return Explanation(
        model=f"{type(call.model).__name__}, by {type(call.adapter).__module__}",
        mode=call.mode.value,
        loop=LOOPS[call.mode].__module__,
        runtime=str(runtime),
        ended_rows="leave the batch" if stay is None else f"stay in the batch: {stay}",
        batch_size=call.batch_size,
        rows=call.rows * _candidates_at_once(call),
        prompt_length=call.prompt.input_ids.shape[1],
        max_new_tokens=call.lengths.max_new_tokens,
        min_new_tokens=call.lengths.min_new_tokens,
        eos_token_ids=call.stopping.eos_token_ids,
        pad_token_id=call.tokens.pad,
        settings=_settings(call, runtime.name == "graph"),
        stages=tuple(Stages(s.first, s.end, plan.stages(s.first, _choice(call))) for s in plan.segments),
        not_fused=plan.reasons(),
        backends={op: _backend(op, call) for op in _ops(call, plan)},
        noise=_noise_words(call),
        cache=_cache(call),
        stopping=tuple(_stopping(call)),
        notes=tuple(notes),
    )


def _settings(call: Call, captured: bool) -> tuple[Setting, ...]:
    values = vars(call.config)
    return tuple(
        Setting(
            name, values[name], call.settings.sources.get(name, "default"), _ignored(name, values[name], call, captured)
        )
        for name in sorted(values)
        if values[name] is not None and not name.startswith("_") and name != "transformers_version"
    )


def _ignored(name: str, value: object, call: Call, captured: bool) -> str:
    """Why a setting has no effect in this call, or ""."""
    config = call.config
    reasons: tuple[tuple[bool, str], ...] = (
        (
            name in {*SAMPLING_ONLY, "seed"} and not config.do_sample and not (name == "top_k" and _contrasts(call)),
            "acts in sampling only, `do_sample` is not True",
        ),
        (
            name in ("penalty_alpha", "low_memory") and not _contrasts(call),
            "acts in contrastive search only: `do_sample` False, `num_beams` 1, `top_k` > 1, `penalty_alpha` > 0",
        ),
        (name in _BEAM_ONLY and not _searches_beams(call), "acts in beam search only, `num_beams` is 1"),
        (
            name in _ASSISTED_ONLY and call.mode is not GenerationMode.ASSISTED_GENERATION,
            "acts in assisted decoding only",
        ),
        (
            name in config.extra_output_flags and value is True and not call.wants_dict,
            "`return_dict_in_generate` is not True",
        ),
        (name == "max_length" and config.max_new_tokens is not None, "`max_new_tokens` decides"),
        (name == "min_length" and config.min_new_tokens is not None, "`min_new_tokens` decides"),
        (name in ("cache_implementation", "cache_config") and config.use_cache is False, "`use_cache` is False"),
        (name == "cache_config" and config.cache_implementation != "quantized", "acts on quantized caches only"),
        (
            name == "max_cache_len" and config.cache_implementation not in STATIC_CACHES and not captured,
            "acts on static caches only",
        ),
        (name == "decoder_start_token_id" and not call.adapter.is_encoder_decoder, "the model has no encoder"),
        (name in ("compile_config", "disable_compile") and not captured, "only captured steps are compiled"),
        (name not in RULES and name not in EXTENSION_RULES, "no setting of generation"),
    )
    return next((reason for applies, reason in reasons if applies), "")


def _contrasts(call: Call) -> bool:
    return call.mode is GenerationMode.CONTRASTIVE_SEARCH


def _candidates_at_once(call: Call) -> int:
    top_k = call.config.top_k
    return top_k if isinstance(top_k, int) and _contrasts(call) and not call.config.low_memory else 1


def _choice(call: Call) -> str | None:
    """How a token is chosen, if not by its score alone."""
    if call.mode is GenerationMode.DOLA_GENERATION:
        drawn = "draw" if call.config.do_sample else "argmax"
        return f"{drawn}, of the last layer's scores beside those of `dola_layers`={call.config.dola_layers!r}"
    if not _contrasts(call):
        return None
    way = "one after the other" if call.config.low_memory else "in one forward"
    return f"the {call.config.top_k} best, read {way} and compared with the text (`penalty_alpha`)"


def _searches_beams(call: Call) -> bool:
    return (call.config.num_beams or 1) > 1


def _ops(call: Call, plan: Plan) -> tuple[str, ...]:
    """The ops of a step, in the order in which they run."""
    # Beams find all log-probabilities apart from the step's op.
    apart = num_top_logprobs(call.config) is not None and (_searches_beams(call) or plan.num_raw_logprobs > 0)
    return (*_choosing_ops(call, plan), *(("token_logprobs",) if apart else ()))


def _choosing_ops(call: Call, plan: Plan) -> tuple[str, ...]:
    if _contrasts(call):
        return ("process_logits", "sample", *(() if call.config.low_memory else ("reorder_cache",)))
    shapes = plan.keep_scores or any(isinstance(stage, Fused) for s in plan.segments for stage in s.early)
    if call.mode is GenerationMode.CONSTRAINED_BEAM_SEARCH:
        return ("process_logits", *_BEAM_OPS[1:])
    return (*(("process_logits",) if shapes else ()), *(_BEAM_OPS if _searches_beams(call) else ("sample",)))


def _backend(op: str, call: Call) -> str:
    dispatcher = DISPATCHERS[op]
    try:
        name, passed_over = dispatcher.choose(call.prompt.input_ids.device)
    except BackendError as error:
        return str(error)
    return "; ".join([name, *passed_over])


def _noise_words(call: Call) -> str:
    seed = getattr(call.config, "seed", None)
    if not call.config.do_sample:
        return "none: nothing is drawn"
    if seed is not None:
        return f"philox, of seed {shown(seed)}, step and token id only"
    if call.generator is not None:
        return "the torch.Generator given, the tokens of transformers"
    return "torch's default generator, the tokens of transformers under the same torch.manual_seed"


def _cache(call: Call) -> str:
    given = given_cache(call.prompt.model_kwargs)
    if given is not None:
        return f"the caller's {type(given).__name__}"
    if call.config.use_cache is False:
        return "none, `use_cache` is False: every step reads the whole text"
    if call.config.cache_implementation is not None:
        return str(call.config.cache_implementation)
    if isinstance(call.adapter, ModuleAdapter):
        return (
            "what forward returns"
            if cache_parameter(inspect.signature(call.model.forward).parameters) is not None
            else "none, forward takes no `past_key_values`: every step reads the whole text"
        )
    return "the model's default"


def _stopping(call: Call) -> Iterator[str]:
    yield f"after {call.lengths.max_new_tokens} tokens"
    if call.stopping.eos_token_ids is not None:
        yield f"at token ids {call.stopping.eos_token_ids}"
    if call.stopping.max_time is not None:
        yield f"after {call.stopping.max_time} seconds"
    for criterion in call.criteria:
        yield str(getattr(criterion, "__name__", type(criterion).__name__))
    if call.cancel is not None:
        yield "when `cancel` is set"


def _lines(steps: Stages) -> list[str]:
    span = f"from step {steps.first}" if steps.end is None else f"steps {steps.first} to {steps.end - 1}"
    return [f"{f'{span}:' if number == 0 else '':<16}{stage}" for number, stage in enumerate(steps.stages)]


def _table(settings: Sequence[Setting]) -> list[str]:
    width = max(len(setting.name) for setting in settings)
    return [f"{s.name:<{width}} = {shown(s.value)} ({s.source})" for s in settings]
