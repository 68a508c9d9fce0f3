"""Rows with hand-checked results, for the tests of the ops and of the mutants."""

from __future__ import annotations

from math import inf, log, nan
from typing import Any, NamedTuple

import torch

LN2 = log(2)


class HandRow(NamedTuple):
    fact: str
    logits: list[float]
    knobs: dict[str, Any]
    scores: list[float]  # of process_logits


class Race(NamedTuple):
    fact: str
    logits: list[float]
    noise: list[float]
    knobs: dict[str, Any]
    token_id: int


def ids(*token_ids: int) -> torch.Tensor:
    return torch.tensor([token_ids], dtype=torch.int64)


def bits(*words: int) -> torch.Tensor:
    return torch.tensor(words, dtype=torch.int32)


# Probabilities 1/2, 1/4, 1/8, 1/8.
HALVES = [3 * LN2, 2 * LN2, LN2, LN2]

HAND_ROWS = [
    HandRow("neutral knobs change nothing", [1, 2, 3], {}, [1, 2, 3]),
    HandRow("temperature divides", [1, 2, -3], {"temperature": 0.5}, [2, 4, -6]),
    HandRow("temperature 0 is a greedy row: x itself", [1, 2, 3], {"temperature": 0, "top_k": 1}, [1, 2, 3]),
    HandRow("do_sample=False is a greedy row", [1, 2, 3], {"do_sample": False, "temperature": 0.5}, [1, 2, 3]),
    # repetition penalty
    HandRow("a seen positive score is divided", [4, 2], {"repetition_penalty": 2.0, "input_ids": ids(0)}, [2, 2]),
    HandRow("a seen negative score is multiplied", [-4, 2], {"repetition_penalty": 2.0, "input_ids": ids(0)}, [-8, 2]),
    HandRow("below 1 it rewards", [4, -4], {"repetition_penalty": 0.5, "input_ids": ids(0, 1)}, [8, -2]),
    HandRow("an id seen twice is penalised once", [4, 2], {"repetition_penalty": 2.0, "input_ids": ids(0, 0)}, [2, 2]),
    HandRow("zero stays zero", [0, 1], {"repetition_penalty": 2.0, "input_ids": ids(0)}, [0, 1]),
    HandRow("a banned score stays banned", [-inf, 1], {"repetition_penalty": 2.0, "input_ids": ids(0)}, [-inf, 1]),
    HandRow(
        "ids outside the vocabulary are ignored",
        [4, 2],
        {"repetition_penalty": 2.0, "input_ids": ids(-1, 2, 2**40, -(2**62), 0)},
        [2, 2],
    ),
    HandRow("an empty history penalises nothing", [4, 2], {"repetition_penalty": 2.0, "input_ids": ids()}, [4, 2]),
    # presence and frequency
    HandRow(
        "presence once however often", [4, 4, 4], {"presence_penalty": 1.5, "input_ids": ids(0, 0, 1)}, [2.5, 2.5, 4]
    ),
    HandRow("frequency per occurrence", [4, 4, 4], {"frequency_penalty": 0.5, "input_ids": ids(0, 0, 1)}, [3, 3.5, 4]),
    HandRow(
        "negative ones reward", [4, 4], {"presence_penalty": -1, "frequency_penalty": -1, "input_ids": ids(0)}, [6, 4]
    ),
    HandRow(
        "they count generated columns only",
        [4, 4, 4],
        {"presence_penalty": 1, "frequency_penalty": 1, "input_ids": ids(0, 1, 1, 2), "prompt_lengths": 2},
        [4, 2, 2],
    ),
    HandRow(
        "a prompt longer than the history leaves nothing to count",
        [4, 4],
        {"presence_penalty": 1, "input_ids": ids(0, 1), "prompt_lengths": 5},
        [4, 4],
    ),
    HandRow(
        "repetition looks at the prompt too, and acts before presence",
        [4, 4],
        {"presence_penalty": 1, "repetition_penalty": 2.0, "input_ids": ids(0, 1), "prompt_lengths": 1},
        [2, 1],
    ),
    # n-gram ban
    HandRow("n = 1 bans all seen", [1, 2, 3], {"no_repeat_ngram_size": 1, "input_ids": ids(0, 2)}, [-inf, 2, -inf]),
    HandRow(
        "n = 2 bans what followed", [1, 2, 3], {"no_repeat_ngram_size": 2, "input_ids": ids(0, 2, 0)}, [1, 2, -inf]
    ),
    HandRow("n = 2 bans a token after itself", [1, 2], {"no_repeat_ngram_size": 2, "input_ids": ids(0, 0)}, [-inf, 2]),
    HandRow(
        "n = 3 needs both",
        [1, 2, 3],
        {"no_repeat_ngram_size": 3, "input_ids": ids(0, 1, 2, 2, 1, 0, 0, 1)},
        [1, 2, -inf],
    ),
    HandRow(
        "a history shorter than n bans nothing", [1, 2], {"no_repeat_ngram_size": 3, "input_ids": ids(0, 0)}, [1, 2]
    ),
    HandRow("padding matches nothing", [1, 2], {"no_repeat_ngram_size": 2, "input_ids": ids(-1, 0, -1)}, [1, 2]),
    HandRow("padding is never banned", [1, 2], {"no_repeat_ngram_size": 2, "input_ids": ids(0, -1, 0)}, [1, 2]),
    # bias, suppression, bitmask
    HandRow("bias is added", [1, 2], {"bias": torch.tensor([0.5, -inf])}, [1.5, -inf]),
    HandRow(
        "bias comes before the penalty",
        [-1, 2],
        {"bias": torch.tensor([3.0, 0.0]), "repetition_penalty": 2.0, "input_ids": ids(0)},
        [1, 2],
    ),
    HandRow("suppressed ids go", [1, 2, 3], {"suppress": [1]}, [1, -inf, 3]),
    HandRow("suppressed ids outside the vocabulary", [1, 2], {"suppress": [-1, 2, 2**62, 0]}, [-inf, 2]),
    HandRow("an empty list suppresses nothing", [1, 2], {"suppress": []}, [1, 2]),
    HandRow("bit 1 allows", [1, 2, 3], {"token_bitmask": bits(0b101)}, [1, -inf, 3]),
    HandRow(
        "id 31 is the sign bit, id 32 the next word",
        [1.0] * 34,
        {"token_bitmask": bits(-(2**31), 0b01)},
        [-inf] * 31 + [1, 1, -inf],
    ),
    # top_k
    HandRow("top_k keeps the k largest", [1, 4, 3, 2], {"top_k": 2}, [-inf, 4, 3, -inf]),
    HandRow("ties at the k-th all stay", [2, 3, 2, 1, 2], {"top_k": 2}, [2, 3, 2, -inf, 2]),
    HandRow("ties above it count", [3, 3, 2, 1], {"top_k": 2}, [3, 3, -inf, -inf]),
    HandRow("k beyond the vocabulary keeps all", [1, 2], {"top_k": 9}, [1, 2]),
    HandRow("k beyond the survivors keeps them", [1, -inf, 2], {"top_k": 3}, [1, -inf, 2]),
    HandRow("min_tokens_to_keep raises k", [1, 4, 3, 2], {"top_k": 1, "min_tokens_to_keep": 3}, [-inf, 4, 3, 2]),
    HandRow("but not where top_k is off", [1, 4], {"top_k": 0, "min_tokens_to_keep": 1}, [1, 4]),
    HandRow("temperature does not move it", [1, 4, 3, 2], {"top_k": 2, "temperature": 2.0}, [-inf, 2, 1.5, -inf]),
    # top_p
    HandRow("top_p keeps the token that crosses", HALVES, {"top_p": 0.6}, [*HALVES[:2], -inf, -inf]),
    HandRow("top_p below the largest keeps it alone", HALVES, {"top_p": 0.3}, [HALVES[0], -inf, -inf, -inf]),
    HandRow("top_p = 0 keeps one", HALVES, {"top_p": 0.0}, [HALVES[0], -inf, -inf, -inf]),
    HandRow("top_p = 1 is off", HALVES, {"top_p": 1.0}, HALVES),
    HandRow("reaching it exactly is enough", [0, 0, 0, 0], {"top_p": 0.5}, [-inf, -inf, 0, 0]),
    HandRow("of equal scores the highest ids stay", [0, 0, 0, 0], {"top_p": 0.6}, [-inf, 0, 0, 0]),
    HandRow("of tied scores at the cut too", [LN2, 0, 2 * LN2, 0, 0], {"top_p": 0.7}, [LN2, -inf, 2 * LN2, -inf, 0]),
    HandRow(
        "top_p keeps min_tokens_to_keep", HALVES, {"top_p": 0.1, "min_tokens_to_keep": 2}, [*HALVES[:2], -inf, -inf]
    ),
    HandRow("of ties the highest ids", [0, 0, 0], {"top_p": 0.0, "min_tokens_to_keep": 2}, [-inf, 0, 0]),
    HandRow("top_p = 0 keeps the last of equal scores", [0, 0, 0], {"top_p": 0.0}, [-inf, -inf, 0]),
    HandRow(
        "top_p splits ties from above, min_p what is left from below",
        [LN2, 0, 0, 0, 0],
        {"top_p": 0.8, "min_p": 0.9, "min_tokens_to_keep": 3},
        [LN2, -inf, 0, 0, -inf],
    ),
    HandRow("temperature acts before top_p", [2, 0], {"temperature": 20.0, "top_p": 0.6}, [0.1, 0]),
    # min_p
    HandRow("min_p is relative to the largest", HALVES, {"min_p": 0.4}, [*HALVES[:2], -inf, -inf]),
    HandRow("below the ratio goes", HALVES, {"min_p": 0.6}, [HALVES[0], -inf, -inf, -inf]),
    HandRow("min_p = 1 keeps the ties of the largest", [1, 0, 1], {"min_p": 1.0}, [1, -inf, 1]),
    HandRow("min_p keeps min_tokens_to_keep", HALVES, {"min_p": 0.9, "min_tokens_to_keep": 3}, [*HALVES[:3], -inf]),
    # top_n_sigma: sigma is 1 in the first rows, sqrt(5) in the others
    HandRow("top_n_sigma counts from the largest", [1, 1, -1, -1], {"top_n_sigma": 1.5}, [1, 1, -inf, -inf]),
    HandRow("a score at the threshold stays", [1, 1, -1, -1], {"top_n_sigma": 2.0}, [1, 1, -1, -1]),
    HandRow("-inf has no part in sigma", [1, 1, -inf, -1, -1], {"top_n_sigma": 1.9}, [1, 1, -inf, -inf, -inf]),
    HandRow(
        "nor have suppressed ids", [9, 1, 1, -1, -1], {"top_n_sigma": 1.9, "suppress": [0]}, [-inf, 1, 1, -inf, -inf]
    ),
    HandRow("equal scores all stay", [2, 2, 2], {"top_n_sigma": 0.1}, [2, 2, 2]),
    HandRow("a finite score alone stays", [-inf, 3, -inf], {"top_n_sigma": 0.1}, [-inf, 3, -inf]),
    HandRow(
        "temperature moves no token over the threshold",
        [3, 1, -1, -3],
        {"top_n_sigma": 1.0, "temperature": 0.5},
        [6, 2, -inf, -inf],
    ),
    HandRow(
        "top_n_sigma keeps min_tokens_to_keep and its ties",
        [3, 1, 1, -5],
        {"top_n_sigma": 0.1, "min_tokens_to_keep": 2},
        [3, 1, 1, -inf],
    ),
    HandRow("a huge n keeps all", [3e38, 0, -3e38, -inf], {"top_n_sigma": 3e38}, [3e38, 0, -3e38, -inf]),
    # typical_p: H = 1.75 ln 2, so d / ln 2 is 0.75, 0.25, 1.25, 1.25
    HandRow("typical_p takes the nearest to the entropy", HALVES, {"typical_p": 0.2}, [-inf, HALVES[1], -inf, -inf]),
    HandRow("then the next until the mass is there", HALVES, {"typical_p": 0.7}, [*HALVES[:2], -inf, -inf]),
    HandRow("ties of the last all stay", HALVES, {"typical_p": 0.8}, HALVES),
    HandRow("equal scores are equally typical", [0, 0, 0, 0], {"typical_p": 0.3}, [0, 0, 0, 0]),
    HandRow(
        "typical_p keeps the nearest", HALVES, {"typical_p": 0.1, "min_tokens_to_keep": 2}, [*HALVES[:2], -inf, -inf]
    ),
    HandRow(
        "of equally near ones the lowest ids",
        HALVES,
        {"typical_p": 0.1, "min_tokens_to_keep": 3},
        [*HALVES[:3], -inf],
    ),
    # Probabilities 6, 6, 5, 3 of 20: H = 1.35, so d is 0.15, 0.15, 0.03, 0.54.
    HandRow(
        "above the entropy too",
        [log(6), log(6), log(5), log(3)],
        {"typical_p": 0.1, "min_tokens_to_keep": 2},
        [log(6), -inf, log(5), -inf],
    ),
    # epsilon and eta
    HandRow("epsilon_cutoff is absolute", HALVES, {"epsilon_cutoff": 0.2}, [*HALVES[:2], -inf, -inf]),
    HandRow("the largest always stays", HALVES, {"epsilon_cutoff": 0.9}, [HALVES[0], -inf, -inf, -inf]),
    HandRow("ties of the last kept stay", HALVES, {"epsilon_cutoff": 0.9, "min_tokens_to_keep": 3}, HALVES),
    # e^-H = 2^-1.75 = 0.297: eta 0.5 cuts at min(0.5, 0.707 * 0.297 = 0.210), eta 0.04 at min(0.04, 0.059)
    HandRow("eta_cutoff falls with the entropy", HALVES, {"eta_cutoff": 0.5}, [*HALVES[:2], -inf, -inf]),
    HandRow("eta_cutoff is at most itself", HALVES, {"eta_cutoff": 0.04}, HALVES),
    # top_h: terms -p ln p / ln 2 are 1/2, 1/2, 3/8, 3/8 of 1.75
    HandRow("top_h bounds the entropy of the prefix", HALVES, {"top_h": 0.6}, [*HALVES[:2], -inf, -inf]),
    HandRow("the first always stays", HALVES, {"top_h": 0.1}, [HALVES[0], -inf, -inf, -inf]),
    HandRow("of ties the lowest id", HALVES, {"top_h": 0.8}, [*HALVES[:3], -inf]),
    HandRow("top_h=None is off", HALVES, {"top_h": None}, HALVES),
    HandRow("top_h looks at 100 tokens", [0.0] * 102, {"top_h": 1.0}, [0.0] * 100 + [-inf] * 2),
    # order: each pair gives another result in the reverse order
    HandRow("top_n_sigma, then top_h", HALVES, {"top_n_sigma": 2.2, "top_h": 0.6}, [HALVES[0], -inf, -inf, -inf]),
    HandRow("top_h, then top_k", HALVES, {"top_h": 0.6, "top_k": 2}, [*HALVES[:2], -inf, -inf]),
    HandRow("top_k, then top_p", HALVES, {"top_k": 2, "top_p": 0.6}, [HALVES[0], -inf, -inf, -inf]),
    HandRow("top_p, then min_p", HALVES, {"top_p": 0.6, "min_p": 0.4}, [*HALVES[:2], -inf, -inf]),
    HandRow("min_p, then typical_p", HALVES, {"min_p": 0.4, "typical_p": 0.2}, [HALVES[0], -inf, -inf, -inf]),
    HandRow("typical_p, then epsilon", HALVES, {"typical_p": 0.7, "epsilon_cutoff": 0.3}, [*HALVES[:2], -inf, -inf]),
    HandRow("epsilon, then eta", HALVES, {"epsilon_cutoff": 0.2, "eta_cutoff": 0.5}, [HALVES[0], -inf, -inf, -inf]),
    # rows with a status other than ok come back as x
    HandRow("a row with NaN is x", [nan, 2, 1], {"top_k": 1, "temperature": 0.5}, [nan, 2, 1]),
    HandRow("a row with +inf is x", [inf, 2, 1], {"top_k": 1, "temperature": 0.5}, [inf, 2, 1]),
    HandRow("a row of -inf is x", [-inf, -inf], {"top_k": 1, "top_p": 0.5}, [-inf, -inf]),
    HandRow("a suppressed NaN harms nobody", [nan, 2, 1], {"top_k": 1, "suppress": [0]}, [-inf, 2, -inf]),
    HandRow(
        "one finite score survives anything",
        [-inf, 7, -inf],
        {"top_k": 1, "top_p": 0.0, "typical_p": 0.1},
        [-inf, 7, -inf],
    ),
]

RACES = [
    Race("the largest s - ln E wins", [0, 1, 2], [1, 1, 1], {}, 2),
    Race("little noise is luck", [0, 1, 2], [1, 0.125, 1], {}, 1),
    Race("temperature flattens before the race", [0, 2, 3], [1, 0.25, 1], {"temperature": 10.0}, 1),
    Race("ties go to the lowest id", [1, 1, 1], [2, 1, 1], {}, 1),
    Race("a tiny temperature leaves the noise to the best", [7, 7, 6], [2, 1, 1e-9], {"temperature": 1e-40}, 1),
    Race("so do scores beside which it is small", [1e20, 1e20, 1e19], [2, 1, 1e-9], {}, 1),
    Race("below 0 too", [-1e20, -2e20, -1e20], [2, 1e-9, 1], {}, 2),
    Race("a survivor beats a removed token with the best noise", [5, 0, 0], [1e30, 1e-30, 1], {"top_k": 1}, 0),
    Race("even with the largest noise", [-inf, 5, 0], [1e-30, 3e38, 3e38], {}, 1),
    Race("a greedy row ignores the noise", [0, 1, 2], [1e-9, 1, 1], {"temperature": 0}, 2),
    Race("greedy ties go to the lowest id", [0, 2, 2], [1, 1, 1e-9], {"do_sample": False}, 1),
    Race("filters do not act on a greedy row", [-1, -2], [1, 1], {"do_sample": False, "suppress": [0]}, 1),
    Race("NaN: the largest number, not drawn", [1, nan, 3, 2], [1e-9, 1, 1, 1], {}, 2),
    Race("all NaN: id 0", [nan, nan], [1, 1e-9], {}, 0),
    Race("+inf: the first of them", [1, inf, inf], [1e-9, 1, 1], {}, 1),
    Race("all masked: id 0", [-inf, -inf, -inf], [1, 1, 1e-9], {}, 0),
]
