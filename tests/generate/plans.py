"""Plans for the tests: a call without a model, its plan over given scores, and its processors one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygen import processors as built
from pygen.call.call import Call
from pygen.config.config import GenerationMode
from pygen.ops import DecodeState
from pygen.plan.pipeline import bind_plan, check_plan
from pygen.plan.plan import Plan, make_plan
from pygen.request.prompt import Prompt
from pygen.request.settings import resolve_lengths, resolve_settings, resolve_special_tokens

VOCAB_SIZE = 31


def make_call(
    input_ids: Tensor, *, mask: Tensor | None = None, encoder_ids: Tensor | None = None, **asked: Any
) -> Call:
    """Returns the call of `generate(input_ids, **asked)`. `asked` holds settings and arguments of generate()."""
    names = ("logits_processor", "prefix_allowed_tokens_fn", "negative_prompt_ids", "model", "generator")
    arguments = {name: asked.pop(name, None) for name in names}
    settings = resolve_settings(None, None, {"max_new_tokens": 8, **asked})
    main = input_ids if encoder_ids is None else encoder_ids
    inputs = {} if mask is None else {"attention_mask": mask}
    nothing: Any = None
    return Call(
        adapter=nothing,
        settings=settings,
        mode=GenerationMode.SAMPLE,
        tokens=resolve_special_tokens(settings.config),
        prompt=Prompt(input_ids, mask, main, "input_ids", inputs),
        lengths=resolve_lengths(settings, input_ids.shape[1], None),
        num_copies=max(settings.config.num_beams or 1, settings.config.num_return_sequences or 1),
        stopping=nothing,
        **arguments,
    )


def make_state(call: Call, plan: Plan) -> DecodeState:
    visible = call.prompt.visible() if plan.reads_history else None
    return DecodeState.create(
        call.prompt.input_ids.repeat_interleave(call.num_copies, dim=0),
        call.lengths.max_new_tokens,
        eos_token_ids=call.tokens.eos,
        pad_token_id=call.tokens.pad or 0,
        visible=None if visible is None else visible.repeat_interleave(call.num_copies, dim=0),
    )


def run_plan(call: Call, logits_of_steps: list[Tensor], seed: int) -> tuple[Tensor, list[Tensor], Plan]:
    """Returns tokens (rows, prompt_length + steps), the scores of every step, and the plan."""
    plan = make_plan(call)
    state = make_state(call, plan)
    check_plan(plan, state)
    torch.manual_seed(seed)
    choose = bind_plan(plan, logits_of_steps[0], state)
    scores = []
    for step, logits in enumerate(logits_of_steps):
        kept = choose(logits, step).scores
        assert kept is not None
        scores.append(kept)
    return state.tokens(len(logits_of_steps)), scores, plan


def run_processors(call: Call, logits_of_steps: list[Tensor], seed: int) -> tuple[Tensor, list[Tensor]]:
    """Computes the same by calling pygen's processors in turn, as Hugging Face's loop does."""
    processors = step_by_step(call)
    sequences = call.prompt.input_ids.repeat_interleave(call.num_copies, dim=0)
    finished = torch.zeros(len(sequences), dtype=torch.bool)
    eos = torch.tensor(call.tokens.eos or [], dtype=torch.int64)
    torch.manual_seed(seed)
    scores = []
    for logits in logits_of_steps:
        scores.append(processors(sequences, logits.float()))
        tokens = scores[-1].argmax(1)
        if call.config.do_sample:
            tokens = torch.multinomial(scores[-1].softmax(-1), 1)[:, 0]
        tokens = torch.where(finished, call.tokens.pad or 0, tokens)
        sequences = torch.cat([sequences, tokens[:, None]], dim=1)
        finished |= torch.isin(tokens, eos)
    return sequences, scores


def step_by_step(call: Call) -> built.LogitsProcessorList:
    """Returns all processors that a call asks for, built by hand in Hugging Face's order."""
    config: Any = call.config
    eos, length = call.tokens.eos, call.prompt.input_ids.shape[1]
    encoder_ids, given = call.prompt.main_input, list(call.logits_processor or ())
    keep = {"min_tokens_to_keep": 1}
    found = built.LogitsProcessorList()

    def add(asked: Any, name: str, *arguments: Any, **keywords: Any) -> None:
        if asked:
            found.append(getattr(built, name)(*arguments, **keywords))

    add(config.sequence_bias, "SequenceBiasLogitsProcessor", config.sequence_bias)
    penalty = config.encoder_repetition_penalty
    add(penalty != 1, "EncoderRepetitionPenaltyLogitsProcessor", penalty, encoder_ids)
    add(config.repetition_penalty != 1, "RepetitionPenaltyLogitsProcessor", config.repetition_penalty)
    add(config.no_repeat_ngram_size, "NoRepeatNGramLogitsProcessor", config.no_repeat_ngram_size)
    size = config.encoder_no_repeat_ngram_size
    add(size, "EncoderNoRepeatNGramLogitsProcessor", size, encoder_ids)
    add(config.bad_words_ids, "NoBadWordsLogitsProcessor", config.bad_words_ids, eos)
    min_length = config.min_length if config.min_new_tokens is None else length + config.min_new_tokens
    add(eos and min_length, "MinLengthLogitsProcessor", min_length, eos)
    add(eos and config.min_new_tokens, "MinNewTokensLengthLogitsProcessor", length, config.min_new_tokens, eos)
    prefix = call.prefix_allowed_tokens_fn
    add(prefix, "PrefixConstrainedLogitsProcessor", prefix, call.num_copies)
    add(config.forced_bos_token_id is not None, "ForcedBOSTokenLogitsProcessor", config.forced_bos_token_id)
    max_length = length + call.lengths.max_new_tokens
    add(config.forced_eos_token_id is not None, "ForcedEOSTokenLogitsProcessor", max_length, config.forced_eos_token_id)
    add(config.remove_invalid_values, "InfNanRemoveLogitsProcessor")
    decay = config.exponential_decay_length_penalty
    add(decay, "ExponentialDecayLengthPenalty", decay, eos, length)
    add(config.suppress_tokens, "SuppressTokensLogitsProcessor", config.suppress_tokens)
    begin = length + (1 if length <= 1 and config.forced_bos_token_id is not None else 0)
    add(config.begin_suppress_tokens, "SuppressTokensAtBeginLogitsProcessor", config.begin_suppress_tokens, begin)
    # A caller's processor replaces a built one of its class. Here the two are equal.
    classes = {type(processor).__name__ for processor in found}
    found += [processor for processor in given if type(processor).__name__ not in classes]
    if config.do_sample:
        add(config.temperature != 1, "TemperatureLogitsWarper", config.temperature)
        add(config.top_h, "TopHLogitsWarper", config.top_h)
        add(config.top_k, "TopKLogitsWarper", config.top_k, **keep)
        add(config.top_p < 1, "TopPLogitsWarper", config.top_p, **keep)
        add(config.min_p, "MinPLogitsWarper", config.min_p, **keep)
        add(config.typical_p < 1, "TypicalLogitsWarper", config.typical_p, **keep)
        add(config.epsilon_cutoff, "EpsilonLogitsWarper", config.epsilon_cutoff, **keep)
        add(config.eta_cutoff, "EtaLogitsWarper", config.eta_cutoff, **keep)
    if config.watermarking_config is not None:
        found.append(config.watermarking_config.construct_processor(VOCAB_SIZE, "cpu"))
    add(config.renormalize_logits, "LogitNormalization")
    return found
