"""Translates between the tokens that two vocabularies have in common."""

from __future__ import annotations

import math
import weakref
from typing import ClassVar

import torch
from torch import Tensor, nn

from pygen.models.devices import execution_device
from pygen.processors import LogitsProcessorList, SuppressTokensLogitsProcessor
from pygen.request.protocols import Tokenizer


class AssistantToTargetTranslator:
    """Maps an assistant's tokens to the target's by their spelling (Timor et al. 2025, token-level intersection).

    The signs that the two tokenizers write for a word boundary count as the same. The assistant must not draft tokens
    that the target does not have: `logits_processors` suppress them, or `assistant_prune_lm_head` leaves out their
    columns. In the latter case drafts and logits are over `assistant_overlap_token_ids` only. The translator uses the
    device of `assistant_model`, and changes no model.

    target_to_assistant_input_ids: {target id: assistant id}.
    assistant_overlap_token_ids: (n,) int64, the assistant's ids with a translation, ascending.
    """

    FILTER_VALUE: float = -math.inf
    SUPPRESS_TOKEN_ID: int = -1

    def __init__(
        self,
        target_tokenizer: Tokenizer,
        assistant_tokenizer: Tokenizer,
        target_vocab_size: int,
        assistant_model: nn.Module | None = None,
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
        """Does nothing: the translator never changes the assistant's embeddings."""

    def get_target_ids(
        self, assistant_input_ids: Tensor, target_input_ids: Tensor, assistant_candidate_ids: Tensor
    ) -> Tensor:
        """`target_input_ids` (1, length), followed by the translated drafts.

        The drafts are the ids of `assistant_candidate_ids` after the length of `assistant_input_ids`; with a pruned
        head, indices into `assistant_overlap_token_ids`.
        """
        drafts = assistant_candidate_ids[0, assistant_input_ids.shape[1] :]
        if self.assistant_prune_lm_head:
            drafts = self.assistant_overlap_token_ids[drafts]
        return torch.cat([target_input_ids, self._target_ids[drafts][None]], dim=1)

    def get_target_logits(self, assistant_logits: Tensor) -> Tensor:
        """(..., assistant's columns) -> (..., target_vocab_size) float32, -inf where the assistant lacks a token."""
        overlap = self.assistant_overlap_token_ids
        if not self.assistant_prune_lm_head:
            assistant_logits = assistant_logits[..., overlap]
        shape = (*assistant_logits.shape[:-1], self.target_vocab_size)
        logits = torch.full(shape, self.FILTER_VALUE, device=assistant_logits.device)
        logits[..., self._target_ids[overlap]] = assistant_logits.float()
        return logits


# By assistant's tokenizer, and then by (vocabulary size, device, whether the head is pruned).
_OfAssistants = weakref.WeakKeyDictionary[Tokenizer, dict[tuple[object, ...], AssistantToTargetTranslator]]


class AssistantVocabTranslatorCache:
    """Caches translators, one per pair of tokenizers and set of options, as long as both tokenizers live."""

    _cache: ClassVar[weakref.WeakKeyDictionary[Tokenizer, _OfAssistants]] = weakref.WeakKeyDictionary()

    @classmethod
    def get_translator(
        cls,
        target_tokenizer: Tokenizer,
        assistant_tokenizer: Tokenizer,
        target_vocab_size: int,
        assistant_model: nn.Module | None = None,
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
        return translators[key]

    @classmethod
    def cleanup(cls) -> None:
        """Removes targets without a living assistant; other entries disappear with their tokenizers."""
        for tokenizer in [tokenizer for tokenizer, of_pair in cls._cache.items() if not of_pair]:
            del cls._cache[tokenizer]


def _common_tokens(target_tokenizer: Tokenizer, assistant_tokenizer: Tokenizer) -> dict[int, int]:
    """{target id: assistant id} of the tokens with the same spelling."""
    target, assistant = target_tokenizer.get_vocab(), assistant_tokenizer.get_vocab()
    sign, own_sign = _space_sign(target_tokenizer), _space_sign(assistant_tokenizer)
    common = {}
    for token, assistant_id in assistant.items():
        if sign and own_sign and sign != own_sign and token.startswith(own_sign):
            token = sign + token.removeprefix(own_sign)
        if token in target:
            common[target[token]] = assistant_id
    return common


def _space_sign(tokenizer: Tokenizer) -> str:
    """The sign that a tokenizer writes for a space; "" where it has no token for a space."""
    ids = tokenizer(" ", add_special_tokens=False)["input_ids"]
    return str(tokenizer.convert_ids_to_tokens(ids)[0][0]) if len(ids) > 0 else ""
