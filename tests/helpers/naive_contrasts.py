"""Contrastive search and DoLa by definition, one text at a time, without a cache."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def contrastive(model: Any, prompt: list[int], *, penalty_alpha: float, top_k: int, steps: int) -> list[int]:
    """Contrastive search (Su et al. 2022). `model` is a decoder of transformers.

    Among the k most likely tokens v after x, the search picks the one that maximises
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
            largest = max(_cosine(states[-1], state) for state in states[:-1])
            score = (1 - penalty_alpha) * probabilities[token] - penalty_alpha * largest
            if score > best_score:
                best, best_score = token, score
        text.append(best)
    return text[len(prompt) :]


def _cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


def _read(model: Any, text: list[int]) -> tuple[Tensor, Tensor]:
    """Returns logits (length, vocab_size) and states of the last layer (length, width)."""
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor([text]), use_cache=False, output_hidden_states=True, return_dict=True)
    return outputs.logits[0].double(), outputs.hidden_states[-1][0].double()


def dola(model: Any, prompt: list[int], layers: list[int], steps: int) -> list[int]:
    """DoLa (Chuang et al. 2023), greedy: the token with the largest ln p - ln q among those with p >= 0.1 max p.

    p is the distribution of the last layer, q that of the layer in `layers` with the largest distance from p.
    """
    text, head = list(prompt), model.get_output_embeddings()
    for _ in range(steps):
        with torch.no_grad():
            outputs = model(input_ids=torch.tensor([text]), use_cache=False, output_hidden_states=True)
            early = [head(outputs.hidden_states[layer][0, -1]).double().softmax(-1) for layer in layers]
        p = outputs.logits[0, -1].double().softmax(-1)
        q = max(early, key=lambda q: _distance(p.tolist(), q.tolist()))
        difference = (p.log() - q.log()).masked_fill(p < 0.1 * p.max(), -math.inf)
        text.append(int(difference.argmax()))
    return text[len(prompt) :]


def _distance(p: list[float], q: list[float]) -> float:
    """Returns KL(m || p) + KL(m || q), where m is the mean of p and q."""
    means = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return sum(m * (2 * math.log(m) - math.log(x) - math.log(y)) for m, x, y in zip(means, p, q, strict=True))
