"""Everything that acts on the scores of a call, in Hugging Face's order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pygen import processors as built
from pygen.config.config import GenerationMode
from pygen.config.watermark import BaseWatermarkingConfig
from pygen.grammar.mask import GrammarMask
from pygen.grammar.matchers import matcher_factory
from pygen.knobs import PENALTIES, WARPERS, Knob
from pygen.notices import log, warn
from pygen.plan.stages import Item, Knobs
from pygen.processors.foreign import own_form
from pygen.processors.recognize import knobs_of, known_class
from pygen.processors.thinking import marker_ids

if TYPE_CHECKING:
    from pygen.call.call import Call

Processor = Callable[..., object]

logger = logging.getLogger("pygen.plan")

_GRAMMAR_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
)
# The tokens that most models with reasoning use.
_THINKING_START, _THINKING_END = "<think>", "</think>"

_ONLY_BAN = (
    "EncoderNoRepeatNGramLogitsProcessor",
    "NoBadWordsLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
)


@dataclass(frozen=True)
class _Place:
    """The entries of a setting, which a caller's processor of exactly the class `class_name` replaces."""

    class_name: str
    items: tuple[Item, ...]


def ordered_items(call: Call, knobs: Knobs, *, all_drawn: bool) -> tuple[Item, ...]:
    """Everything that acts in a call, in order.

    The caller's processors come between bans and warpers. But if one has exactly the class that an earlier setting
    would build, it replaces that processor and a warning is logged. Raises TypeError unless given a list of callables.

    knobs: the settings of `pygen.knobs`, each a number or a (rows,) tensor.
    all_drawn: every row is sampled.
    """
    given = _check_processors(call.logits_processor)
    items: list[Item] = []
    replaced: list[int] = []
    for place in _places_before_the_callers(call, knobs):
        number = next((i for i, p in enumerate(given) if place.class_name and place.class_name == known_class(p)), None)
        if number is None:
            items += place.items
            continue
        replaced.append(number)
        items.append(_given_item(number, given[number], all_drawn))
        log(
            logger,
            f"`logits_processor[{number}]` ({place.class_name}) takes the place of the one that "
            f"`{place.items[0].name}` asks for.",
        )
    seen = [given[number] for number in replaced]
    for number, processor in enumerate(given):
        if not any(processor is other for other in seen):
            seen.append(processor)
            items.append(_given_item(number, processor, all_drawn))
    return (*items, *_warpers(call, knobs), *_last(call))


def _check_processors(processors: object) -> Sequence[Processor]:
    if processors is None:
        return ()
    if not isinstance(processors, Sequence) or not all(callable(processor) for processor in processors):
        raise TypeError(f"`logits_processor` must be a list of callables, got {processors!r:.80}")
    return processors


def _given_item(number: int, processor: Processor, all_drawn: bool) -> Item:
    name = f"logits_processor[{number}]"
    return Item(
        name,
        knobs_of(processor, samples=all_drawn),
        own_form(name, processor),
        why="it is the caller's",
        only_bans=known_class(processor) in _ONLY_BAN,
        is_callers=True,
    )


def _places_before_the_callers(call: Call, knobs: Knobs) -> Iterator[_Place]:
    yield from _guidance(call)
    yield from _penalties(call, knobs)
    yield from _bans(call)
    yield from _forced(call)
    yield from _late_bans(call)


def _guidance(call: Call) -> Iterator[_Place]:
    config = call.config
    scale = config.guidance_scale
    if scale is not None and scale != 1:
        processor = built.UnbatchedClassifierFreeGuidanceLogitsProcessor.of_call(call)
        yield _called("guidance_scale", processor, "it runs the model once more in every step")


def _penalties(call: Call, knobs: Knobs) -> Iterator[_Place]:
    config = call.config
    if config.sequence_bias is not None:
        bias = built.SequenceBiasLogitsProcessor(config.sequence_bias)
        biases = {ids[0]: value for ids, value in bias.sequence_bias.items() if len(ids) == 1}
        largest = max(token_id for ids in bias.sequence_bias for token_id in ids)
        if len(biases) == len(bias.sequence_bias):
            yield _fused("SequenceBiasLogitsProcessor", "sequence_bias", {"bias": biases}, largest_id=largest)
        else:
            why = "a sequence of several tokens depends on the last ones of the row"
            yield _called("sequence_bias", bias, why, largest_id=largest)

    why = "it looks at the input and not at the row"
    penalty = config.encoder_repetition_penalty
    if penalty is not None and penalty != 1 and (ids := _encoder_ids("encoder_repetition_penalty", call)) is not None:
        processor = built.EncoderRepetitionPenaltyLogitsProcessor(penalty, ids)
        yield _called("encoder_repetition_penalty", processor, why)

    active = _active(PENALTIES, knobs)
    if blind := [f"`{knob.name}`" for knob in active if knob.processor and call.prompt.shows_embeddings_alone]:
        looks = "looks" if len(blind) == 1 else "look"
        warn(f"{' and '.join(blind)} {looks} at generated tokens only: of the prompt there are embeddings and no ids.")
    for knob in active:
        yield _fused(knob.processor, knob.name, {knob.name: knobs[knob.name]})

    size = config.encoder_no_repeat_ngram_size
    if size is not None and size > 0 and (ids := _encoder_ids("encoder_no_repeat_ngram_size", call)) is not None:
        ngrams = built.EncoderNoRepeatNGramLogitsProcessor(size, ids)
        yield _called("encoder_no_repeat_ngram_size", ngrams, why, only_bans=True)


def _encoder_ids(name: str, call: Call) -> Tensor | None:
    """(batch_size, length): the ids of the encoder's input or of the prompts, -1 where hidden.

    Warns and returns None for inputs other than ids.
    """
    ids = call.prompt.main_input
    if ids.dim() != 2 or ids.is_floating_point():
        warn(f"`{name}` needs `input_ids` and is ignored.")
        return None
    mask = call.prompt.model_kwargs.get("attention_mask")
    return ids if mask is None else ids.masked_fill(mask[:, -ids.shape[1] :] == 0, -1)


def _bans(call: Call) -> Iterator[_Place]:
    config = call.config
    if config.bad_words_ids is not None:
        yield _bad_words([list(ids) for ids in config.bad_words_ids], call.tokens.eos)
    eos = call.tokens.eos
    if eos is not None and (config.min_length or config.min_new_tokens is not None):
        knobs = {"suppress": tuple(eos)}
        yield _fused("MinLengthLogitsProcessor", "min_length", knobs, end=call.lengths.min_new_tokens)
    if eos is not None and config.min_new_tokens:
        knobs = {"suppress": tuple(eos)}
        yield _fused("MinNewTokensLengthLogitsProcessor", "min_new_tokens", knobs, end=config.min_new_tokens)
    if call.grammar is not None:
        yield _grammar(call)
    if call.prefix_allowed_tokens_fn is not None:
        prefix = built.PrefixConstrainedLogitsProcessor(call.prefix_allowed_tokens_fn, call.num_copies)
        why = "it calls a function for every row"
        yield _called("prefix_allowed_tokens_fn", prefix, why, only_bans=True, is_callers=True)


def _grammar(call: Call) -> _Place:
    """`token_bitmask` of an op, filled before every step."""
    if call.mode not in _GRAMMAR_MODES:
        raise NotImplementedError(
            f"`grammar` is not available in {call.mode.value.replace('_', ' ')}; greedy search, sampling, beams and "
            f"assisted decoding follow one"
        )
    given = call.grammar if isinstance(call.grammar, (list, tuple)) else [call.grammar] * call.batch_size
    if len(given) != call.batch_size:
        raise ValueError(f"`grammar` must be one or a list of one per prompt ({call.batch_size}), got {len(given)}")
    ends = [token_id for token_id in call.tokens.eos or () if token_id >= 0]
    factories = [matcher_factory(grammar, call.tokenizer, ends) for grammar in given]
    mask = GrammarMask(factories, call.rows, call.prompt.input_ids.shape[1])
    return _Place("", (Item("grammar", {"token_bitmask": mask}),))


def _bad_words(bad_words_ids: list[list[int]], eos_token_ids: list[int] | None) -> _Place:
    words = list(built.NoBadWordsLogitsProcessor(bad_words_ids, eos_token_ids).sequence_bias)
    single = tuple(ids[0] for ids in words if len(ids) == 1)
    longer = [list(ids) for ids in words if len(ids) > 1]
    largest = max((token_id for ids in words for token_id in ids), default=-1)
    items = [Item("bad_words_ids", {"suppress": single}, largest_id=largest)]
    if longer:
        why = "a word of several tokens depends on the last ones of the row"
        processor = built.NoBadWordsLogitsProcessor(longer)
        items.append(Item("bad_words_ids", {}, processor, why, only_bans=True))
    return _Place("NoBadWordsLogitsProcessor", tuple(items))


def _forced(call: Call) -> Iterator[_Place]:
    config = call.config
    why = "it replaces all scores of this step"
    prompt_length = call.prompt.input_ids.shape[1]
    max_length = prompt_length + call.lengths.max_new_tokens
    bos, eos = config.forced_bos_token_id, config.forced_eos_token_id
    if bos is not None:
        if bos < 0:
            raise ValueError(f"`forced_bos_token_id` must be an id >= 0, got {bos}")
        forced = built.ForcedBOSTokenLogitsProcessor(bos)
        step = 1 - prompt_length
        yield _called("forced_bos_token_id", forced, why, first=step, end=step + 1, largest_id=bos)
    if eos is not None:
        ids = [eos] if isinstance(eos, int) else eos
        if min(ids) < 0:
            raise ValueError(f"`forced_eos_token_id` must hold ids >= 0, got {eos}")
        processor = built.ForcedEOSTokenLogitsProcessor(max_length, ids)
        step = max_length - 1 - prompt_length
        yield _called("forced_eos_token_id", processor, why, first=step, end=step + 1, largest_id=max(ids))
    yield from _thinking(call)
    if config.remove_invalid_values is True:
        remover = built.InfNanRemoveLogitsProcessor()
        yield _called("remove_invalid_values", remover, "it gives bans finite scores")


def _thinking(call: Call) -> Iterator[_Place]:
    budget, end, start = (getattr(call.config, f"thinking_{name}", None) for name in ("budget", "end", "start"))
    if budget is None:
        return
    if end is None:
        vocabulary = {} if call.tokenizer is None else call.tokenizer.get_vocab()
        if _THINKING_END not in vocabulary:
            raise ValueError(
                f"`thinking_budget`={budget} needs `thinking_end`, or `tokenizer=` with a token {_THINKING_END}"
            )
        end, start = _THINKING_END, start or (_THINKING_START if _THINKING_START in vocabulary else None)
    end_ids = marker_ids("thinking_end", end, call.tokenizer)
    start_ids = None if start is None else marker_ids("thinking_start", start, call.tokenizer)
    processor = built.ThinkingBudgetLogitsProcessor(budget, end_ids, start_ids, call.prompt.input_ids.shape[1])
    why = "it depends on all tokens of the row"
    yield _called("thinking_budget", processor, why, first=budget, largest_id=max(end_ids))


def _late_bans(call: Call) -> Iterator[_Place]:
    config = call.config
    prompt_length = call.prompt.input_ids.shape[1]
    if config.exponential_decay_length_penalty is not None:
        if call.tokens.eos is None:
            raise ValueError("`exponential_decay_length_penalty` needs `eos_token_id`")
        start, factor = config.exponential_decay_length_penalty
        ends = [token_id for token_id in call.tokens.eos if token_id >= 0]
        decay = built.ExponentialDecayLengthPenalty((start, factor), ends, prompt_length)
        first = max(start + 1, 0)
        yield _called("exponential_decay_length_penalty", decay, "it is another in every step", first=first)
    if config.suppress_tokens is not None:
        knobs = {"suppress": tuple(config.suppress_tokens)}
        yield _fused("SuppressTokensLogitsProcessor", "suppress_tokens", knobs)
    if config.begin_suppress_tokens is not None:
        knobs = {"suppress": tuple(config.begin_suppress_tokens)}
        begin = 1 if prompt_length <= 1 and config.forced_bos_token_id is not None else 0
        name = "SuppressTokensAtBeginLogitsProcessor"
        yield _fused(name, "begin_suppress_tokens", knobs, first=begin, end=begin + 1)


def _warpers(call: Call, knobs: Knobs) -> Iterator[Item]:
    if call.config.do_sample is not True:
        return
    # Beams need a surviving token that does not end the text.
    keep = 1 if (call.config.num_beams or 1) == 1 else 1 + len(call.tokens.eos or [0])
    for knob in _active(WARPERS, knobs):
        minimum = {"min_tokens_to_keep": keep} if knob.keeps_minimum else {}
        yield Item(knob.name, {knob.name: knobs[knob.name], **minimum})


def _last(call: Call) -> Iterator[Item]:
    config = call.config
    if config.watermarking_config is not None:
        watermark = _Watermark(config.watermarking_config, call.prompt.input_ids.shape[1])
        yield Item("watermarking_config", {}, watermark, "it depends on the last tokens of the row")
    # A constant added to a row changes no draw and no argmax, but does change sums over steps.
    if config.renormalize_logits is True and (config.num_beams or 1) > 1:
        yield Item("renormalize_logits", {}, built.LogitNormalization(), "it stands after the filters")


class _Watermark:
    """The processor of a watermarking config, built when the first scores show the vocabulary size."""

    skips_hidden = True

    def __init__(self, config: BaseWatermarkingConfig, prompt_length: int) -> None:
        self._config = config
        self._prompt_length = prompt_length
        self._processor: Any = None
        self.__name__ = type(config).__name__.removesuffix("Config")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._processor is None:
            self._processor = self._config.construct_processor(scores.shape[-1], scores.device)
            if hasattr(self._processor, "begin"):
                self._processor.begin(len(scores), self._prompt_length)
        marked: Tensor = self._processor(input_ids, scores)
        return marked


def _active(knobs: Sequence[Knob], values: Knobs) -> list[Knob]:
    """The knobs that act; None never acts."""
    given = [(knob, values[knob.name]) for knob in knobs if values.get(knob.name) is not None]
    return [knob for knob, value in given if isinstance(value, Tensor) or value != knob.neutral]


def _fused(class_name: str, name: str, knobs: Knobs, **item: Any) -> _Place:
    return _Place(class_name, (Item(name, knobs, **item),))


def _called(name: str, processor: Processor, why: str, **item: Any) -> _Place:
    return _Place(type(processor).__name__, (Item(name, {}, processor, why, **item),))
