"""`generate`: resolves what a call asks for and runs the loop that does it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pygen.config import GenerationConfig
from pygen.integrations import ModelAdapter, adapt
from pygen.integrations.inputs import mask_from_padding
from pygen.loops.monitor import Monitor, Recorder
from pygen.loops.sample import sample
from pygen.loops.state import DecodeState
from pygen.outputs import GenerateDecoderOnlyOutput
from pygen.plan import PENALTIES, WARPERS, Plan, active_knobs, ban_schedule, check_processors
from pygen.request import (
    Settings,
    SpecialTokens,
    refuse_unavailable,
    resolve_lengths,
    resolve_settings,
    resolve_special_tokens,
)

logger = logging.getLogger(__name__)

_INTEGER_KNOBS = ("top_k", "no_repeat_ngram_size")
# Criteria that Hugging Face builds from a setting; one given by hand takes the place of the built one.
_CRITERIA_OF_SETTINGS = {
    "MaxLengthCriteria": "max_length",
    "MaxTimeCriteria": "max_time",
    "EosTokenCriteria": "eos_token_id",
}


@torch.no_grad()
def generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    *,
    logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] | None = None,
    stopping_criteria: Sequence[Callable[..., Any]] | None = None,
    prefix_allowed_tokens_fn: Any = None,
    synced_gpus: bool | None = None,
    assistant_model: Any = None,
    streamer: Any = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    custom_generate: Any = None,
    generator: torch.Generator | None = None,
    cancel: threading.Event | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Continues prompts with a causal language model: greedy search, or sampling with `do_sample=True`.

    Arguments:
        model: a decoder-only model of transformers, or any `nn.Module` whose forward takes `input_ids` and returns
            logits (see `pygen.integrations.module`).
        inputs: prompts (batch_size, prompt_length), integer ids, padded on the left; also as `input_ids=`. Without
            prompts every row starts from `bos_token_id`.
        generation_config: a `GenerationConfig` of pygen or of transformers. Settings are taken from the arguments, then
            from here, then from `model.generation_config`, then from `pygen.config.DEFAULTS`.
        logits_processor: callables (input_ids (rows, length), scores (rows, vocab_size) float32) -> scores, run after
            penalties and bans and before temperature and filters.
        stopping_criteria: callables (input_ids, scores so far or None) -> bool or (rows,) bool, called after every
            token.
        streamer: receives the prompts, then the tokens of every step, then `end()`.
        generator: where noise is taken from without `seed`; None is torch's default generator.
        cancel: once set, generation ends after the step in progress.
        progress: shows a progress bar.
        kwargs: settings of `GenerationConfig`, the ones below, and inputs of the model.

    Settings beyond transformers (also accepted inside a config):
        any sampling knob, a penalty or `do_sample` as a sequence, one value per prompt or one per returned row.
        seed: an int, or one per returned row: noise that does not depend on batch, padding or backend. Row r of an int
            seed s uses `pygen.rng.row_seed(s, r)`. Without it the tokens are those of transformers under the same
            `torch.manual_seed`.
        presence_penalty, frequency_penalty: subtracted from the scores of generated tokens, once and per occurrence.
        output_logprobs, top_logprobs: log-probabilities of the tokens and of the n best, in the output class.
        on_invalid: for rows whose scores hold NaN, +inf or no allowed token: "raise" (RuntimeError naming row and
            step), "greedy" (take the best token that is left) or "eos" (end the row).

    Returns:
        (rows, prompt_length + steps) int64 with rows = batch_size * num_return_sequences, the copies of a prompt side
        by side, finished rows filled with `pad_token_id`; with `return_dict_in_generate` a `GenerateDecoderOnlyOutput`.

    Raises ValueError and TypeError for arguments, NotImplementedError for what this version does not offer, both before
    the model runs. Nothing that is passed in is modified, but a cache given as `past_key_values` is extended.
    Penalties and n-gram bans do not see prompt positions that `attention_mask` hides.
    """
    _refuse_arguments(
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        synced_gpus=synced_gpus or None,
        assistant_model=assistant_model,
        negative_prompt_ids=negative_prompt_ids,
        negative_prompt_attention_mask=negative_prompt_attention_mask,
        custom_generate=custom_generate,
        assistant_tokenizer=kwargs.pop("assistant_tokenizer", None),
        inputs_embeds=kwargs.get("inputs_embeds"),
    )
    # Only strings and healing need a tokenizer, and repositories of code the permission; both are refused by name.
    kwargs.pop("tokenizer", None)
    kwargs.pop("trust_remote_code", None)

    adapter = adapt(model)
    settings = resolve_settings(adapter.generation_config, generation_config, kwargs)
    config, model_kwargs = settings.config, settings.model_kwargs
    refuse_unavailable(config)
    tokens = resolve_special_tokens(config)
    prompts = _prompts(adapter, inputs, model_kwargs, tokens)
    adapter.check(model_kwargs, generation_config)
    _fill_attention_mask(adapter, prompts, model_kwargs, tokens)
    lengths = resolve_lengths(settings, prompts.shape[1], adapter.max_position_embeddings)
    num_copies = config.num_return_sequences or 1

    criteria = _check_criteria(stopping_criteria, config)
    pads = tokens.eos is not None or any(hasattr(criterion, "eos_token_id") for criterion in criteria)
    on_invalid = vars(config)["on_invalid"]
    _check_padding(prompts.shape[0] * num_copies, tokens, pads, on_invalid)
    plan = _plan(settings, prompts, num_copies, tokens, lengths.min_new_tokens, logits_processor, generator)
    state = DecodeState.create(
        prompts.repeat_interleave(num_copies, dim=0),
        lengths.max_new_tokens,
        eos_token_ids=tokens.eos,
        pad_token_id=tokens.pad or 0,
        visible=_visible(plan, prompts, model_kwargs, num_copies),
    )
    # Every knob is checked before the model runs, against a vocabulary of one token.
    plan.bind(torch.zeros((state.rows, 1), device=prompts.device), state)
    adapter.start(prompts, model_kwargs, config, num_copies=num_copies, max_new_tokens=lengths.max_new_tokens)

    wants_dict = bool(config.return_dict_in_generate)
    recorder = Recorder(
        state,
        lengths.max_new_tokens,
        scores=wants_dict and bool(config.output_scores),
        logits=wants_dict and bool(config.output_logits),
        top_logprobs=_num_top_logprobs(config),
    )
    with _stream(streamer, state), _progress_bar(progress, lengths.max_new_tokens) as bar:
        monitor = Monitor(
            state,
            recorder,
            criteria=criteria,
            pads=pads,
            on_invalid=on_invalid,
            max_time=config.max_time,
            cancel=cancel,
            streamer=streamer,
            progress=bar,
        )
        ahead = prompts.device.type != "cpu" and adapter.can_rewind
        steps = sample(adapter, state, plan, monitor, max_new_tokens=lengths.max_new_tokens, ahead=ahead)

    sequences = state.tokens(steps)
    sequences = sequences if steps == lengths.max_new_tokens else sequences.clone()
    if not wants_dict:
        return sequences
    logprobs, top_logprobs = recorder.logprobs(steps)
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=recorder.scores,
        logits=recorder.logits,
        attentions=None if adapter.attentions is None else tuple(adapter.attentions),
        hidden_states=None if adapter.hidden_states is None else tuple(adapter.hidden_states),
        past_key_values=adapter.cache,
        finish_reason=monitor.finish_reasons(),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


def _refuse_arguments(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(f"`{name}` is not available in this version")


def _prompts(adapter: ModelAdapter, inputs: Any, model_kwargs: dict[str, Any], tokens: SpecialTokens) -> Tensor:
    """(batch_size, prompt_length) int64; takes `input_ids` out of `model_kwargs`."""
    input_ids = model_kwargs.pop("input_ids", None)
    if inputs is not None and input_ids is not None:
        raise ValueError("`inputs` and `input_ids` are the same argument; pass one of them")
    prompts = inputs if inputs is not None else input_ids
    if prompts is None:
        if tokens.bos is None:
            raise ValueError("`bos_token_id` must be set where no `input_ids` are given")
        tensors = [value for value in model_kwargs.values() if isinstance(value, Tensor) and value.ndim]
        batch_size = tensors[0].shape[0] if tensors else 1
        return torch.full((batch_size, 1), tokens.bos, dtype=torch.int64, device=adapter.device)
    if not isinstance(prompts, Tensor):
        raise TypeError(f"`input_ids` must be a tensor, got {type(prompts).__name__}")
    if prompts.is_floating_point() or prompts.is_complex() or prompts.dtype == torch.bool:
        raise TypeError(f"`input_ids` must hold integers, got {prompts.dtype}")
    if prompts.ndim != 2 or prompts.shape[0] == 0 or prompts.shape[1] == 0:
        raise ValueError(
            f"`input_ids` must have shape (batch_size, prompt_length), both at least 1, got {tuple(prompts.shape)}"
        )
    if adapter.device is not None and prompts.device.type != adapter.device.type:
        raise ValueError(f"`input_ids` must be on the model's device {adapter.device}, got {prompts.device}")
    return prompts.long()


def _fill_attention_mask(
    adapter: ModelAdapter, prompts: Tensor, model_kwargs: dict[str, Any], tokens: SpecialTokens
) -> None:
    """Checks the mask given, or infers one from padding; warns where prompts look padded on the right."""
    mask = model_kwargs.get("attention_mask")
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise TypeError(f"`attention_mask` must be a tensor, got {type(mask).__name__}")
        longer = model_kwargs.get("past_key_values") is not None and mask.ndim == 2 and mask.shape[1] > prompts.shape[1]
        if mask.shape != prompts.shape and not (longer and mask.shape[0] == prompts.shape[0]):
            raise ValueError(
                f"`attention_mask` must have the shape of `input_ids` {tuple(prompts.shape)}, got {tuple(mask.shape)}"
            )
    elif adapter.accepts("attention_mask"):
        mask = model_kwargs["attention_mask"] = mask_from_padding(prompts, tokens.pad, tokens.eos)
    if prompts.shape[0] > 1 and tokens.pad is not None:
        last = mask[:, -1] == 0 if mask is not None else prompts[:, -1] == tokens.pad
        if bool(last.any()):
            logger.warning(
                "Prompts seem to be padded on the right; a decoder-only model continues correctly only prompts that "
                "are padded on the left (`padding_side='left'`)."
            )


def _check_criteria(criteria: Any, config: GenerationConfig) -> tuple[Callable[..., Any], ...]:
    if criteria is None:
        return ()
    if not isinstance(criteria, Sequence) or not all(callable(criterion) for criterion in criteria):
        raise TypeError(f"`stopping_criteria` must be a list of callables, got {criteria!r:.80}")
    for criterion in criteria:
        name = type(criterion).__name__
        if getattr(config, _CRITERIA_OF_SETTINGS.get(name, ""), None) is not None or name == "MaxLengthCriteria":
            raise NotImplementedError(
                f"`stopping_criteria`: a {name} in place of the setting `{_CRITERIA_OF_SETTINGS[name]}` is not "
                f"available in this version; use the setting"
            )
    return tuple(criteria)


def _check_padding(rows: int, tokens: SpecialTokens, pads: bool, on_invalid: str) -> None:
    if pads and tokens.pad is None:
        raise ValueError("`pad_token_id` must be set where rows can finish before others")
    if pads and rows > 1 and tokens.pad is not None and tokens.pad < 0:
        raise ValueError(f"`pad_token_id` must be >= 0 where rows can finish before others, got {tokens.pad}")
    if on_invalid == "eos" and tokens.eos is None:
        raise ValueError("`on_invalid`='eos' needs `eos_token_id`")


def _plan(
    settings: Settings,
    prompts: Tensor,
    num_copies: int,
    tokens: SpecialTokens,
    min_new_tokens: int,
    logits_processor: Any,
    generator: torch.Generator | None,
) -> Plan:
    config = settings.config
    batch_size, device = prompts.shape[0], prompts.device

    def per_row(name: str, value: Any) -> Any:
        return _per_row(name, value, batch_size, num_copies, device)

    do_sample = per_row("do_sample", settings.do_sample)
    samples = config.do_sample is True
    values = {name: per_row(name, getattr(config, name, None)) for name in (*PENALTIES, *WARPERS)}
    penalties = active_knobs(PENALTIES, values)
    warpers = active_knobs(WARPERS, values) if samples else {}
    bans = ban_schedule(config.suppress_tokens, config.begin_suppress_tokens, tokens.eos, min_new_tokens)
    built = {*penalties, *warpers} | {
        name
        for name in ("min_length", "min_new_tokens", "suppress_tokens", "begin_suppress_tokens", "renormalize_logits")
        if getattr(config, name)
    }
    top = _num_top_logprobs(config)
    return Plan(
        do_sample=do_sample if samples and isinstance(do_sample, Tensor) else samples,
        penalties=penalties,
        warpers=warpers,
        noise=_noise(config, samples, batch_size * num_copies, generator),
        bans=bans,
        processors=check_processors(logits_processor, built),
        num_logprobs=0 if top is None else max(top, 1),
        keep_scores=bool(config.return_dict_in_generate and config.output_scores),
        renormalize=config.renormalize_logits is True,
    )


def _per_row(name: str, value: Any, batch_size: int, num_copies: int, device: torch.device) -> Any:
    """A scalar as it is; a sequence as a tensor (rows,), each entry repeated where there is one per prompt."""
    if not isinstance(value, (list, tuple, Tensor)) or (isinstance(value, Tensor) and value.ndim == 0):
        return value
    dtype = torch.bool if name == "do_sample" else torch.int64 if name in _INTEGER_KNOBS else torch.float32
    values = torch.as_tensor(value)
    if name == "do_sample" and values.dtype != torch.bool:
        raise TypeError(f"`do_sample` must hold bools, got {values.dtype}")
    rows = batch_size * num_copies
    if values.shape == (batch_size,):
        values = values.repeat_interleave(num_copies)
    elif values.shape != (rows,):
        per_prompt = f"one value per prompt ({batch_size}) or " if num_copies > 1 else ""
        raise ValueError(f"`{name}` must hold {per_prompt}one value per row ({rows}), got shape {tuple(values.shape)}")
    return values.to(dtype=dtype, device=device)


def _noise(config: GenerationConfig, samples: bool, rows: int, generator: torch.Generator | None) -> dict[str, Any]:
    seed = getattr(config, "seed", None)
    if seed is not None and generator is not None:
        raise ValueError("`seed` and `generator` exclude each other")
    if isinstance(seed, (list, tuple)) and len(seed) != rows:
        raise ValueError(f"`seed` must be an int or one per returned row ({rows}), got {len(seed)}")
    if not samples:
        return {}
    return {"rng": "torch", "generator": generator} if seed is None else {"rng": "philox", "seed": seed}


def _num_top_logprobs(config: GenerationConfig) -> int | None:
    """None without log-probabilities, else how many of the best are asked for."""
    top = getattr(config, "top_logprobs", None)
    if not getattr(config, "output_logprobs", None):
        if top:
            raise ValueError(f"`top_logprobs`={top} needs `output_logprobs=True`")
        return None
    if not config.return_dict_in_generate:
        raise ValueError("`output_logprobs=True` needs `return_dict_in_generate=True`")
    return top or 0


def _visible(plan: Plan, prompts: Tensor, model_kwargs: dict[str, Any], num_copies: int) -> Tensor | None:
    """The prompt's mask for the penalties, or None where they act on nothing or nothing is masked."""
    mask = model_kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or not plan.penalties or bool((mask != 0).all()):
        return None
    return mask[:, -prompts.shape[1] :].repeat_interleave(num_copies, dim=0)


@contextlib.contextmanager
def _stream(streamer: Any, state: DecodeState) -> Iterator[None]:
    """Sends the prompts first and `end()` last, also when generation fails, so that no consumer waits for ever."""
    if streamer is None:
        yield
        return
    try:
        streamer.put(state.tokens(0).to("cpu", copy=True))
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            streamer.end()
        raise
    streamer.end()


def _progress_bar(progress: bool, total: int) -> Any:
    if not progress:
        return contextlib.nullcontext()
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="generate", unit="token")
