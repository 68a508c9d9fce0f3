"""An oracle: transformers' processors and warpers in the order of its generate()."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from transformers.generation import logits_process as hf


@contextlib.contextmanager
def stable_order() -> Iterator[None]:
    """Makes `torch.sort` keep equal scores in the order of their ids, as on CUDA; `torch.topk` takes low ids first."""
    sort = torch.sort

    def stable_sort(values: Tensor, dim: int = -1, descending: bool = False) -> Any:
        return sort(values, dim=dim, descending=descending, stable=True)

    def stable_topk(values: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
        ordered = stable_sort(values, dim, descending=largest)
        return torch.return_types.topk(tuple(part.narrow(dim, 0, k) for part in ordered))

    with mock.patch.object(torch, "sort", stable_sort), mock.patch.object(torch, "topk", stable_topk):
        yield


@stable_order()
def processed(logits: Tensor, knobs: dict[str, Any]) -> Tensor:
    """Returns (rows, vocab_size) float32 after every processor that scalar `knobs` enable, with a stable tie order."""
    input_ids = knobs.get("input_ids")
    scores = logits.float()
    if knobs.get("bias") is not None:
        scores = scores + knobs["bias"]
    for processor in _processors(knobs):
        scores = processor(input_ids, scores)
    if knobs.get("token_bitmask") is not None:
        scores = scores.masked_fill(~allowed_ids(knobs["token_bitmask"], logits.shape[1]), -torch.inf)
    if knobs.get("do_sample", True):
        for warper in _warpers(knobs):
            scores = warper(input_ids, scores)
    return scores


def drawn(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the tokens that transformers' sampling loop draws from processed scores."""
    return torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=generator)[:, 0]


def allowed_ids(token_bitmask: Tensor, vocab_size: int) -> Tensor:
    """Unpacks xgrammar's words into (..., vocab_size) bool."""
    words = np.ascontiguousarray(token_bitmask.numpy()).astype("<i4")
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    return torch.from_numpy(bits[..., :vocab_size].astype(bool))


def _processors(knobs: dict[str, Any]) -> list[hf.LogitsProcessor]:
    processors: list[hf.LogitsProcessor] = []
    if knobs.get("repetition_penalty", 1.0) != 1.0:
        processors.append(hf.RepetitionPenaltyLogitsProcessor(float(knobs["repetition_penalty"])))
    if knobs.get("no_repeat_ngram_size", 0) > 0:
        processors.append(hf.NoRepeatNGramLogitsProcessor(knobs["no_repeat_ngram_size"]))
    if knobs.get("suppress"):
        processors.append(hf.SuppressTokensLogitsProcessor(knobs["suppress"]))
    return processors


def _warpers(knobs: dict[str, Any]) -> list[hf.LogitsProcessor]:
    keep = {"min_tokens_to_keep": knobs.get("min_tokens_to_keep", 1)}
    warpers: list[hf.LogitsProcessor] = []
    if knobs.get("temperature", 1.0) != 1.0:
        warpers.append(hf.TemperatureLogitsWarper(float(knobs["temperature"])))
    if knobs.get("top_h") is not None:
        warpers.append(hf.TopHLogitsWarper(top_h=knobs["top_h"]))
    if knobs.get("top_k", 0) > 0:
        warpers.append(hf.TopKLogitsWarper(top_k=knobs["top_k"], **keep))
    if knobs.get("top_p", 1.0) < 1.0:
        warpers.append(hf.TopPLogitsWarper(top_p=knobs["top_p"], **keep))
    if knobs.get("min_p", 0.0) > 0.0:
        warpers.append(hf.MinPLogitsWarper(min_p=knobs["min_p"], **keep))
    if knobs.get("typical_p", 1.0) < 1.0:
        warpers.append(hf.TypicalLogitsWarper(mass=knobs["typical_p"], **keep))
    if knobs.get("epsilon_cutoff", 0.0) > 0.0:
        warpers.append(hf.EpsilonLogitsWarper(epsilon=knobs["epsilon_cutoff"], **keep))
    if knobs.get("eta_cutoff", 0.0) > 0.0:
        warpers.append(hf.EtaLogitsWarper(epsilon=knobs["eta_cutoff"], **keep))
    return warpers
