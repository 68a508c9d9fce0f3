"""Assisted decoding: draft some tokens, forward them all at once, keep those that would have been chosen anyway."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from pygen.call.call import Call
from pygen.candidates.base import CandidateGenerator
from pygen.candidates.vocabulary import check_same_tokens
from pygen.decode.acceptance import DraftChooser, bind_chooser
from pygen.decode.draft_source import DraftSource
from pygen.decode.monitor import Monitor
from pygen.decode.observer import Recorder, StepObserver
from pygen.decode.records import keep_records
from pygen.decode.sample import generate_tokens, observer
from pygen.models.adapter import ModelAdapter
from pygen.models.widths import head_width
from pygen.models.wrappers import inner
from pygen.notices import log
from pygen.ops import DecodeState
from pygen.outputs import GenerateOutput
from pygen.plan.plan import make_plan
from pygen.plan.report import StepReport
from pygen.request.protocols import Streamer

logger = logging.getLogger(__name__)


_ONE_BY_ONE = (
    "The model reads tokens one at a time once it has states, in this release of transformers: its drafts are checked "
    "one by one, and save no time."
)


def generate_assisted(call: Call) -> Tensor | GenerateOutput:
    """Greedy search and sampling with an assistant model, with prompt lookup, or with the model's first layers."""
    _check(call)
    plan = make_plan(call)
    source = DraftSource(call, plan)

    def bind(logits: Tensor, state: DecodeState) -> DraftChooser:
        if not call.adapter.can_crop:
            raise ValueError(
                f"`model`={type(inner(call.model)).__name__} keeps states, or changes arguments in place, that "
                f"cannot be taken back, so drafts cannot be tried on it; it generates without them"
            )
        return bind_chooser(plan, logits, state, drafts_have_scores=source.has_scores)

    def loop(state: DecodeState, recorder: Recorder, monitor: Monitor) -> int:
        assert isinstance(monitor, RoundMonitor)
        return assisted(
            call.adapter,
            state,
            lambda logits: bind(logits, state),
            lambda vocab_size: source.generator(state, vocab_size),
            observer(call, plan, state, recorder),
            monitor,
            max_new_tokens=call.lengths.max_new_tokens,
        )

    result = generate_tokens(call, plan, loop, RoundMonitor)
    source.remember()
    return result


def assisted(
    model: ModelAdapter,
    state: DecodeState,
    bind: Callable[[Tensor], DraftChooser],
    make_generator: Callable[[int], CandidateGenerator],
    steps: StepObserver,
    monitor: RoundMonitor,
    *,
    max_new_tokens: int,
) -> int:
    """Generates until every row has finished, and returns the number of steps.

    model: with `can_crop` after `prefill`, unless `bind` raises.
    make_generator: gives the drafts for a model whose logits have so many columns.

    A round forwards the last token and k drafts, and then takes one position after the other as `sample` does,
    each with the logits after the drafts before it. It ends behind the first position at which a row that goes on has
    another token than its draft: that token is every row's own choice too, so all rows advance alike.

    A model that reads one token at a time forwards each when its position is due, and none that is rejected.
    """
    if monitor.cancelled():
        return 0
    pending = model.prefill(state.tokens(0))[:, None]
    if not model.reads_at_once:
        log(logger, _ONE_BY_ONE, about=_ONE_BY_ONE)
    choose = bind(pending[:, 0])
    generator = make_generator(pending.shape[-1])
    step, seen = 0, 0
    while True:
        tokens, scores = generator.get_candidates(state.tokens(step))
        tokens = tokens.to(state.token_ids.device)
        choose.begin(tokens[:, state.prompt_length + step :], None if scores is None else scores.to(tokens.device))
        # Lookups may reach beyond the end; the last token is never a draft.
        tokens = tokens[:, : state.prompt_length + max_new_tokens - 1]
        drafts = tokens[:, state.prompt_length + step :]
        count = drafts.shape[1]
        logits = pending
        if model.reads_at_once and step + count > seen:
            model.hold()
            tail = model.decode_tail(tokens, step + count - seen)
            logits = tail if step > 0 else torch.cat([pending, tail], dim=1)
        elif not model.reads_at_once:
            logits = pending.repeat(1, count + 1, 1)
        first = step
        for i in range(count + 1):
            if not model.reads_at_once and step > seen:
                logits[:, i] = model.decode(state.tokens(step))
                seen = step
            steps.observe(step, logits[:, i], choose(logits[:, i], step))
            over = monitor.look(step, steps.report())
            step += 1
            over |= step == max_new_tokens
            if over or i == count or not _drafted(state, step, drafts[:, i]):
                break
        if model.reads_at_once:
            keep_records(model.records, first + count - seen, step - 1 - seen)
            model.crop(first + count - (step - 1))
            seen = step - 1
        if monitor.sends_rounds:
            monitor.send_round(state.tokens(step)[:, state.prompt_length + first :].to("cpu", copy=True))
        generator.update_candidate_strategy(state.tokens(step), logits, step - first - 1)
        if over:
            model.catch_up()
            return step


def _drafted(state: DecodeState, step: int, drafts: Tensor) -> bool:
    """Whether every row that goes on has its draft (rows,) as the last of `step` tokens."""
    return bool(((state.column(step - 1) == drafts) | state.finished).all())


class RoundMonitor(Monitor):
    """A monitor whose streamer gets the tokens of a round at once, unless it takes steps (`put_step`)."""

    @property
    def sends_rounds(self) -> bool:
        return self._streamer is not None and self._put_step is None

    def send_round(self, tokens: Tensor) -> None:
        """tokens: (rows, n) int64 on the CPU, of the round."""
        assert self._streamer is not None
        self._streamer.put(tokens)

    def _send(self, streamer: Streamer, step: int, report: StepReport, over: bool) -> None:
        if not self.sends_rounds:
            super()._send(streamer, step, report, over)


def _check(call: Call) -> None:
    config = call.config
    if config.use_cache is False:
        raise ValueError("`use_cache` must be True with drafts, got False")
    # `_setup_cache` puts states into the modules.
    if hasattr(call.model, "_setup_cache"):
        raise ValueError(
            f"`model`={type(call.model).__name__} keeps states in its modules that cannot be taken back, so drafts "
            f"cannot be tried on it; it generates without them"
        )
    if call.assistant_model is not None and config.assistant_early_exit is None and not config.prompt_lookup_num_tokens:
        _check_assistant(call)


def _check_assistant(call: Call) -> None:
    model, assistant = call.model, call.assistant_model
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        _check_encoders(model.config, getattr(assistant, "config", None))
    if call.assistant_tokenizer is None:
        check_same_tokens(model, assistant)
        return
    width = head_width(model)
    if width is not None and width == head_width(assistant):
        raise ValueError(
            f"`assistant_tokenizer` must be left out where both models have the same vocabulary of {width}"
        )
    if call.tokenizer is None:
        raise ValueError("`tokenizer` must be given with `assistant_tokenizer`, got None")


def _check_encoders(config: object, assistant: object) -> None:
    """A decoder-only assistant that reads the model's encoder needs one of the same size."""
    if getattr(assistant, "is_encoder_decoder", False):
        return
    for name in ("encoder_attention_heads", "encoder_ffn_dim", "encoder_layers"):
        if hasattr(assistant, name) and getattr(assistant, name) != getattr(config, name):
            wanted, got = getattr(config, name), getattr(assistant, name)
            raise ValueError(f"`assistant_model` must have the model's `{name}` {wanted}, got {got}")
