"""Row seeds and Philox words, against published vectors and an independent computation in Python integers."""

from __future__ import annotations

import torch

from pygen import rng
from pygen.ops import sample
from tests.helpers.extra_backends import EMULATED
from tests.helpers.philox import ONES, philox_in_integers


def words(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    return [int(word) for word in rng.philox4x32((c0, c1, c2, c3), (torch.tensor([key[0]]), torch.tensor([key[1]])))]


def test_known_answers() -> None:
    """Vectors for philox4x32-10 from Random123's kat_vectors."""
    assert words((0,) * 4, (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words((ONES,) * 4, (ONES, ONES)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert words(pi, (0xA4093822, 0x299F31D0)) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_words_are_keyed_by_seed_step_and_id() -> None:
    seed, step = 2**64 - 12345678901, 2**32 - 2
    row = rng.philox_words(torch.tensor([rng.as_int64(seed)]), torch.tensor([step]), 11)[0].tolist()
    key = (seed & ONES, seed >> 32)
    assert row == [philox_in_integers((i >> 2, step, 0, 0), key)[i & 3] for i in range(11)]
    draft = rng.philox_words(torch.tensor([5]), torch.tensor([0]), 1, stream=1)
    assert draft.tolist() == [[philox_in_integers((0, 0, 1, 0), (5, 0))[0]]]


def test_exponential_from_words() -> None:
    noise = rng.philox_exponential(rng.row_seeds(0, 40), torch.zeros(40, dtype=torch.int64), 5000)
    assert noise.dtype is torch.float32
    assert (noise > 0).all() and noise.isfinite().all()
    assert abs(noise.double().mean().item() - 1) < 0.01 and abs(noise.double().var().item() - 1) < 0.03


def test_row_seeds() -> None:
    """splitmix64 from 0 starts with 0xE220A8397B1DCDAF."""
    assert rng.row_seed(0, 0) == 0xE220A8397B1DCDAF
    for seed in (0, 1, 2**63, 2**64 - 1):
        assert rng.row_seeds(seed, 4).tolist() == [rng.as_int64(rng.row_seed(seed, row)) for row in range(4)]
    assert rng.row_seeds(1, 0).shape == (0,)


def test_as_int64() -> None:
    assert [rng.as_int64(word) for word in (0, 2**63 - 1, 2**63, 2**64 - 1)] == [0, 2**63 - 1, -(2**63), -1]


def test_the_kernel_uses_these_words(kernel_backend: str) -> None:
    """With equal scores the id with the smallest word wins, so every word of a row matters."""
    seeds = torch.cat([rng.row_seeds(6, 20 if EMULATED else 2000), torch.tensor([0, -1, 2**63 - 1, -(2**63)])])
    for vocab_size in (1, 3, 64, 133):
        for step in (0, 1, 2**32 - 1):
            steps = torch.full_like(seeds, step)
            tokens = sample(
                torch.zeros(len(seeds), vocab_size), seed=seeds, step=step, backend=kernel_backend
            ).token_ids
            noise = rng.philox_exponential(seeds, steps, vocab_size)
            two = noise.topk(min(2, vocab_size), largest=False).values
            clear = two[:, -1] > two[:, 0] * (1 + 1e-6) if vocab_size > 1 else torch.ones(len(seeds), dtype=torch.bool)
            assert clear.double().mean() > 0.9
            assert tokens[clear].equal(noise.argmin(1)[clear])
