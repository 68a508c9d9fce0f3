"""`generate`: resolves the arguments of a call and runs the loop of its mode."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from pygen.call.arguments import Arguments
from pygen.call.call import Call
from pygen.call.healing import heal
from pygen.call.memory import named_sizes
from pygen.call.remote_code import load_custom_generate
from pygen.call.through_wrapper import through_own_generate
from pygen.config.config import GenerationMode
from pygen.decode.assisted import generate_assisted
from pygen.decode.beam import generate_with_beams
from pygen.decode.constrained_beam import generate_with_constraints
from pygen.decode.contrastive import generate_contrastively
from pygen.decode.custom import own_loop
from pygen.decode.diverse_beam import generate_with_groups
from pygen.decode.dola import generate_by_contrasting_layers
from pygen.decode.leaving import check_compact_rows, refuse_compaction
from pygen.decode.sample import generate_by_sampling
from pygen.graph.eligibility import CAPTURED_MODES, check_runtime, choose_runtime
from pygen.models.adapter import adapt
from pygen.models.lockstep import Lockstep, resolve_synced_gpus
from pygen.models.wrappers import called
from pygen.notices import one_call
from pygen.outputs import GenerateOutput
from pygen.processors.prefix import EndingPrefix
from pygen.request.protocols import GenerationSettings, Streamer
from pygen.request.settings import (
    advise,
    refuse_mixed_searches,
    refuse_unavailable,
    resolve_lengths,
    resolve_settings,
    resolve_special_tokens,
    within_positions,
)
from pygen.stopping.criteria import Criterion, build_criteria
from pygen.streamers.borrowed import borrowed
from pygen.streamers.text import end_stream

Function = TypeVar("Function", bound=Callable[..., object])


def _ends_stream(function: Function) -> Function:
    """Decorates `generate`: computes no gradients, and ends the streamer once, also when the call fails early."""

    @functools.wraps(function)
    def ending(*args: object, streamer: Streamer | None = None, **kwargs: object) -> object:
        try:
            with torch.no_grad(), one_call():
                result = function(*args, streamer=streamer, **kwargs)
        except BaseException as error:
            # The caller gets this error, not one that the streamer may raise now.
            with contextlib.suppress(Exception):
                end_stream(streamer, error)
            raise
        end_stream(streamer)
        return result

    return cast(Function, ending)


@_ends_stream
@through_own_generate
def generate(
    model: nn.Module,
    inputs: Tensor | None = None,
    generation_config: GenerationSettings | None = None,
    *,
    logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] | None = None,
    stopping_criteria: Sequence[Criterion] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
    synced_gpus: bool | None = None,
    assistant_model: nn.Module | None = None,
    streamer: Streamer | None = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    custom_generate: str | Callable[..., object] | None = None,
    generator: torch.Generator | None = None,
    cancel: threading.Event | None = None,
    progress: bool = False,
    runtime: str = "auto",
    compact_rows: bool | str = "auto",
    **kwargs: Any,
) -> Tensor | GenerateOutput:
    """Generates text with the search that the settings choose.

    `do_sample=True` samples, otherwise the search is greedy. `num_beams` > 1 gives beam search or beam sampling,
    diverse with `num_beam_groups`, constrained with `force_words_ids` or `constraints`. An assistant or prompt lookup
    drafts tokens; `penalty_alpha` > 0 with `top_k` > 1 is contrastive search; `dola_layers` is DoLa.

    Arguments:
        model: a generation model of transformers, decoder-only or encoder-decoder, or any `nn.Module` whose forward
            takes `input_ids` and returns logits (see `pygen.models.module`). It may be compiled, sharded by FSDP or
            wrapped for training. For a wrapper with its own `generate`, such as peft's, that method prepares the call.
        inputs: what the model reads: prompts (batch_size, prompt_length), integer ids, padded on the left; also as
            `input_ids=`, or as `inputs_embeds=` (batch_size, length, width). Without inputs every row starts from
            `bos_token_id`. For an encoder-decoder model `inputs` go to the encoder, also under the encoder's own
            argument name; the decoder starts from `decoder_input_ids=` or `decoder_start_token_id`.
        generation_config: a `GenerationConfig` of pygen or of transformers. A setting comes from the arguments, else
            from here, else from `model.generation_config`, else from `pygen.config.DEFAULTS`.
        logits_processor: callables (input_ids (rows, length), scores (rows, vocab_size) float32) -> scores. They run
            after penalties and bans, before temperature and filters, once per step, and each call sees the previous
            text one token longer. Drafting skips a processor, unless it has a method `clone()`: then a copy, made from
            the state after the last accepted token, sees the drafts. With beams the best beam of a prompt is its first
            row; a processor with a method `reorder_cache(beam_idx)` hears after each step that row i continues row
            beam_idx[i].
        stopping_criteria: callables (input_ids, scores so far or None) -> bool or (rows,) bool, called after every
            token. A criterion passed here overrides the one that the corresponding setting would create.
        prefix_allowed_tokens_fn: (prompt number, ids of a text (length,)) -> the ids that may follow, asked for live
            texts and beams only. An empty answer ends the text: only an end-of-sequence token may follow, or
            `pad_token_id` in a call without one (`finish_reason` "stop"; ValueError without either).
        synced_gpus: runs as many forwards as the other processes of the group, which share the weights. The default is
            True where FSDP or DeepSpeed ZeRO-3 gather weights.
        streamer: receives the prompts, then the tokens of every step, then `end()`, or `fail(error)`, if it has that
            method, when the call fails at any point. With beams a token arrives once all live beams of the one prompt
            share it.
        assistant_model: a smaller model that drafts tokens, which `model` checks in one forward. Alternatives:
            `prompt_lookup_num_tokens` drafts from the text, `assistant_early_exit` with the model's first layers. For
            whole batches, greedy tokens and those of `seed` are the same as without drafts; other draws have the same
            distribution. Draft settings come from the arguments, else from the assistant's `generation_config`, where
            the schedule "heuristic" also stores the number of drafts.
        assistant_tokenizer: the assistant's, where its vocabulary differs. An assistant whose head is only padded to
            another width, by less than 512, needs none.
        tokenizer: the model's, for `stop_strings`, `token_healing` and an assistant with another vocabulary.
        grammar: what generated texts must follow: `{"json_schema": schema}`, `{"regex": pattern}` or `{"ebnf": text}`,
            compiled by xgrammar for `tokenizer`, or a matcher of xgrammar or llguidance; one, or a list of one per
            prompt. The text may end where the grammar does. Matchers passed here stay as they are.
        negative_prompt_ids, negative_prompt_attention_mask: (batch_size, length), the prompts that `guidance_scale`
            pushes away from; by default the last token, or embedding, of every prompt. With an encoder-decoder model
            the encoder reads them.
        custom_generate: a decoding loop that replaces pygen's (see `pygen.decode.custom`); or a folder or repository
            whose `custom_generate/generate.py` is called instead, which needs `trust_remote_code=True`.
        generator: the source of noise without `seed`; None is torch's default generator.
        cancel: once set, generation ends after the current step.
        progress: shows a progress bar.
        runtime: "graph" captures the step of greedy search, sampling or beams in a CUDA graph on first use and replays
            it for every token, without waiting for the device. Later calls with as many rows and of similar length
            reuse the capture, until `pygen.release(model)`. "eager" launches every step. "auto" captures on CUDA where
            a call is long enough to pay for it; `pygen.explain` says whether. The tokens are the same.
        compact_rows: whether rows that have ended leave the batch of greedy search and sampling, so that forwards read
            the others only and the cache shrinks. "auto" lets them leave on a CPU, where it pays and changes nothing
            that the call returns; `pygen.explain` says whether. True refuses what cannot lose rows. The caller,
            processors and criteria see all rows; those that left keep the logits of their last forward.
        kwargs: settings of `GenerationConfig`, the ones below, and inputs of the model.

    Settings beyond transformers (also accepted inside a config):
        any sampling knob, a penalty or `do_sample` as a sequence, one value per prompt or one per returned row.
        seed: an int, or one per returned row: noise that is independent of batch, padding and backend. Row r of an int
            seed s uses `pygen.rng.row_seed(s, r)`. With beams one seed per prompt; beam j of prompt b draws with
            `row_seed(seed of b, j)`. Without `seed` the tokens are those of transformers under the same
            `torch.manual_seed`.
        presence_penalty, frequency_penalty: subtracted from the scores of generated tokens, once and per occurrence.
        top_n_sigma: keeps the scores within so many standard deviations of the largest; the first of the filters.
        output_logprobs, top_logprobs: log-probabilities of the tokens and of the n best, in the output class: True or
            "processed" in the distribution that tokens are drawn from, "raw" in that of the model's logits.
        output_kept, kept_limit: with True the output has, by row and step, the ids that survived all filters and the
            log of their mass, as `pygen.outputs.KeptSets`; where some filter acts, or a row is greedy. A row with more
            than `kept_limit` survivors (1,024 by default) is marked. Not with beams and contrastive search.
        thinking_budget: tokens of reasoning at most; then `thinking_end` is forced, ids or a text. The default is
            `</think>` of the tokenizer, after `thinking_start` or its `<think>`, in the prompt or the text; with
            `thinking_end` alone, reasoning starts with the first generated token.
        on_invalid: for rows whose scores hold NaN, +inf or no allowed token: "raise" (RuntimeError naming row and
            step), "greedy" (take the best remaining token) or "eos" (end the row).

    Returns:
        (rows, prompt_length + steps) int64 with rows = batch_size * num_return_sequences, the copies of a prompt side
        by side, with beams the best first, finished rows filled with `pad_token_id`; with `return_dict_in_generate` one
        of the classes of `pygen.outputs`. The prompt is the decoder's.

    Raises ValueError and TypeError for arguments, NotImplementedError for what this version does not offer, and its
    subclass BackendError for a `runtime` that cannot run, all before the model runs. The call modifies none of its
    arguments, except that it extends a cache passed as `past_key_values`.
    Penalties and n-gram bans ignore prompt positions that `attention_mask` hides.
    """
    trust_remote_code = kwargs.pop("trust_remote_code", None)
    if getattr(custom_generate, "__wrapped__", None) is generate:
        custom_generate = None  # `pygen.custom_generate` is this function
    arguments = Arguments(
        model=model,
        inputs=inputs,
        generation_config=generation_config,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        synced_gpus=synced_gpus,
        assistant_model=assistant_model,
        streamer=streamer,
        negative_prompt_ids=negative_prompt_ids,
        negative_prompt_attention_mask=negative_prompt_attention_mask,
        custom_generate=custom_generate,
        generator=generator,
        cancel=cancel,
        progress=progress,
        runtime=check_runtime(runtime),
        compact_rows=check_compact_rows(compact_rows),
        kwargs=kwargs,
    )
    if isinstance(custom_generate, str):
        custom = load_custom_generate(custom_generate, trust_remote_code)
        result: Tensor | GenerateOutput = custom(**arguments.for_custom_code(borrowed(streamer)))
        return result
    loop = None
    if custom_generate is not None:
        given: dict[str, object] = {
            "streamer": borrowed(streamer),
            "synced_gpus": synced_gpus,
            "assistant_model": assistant_model,
        }
        loop = own_loop(custom_generate, model, given, kwargs)
        arguments = dataclasses.replace(arguments, synced_gpus=False)
    call = prepare_call(arguments, any_search=loop is not None)
    refuse_compaction(call, own_loop=loop is not None)
    with named_sizes(call):
        return _run(call, model, loop)


def _run(call: Call, model: nn.Module, loop: Callable[[Call], Any] | None) -> Tensor | GenerateOutput:
    """Runs the loop of the mode, or the caller's `loop` instead."""
    if call.config.token_healing:
        call = dataclasses.replace(call, prompt=heal(call.prompt, call.tokenizer, functools.partial(generate, model)))
    if loop is not None or call.mode not in CAPTURED_MODES:
        choose_runtime(call, None)
    if loop is not None:
        result: Tensor | GenerateOutput = loop(call)
        return result
    with Lockstep(call.adapter, call.prompt.input_ids.device) if call.synced_gpus else contextlib.nullcontext():
        try:
            return LOOPS[call.mode](call)
        finally:
            call.adapter.close()


def prepare_call(arguments: Arguments, *, any_search: bool = False) -> Call:
    """Checks and resolves the arguments of `generate`, as far as that goes without running the model.

    any_search: settings may ask for a search that pygen does not have.
    """
    kwargs = dict(arguments.kwargs)
    tokenizer = kwargs.pop("tokenizer", None)
    assistant_tokenizer = kwargs.pop("assistant_tokenizer", None)
    grammar = kwargs.pop("grammar", None)

    synced_gpus = resolve_synced_gpus(arguments.synced_gpus, arguments.model)
    model = called(arguments.model)
    adapter = adapt(model)
    settings = resolve_settings(adapter.generation_config, arguments.generation_config, kwargs)
    config = settings.config
    if not any_search:
        refuse_unavailable(config)
        refuse_mixed_searches(config, arguments.assistant_model)
    if synced_gpus and config.guidance_scale not in (None, 1):
        raise NotImplementedError("`guidance_scale` runs forwards that `synced_gpus`=True cannot keep in step")
    if synced_gpus and config.dola_layers is not None:
        raise NotImplementedError(
            "`dola_layers` reads the head by itself, which `synced_gpus`=True cannot keep in step"
        )
    mode = config.get_generation_mode(arguments.assistant_model)
    advise(settings, mode)
    tokens = resolve_special_tokens(config)

    adapter.check(settings.model_kwargs, arguments.generation_config)
    prompt = adapter.prompt(arguments.inputs, settings.model_kwargs, config, tokens)
    lengths = resolve_lengths(
        settings,
        prompt.input_ids.shape[1],
        adapter.max_position_embeddings,
        embeds_length=prompt.embeds_length,
        prompt_name="decoder_input_ids" if adapter.is_encoder_decoder else prompt.main_input_name,
    )
    # Candidates for the last token are read.
    more = 1 if mode is GenerationMode.CONTRASTIVE_SEARCH and not any_search else 0
    lengths = within_positions(lengths, adapter.fit_positions(prompt, lengths.max_new_tokens + more) - more, model)
    stopping = build_criteria(
        arguments.stopping_criteria,
        config,
        prompt_length=prompt.input_ids.shape[1],
        max_new_tokens=lengths.max_new_tokens,
        eos_token_ids=tokens.eos,
        pad_token_id=tokens.pad,
        tokenizer=tokenizer,
    )
    prefix = None
    if arguments.prefix_allowed_tokens_fn is not None:
        ends = [token_id for token_id in tokens.eos or () if token_id >= 0]
        prefix = EndingPrefix(arguments.prefix_allowed_tokens_fn, ends, tokens.pad)
        if not ends:
            stopping = dataclasses.replace(stopping, criteria=(*stopping.criteria, prefix.ends))
    resolved = {
        "model": model,
        "prefix_allowed_tokens_fn": prefix,
        "synced_gpus": synced_gpus,
    }
    return Call(
        **{**vars(arguments), **resolved},
        adapter=adapter,
        settings=settings,
        mode=mode,
        tokens=tokens,
        prompt=prompt,
        lengths=dataclasses.replace(lengths, max_new_tokens=stopping.max_new_tokens),
        num_copies=max(config.num_beams or 1, config.num_return_sequences or 1),
        stopping=stopping,
        tokenizer=tokenizer,
        assistant_tokenizer=assistant_tokenizer,
        grammar=grammar,
    )


# The one place where a loop is chosen.
LOOPS: dict[GenerationMode, Callable[[Call], Tensor | GenerateOutput]] = {
    GenerationMode.GREEDY_SEARCH: generate_by_sampling,
    GenerationMode.SAMPLE: generate_by_sampling,
    GenerationMode.CONTRASTIVE_SEARCH: generate_contrastively,
    GenerationMode.DOLA_GENERATION: generate_by_contrasting_layers,
    GenerationMode.ASSISTED_GENERATION: generate_assisted,
    GenerationMode.BEAM_SEARCH: generate_with_beams,
    GenerationMode.BEAM_SAMPLE: generate_with_beams,
    GenerationMode.GROUP_BEAM_SEARCH: generate_with_groups,
    GenerationMode.CONSTRAINED_BEAM_SEARCH: generate_with_constraints,
}
