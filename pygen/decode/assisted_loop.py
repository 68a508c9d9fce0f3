"""Assisted decoding: draft some tokens, forward them all at once, keep those that would have been chosen anyway."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pygen.candidates.base import CandidateGenerator
from pygen.decode.acceptance import DraftChooser
from pygen.decode.monitor import Monitor
from pygen.models.adapter import ModelAdapter
from pygen.notices import log
from pygen.ops import DecodeState

logger = logging.getLogger(__name__)

_ONE_BY_ONE = (
    "The model reads tokens one at a time once it has states, in this release of transformers: its drafts are checked "
    "one by one, and save no time."
)


def assisted(
    model: ModelAdapter,
    state: DecodeState,
    bind: Callable[[Tensor], DraftChooser],
    make_generator: Callable[[int], CandidateGenerator],
    monitor: ChunkMonitor,
    *,
    max_new_tokens: int,
) -> int:
    """Generates until every row has finished, and returns the number of steps.

    make_generator: gives the drafts for a model whose logits have so many columns.

    A round forwards the last token and k drafts, and then takes one position after the other as `loops.sample` does,
    each with the logits after the drafts before it. It ends behind the first position at which a row that goes on has
    another token than its draft: that token is every row's own choice too, so all rows advance alike.

    A model that reads one token at a time forwards each when its position is due, and none that is rejected.
    """
    if monitor.cancelled():
        return 0
    pending = model.prefill(state.tokens(0))[:, None]
    if not model.can_crop:
        raise ValueError(
            "`model` keeps states that cannot be taken back, so drafts cannot be tried on it; it generates without them"
        )
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
            choice = choose(logits[:, i], step)
            signal = monitor.observe(step, logits[:, i], choice)
            over = monitor.must_stop(step, signal, logits[:, i], choice)
            step += 1
            over |= step == max_new_tokens
            if over or i == count or not _drafted(state, step, drafts[:, i]):
                break
        if model.reads_at_once:
            keep_records(model.records, first + count - seen, step - 1 - seen)
            model.crop(first + count - (step - 1))
            seen = step - 1
        monitor.flush(first, step)
        generator.update_candidate_strategy(state.tokens(step), logits, step - first - 1)
        if over:
            model.catch_up()
            return step


def _drafted(state: DecodeState, step: int, drafts: Tensor) -> bool:
    """Whether every row that goes on has its draft (rows,) as the last of `step` tokens."""
    return bool(((state.column(step - 1) == drafts) | state.finished).all())


def keep_records(records: dict[str, list[Any]], count: int, kept: int) -> None:
    """Replaces the entry of the last forward, over `count` columns, by one for each of its first `kept` ones."""
    if count == 0:
        return
    for name, entries in records.items():
        whole = entries.pop()
        of_text = name in ("attentions", "decoder_attentions")
        entries += [_column(whole, i, count - 1 - i if of_text else 0) for i in range(kept)]


def _column(layers: Any, i: int, hidden: int) -> Any:
    """Query i of every layer (..., queries, width), without the last `hidden` of what it could not see."""
    if layers is None:
        return None
    return tuple(layer if layer is None else layer[..., i : i + 1, : layer.shape[-1] - hidden] for layer in layers)


class ChunkMonitor(Monitor):
    """A monitor whose streamer gets the tokens of a round at once, (rows, n), unless it takes steps (`put_step`)."""

    def flush(self, first: int, end: int) -> None:
        """Sends the tokens of the steps in [first, end)."""
        if self._streamer is not None and not hasattr(self._streamer, "put_step"):
            tokens = self._state.tokens(end)[:, self._state.prompt_length + first :]
            self._streamer.put(tokens.to("cpu", copy=True))

    def _send(self, step: int, over: bool) -> None:
        if hasattr(self._streamer, "put_step"):
            super()._send(step, over)
