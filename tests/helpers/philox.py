"""Philox4x32-10 in Python integers (Salmon et al. 2011)."""

from __future__ import annotations

ONES = 0xFFFFFFFF


def philox_in_integers(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & ONES, (p0 >> 32) ^ c[3] ^ k1, p0 & ONES]
        k0, k1 = (k0 + 0x9E3779B9) & ONES, (k1 + 0xBB67AE85) & ONES
    return c
