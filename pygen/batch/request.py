"""One prompt of a batch with its settings, resolved as `generate` resolves a call."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pygen import rng
from pygen.batch.results import BatchResult, BatchTimes
from pygen.call.arguments import Arguments
from pygen.call.call import Call
from pygen.config.config import GenerationMode
from pygen.decode.sample import check_invalid_ends
from pygen.generate import prepare_call
from pygen.knobs import SETTINGS
from pygen.models.devices import input_device
from pygen.models.widths import embedded_ids
from pygen.models.wrappers import inner
from pygen.notices import collected
from pygen.plan.plan import Plan, make_plan

# The arguments of `generate` that a prompt can have besides settings.
_CALLABLES = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_NOT_KEPT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states", "token_healing")
_REFUSED = ("assistant_model", "streamer", "synced_gpus", "custom_generate", "negative_prompt_ids")
_ALONE = "is not available for rows that come and go; `pygen.generate` has it"
_PROMPT_NAMES = ("prompt", "input_ids")


class Sink(Protocol):
    """Where the tokens and the end of a row go."""

    def put_token(self, copy: int, token_id: int, logprob: float | None, finish_reason: str | None) -> None: ...

    def put_end(self, result: BatchResult) -> None: ...

    def cancelled(self) -> bool:
        """Whether nobody waits for the prompt's rows any more."""
        ...


class NoSink:
    """Forgets everything."""

    def put_token(self, copy: int, token_id: int, logprob: float | None, finish_reason: str | None) -> None:
        pass

    def put_end(self, result: BatchResult) -> None:
        pass

    def cancelled(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt that was accepted.

    call: of one row.
    plans: one for each returned sequence, without noise, which the seeds give.
    seeds: one row seed for each returned sequence; empty for greedy search.
    """

    index: int
    prompt_ids: list[int]
    call: Call
    plans: tuple[Plan, ...]
    seed: int | list[int] | None
    seeds: tuple[int, ...]
    tokenizer: Any
    sink: Sink
    queued: float = field(default_factory=time.monotonic)

    @property
    def num_copies(self) -> int:
        """How many sequences it returns."""
        return len(self.plans)

    @property
    def longest(self) -> int:
        """Positions that a row of this prompt can reach."""
        return len(self.prompt_ids) + self.call.lengths.max_new_tokens - 1

    def check_below(self, longest: int | None) -> None:
        """Raises NotImplementedError for a row that would change the rotary embeddings of others."""
        if longest is not None and self.longest > longest:
            raise NotImplementedError(
                f"a prompt of {len(self.prompt_ids)} ids with `max_new_tokens`={self.call.lengths.max_new_tokens} goes "
                f"beyond {longest} positions, where the model's rotary embeddings depend on the longest row; "
                f"`pygen.generate` runs it"
            )

    def plan_of(self, copy: int) -> Plan:
        """The plan of one returned sequence."""
        noise = {"rng": "philox", "seed": [self.seeds[copy]]} if self.seeds else {}
        return dataclasses.replace(self.plans[copy], noise=noise)


def failed(index: int, error: Exception, queued: float, prompt_ids: Sequence[int] = ()) -> BatchResult:
    """The result of a prompt that never got a row."""
    times = BatchTimes(queued, None, time.monotonic())
    return BatchResult(index, 0, [*prompt_ids], [], "error", times, error=error)


def make_request(
    model: nn.Module,
    prompt: object,
    *,
    index: int,
    generation_config: object = None,
    tokenizer: Any = None,
    settings: Mapping[str, Any],
    max_length: int | None = None,
) -> Request:
    """Checks a prompt and its settings. Raises the errors of `generate`, and NotImplementedError for what rows that
    come and go cannot do.

    prompt: see `pygen.generate_batch`. settings: of all prompts; those of `prompt` override them.
    """
    prompt, own = _split(prompt)
    tokenizer = own.pop("tokenizer", tokenizer)
    prompt_ids = _ids(prompt, tokenizer)
    _check_embedded(prompt_ids, embedded_ids(inner(model)))
    kwargs = {**settings, **own, "return_dict_in_generate": True}
    if max_length is not None and not _bounds_new_tokens(kwargs, generation_config, model):
        # As in `generate`.
        kwargs.setdefault("max_length", max_length)
    generator = kwargs.pop("generator", None)
    callables = {name: kwargs.pop(name, None) for name in _CALLABLES}
    if (allowed := callables["prefix_allowed_tokens_fn"]) is not None and "prefix_allowed_tokens_fn" not in own:
        callables["prefix_allowed_tokens_fn"] = lambda _, ids: allowed(index, ids)
    for name in _REFUSED:
        if kwargs.pop(name, None):
            raise NotImplementedError(f"`{name}` {_ALONE}")
    if kwargs.pop("attention_mask", None) is not None:
        raise NotImplementedError(f"`attention_mask` {_ALONE}: every id of a prompt is read")
    input_ids = torch.tensor([prompt_ids], dtype=torch.int64, device=input_device(inner(model)))
    arguments = Arguments(
        model=model,
        inputs=input_ids,
        generation_config=kwargs.pop("generation_config", generation_config),
        # Without a mask, `pad_token_id` in a prompt would hide positions.
        kwargs={**kwargs, "tokenizer": tokenizer, "attention_mask": torch.ones_like(input_ids)},
        **callables,
    )
    call = prepare_call(arguments)
    _check(call)
    length = len(prompt_ids) + call.lengths.max_new_tokens - 1
    if max_length is not None and length > max_length:
        raise ValueError(
            f"`max_length` must be at least the {length} positions that prompt and tokens need, got {max_length}"
        )
    plan, num_copies, seed = make_plan(call), call.num_copies, None
    check_invalid_ends(call)
    if "logits_processor" not in own:
        _check_processors(call.logits_processor, "give each prompt its own")
    elif num_copies > 1:
        _check_processors(call.logits_processor, "give the prompt once per sequence, each time with its own")
    if call.config.do_sample is True:
        seed = getattr(call.config, "seed", None)
        seed = rng.draw_seed(generator) if seed is None else seed
    plans: tuple[Plan, ...] = (plan,)
    if num_copies > 1:
        call, plans = _of_one_row(arguments, call)
    guided = next((item for item in plan.items if item.name == "guidance_scale"), None)
    if guided is not None:
        raise NotImplementedError(f"`guidance_scale` {_ALONE}: {guided.why}")
    return Request(
        index=index,
        prompt_ids=prompt_ids,
        call=call,
        plans=plans,
        seed=seed,
        seeds=_row_seeds(seed, num_copies),
        tokenizer=tokenizer,
        sink=NoSink(),
    )


def check_shared(model: nn.Module, generation_config: object, tokenizer: Any, settings: Mapping[str, Any]) -> None:
    """Raises the errors of `make_request` for settings of all prompts. It draws no seed, and gives no warning."""
    generator = settings.get("generator")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"`generator` must be a torch.Generator, got {type(generator).__name__}")
    settings = {**settings, "generator": torch.Generator()}
    with collected():
        make_request(model, [0], index=0, generation_config=generation_config, tokenizer=tokenizer, settings=settings)


def _bounds_new_tokens(kwargs: Mapping[str, Any], generation_config: object, model: nn.Module) -> bool:
    """Whether `max_new_tokens` is set anywhere."""
    configs = (kwargs.get("generation_config"), generation_config, getattr(inner(model), "generation_config", None))
    settings = [kwargs.get("max_new_tokens"), *(getattr(config, "max_new_tokens", None) for config in configs)]
    return any(setting is not None for setting in settings)


def _split(prompt: object) -> tuple[object, dict[str, Any]]:
    """The prompt and its own settings."""
    if not isinstance(prompt, Mapping):
        return prompt, {}
    own = dict(prompt)
    names = [name for name in _PROMPT_NAMES if own.get(name) is not None]
    if len(names) != 1:
        given = " and ".join(f"`{name}`" for name in names) or "neither"
        raise ValueError(f"a prompt must hold one of `prompt` and `input_ids`, got {given}")
    value = own.pop(names[0])
    return value, {name: value for name, value in own.items() if name not in _PROMPT_NAMES}


def _ids(prompt: object, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("a prompt that is a text needs the model's tokenizer: pass it as `tokenizer=`")
        prompt = tokenizer(prompt)["input_ids"]
    if isinstance(prompt, Tensor):
        if prompt.ndim == 2 and len(prompt) == 1:
            prompt = prompt[0]
        if prompt.ndim != 1:
            raise ValueError(f"a prompt must hold ids of one text, got a tensor of shape {tuple(prompt.shape)}")
        if prompt.is_floating_point() or prompt.dtype == torch.bool:
            raise TypeError(f"a prompt must hold integer ids, got {prompt.dtype}")
        prompt = prompt.tolist()
    if isinstance(prompt, (str, bytes)) or not isinstance(prompt, Sequence):
        raise TypeError(f"a prompt must be a text, token ids or a dict with either, got {type(prompt).__name__}")
    ids = [*prompt]
    wrong = next((token_id for token_id in ids if not isinstance(token_id, int) or isinstance(token_id, bool)), None)
    if wrong is not None:
        raise TypeError(f"a prompt must hold integer ids, got {wrong!r:.80}")
    if not ids:
        raise ValueError("a prompt must hold at least one id, got none")
    return ids


def _check_embedded(ids: list[int], size: int | None) -> None:
    """Raises here, because a wrong id in a forward on a GPU ends all that the process does there."""
    if size is not None and not 0 <= min(ids) <= max(ids) < size:
        wrong = next(token_id for token_id in ids if not 0 <= token_id < size)
        raise ValueError(f"a prompt must hold ids of the {size} that the model embeds, got {wrong}")


def _check_processors(processors: Sequence[object] | None, instead: str) -> None:
    """One object for several rows must not depend on what it saw before; transformers' marker says so."""
    for number, processor in enumerate(processors or ()):
        if getattr(processor, "supports_continuous_batching", None) is not True:
            name = getattr(processor, "__name__", type(processor).__name__)
            raise NotImplementedError(
                f"`logits_processor[{number}]` ({name}) may depend on the other rows or on earlier calls; set its "
                f"`supports_continuous_batching = True` if it treats every row alone, or {instead}"
            )


def _check(call: Call) -> None:
    config = call.config
    if call.mode not in _MODES:
        raise NotImplementedError(f"{call.mode.value.replace('_', ' ')} {_ALONE}")
    for name in _NOT_KEPT:
        if getattr(config, name, None):
            raise NotImplementedError(f"`{name}` {_ALONE}")
    if config.use_cache is False:
        raise NotImplementedError(f"`use_cache`=False {_ALONE}: rows share a cache")
    if config.cache_implementation not in (None, "dynamic"):
        raise NotImplementedError(
            f"`cache_implementation`={config.cache_implementation!r} {_ALONE}: rows share a cache"
        )
    others = [name for name in call.settings.model_kwargs if name != "attention_mask"]
    if others:
        names = ", ".join(f"`{name}`" for name in others)
        raise NotImplementedError(f"{names}: a prompt of a batch is token ids alone, without padding")


def _of_one_row(arguments: Arguments, call: Call) -> tuple[Call, tuple[Plan, ...]]:
    """The call of one row instead of `call`, and a plan for each returned sequence."""
    shaping = {"do_sample": call.settings.do_sample}
    shaping |= {knob.name: getattr(call.config, knob.name, None) for knob in SETTINGS}
    lists = {name: value for name, value in shaping.items() if isinstance(value, (list, tuple, Tensor))}
    each = {name: value for name, value in lists.items() if len(value) == call.num_copies}

    def of_copy(copy: int) -> Call:
        own = {"num_return_sequences": 1, "seed": None, **{name: [value[copy]] for name, value in each.items()}}
        return prepare_call(dataclasses.replace(arguments, kwargs={**arguments.kwargs, **own}))

    # `call` has said all warnings.
    with collected():
        calls = [of_copy(copy) for copy in range(call.num_copies if each else 1)]
        plans = tuple(make_plan(one) for one in calls)
    return calls[0], plans if each else plans * call.num_copies


def _row_seeds(seed: int | list[int] | None, rows: int) -> tuple[int, ...]:
    if seed is None:
        return ()
    return tuple(rng.row_seed(seed, row) for row in range(rows)) if isinstance(seed, int) else tuple(seed)
