"""The random knobs of `sample`: checked once, and converted to the form that backends take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pygen import rng as noise_sources
from pygen.backends import BackendError
from pygen.ops import _checks as checks
from pygen.ops import _numbers as numbers
from pygen.ops._checks import Like

RNGS = ("philox", "torch")
PHILOX_CODE, TORCH_CODE, GIVEN_CODE = range(3)


@dataclass(frozen=True)
class Noise:
    """The source of noise: `given`, else torch's from `generator`, else Philox's from `seeds` and `steps`.

    draws False: every row is greedy, and the call consumes nothing.
    """

    draws: bool
    rng: str
    seeds: Tensor  # (rows,) int64
    steps: Tensor | None  # (rows,) int64, or None: the step of the call
    given: Tensor | None  # (rows, vocab_size) float32
    generator: torch.Generator

    def kernel_arguments(self) -> dict[str, int]:
        """Returns keyword arguments for the plans of pygen._C. The tensors must outlive the plan."""
        code = TORCH_CODE if self.advances_generator else PHILOX_CODE if self.given is None else GIVEN_CODE
        return {
            "rng": code,
            "seeds_ptr": self.seeds.data_ptr(),
            "noise_ptr": 0 if self.given is None else self.given.data_ptr(),
            "noise_stride": 0 if self.given is None else self.given.stride(0),
        }

    def step_arguments(self) -> dict[str, int]:
        """Returns further arguments for plans with a step per row."""
        return {"steps_ptr": 0 if self.steps is None else self.steps.data_ptr()}

    @property
    def advances_generator(self) -> bool:
        return self.draws and self.given is None and self.rng == "torch"

    def reference_arguments(self, step: int) -> dict[str, Any]:
        return {
            "do_sample": self.draws,
            "seed": self.seeds,
            "step": step if self.steps is None else self.steps,
            "noise": self.given,
            "rng": self.rng,
            "generator": self.generator,
        }


def given_by_torch(noise: Noise, like: Like) -> tuple[Noise, Callable[[], object]]:
    """Returns torch's noise as a tensor, for kernels that cannot compute it, and a function that refills it."""
    if not noise.advances_generator:
        return noise, lambda: None
    given = torch.empty(like.rows, like.vocab_size, dtype=torch.float32, device=like.device)

    def refill() -> None:
        with noise_sources.lock_of(noise.generator):
            given.exponential_(generator=noise.generator)

    return replace(noise, given=given), refill


def check_noise(
    like: Like,
    *,
    draws: bool,
    seed: int | Sequence[int] | Tensor | None,
    step: int | Tensor | None,
    noise: Tensor | None,
    rng: str,
    generator: torch.Generator | None,
) -> Noise:
    """Checks the random knobs. It draws a missing seed last, after everything that could refuse the call."""
    if rng not in RNGS:
        raise ValueError(f"`rng` must be 'philox' or 'torch', got {rng!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"`generator` must be a torch.Generator, got {type(generator).__name__}")
    for name, given in (("seed", seed), ("generator", generator)):
        if given is not None and noise is not None:
            raise ValueError(f"`{name}` must be None where `noise` is given, got {_shown(given)}")
    if rng == "torch":
        for name, source in (("seed", seed), ("noise", noise)):
            if source is not None:
                raise ValueError(f"`{name}` must be None with rng='torch', got {_shown(source)}")
        _check_torch_device(like, generator)
    if seed is not None and generator is not None:
        raise ValueError(f"`generator` must be None where `seed` is given, got {_shown(generator)}")

    if noise is not None:
        _check_given(noise, like)
    steps = step if isinstance(step, Tensor) else None
    if steps is not None:
        checks.check_output("step", steps, torch.int64, "(rows,)", (like.rows,), like)
    return Noise(
        draws=draws,
        rng=rng,
        seeds=_seeds(seed, like, generator, wanted=draws and noise is None and rng == "philox"),
        steps=steps,
        given=noise,
        generator=_default_generator(like.device, rng) if generator is None else generator,
    )


def _seeds(
    seed: int | Sequence[int] | Tensor | None, like: Like, generator: torch.Generator | None, wanted: bool
) -> Tensor:
    if isinstance(seed, bool):
        raise TypeError("`seed` must be an int, a sequence of ints or an int64 tensor, got bool")
    if isinstance(seed, Tensor) and seed.dim() == 0:
        checks.check_tensor("seed", seed)
        checks.check_ids("seed", seed)
        seed = int(seed.item())
    if isinstance(seed, Integral):
        numbers.check_seed("seed", int(seed))
        return _row_seeds(int(seed), like)
    if seed is not None:
        return numbers.seed_words("seed", seed, like)
    if not wanted:
        return torch.zeros(like.rows, dtype=torch.int64, device=like.device)
    if checks.is_captured(like.device):
        raise ValueError(
            "`seed` must be given while a CUDA graph captures the call, because a drawn one would repeat in every "
            "replay, got None"
        )
    return _row_seeds(noise_sources.draw_seed(generator), like)


def _row_seeds(seed: int, like: Like) -> Tensor:
    """Returns the seeds on the device. A CUDA graph cannot capture their copy, which is faster than their kernels."""
    if checks.is_captured(like.device):
        return noise_sources.row_seeds(seed, like.rows, like.device)
    return noise_sources.row_seeds(seed, like.rows).to(like.device)


def _check_torch_device(like: Like, generator: torch.Generator | None) -> None:
    if like.device.type not in ("cpu", "cuda"):
        raise BackendError(
            f"`sample`: rng='torch' cannot run on {like.device}: torch's noise exists for cpu and cuda only"
        )
    if generator is not None and generator.device != like.device:
        raise ValueError(f"`generator` must be on {like.device} like `logits`, got {generator.device}")


def _default_generator(device: torch.device, rng: str) -> torch.Generator:
    """Returns torch's default generator: the host's for seeds, the device's for torch's noise."""
    return noise_sources.default_generator(device) if rng == "torch" else torch.default_generator


def _check_given(noise: Tensor, like: Like) -> None:
    checks.check_tensor("noise", noise)
    checks.check_dtype("noise", noise, torch.float32)
    checks.check_shape("noise", noise, "(rows, vocab_size)", (like.rows, like.vocab_size))
    checks.check_device("noise", noise, like.device, like.name)
    checks.check_last_stride("noise", noise)
    if checks.is_captured(like.device):
        return
    refused = (~numbers.FINITE_POSITIVE.holds(noise)).nonzero()
    if len(refused) > 0:
        row, token_id = refused[0].tolist()
        value = noise[row, token_id].item()
        raise ValueError(f"`noise` must be finite and > 0, got {value} in row {row} at id {token_id}")


def _shown(value: object) -> str:
    return (
        "a tensor"
        if isinstance(value, Tensor)
        else "a torch.Generator"
        if isinstance(value, torch.Generator)
        else repr(value)
    )
