"""Drafts of a smaller model with the same vocabulary, or of the model's own first layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pygen.call.call import Call
from pygen.candidates.draft_plan import for_drafts
from pygen.candidates.drafter import CountedDrafts, Drafter, DraftSettings, Follower, assistant_settings, state_for
from pygen.candidates.inputs import call_of_arguments
from pygen.knobs import WARPERS
from pygen.plan.pipeline import check_plan
from pygen.plan.plan import Plan, make_plan
from pygen.request.protocols import GenerationSettings

_AFTER_THE_CALLERS = (*(knob.name for knob in WARPERS), "watermarking_config")


class AssistedCandidateGenerator(CountedDrafts):
    """Drafts up to `num_assistant_tokens` tokens with `assistant_model` (Leviathan et al. 2023).

    Drafting stops after an end-of-sequence token, and after a token of probability < `assistant_confidence_threshold`.
    Unless `num_assistant_tokens_schedule` is "constant", the number grows by 2 after a round in which the model accepts
    all drafts, and shrinks by 1 after any other. The threshold is constant. All three settings come from
    `assistant_model.generation_config`, which stays unchanged.

    input_ids: (rows, length) int64, the text at the beginning; `generation_config.max_length` counts it.
    generation_config, logits_processor: the settings and processors of the call, which act on the drafts too.
    model_kwargs: the model's inputs; the assistant gets those that it takes.
    inputs_tensor: the encoder's input, for an encoder-decoder assistant.
    """

    def __init__(
        self,
        input_ids: Tensor,
        assistant_model: nn.Module,
        generation_config: GenerationSettings,
        model_kwargs: dict[str, object],
        inputs_tensor: Tensor | None = None,
        logits_processor: Sequence[Callable[..., Tensor]] | None = None,
    ):
        call = call_of_arguments(
            input_ids, assistant_model, generation_config, model_kwargs, inputs_tensor, logits_processor
        )
        self.assistant_model = assistant_model
        self._set_up(call, make_plan(call), assistant_settings(assistant_model), keep_scores=True)

    @classmethod
    def of_call(cls, call: Call, settings: DraftSettings, *, keep_scores: bool) -> AssistedCandidateGenerator:
        """A generator for the call of an assistant (`inputs.assistant_call`), with its seeds and generator.

        keep_scores: whether `get_candidates` returns the drafts' scores.
        """
        generator = cls.__new__(cls)
        generator.assistant_model = call.model
        generator._set_up(call, _drafts_plan(call), settings, keep_scores=keep_scores)
        return generator

    @staticmethod
    def _layers(call: Call) -> int | None:
        """The number of the assistant's layers that draft; None means all."""
        return None

    def _set_up(self, call: Call, plan: Plan, settings: DraftSettings, *, keep_scores: bool) -> None:
        self.use_settings(settings)
        threshold, max_new_tokens = settings.assistant_confidence_threshold, call.lengths.max_new_tokens
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
        self._max_length = state.prompt_length + call.adapter.fit_positions(call.prompt, max_new_tokens)

    def draft_for(self, vocab_size: int) -> None:
        """vocab_size: the number of columns of the model's logits, and of the drafts' scores; it bounds drafted ids."""
        self._drafter.vocab_size = vocab_size

    def get_candidates(self, input_ids: Tensor, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        count = min(self.num_assistant_tokens, self._max_length - input_ids.shape[1] - 1)
        return self._drafter.draft(input_ids, count) if count > 0 else (input_ids, None)


class EarlyExitCandidateGenerator(AssistedCandidateGenerator):
    """Drafts with the first `generation_config.assistant_early_exit` layers of the model itself.

    It lowers `config.num_hidden_layers` of the model during each of its forwards and restores it afterwards, also after
    an error. The model must read that number in its forward, and must not run in another thread at the same time.
    """

    @staticmethod
    def _layers(call: Call) -> int | None:
        return call.config.assistant_early_exit


def _drafts_plan(call: Call) -> Plan:
    """The plan of an assistant's call, with new processors, since they may have state, and without the caller's.

    Under torch's noise the items after the caller's processors act twice, as in transformers, which gives the same
    drafts. The distribution of the model's tokens does not depend on that of the drafts.
    """
    plan = for_drafts(make_plan(call))
    if plan.noise.get("rng") != "torch":
        return plan
    twice = tuple(item for item in plan.items if item.name in _AFTER_THE_CALLERS)
    return dataclasses.replace(plan, items=(*plan.items, *twice))
