"""The scores of a row before temperature: logits + bias, penalties, bans, suppression and bitmask, on the fly.

First a program marks the tokens of its stretch of the vocabulary, so that programs share nothing: one bit "seen", one
bit "banned", and how often the token was generated.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from pygen.triton_kernels._knobs import COUNTED, INT_KNOBS, PENALIZED, PROMPT_LENGTH

NO_REPEAT_NGRAM_SIZE = tl.constexpr(INT_KNOBS.index("no_repeat_ngram_size"))

# Bits of `modes`: the tables that are given.
HAS_HISTORY = tl.constexpr(1)
HAS_BIAS = tl.constexpr(2)
HAS_SUPPRESS = tl.constexpr(4)
HAS_BITMASK = tl.constexpr(8)
_NO_TABLES = tl.constexpr(0)

# History positions and suppressed ids that are looked at together.
_RUN = tl.constexpr(1024)


class Scores(NamedTuple):
    """What the scores of a row are made of; all pointers are those of the row."""

    logits: Any  # (vocab_size,) float32, float16 or bfloat16
    bias: Any  # (vocab_size,) float32
    bitmask: Any  # (ceil(vocab_size / 32),) int32
    seen: Any  # (ceil(vocab_size / 32),) int32
    banned: Any  # the same
    counts: Any  # (vocab_size,) int32
    modes: Any
    is_marked: Any  # whether `seen` and `banned` are read
    is_counted: Any  # whether `counts` are read
    repetition_penalty: Any
    presence_penalty: Any
    frequency_penalty: Any
    stored: Any  # (vocab_size,) float32: the finished scores, where `is_stored`; else scratch
    is_stored: Any


@triton.jit
def plain_scores(logits, work, stored, is_stored):
    """`Scores` that are the logits, or stored. Nothing reads the other pointers, but their types must fit."""
    return Scores(
        logits=logits,
        bias=stored,
        bitmask=work.seen,
        seen=work.seen,
        banned=work.banned,
        counts=work.counts,
        modes=_NO_TABLES,
        is_marked=False,
        is_counted=False,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        stored=stored,
        is_stored=is_stored,
    )


@triton.jit
def repetition_penalized(score, repetition_penalty):
    """Keskar et al. 2019, with Hugging Face's sign rule."""
    return tl.where(score < 0.0, score * repetition_penalty, tl.math.div_rn(score, repetition_penalty))


@triton.jit
def count_penalized(score, count, presence_penalty, frequency_penalty):
    """OpenAI's definition; count: how often the token was generated."""
    return tl.where(count > 0, (score - count.to(tl.float32) * frequency_penalty) - presence_penalty, score)


@triton.jit
def mark_tokens(
    seen, banned, counts, begin, end, vocab_size, flags, int_knobs, history, length, suppress, suppress_count, modes
):
    """Marks the tokens of [begin, end), begin a multiple of 32, in the row's tables; other programs own the rest.

    seen, banned: (ceil(vocab_size / 32),) int32, a bit per token. counts: (vocab_size,) int32; only those of tokens of
    the history are written, and only for rows with the flag COUNTED. history: (length,) int64.
    """
    is_counted = (flags & COUNTED) != 0
    ngram_size = tl.load(int_knobs + NO_REPEAT_NGRAM_SIZE)
    run = tl.arange(0, _RUN)
    for start in range(begin // 32, (end + 31) // 32, _RUN):
        mine = start + run < (end + 31) // 32
        tl.store(seen + start + run, tl.zeros_like(run), mask=mine)
        tl.store(banned + start + run, tl.zeros_like(run), mask=mine)
    if (modes & HAS_HISTORY) == 0:
        length = length * 0
    if is_counted:
        for start in range(0, length, _RUN):
            token = tl.load(history + start + run, mask=start + run < length, other=-1)
            tl.store(counts + token, tl.zeros_like(run), mask=(token >= begin) & (token < end))
    tl.debug_barrier()

    if (flags & PENALIZED) != 0:
        prompt_length = tl.load(int_knobs + PROMPT_LENGTH)
        for start in range(0, length, _RUN):
            token = tl.load(history + start + run, mask=start + run < length, other=-1)
            mine = (token >= begin) & (token < end)
            _set_bits(seen, token, mine)
            if is_counted:
                generated = mine & (start + run >= prompt_length)
                tl.atomic_add(counts + token, tl.full((_RUN,), 1, tl.int32), mask=generated, sem="relaxed")
    if (ngram_size > 0) & (ngram_size <= length):
        for start in range(ngram_size - 1, length, _RUN):
            at = start + run
            token = tl.load(history + at, mask=at < length, other=-1)
            same = (token >= begin) & (token < end)
            for j in range(1, ngram_size):
                wanted = tl.load(history + length - j)
                found = tl.load(history + at - j, mask=at < length, other=-1)
                same = same & (found == wanted) & (found >= 0) & (found < vocab_size)
            _set_bits(banned, token, same)
    if (modes & HAS_SUPPRESS) != 0:
        for start in range(0, suppress_count, _RUN):
            token = tl.load(suppress + start + run, mask=start + run < suppress_count, other=-1)
            _set_bits(banned, token, (token >= begin) & (token < end))
    tl.debug_barrier()


@triton.jit
def _set_bits(words, token, mask):
    one = tl.full(token.shape, 1, tl.int32)
    tl.atomic_or(words + (token >> 5), one << (token & 31).to(tl.int32), mask=mask, sem="relaxed")


@triton.jit
def scores_of(scores, token, inside, largest_logit=0.0, log_sum=0.0):
    """The scores of `token`, of any shape; -inf where not `inside`.

    log_sum: ln of the sum of e^(logit - largest_logit) where log_softmax(logits) takes the place of the logits, else 0
    as both.
    """
    x = tl.load(scores.logits + token, mask=inside, other=float("-inf")).to(tl.float32)
    x = (x - largest_logit) - log_sum
    if (scores.modes & HAS_BIAS) != 0:
        x += tl.load(scores.bias + token, mask=inside, other=0.0)
    if scores.is_marked:
        # Atomics wrote to L2, and L1 may hold older words.
        word = token >> 5
        bit = token & 31
        is_seen = ((tl.load(scores.seen + word, mask=inside, other=0, cache_modifier=".cg") >> bit) & 1) != 0
        is_banned = ((tl.load(scores.banned + word, mask=inside, other=0, cache_modifier=".cg") >> bit) & 1) != 0
        x = tl.where(is_seen, repetition_penalized(x, scores.repetition_penalty), x)
        if scores.is_counted:
            count = tl.load(scores.counts + token, mask=inside & is_seen, other=0, cache_modifier=".cg")
            x = count_penalized(x, count, scores.presence_penalty, scores.frequency_penalty)
        x = tl.where(is_banned, float("-inf"), x)
    if (scores.modes & HAS_BITMASK) != 0:
        allowed = (tl.load(scores.bitmask + (token >> 5), mask=inside, other=-1) >> (token & 31)) & 1
        x = tl.where(allowed != 0, x, float("-inf"))
    return x


@triton.jit
def reread(scores, token, inside):
    """The scores of tokens of a scanned row: as the scan stored them, or computed again."""
    if scores.is_stored:
        x = tl.load(scores.stored + token, mask=inside, other=float("-inf"))
    else:
        x = scores_of(scores, token, inside)
    return x
