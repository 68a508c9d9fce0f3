"""An assistant model that drafts: its cache, its sequences, and the number of its drafts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pygen.call.call import Call
from pygen.candidates.base import CandidateGenerator
from pygen.candidates.draft_plan import renew_copies
from pygen.candidates.vocabulary import of_width, readable
from pygen.config.config import DEFAULTS, GenerationMode
from pygen.models.adapter import ModelAdapter
from pygen.models.widths import embedded_ids
from pygen.models.wrappers import inner
from pygen.ops import DecodeState
from pygen.ops._growth import first_capacity
from pygen.plan.pipeline import Chooser, Pipeline, SampleBinding, bind_plan
from pygen.plan.plan import Plan
from pygen.request.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class DraftSettings:
    """The settings of drafts, under the names of `GenerationConfig`."""

    num_assistant_tokens: int
    num_assistant_tokens_schedule: str
    assistant_confidence_threshold: float
    assistant_lookbehind: int
    target_lookbehind: int


SETTINGS = tuple(field.name for field in dataclasses.fields(DraftSettings))


def assistant_settings(assistant_model: object, given: Mapping[str, Any] | None = None) -> DraftSettings:
    """Each setting from `given`, else from the assistant's `generation_config`, else the default."""
    own = getattr(assistant_model, "generation_config", None)
    values = {name: getattr(own, name, None) for name in SETTINGS}
    values = {name: DEFAULTS[name] if value is None else value for name, value in values.items()}
    return DraftSettings(**{**values, **(given or {})})


class CountedDrafts(CandidateGenerator):
    """A generator with a schedule: 2 more drafts after a round in which the model accepts all, else 1 less.

    num_assistant_tokens: the next round drafts at most so many tokens.
    num_assistant_tokens_schedule: "constant" keeps that number.
    """

    num_assistant_tokens: int
    num_assistant_tokens_schedule: str

    def use_settings(self, settings: DraftSettings) -> None:
        self.num_assistant_tokens = int(settings.num_assistant_tokens)
        self.num_assistant_tokens_schedule = settings.num_assistant_tokens_schedule

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        if self.num_assistant_tokens_schedule != "constant":
            more = num_matches == scores.shape[1] - 1
            self.num_assistant_tokens = max(1, self.num_assistant_tokens + (2 if more else -1))


class Follower:
    """A model that follows a text whose end may change, and forwards only the columns that it has not seen.

    It reads its last id in place of ids without an embedding.

    num_copies: rows per prompt; the copies of a prompt are adjacent.
    layers: the number of hidden layers that run, or None for all; the model's config has it during forwards only.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        prompt: Prompt,
        max_new_tokens: int,
        *,
        model: nn.Module,
        num_copies: int = 1,
        layers: int | None = None,
    ) -> None:
        self._adapter = adapter
        self._prompt = prompt
        self._max_new_tokens = max_new_tokens
        self._model = model
        self._num_copies = num_copies
        self._layers = layers
        self._num_ids = embedded_ids(model)
        self._seen: Tensor | None = None

    def rewind(self, tokens: Tensor) -> bool:
        """Forgets the columns that differ from those of `tokens` (rows, length), and at least the last of these.

        Returns False where the cache cannot go back so far: before the point of the previous rewind.
        """
        if self._seen is None:
            return True
        length = min(self._seen.shape[1], tokens.shape[1] - 1)
        same = (self._seen[:, :length] == tokens[:, :length]).all(0).cumprod(0)
        kept = int(same.sum())
        if kept == self._seen.shape[1]:
            return True
        if not self._adapter.crop(self._seen.shape[1] - kept):
            return False
        self._adapter.hold()
        self._seen = self._seen[:, :kept]
        return True

    def advance(self, tokens: Tensor) -> Tensor:
        """Forwards the new columns of `tokens` (rows, length) -> logits (rows, vocab_size) after the last one."""
        with self._fewer_layers(), torch.no_grad():
            logits = self._start(tokens) if self._seen is None else None
            count = tokens.shape[1] - (0 if self._seen is None else self._seen.shape[1])
            if count > 0:
                logits = self._adapter.decode_tail(readable(tokens, self._num_ids), count)[:, -1]
        assert logits is not None
        self._seen = tokens.clone()
        return logits

    def _start(self, tokens: Tensor) -> Tensor:
        length = self._prompt.input_ids.shape[1]
        try:
            self._adapter.start(
                self._prompt,
                mode=GenerationMode.ASSISTED_GENERATION,
                num_copies=self._num_copies,
                max_new_tokens=self._max_new_tokens,
            )
            logits = self._adapter.prefill(readable(tokens[:, :length], self._num_ids))
        except (LookupError, ValueError) as error:
            if self._layers is None:
                raise
            raise NotImplementedError(
                f"`assistant_early_exit`={self._layers}: {type(self._model).__name__} cannot run that many of its "
                f"layers alone, {error}; an assistant or `prompt_lookup_num_tokens` drafts for it"
            ) from error
        if not self._adapter.can_crop:
            raise ValueError(
                f"`assistant_model`={type(inner(self._model)).__name__} keeps states, or changes arguments in place, "
                f"that cannot be taken back, so it cannot draft; another assistant or `prompt_lookup_num_tokens` can"
            )
        self._adapter.hold()
        self._seen = tokens[:, :length]
        return logits

    @contextlib.contextmanager
    def _fewer_layers(self) -> Iterator[None]:
        if self._layers is None:
            yield
            return
        base = getattr(self._model, str(self._model.base_model_prefix))
        config: Any = base.config
        every = config.num_hidden_layers
        config.num_hidden_layers = self._layers
        try:
            yield
        finally:
            config.num_hidden_layers = every


class Drafter:
    """Drafts in the vocabulary of the text, as sampling would continue it, at the text's own steps.

    Drafting ends early once every row has ended, or has had a token of probability < threshold in this round.

    plan: its knobs and processors see the whole text, drafts included; `keep_scores` makes `draft` return scores.
    vocab_size: the number of the text's tokens, which may differ from the assistant's; None where they are equal.
    """

    vocab_size: int | None = None

    def __init__(self, follower: Follower, plan: Plan, state: DecodeState, threshold: float) -> None:
        self._follower = follower
        self._plan = plan
        self._state = state
        self._threshold = threshold
        self._choose: Chooser | None = None

    def draft(self, input_ids: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """(rows, length) -> (rows, length + up to `count`), and the processed scores (rows, k, vocab_size)."""
        state = self._state
        step = input_ids.shape[1] - state.prompt_length
        resume(state, input_ids)
        renew_copies(self._plan)
        if not self._follower.rewind(input_ids):
            raise ValueError("`input_ids` must continue those of the last call, because the assistant keeps states")
        unsure = torch.zeros_like(state.finished)
        scores: list[Tensor] = []
        for _ in range(count):
            logits = self._follower.advance(state.tokens(step))
            if self.vocab_size is not None:
                logits = of_width(logits, self.vocab_size)
            if self._choose is None:
                self._choose = bind_plan(self._plan, logits, state)
            choice = self._choose(logits, step)
            step += 1
            if choice.scores is not None:
                scores.append(choice.scores)
            if self._threshold > 0:
                assert choice.output.logprobs is not None
                unsure |= choice.output.logprobs.exp() < self._threshold
            if bool((unsure | state.finished).all()):
                break
        return state.tokens(step).clone(), torch.stack(scores, dim=1) if scores else None


class PlanScores:
    """A plan as one logits processor: (input_ids (rows, length), scores (rows, vocab_size)) -> processed scores."""

    def __init__(self, plan: Plan, state: DecodeState) -> None:
        self._plan = dataclasses.replace(plan, keep_scores=True)
        self._state = state
        self._pipeline: Pipeline | None = None
        self._seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        resume(self._state, input_ids)
        if self._seen is None or not torch.equal(self._seen, input_ids[:, :-1]):
            renew_copies(self._plan)
        self._seen = input_ids
        if self._pipeline is None:
            self._pipeline = Pipeline(self._plan, scores, SampleBinding(self._plan, self._state))
        step = input_ids.shape[1] - self._state.prompt_length
        processed = self._pipeline.kept(self._pipeline.shape(scores, step), step)
        assert processed is not None
        return processed


def state_for(call: Call, plan: Plan, max_new_tokens: int) -> DecodeState:
    """A new state for drafts: one row per row of the call; the copies of a prompt are adjacent."""
    visible = call.prompt.visible() if plan.reads_history else None
    return DecodeState.create(
        call.prompt.input_ids.repeat_interleave(call.num_copies, dim=0),
        max_new_tokens,
        step_capacity=first_capacity(max_new_tokens),
        eos_token_ids=call.stopping.eos_token_ids,
        pad_token_id=call.tokens.pad or 0,
        visible=None if visible is None else visible.repeat_interleave(call.num_copies, dim=0),
    )


def resume(state: DecodeState, input_ids: Tensor) -> None:
    """Makes `state` that of a text (rows, length) in which no row has ended."""
    start, length = state.prompt_length, input_ids.shape[1]
    state.reserve(length - start)
    state.token_ids[:, start:length] = input_ids[:, start:]
    state.history[:, start:length] = input_ids[:, start:]
    state.num_generated.fill_(length - start)
    state.finished.fill_(False)
    state.unfinished.fill_(state.rows)
