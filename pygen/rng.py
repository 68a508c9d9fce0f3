"""The noise of a draw: seeds of rows, Philox4x32-10 in plain torch, and the state of a torch generator.

Two sources give the exponential noise E of an element (row, token id):

- "philox": a function of (row seed, step, token id) alone, so that a token depends neither on the other rows of a batch
  nor on the backend.
- "torch": the noise that `torch.multinomial` would draw from a generator for a (rows, vocab_size) tensor.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_HOST = torch.device("cpu")
_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10

TARGET_STREAM, ACCEPTANCE_STREAM = 0, 2  # 1 stays reserved for the draws of a draft model


# By id of the generator, which torch 2.11 gives no weak references. A lock lives while a thread has it, or is recent.
_locks: WeakValueDictionary[int, threading.RLock] = WeakValueDictionary()
_recent: deque[threading.RLock] = deque(maxlen=64)
_locks_lock = threading.Lock()


def lock_of(generator: torch.Generator) -> threading.RLock:
    """Returns the lock under which pygen draws from `generator`.

    A kernel with torch's noise reads the generator's state, runs, and writes the advanced state back. Another thread
    that drew in between would get the same noise, so the lock serialises draws from one generator.
    """
    lock = _locks.get(id(generator))
    if lock is None:
        with _locks_lock:
            lock = _locks.setdefault(id(generator), threading.RLock())
            _recent.append(lock)
    return lock


def default_generator(device: torch.device) -> torch.Generator:
    """Returns torch's default generator on `device`."""
    if device.type != "cuda":
        return torch.default_generator
    torch.cuda.init()
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@contextmanager
def seed_given_back(generator: torch.Generator | None) -> Iterator[None]:
    """Restores the generator if the body raises after one `draw_seed(generator)`.

    It does not restore the state if another thread has drawn from the generator meanwhile.
    """
    source = generator if isinstance(generator, torch.Generator) else torch.default_generator
    before = source.get_state()
    try:
        yield
    except BaseException:
        give_seed_back(source, before)
        raise


def give_seed_back(source: torch.Generator, before: Tensor) -> None:
    """Undoes one `draw_seed(source)` made in state `before`, unless another thread has drawn from it since."""
    replay = torch.Generator(source.device)
    replay.set_state(before)
    draw_seed(replay)
    with lock_of(source):
        if source.get_state().equal(replay.get_state()):
            source.set_state(before)


def splitmix64(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection on 64-bit words that mixes all bits."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def row_seed(seed: int, row: int) -> int:
    """Returns the 64-bit seed of `row` for a call's `seed`: output number row + 1 of SplitMix64 started at `seed`."""
    return splitmix64(seed + (row + 1) * _GOLDEN_GAMMA)


def row_seeds(seed: int, rows: int, device: torch.device = _HOST) -> Tensor:
    """Returns `row_seed(seed, row)` for every row: (rows,) int64, the bit patterns of the unsigned words."""
    if rows <= 16 and device.type == "cpu":
        return torch.tensor([as_int64(row_seed(seed, row)) for row in range(rows)], dtype=torch.int64, device="cpu")
    value = torch.arange(1, rows + 1, dtype=torch.int64, device=device) * as_int64(_GOLDEN_GAMMA) + as_int64(seed)
    value = (value ^ _shift_right(value, 30)) * as_int64(0xBF58476D1CE4E5B9)
    value = (value ^ _shift_right(value, 27)) * as_int64(0x94D049BB133111EB)
    return value ^ _shift_right(value, 31)


def draw_seed(generator: torch.Generator | None) -> int:
    """Draws a seed in [0, 2**63 - 1) from `generator`, or from torch's default generator if it is None."""
    source = torch.default_generator if generator is None else generator
    with lock_of(source):
        return int(torch.randint(2**63 - 1, (), generator=source, device=source.device).item())


def as_int64(word: int) -> int:
    """Returns the signed integer with the bit pattern of an unsigned 64-bit word."""
    word &= _MASK64
    return word - (1 << 64) if word >> 63 else word


def _shift_right(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & (_MASK64 >> bits)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words for every counter, in int64 tensors that broadcast.

    A product of two 32-bit words wraps around in int64, but its high word is correct after masking.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        product0, product1 = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & _MASK32, (product1 >> 32) & _MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & _MASK32, high0 ^ c3 ^ k1, product0 & _MASK32
        k0, k1 = (k0 + _PHILOX_KEY_STEPS[0]) & _MASK32, (k1 + _PHILOX_KEY_STEPS[1]) & _MASK32
    return c0, c1, c2, c3


def philox_words(seeds: Tensor, steps: Tensor, vocab_size: int, stream: int = TARGET_STREAM) -> Tensor:
    """Returns the random word of every token id: (rows, vocab_size) int64 in [0, 2**32).

    word = philox4x32_10(key = (seed low, seed high), counter = (id >> 2, step, stream, 0))[id & 3]

    seeds, steps: (rows,) int64.
    """
    blocks = torch.arange((vocab_size + 3) // 4, device=seeds.device)
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    counter = (blocks[None, :], (steps & _MASK32)[:, None], zero + stream, zero)
    key = ((seeds & _MASK32)[:, None], _shift_right(seeds, 32)[:, None])
    words = torch.stack(torch.broadcast_tensors(*philox4x32(counter, key)), dim=-1)
    return words.reshape(seeds.shape[0], -1)[:, :vocab_size]


def philox_exponential(seeds: Tensor, steps: Tensor, vocab_size: int, stream: int = TARGET_STREAM) -> Tensor:
    """Returns exponential noise from the words: (rows, vocab_size) float32.

    u = float32((word + 1/2) / 2**32), at most 1 - 2**-24;  E = -log1p(-u)
    """
    uniform = _uniform(philox_words(seeds, steps, vocab_size, stream))
    return -torch.log1p(-uniform)


def philox_uniform(seeds: Tensor, steps: Tensor, token_ids: Tensor, stream: int) -> Tensor:
    """Returns u of one token id per row: (rows,) float32 in (0, 1), computed as in `philox_exponential`."""
    zero = torch.zeros((), dtype=torch.int64, device=seeds.device)
    words = philox4x32(
        (token_ids >> 2, steps & _MASK32, zero + stream, zero), (seeds & _MASK32, _shift_right(seeds, 32))
    )
    return _uniform(torch.stack(words, dim=-1).gather(1, (token_ids & 3)[:, None])[:, 0])


def _uniform(words: Tensor) -> Tensor:
    return ((words.double() + 0.5) * 2.0**-32).float().clamp_(max=1.0 - 2.0**-24)


def torch_exponential(rows: int, vocab_size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Draws the noise that `torch.multinomial` draws for (rows, vocab_size) float32 probabilities."""
    given = torch.empty(rows, vocab_size, dtype=torch.float32, device=device)
    with lock_of(default_generator(device) if generator is None else generator):
        return given.exponential_(generator=generator)
