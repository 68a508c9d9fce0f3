"""Drafts of a smaller model with the same vocabulary, or of the model's own first layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from pygen.call.call import Call
from pygen.candidates.draft_plan import for_drafts
from pygen.candidates.drafter import CountedDrafts, Drafter, Follower, assistant_settings, state_for
from pygen.candidates.inputs import call_of_arguments
from pygen.knobs import WARPERS
from pygen.plan.pipeline import check_plan
from pygen.plan.plan import Plan, make_plan

_AFTER_THE_CALLERS = (*(knob.name for knob in WARPERS), "watermarking_config")


class AssistedCandidateGenerator(CountedDrafts):
    """Drafts up to `num_assistant_tokens` tokens with `assistant_model` (Leviathan et al. 2023).

    Drafting stops after an end-of-sequence token, or one of a probability below `assistant_confidence_threshold`.
    After a round in which all drafts were right the number grows by 2, else it shrinks by 1, unless
    `num_assistant_tokens_schedule` is "constant". The threshold stays as it is. All three are taken from
    `assistant_model.generation_config`, which is only read.

    input_ids: (rows, length) int64, the text at the beginning; `generation_config.max_length` counts it.
    generation_config: the settings of the call, `logits_processor`: its processors; both act on the drafts too.
    model_kwargs: the model's inputs, of which the assistant gets those that it takes.
    inputs_tensor: what the encoder reads, for an encoder-decoder assistant.
    """

    def __init__(
        self,
        input_ids: Tensor,
        assistant_model: Any,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        inputs_tensor: Tensor | None = None,
        logits_processor: Any = None,
    ):
        call = call_of_arguments(
            input_ids, assistant_model, generation_config, model_kwargs, inputs_tensor, logits_processor
        )
        self.assistant_model = assistant_model
        self._draft_for(call, make_plan(call), assistant_settings(assistant_model), keep_scores=True)

    @classmethod
    def of_call(cls, call: Call, settings: dict[str, Any], *, keep_scores: bool) -> AssistedCandidateGenerator:
        """For the call of an assistant (`inputs.assistant_call`), with its seeds and generator.

        settings: see `assistant_settings`.
        keep_scores: whether the drafts' scores are wanted.
        """
        generator = cls.__new__(cls)
        generator.assistant_model = call.model
        generator._draft_for(call, _drafts_plan(call), settings, keep_scores=keep_scores)
        return generator

    @staticmethod
    def _layers(call: Call) -> int | None:
        """How many layers of the assistant draft; None is all."""
        return None

    def _draft_for(self, call: Call, plan: Plan, settings: dict[str, Any], *, keep_scores: bool) -> None:
        self.use_settings(settings)
        threshold, max_new_tokens = settings["assistant_confidence_threshold"], call.lengths.max_new_tokens
        plan = dataclasses.replace(plan, keep_scores=keep_scores, num_logprobs=1 if threshold > 0 else 0)
        state = state_for(call, plan, max_new_tokens)
        check_plan(plan, state)
        follower = Follower(
            call.adapter,
            call.prompt,
            max_new_tokens,
            model=call.model,
            num_copies=call.num_copies,
            layers=self._layers(call),
        )
        self._drafter = Drafter(follower, plan, state, threshold)
        self._max_length = state.prompt_length + call.adapter.room_for(call.prompt, max_new_tokens)

    def draft_for(self, vocab_size: int) -> None:
        """vocab_size: columns of the model's logits. No other token is drafted, and the scores have as many columns."""
        self._drafter.vocab_size = vocab_size

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        count = min(self.num_assistant_tokens, self._max_length - input_ids.shape[1] - 1)
        return self._drafter.draft(input_ids, count) if count > 0 else (input_ids, None)


class EarlyExitCandidateGenerator(AssistedCandidateGenerator):
    """Drafts of the model itself, cut after its first `generation_config.assistant_early_exit` layers.

    `config.num_hidden_layers` of the model is lowered during each of the assistant's forwards and then put back, also
    after an error; the model must read it in its forward, and must not run in another thread meanwhile.
    """

    @staticmethod
    def _layers(call: Call) -> int | None:
        return call.config.assistant_early_exit


def _drafts_plan(call: Call) -> Plan:
    """The plan of an assistant's call, made anew: processors may keep states, and the caller's do not act.

    Under torch's noise what stands after the caller's processors acts twice, as it does in transformers: the drafts are
    the same then. The model's tokens have the right distribution whatever the drafts are drawn from.
    """
    plan = for_drafts(make_plan(call))
    if plan.noise.get("rng") != "torch":
        return plan
    twice = tuple(item for item in plan.items if item.name in _AFTER_THE_CALLERS)
    return dataclasses.replace(plan, items=(*plan.items, *twice))
