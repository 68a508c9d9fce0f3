"""Processors that write a watermark into what is generated: green lists (KGW) and SynthID-Text.

Both draw from torch's own generators, so on one device they mark the tokens that transformers marks. Their detectors
are in `pygen.watermark.detectors`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import groupby, islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from pygen.config.watermark import SynthIDTextWatermarkingConfig, WatermarkingConfig
from pygen.notices import log
from pygen.processors.base import LogitsProcessor
from pygen.rules import Rule, checked, integer, number

Key = TypeVar("Key")
Value = TypeVar("Value")

logger = logging.getLogger("pygen.processors")

# "selfhash" asks for the best tokens only: more would cost a permutation of the vocabulary each.
_CANDIDATES = 40
_SEEDS = 2**64 - 1
_GREENLIST_BYTES = 2**26
_GREENLIST_RULES = {**WatermarkingConfig._rules, "vocab_size": integer(1), "greenlist_ratio": number("(0, 1)")}


def _check_arguments(arguments: Mapping[str, object], rules: Mapping[str, Rule]) -> None:
    for name, rule in rules.items():
        checked(name, arguments[name], rule)


def _check_shapes(input_ids: Tensor, scores: Tensor) -> None:
    if input_ids.dim() != 2 or scores.dim() != 2 or len(input_ids) != len(scores):
        raise ValueError(
            f"`input_ids` and `scores` must have shapes (rows, length) and (rows, vocab_size), "
            f"got {tuple(input_ids.shape)} and {tuple(scores.shape)}"
        )


def _trim(cache: dict[Key, Value], size: int) -> None:
    """Forget the oldest entries beyond `size`."""
    for key in list(islice(cache, max(0, len(cache) - size))):
        del cache[key]


class WatermarkLogitsProcessor(LogitsProcessor):
    """Adds `bias` to the scores of green tokens (Kirchenbauer et al., 2023, arXiv:2306.04634).

    ```
    "lefthash": seed = hashing_key * last id
    "selfhash": seed = min over the last context_width ids i, candidate c included, of hashing_key * t[i] * t[c], int64
    green list  = the first int(greenlist_ratio * vocab_size) of randperm(vocab_size), seeded with seed mod 2**64 - 1
    "lefthash" marks the whole green list, "selfhash" those of the 40 best candidates that are in their own green list
    ```

    t is `fixed_table + 1` at the id modulo 1,000,003. Which of equal scores are among the 40 is up to torch's sort, as
    in transformers. Lists depend on the device whose generator draws them: a detector needs the same kind of device.

    Call: input_ids (rows, length) integers, scores (rows, vocab_size or more) of any float dtype -> new scores, same
    dtype. Rows that do not end in `context_width` ids keep their scores: shorter ones, with a warning, and those with
    ids below 0, which are no tokens, among them. Raises `ValueError` for arguments out of range and for shapes that do
    not fit.
    """

    skips_hidden = True

    def __init__(
        self,
        vocab_size: int,
        device: str | torch.device,
        greenlist_ratio: float = 0.25,
        bias: float = 2.0,
        hashing_key: int = 15485863,
        seeding_scheme: str = "lefthash",
        context_width: int = 1,
    ) -> None:
        _check_arguments(locals(), _GREENLIST_RULES)
        self.vocab_size = vocab_size
        self.greenlist_size = int(vocab_size * greenlist_ratio)
        self.bias = bias
        self.hash_key = int(hashing_key)
        self.seeding_scheme = seeding_scheme
        self.context_width = context_width
        self.rng = torch.Generator(device=device)
        self.table_size = 1_000_003
        self.cache_size = 2**14
        self._greenlists: dict[int, Tensor] = {}
        self._are_green_cache: dict[tuple[int, int], bool] = {}

    @cached_property
    def fixed_table(self) -> Tensor:
        """(1,000,003,) int64: the permutation that "selfhash" looks ids up in."""
        self.rng.manual_seed(self.hash_key)
        return torch.randperm(self.table_size, generator=self.rng, device=self.rng.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        _check_shapes(input_ids, scores)
        rows, length = input_ids.shape
        if scores.shape[1] < self.vocab_size:
            raise ValueError(
                f"`scores` must have at least vocab_size={self.vocab_size} columns, got shape {tuple(scores.shape)}"
            )
        if length < self.context_width:
            log(
                logger,
                f"a watermark with context_width={self.context_width} needs as many tokens before it, got {length}: "
                "this step is not watermarked",
                about="a watermark without its context",
            )
            return scores
        if rows == 0:
            return scores.clone()
        is_marked = (input_ids[:, length - self.context_width :] >= 0).all(dim=1, keepdim=True)
        if self.seeding_scheme == "lefthash":
            seeds = self._seeds(input_ids[:, -1:])
            ids = torch.stack([self._greenlist(seed) for seed in seeds]).to(scores.device)
            marked = scores.gather(1, ids) + self.bias
        else:
            ids, green = self._judged_candidates(input_ids, scores)
            plain_scores = scores.gather(1, ids)
            marked = torch.where(green, plain_scores + self.bias, plain_scores)
        return torch.where(is_marked, scores.scatter(1, ids, marked), scores)

    def set_seed(self, input_seq: Tensor) -> None:
        """Seeds `rng` for the token after `input_seq` (length,), or with "selfhash" for its last token."""
        self.rng.manual_seed(self._seeds(input_seq[None, -self.context_width :])[0])

    def are_green(self, windows: Tensor, token_ids: Tensor) -> Tensor:
        """Whether each token (N,) is green after its window (N, context_width) of ids; (N,) bool on the CPU.

        With "selfhash" the window ends with the token itself. The answers are kept, up to `cache_size` of them.
        """
        pairs = list(zip(self._seeds(windows), token_ids.tolist(), strict=True))
        # Sorted, so that every list is drawn once for all the tokens that ask for it.
        unknown = sorted(set(pairs) - self._are_green_cache.keys())
        hits = []
        for seed, group in groupby(unknown, key=lambda pair: pair[0]):
            greenlist = self._draw_greenlist(seed)
            hits += [(greenlist == token_id).any() for _, token_id in group]
        if hits:
            self._are_green_cache.update(zip(unknown, torch.stack(hits).tolist(), strict=True))
        answers = torch.tensor([self._are_green_cache[pair] for pair in pairs], dtype=torch.bool, device="cpu")
        _trim(self._are_green_cache, self.cache_size)
        return answers

    def _judged_candidates(self, input_ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of the best candidates (rows, 40 or fewer), and whether each is green after its row."""
        count = min(_CANDIDATES, scores.shape[1])
        values, best = scores.topk(min(count + 1, scores.shape[1]), dim=-1)
        candidates = best[:, :count]
        # A score of -inf (or NaN) stays what it is, marked or not.
        matters = values[:, :count] > -torch.inf
        if values.shape[1] > count:
            straddles = (values[:, count - 1] == values[:, count]) & matters[:, -1]
            for row in straddles.nonzero().flatten().tolist():
                candidates[row] = scores[row].sort(dim=-1, descending=True).indices[:count]
        context = input_ids[:, input_ids.shape[1] - (self.context_width - 1) :]
        windows = torch.cat([context[:, None].expand(-1, count, -1), candidates[:, :, None]], dim=-1)
        green = torch.zeros_like(matters)
        green[matters] = self.are_green(windows[matters], candidates[matters]).to(green.device)
        return candidates, green

    def _seeds(self, windows: Tensor) -> list[int]:
        """One seed per window (N, up to context_width) of ids."""
        if self.seeding_scheme == "lefthash":
            return [self.hash_key * last_id % _SEEDS for last_id in windows[:, -1].tolist()]
        hashes = self.fixed_table[windows.to(self.rng.device) % self.table_size] + 1
        return [seed % _SEEDS for seed in (self.hash_key * hashes * hashes[:, -1:]).amin(dim=-1).tolist()]

    def _draw_greenlist(self, seed: int) -> Tensor:
        self.rng.manual_seed(seed)
        permutation = torch.randperm(self.vocab_size, generator=self.rng, device=self.rng.device)
        return permutation[: self.greenlist_size].clone()

    def _greenlist(self, seed: int) -> Tensor:
        """(greenlist_size,) ids; the lists used last are kept."""
        greenlist = self._greenlists.pop(seed, None)
        if greenlist is None:
            greenlist = self._draw_greenlist(seed)
        self._greenlists[seed] = greenlist
        _trim(self._greenlists, max(1, _GREENLIST_BYTES // max(1, 8 * self.greenlist_size)))
        return greenlist

    def _get_greenlist_ids(self, input_seq: Tensor) -> Tensor:
        return self._greenlist(self._seeds(input_seq[None, -self.context_width :])[0]).to(input_seq.device)


class SynthIDTextWatermarkState:
    """What one generation has seen: `context` (rows, ngram_len - 1) last ids, `context_history` (rows,
    context_history_size) hashes of the contexts watermarked last, newest first, both int64 and 0 at first."""

    def __init__(self, batch_size: int, ngram_len: int, context_history_size: int, device: str | torch.device) -> None:
        self.context = torch.zeros((batch_size, ngram_len - 1), dtype=torch.int64, device=device)
        self.context_history = torch.zeros((batch_size, context_history_size), dtype=torch.int64, device=device)
        self.num_calls = 0


class SynthIDTextWatermarkLogitsProcessor(LogitsProcessor):
    """Tournament sampling with one layer per key (SynthID-Text; Dathathri et al., Nature 634, 2024).

    ```
    hash(x_1 .. x_m) = h_m with h_0 = 1, h_i = (h_(i-1) + x_i) * 6364136223846793005 + 1, int64 with wraparound
    g[v, d] = sampling_table[hash(last ngram_len - 1 ids, v, keys[d]) mod sampling_table_size], 0 or 1
    p = softmax(scores);  for d in layers: p = p * (1 + g[:, d] - sum(g[:, d] * p));  scores = log(p)
    ```

    log(p) that is not finite becomes the lowest finite number. A row whose context hash is among the last
    `context_history_size` ones keeps its scores, and so does a row that has no distribution (NaN, +inf, or -inf
    everywhere), which the draw then reports. `debug_mode` watermarks scores of 1; `skip_first_ngram_calls` leaves the
    first ngram_len - 1 steps alone.

    One object per generation: what the first call gets, or `begin` tells, is the prompt, for which zeros stand in the
    context. All else is read from `input_ids`, so rows may change places, as beams do.

    Call: input_ids (rows, length) int64, scores (rows, vocab_size) of any float dtype -> new scores, same dtype.
    """

    def __init__(
        self,
        ngram_len: int,
        keys: list[int],
        sampling_table_size: int,
        sampling_table_seed: int,
        context_history_size: int,
        device: str | torch.device,
        skip_first_ngram_calls: bool = False,
        debug_mode: bool = False,
    ) -> None:
        _check_arguments(locals(), SynthIDTextWatermarkingConfig._rules)
        self.ngram_len = ngram_len
        self.keys = torch.tensor([int(key) for key in keys], device=device)
        generator = torch.Generator(device=device).manual_seed(sampling_table_seed)
        self.sampling_table = torch.randint(0, 2, (sampling_table_size,), generator=generator, device=device)
        self.context_history_size = context_history_size
        self.device = device
        self.state: SynthIDTextWatermarkState | None = None
        self._prompt_length = 0
        self.skip_first_ngram_calls = skip_first_ngram_calls
        self.debug_mode = debug_mode

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        _check_shapes(input_ids, scores)
        if self.state is not None and len(self.state.context) != len(scores):
            raise ValueError(
                f"`scores` must have the {len(self.state.context)} rows of the calls before, got {len(scores)}"
            )
        if self.debug_mode:
            scores = torch.ones_like(scores)
        state = self.state
        if state is None or input_ids.shape[1] < self._prompt_length:
            state = self.begin(len(scores), input_ids.shape[1])
        contexts = self._contexts(input_ids)
        state.context, state.num_calls = contexts[:, -1], contexts.shape[1]
        if self.skip_first_ngram_calls:
            contexts = contexts[:, self.ngram_len - 1 :]
            if contexts.shape[1] == 0:
                return scores

        size = self.context_history_size
        hashes = self._hash(contexts[:, -size - 1 :]).flip(1)
        context_hash, earlier = hashes[:, :1], hashes[:, 1:]
        is_repeated = (earlier == context_hash).any(dim=1, keepdim=True)
        if earlier.shape[1] < size:
            # What is not there yet counts as 0, and a hash may be 0.
            is_repeated |= context_hash == 0
        state.context_history = functional.pad(hashes, (0, max(size - hashes.shape[1], 0)))[:, :size]

        token_ids = torch.arange(scores.shape[1], device=self.device)
        hashes = self.accumulate_hash(context_hash, token_ids[:, None])
        return torch.where(is_repeated, scores, self._after_layers(scores, self._layers(hashes)))

    def begin(self, batch_size: int, prompt_length: int) -> SynthIDTextWatermarkState:
        """The generation begins with texts of `prompt_length` ids; without this, with those of the first call."""
        self._prompt_length = prompt_length
        self.state = SynthIDTextWatermarkState(batch_size, self.ngram_len, self.context_history_size, self.device)
        return self.state

    def _contexts(self, input_ids: Tensor) -> Tensor:
        """(rows, generated + 1, ngram_len - 1): the ids before every generated token, and before the next one."""
        generated = input_ids[:, self._prompt_length :].to(self.device)
        return functional.pad(generated, (self.ngram_len - 1, 0)).unfold(1, self.ngram_len - 1, 1)

    def update_scores(self, scores: Tensor, g_values: Tensor) -> Tensor:
        """Scores (rows, vocab_size) after the layers of `g_values` (rows, vocab_size, depth)."""
        return self._after_layers(scores, g_values.unbind(-1))

    def _layers(self, hashes: Tensor) -> Iterator[Tensor]:
        """The g-values (rows, vocab_size) of one key after the other; all at once would be depth times the memory."""
        for key in self.keys:
            yield self.sample_g_values(self.accumulate_hash(hashes, key[None]))

    def _after_layers(self, scores: Tensor, layers: Iterable[Tensor]) -> Tensor:
        probs = torch.softmax(scores, dim=1)
        no_distribution = probs[:, :1].isnan()
        for g_values in layers:
            g_values = g_values.to(probs.dtype)
            probs = probs * (1 + g_values - (g_values * probs).sum(dim=1, keepdim=True))
        log_probs = torch.log(probs)
        log_probs = torch.where(torch.isfinite(log_probs), log_probs, torch.finfo(log_probs.dtype).min)
        return torch.where(no_distribution, scores, log_probs)

    def accumulate_hash(
        self, current_hash: Tensor, data: Tensor, multiplier: int = 6364136223846793005, increment: int = 1
    ) -> Tensor:
        """`hash` of the class, continued from `current_hash` (...) over the last dimension of `data` (..., m)."""
        for values in data.unbind(-1):
            current_hash = (current_hash + values) * multiplier + increment
        return current_hash

    def _hash(self, ids: Tensor) -> Tensor:
        """`hash` from the start: (..., m) -> (...)."""
        return self.accumulate_hash(torch.ones(ids.shape[:-1], dtype=torch.int64, device=self.device), ids)

    def _with_keys(self, hashes: Tensor) -> Tensor:
        """(...) -> (..., depth)."""
        return self.accumulate_hash(hashes[..., None], self.keys[:, None])

    def compute_ngram_keys(self, ngrams: Tensor) -> Tensor:
        """Hashes (batch_size, num_ngrams, depth) of n-grams (batch_size, num_ngrams, ngram_len) with each key."""
        if ngrams.dim() != 3 or ngrams.shape[2] != self.ngram_len:
            raise ValueError(
                f"`ngrams` must have shape (batch_size, num_ngrams, ngram_len={self.ngram_len}), "
                f"got {tuple(ngrams.shape)}"
            )
        return self._with_keys(self._hash(ngrams))

    def _compute_keys(self, n_minus_1_grams: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts (batch_size, ngram_len - 1) followed by `indices` (batch_size, num_indices): hashes with each key
        (batch_size, num_indices, depth), and the hashes of the contexts alone (batch_size,)."""
        context_hash = self._hash(n_minus_1_grams)
        return self._with_keys(self.accumulate_hash(context_hash[:, None], indices[..., None])), context_hash

    def sample_g_values(self, ngram_keys: Tensor) -> Tensor:
        """The g-value, 0 or 1, of each hash; same shape, int64."""
        return self.sampling_table[ngram_keys % len(self.sampling_table)]

    def _check_input_ids_shape(self, input_ids: Tensor, min_length: int = 0) -> None:
        if input_ids.dim() != 2 or input_ids.shape[1] < min_length:
            at_least = f" with input_len >= ngram_len={min_length}" if min_length else ""
            raise ValueError(
                f"`input_ids` must have shape (batch_size, input_len){at_least}, got {tuple(input_ids.shape)}"
            )

    def compute_g_values(self, input_ids: Tensor) -> Tensor:
        """g-values (batch_size, input_len - (ngram_len - 1), depth) of the n-grams of texts (batch_size, input_len)."""
        self._check_input_ids_shape(input_ids, self.ngram_len)
        return self.sample_g_values(self.compute_ngram_keys(input_ids.unfold(1, self.ngram_len, 1)))

    def compute_context_repetition_mask(self, input_ids: Tensor) -> Tensor:
        """False where a context was among the `context_history_size` before it, so that its token was not watermarked.

        (batch_size, input_len) -> bool (batch_size, input_len - (ngram_len - 1)).
        """
        self._check_input_ids_shape(input_ids, self.ngram_len)
        hashes = self._hash(input_ids[:, :-1].unfold(1, self.ngram_len - 1, 1))
        ordered, places = hashes.sort(dim=1, stable=True)
        again = torch.zeros_like(hashes, dtype=torch.bool)
        again[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (places.diff(dim=1) <= self.context_history_size)
        repeated = torch.zeros_like(again).scatter(1, places, again)
        # The history starts full of zeros, and a hash may be 0.
        repeated[:, : self.context_history_size] |= hashes[:, : self.context_history_size] == 0
        return ~repeated

    def compute_eos_token_mask(self, input_ids: Tensor, eos_token_id: int | None) -> Tensor:
        """False from the first `eos_token_id` of a text on (None: there is none); bool (batch_size, input_len)."""
        self._check_input_ids_shape(input_ids)
        if eos_token_id is None:
            return torch.ones_like(input_ids, dtype=torch.bool)
        return (input_ids == eos_token_id).cumsum(dim=1) == 0

    def expected_mean_g_value(self, vocab_size: int, coinflip_prob: float = 0.5) -> float:
        """Mean g-value q + q(1 - q)(1 - 1/vocab_size) of text watermarked by one layer of a uniform model.

        q = `coinflip_prob` is the share of ones in the sampling table.
        """
        return coinflip_prob + coinflip_prob * (1 - coinflip_prob) * (1 - (1 / vocab_size))


WatermarkingConfig._processor_class = WatermarkLogitsProcessor
SynthIDTextWatermarkingConfig._processor_class = SynthIDTextWatermarkLogitsProcessor
