"""The scores of a row before temperature: logits + bias, penalties, bans, suppression and bitmask, on the fly.

What penalties and bans need to know of a token is marked beforehand: one bit "seen", one bit "banned", and how often it
was generated. A program marks the tokens of its own stretch of the vocabulary, so that programs share nothing.
"""

import triton
import triton.language as tl

# Bits of `tables`: what is given at all.
HISTORY = tl.constexpr(1)
BIAS = tl.constexpr(2)
SUPPRESS = tl.constexpr(4)
BITMASK = tl.constexpr(8)

# History positions and suppressed ids that are looked at together.
_RUN = tl.constexpr(1024)


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
    seen, banned, counts, begin, end, vocab_size,
    history, length, prompt_length, ngram_size, penalized, counted, suppress, suppress_count, tables,
):  # fmt: skip
    """Marks the tokens of [begin, end), begin a multiple of 32, in the row's tables; other programs own the rest.

    seen, banned: (ceil(vocab_size / 32),) int32, a bit per token. counts: (vocab_size,) int32, which is written at the
    tokens of the history only, and only where `counted`. history: (length,) int64.
    """
    run = tl.arange(0, _RUN)
    for start in range(begin // 32, (end + 31) // 32, _RUN):
        mine = start + run < (end + 31) // 32
        tl.store(seen + start + run, tl.zeros_like(run), mask=mine)
        tl.store(banned + start + run, tl.zeros_like(run), mask=mine)
    if (tables & HISTORY) == 0:
        length = length * 0
    if counted:
        for start in range(0, length, _RUN):
            token = tl.load(history + start + run, mask=start + run < length, other=-1)
            tl.store(counts + token, tl.zeros_like(run), mask=(token >= begin) & (token < end))
    tl.debug_barrier()

    if penalized:
        for start in range(0, length, _RUN):
            token = tl.load(history + start + run, mask=start + run < length, other=-1)
            mine = (token >= begin) & (token < end)
            _set_bits(seen, token, mine)
            if counted:
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
    if (tables & SUPPRESS) != 0:
        for start in range(0, suppress_count, _RUN):
            token = tl.load(suppress + start + run, mask=start + run < suppress_count, other=-1)
            _set_bits(banned, token, (token >= begin) & (token < end))
    tl.debug_barrier()


@triton.jit
def _set_bits(words, token, mask):
    one = tl.full(token.shape, 1, tl.int32)
    tl.atomic_or(words + (token >> 5), one << (token & 31).to(tl.int32), mask=mask, sem="relaxed")


@triton.jit
def scores_of(
    logits, token, inside, bias, bitmask, seen, banned, counts,
    tables, marked, counted, repetition, presence, frequency, largest_logit=0.0, log_sum=0.0,
):  # fmt: skip
    """The scores of `token`, of any shape; -inf where not `inside`. All pointers are those of the row.

    log_sum: ln of the sum of e^(logit - largest_logit) where log-softmax(logits) stand for the logits, else 0 as both.
    """
    x = tl.load(logits + token, mask=inside, other=float("-inf")).to(tl.float32)
    x = (x - largest_logit) - log_sum
    if (tables & BIAS) != 0:
        x += tl.load(bias + token, mask=inside, other=0.0)
    if marked:
        # Atomics wrote at L2, past an L1 that may hold older words.
        word = token >> 5
        bit = token & 31
        is_seen = ((tl.load(seen + word, mask=inside, other=0, cache_modifier=".cg") >> bit) & 1) != 0
        is_banned = ((tl.load(banned + word, mask=inside, other=0, cache_modifier=".cg") >> bit) & 1) != 0
        x = tl.where(is_seen, repetition_penalized(x, repetition), x)
        if counted:
            count = tl.load(counts + token, mask=inside & is_seen, other=0, cache_modifier=".cg")
            x = count_penalized(x, count, presence, frequency)
        x = tl.where(is_banned, float("-inf"), x)
    if (tables & BITMASK) != 0:
        allowed = (tl.load(bitmask + (token >> 5), mask=inside, other=-1) >> (token & 31)) & 1
        x = tl.where(allowed != 0, x, float("-inf"))
    return x
