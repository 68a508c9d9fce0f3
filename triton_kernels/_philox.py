"""pygen's noise: the Philox words of `csrc/common/philox.h`, and the exponential variates made from them."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

TARGET_DRAWS = tl.constexpr(0)
ACCEPTANCE = tl.constexpr(2)

_LARGEST_UNIFORM = tl.constexpr(1 - 2**-24)


class Noise(NamedTuple):
    """The exponential variates of a row: those in `given` where `is_given`, else those of Philox."""

    given: Any  # (vocab_size,) float32
    is_given: Any
    seed: Any  # int64 bit pattern
    step: Any  # the low 32 bits count


@triton.jit
def noise_words(seed, step, token_ids, stream: tl.constexpr):
    """The word of every token id: word id % 4 of the block at counter (id // 4, step, stream, 0) under `seed`.

    seed: scalar int64 bit pattern. step: scalar, its low 32 bits count. token_ids: int32.
    """
    zero = token_ids * 0
    block = (token_ids >> 2).to(tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, block, zero + step.to(tl.int32), zero + stream, zero)
    lane = token_ids & 3
    return tl.where(lane < 2, tl.where(lane == 0, word0, word1), tl.where(lane == 2, word2, word3))


@triton.jit
def noise_words_of_run(seed, step, begin, stream: tl.constexpr, LENGTH: tl.constexpr):
    """`noise_words` of the ids [begin, begin + LENGTH), begin a multiple of 4; computes every block once."""
    block = (begin >> 2) + tl.arange(0, LENGTH // 4)
    zero = block * 0
    word0, word1, word2, word3 = tl.philox(seed, block, zero + step.to(tl.int32), zero + stream, zero)
    return tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), (LENGTH,))


@triton.jit
def uniform_of(word):
    """u = float32((word + 1/2) / 2**32), at most 1 - 2**-24, of uint32 words."""
    # The half becomes the lowest bit of an odd integer, and decides the rounding. Words from 2**31 on leave no bit for
    # it; there a lowest bit of 1 rounds alike.
    wide = word >= 0x80000000
    odd = tl.where(wide, word | 1, word * 2 + 1)
    u = odd.to(tl.float32) * tl.where(wide, 2.0**-32, 2.0**-33)
    return tl.minimum(u, _LARGEST_UNIFORM)


@triton.jit
def exponential_of(word):
    """E = -log1p(-u): 1 - u rounds, and the quotient restores what it lost (Higham 2002, section 1.14.1)."""
    u = uniform_of(word)
    rest = 1.0 - u
    lost = rest - 1.0
    return tl.where(lost == 0.0, u, u * (tl.log(rest) / tl.where(lost == 0.0, 1.0, lost)))


@triton.jit
def exponentials_of(noise, token_ids, inside):
    """The variates of token ids, int32 of any shape."""
    if noise.is_given:
        exponential = tl.load(noise.given + token_ids, mask=inside, other=1.0)
    else:
        exponential = exponential_of(noise_words(noise.seed, noise.step, token_ids, TARGET_DRAWS))
    return exponential


@triton.jit
def exponentials_of_run(noise, begin, inside, LENGTH: tl.constexpr):
    """The variates of the ids [begin, begin + LENGTH), begin a multiple of 4."""
    if noise.is_given:
        exponential = tl.load(noise.given + begin + tl.arange(0, LENGTH), mask=inside, other=1.0)
    else:
        exponential = exponential_of(noise_words_of_run(noise.seed, noise.step, begin, TARGET_DRAWS, LENGTH))
    return exponential
