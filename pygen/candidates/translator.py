"""Tokens that two vocabularies have in common."""

from __future__ import annotations

import math
import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor

from pygen.models.devices import execution_device
from pygen.processors import LogitsProcessorList, SuppressTokensLogitsProcessor


class AssistantToTargetTranslator:
    """Maps an assistant's tokens to the target's by what they spell (Timor et al. 2025, token-level intersection).

    A word boundary that the tokenizers write with different signs counts as the same one. Tokens of the assistant that
    the target has not are suppressed: by `logits_processors`, or, where `assistant_prune_lm_head` says so, by leaving
    out their columns; then drafts and logits are over `assistant_overlap_token_ids` alone. `assistant_model` is only
    asked for its device, and no model is changed.

    target_to_assistant_input_ids: {target id: assistant id}.
    assistant_overlap_token_ids: (n,) int64, the assistant's ids that have a translation, ascending.
    """

    FILTER_VALUE: float = -math.inf
    SUPPRESS_TOKEN_ID: int = -1

    def __init__(
        self,
        target_tokenizer: Any,
        assistant_tokenizer: Any,
        target_vocab_size: int,
        assistant_model: Any = None,
        assistant_prune_lm_head: bool = False,
    ):
        self.target_vocab_size = target_vocab_size
        device = torch.device("cpu") if assistant_model is None else execution_device(assistant_model)
        common = _common_tokens(target_tokenizer, assistant_tokenizer)
        # A tokenizer may know more tokens than the target's head.
        within = {target: own for target, own in common.items() if target < target_vocab_size}
        self.target_to_assistant_input_ids = within
        size = max(assistant_tokenizer.get_vocab().values()) + 1
        target_ids = torch.full((size,), self.SUPPRESS_TOKEN_ID, dtype=torch.int64, device="cpu")
        for target_id, assistant_id in self.target_to_assistant_input_ids.items():
            target_ids[assistant_id] = target_id
        self._target_ids = target_ids.to(device)
        known = self._target_ids != self.SUPPRESS_TOKEN_ID
        self.assistant_overlap_token_ids = known.nonzero()[:, 0]
        everything = bool(known.all())
        self.assistant_prune_lm_head = assistant_prune_lm_head and assistant_model is not None and not everything
        self.logits_processors: LogitsProcessorList | None = None
        if not everything and not self.assistant_prune_lm_head:
            missing = (~known).nonzero()[:, 0].tolist()
            self.logits_processors = LogitsProcessorList([SuppressTokensLogitsProcessor(missing, str(device))])

    def unmap_input_ids(self) -> None:
        """Nothing to take back: the assistant's embeddings are never changed."""

    def get_target_ids(
        self, assistant_input_ids: Tensor, target_input_ids: Tensor, assistant_candidate_ids: Tensor
    ) -> Tensor:
        """`target_input_ids` (1, length) with the translation of what `assistant_candidate_ids` has more than
        `assistant_input_ids`: drafts, positions in `assistant_overlap_token_ids` where columns are left out."""
        drafts = assistant_candidate_ids[0, assistant_input_ids.shape[1] :]
        if self.assistant_prune_lm_head:
            drafts = self.assistant_overlap_token_ids[drafts]
        return torch.cat([target_input_ids, self._target_ids[drafts][None]], dim=1)

    def get_target_logits(self, assistant_logits: Tensor) -> Tensor:
        """(..., assistant's columns) -> (..., target_vocab_size) float32, -inf where the assistant has no token."""
        overlap = self.assistant_overlap_token_ids
        if not self.assistant_prune_lm_head:
            assistant_logits = assistant_logits[..., overlap]
        shape = (*assistant_logits.shape[:-1], self.target_vocab_size)
        logits = torch.full(shape, self.FILTER_VALUE, device=assistant_logits.device)
        logits[..., self._target_ids[overlap]] = assistant_logits.float()
        return logits


class AssistantVocabTranslatorCache:
    """Translators, made once for a pair of tokenizers and kept as long as both of them."""

    _cache: ClassVar[weakref.WeakKeyDictionary[Any, Any]] = weakref.WeakKeyDictionary()

    @classmethod
    def get_translator(
        cls,
        target_tokenizer: Any,
        assistant_tokenizer: Any,
        target_vocab_size: int,
        assistant_model: Any = None,
        assistant_prune_lm_head: bool = False,
    ) -> AssistantToTargetTranslator:
        of_pair = cls._cache.setdefault(target_tokenizer, weakref.WeakKeyDictionary())
        translators = of_pair.setdefault(assistant_tokenizer, {})
        device = getattr(assistant_model, "device", None)
        key = (target_vocab_size, device, assistant_prune_lm_head)
        if key not in translators:
            translators[key] = AssistantToTargetTranslator(
                target_tokenizer, assistant_tokenizer, target_vocab_size, assistant_model, assistant_prune_lm_head
            )
        translator: AssistantToTargetTranslator = translators[key]
        return translator

    @classmethod
    def cleanup(cls) -> None:
        """Drops what is kept for targets without any assistant left; the rest goes with its tokenizers."""
        for tokenizer in [tokenizer for tokenizer, of_pair in cls._cache.items() if not of_pair]:
            del cls._cache[tokenizer]


def _common_tokens(target_tokenizer: Any, assistant_tokenizer: Any) -> dict[int, int]:
    """{target id: assistant id} of the tokens that are spelt alike."""
    target, assistant = target_tokenizer.get_vocab(), assistant_tokenizer.get_vocab()
    sign, own_sign = _space_sign(target_tokenizer), _space_sign(assistant_tokenizer)
    common = {}
    for token, assistant_id in assistant.items():
        if sign and own_sign and sign != own_sign and token.startswith(own_sign):
            token = sign + token.removeprefix(own_sign)
        if token in target:
            common[target[token]] = assistant_id
    return common


def _space_sign(tokenizer: Any) -> str:
    """How a tokenizer writes a space in its tokens; "" where it has no token for one."""
    ids = tokenizer(" ", add_special_tokens=False)["input_ids"]
    return str(tokenizer.convert_ids_to_tokens(ids)[0][0]) if len(ids) > 0 else ""
