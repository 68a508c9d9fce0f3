"""Contrastive search by its definition (Su et al. 2022), one text at a time, without a cache."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def contrastive(model: Any, prompt: list[int], *, penalty_alpha: float, top_k: int, steps: int) -> list[int]:
    """The tokens that follow. `model` is a decoder of transformers.

    Of the k likeliest tokens v after x the next is the one with the largest
    (1 - alpha) * p(v | x) - alpha * max over j of cos(h_v, h_j), with h_v and h_j states of the last layer.
    """
    text = list(prompt)
    for _ in range(steps):
        logits, _ = _read(model, text)
        probabilities = logits[-1].double().softmax(-1).tolist()
        candidates = sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token))[:top_k]
        best, best_score = candidates[0], -math.inf
        for token in candidates:
            _, states = _read(model, [*text, token])
            most = max(_cosine(states[-1], state) for state in states[:-1])
            score = (1 - penalty_alpha) * probabilities[token] - penalty_alpha * most
            if score > best_score:
                best, best_score = token, score
        text.append(best)
    return text[len(prompt) :]


def _cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


def _read(model: Any, text: list[int]) -> tuple[Tensor, Tensor]:
    """Logits (length, vocab_size) and states of the last layer (length, width)."""
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor([text]), use_cache=False, output_hidden_states=True, return_dict=True)
    return outputs.logits[0].double(), outputs.hidden_states[-1][0].double()
