"""Times `pygen.ops.reorder_cache` against the reordering of transformers' DynamicCache.

python -m benchmarks.bench_reorder_cache --table     two batch sizes, two ages of the search
python -m benchmarks.bench_reorder_cache --quick     a look, in seconds
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks import cli
from benchmarks.harness import BASELINE, Case, Options, Variant
from benchmarks.inputs import rotation
from pygen.ops import reorder_cache


@dataclasses.dataclass(frozen=True)
class Spec:
    """A cache in the middle of a search: every second row copies the newer half of the generated positions."""

    batch_size: int
    num_beams: int
    prompt: int
    generated: int
    layers: int = 30
    heads: int = 3
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16

    @property
    def rows(self) -> int:
        return self.batch_size * self.num_beams

    @property
    def length(self) -> int:
        return self.prompt + self.generated

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (2 * self.layers, self.rows, self.heads, self.length, self.head_dim)

    @property
    def label(self) -> str:
        size = f"{self.layers} layers, {self.heads} heads of {self.head_dim}"
        return f"{size}, {self.num_beams} beams, {self.prompt} + {self.generated} positions, half the rows move"

    @property
    def beam_idx(self) -> torch.Tensor:
        return torch.arange(self.rows) // 2 * 2

    @property
    def start(self) -> int:
        return self.prompt + self.generated // 2


SPECS = {
    "quick": [Spec(1, 4, 32, 32, layers=4)],
    "table": [Spec(batch_size, 4, 512, generated) for batch_size in (1, 4) for generated in (16, 128)],
}


def bytes_moved(tensors: Sequence[torch.Tensor], beam_idx: torch.Tensor, start: int, length: int) -> int:
    """The fewest bytes to read and write: the positions that move, of the rows that move."""
    moving = int((beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).sum())
    position = sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in tensors)
    return 2 * moving * (length - start) * position


def make_case(spec: Spec, options: Options, device: torch.device, backend: str) -> Case:
    states = torch.randn(spec.shape, generator=torch.Generator().manual_seed(0)).to(spec.dtype).to(device)
    beam_idx, start, length = spec.beam_idx.to(device), spec.start, spec.length
    backend = device.type if backend == "auto" else backend
    # A row already shares the positions before `start` with its source.
    states[:, :, :, :start] = states[:, beam_idx, :, :start]
    buffers = rotation(states.flatten(0, 1).flatten(1), options.cache)
    tensors = [list(buffer.view(spec.shape).unbind()) for buffer in buffers]
    caches = [hf_cache(of_buffer) for of_buffer in tensors]
    n = len(buffers)

    def check() -> dict[str, str]:
        ours, theirs = list(states.clone().unbind()), hf_cache(list(states.unbind()))
        reorder_cache(ours, beam_idx, start, length, backend=backend)
        theirs.reorder_cache(beam_idx)
        wanted = [tensor for layer in theirs.layers for tensor in (layer.keys, layer.values)]
        same = all(torch.equal(mine, want) for mine, want in zip(ours, wanted, strict=True))
        return {} if same else {"pygen": "the cache is not that of transformers"}

    variants = [
        Variant(BASELINE, "torch", lambda i: caches[i % n].reorder_cache(beam_idx)),
        Variant("pygen", backend, lambda i: reorder_cache(tensors[i % n], beam_idx, start, length, backend=backend)),
    ]
    moved = bytes_moved(tensors[0], beam_idx, start, length)
    return Case("reorder_cache", spec.label, "normal1", buffers, moved, variants, check)


def hf_cache(tensors: Sequence[torch.Tensor]) -> Any:
    """Returns a DynamicCache over alternating keys and values."""
    cache = DynamicCache()
    for layer in range(len(tensors) // 2):
        cache.update(tensors[2 * layer], tensors[2 * layer + 1], layer)
    return cache


def main() -> int:
    args = cli.parser("Times pygen.ops.reorder_cache against transformers.", ("quick", "table")).parse_args()
    with cli.threads(args.threads):
        specs = SPECS[args.size]
        options = cli.options(args, "reorder_cache", {"quick": 0.5, "table": 6.0}[args.size])
        cases = (make_case(spec, options, args.device, args.backend) for spec in specs)
        return cli.finish(cli.run_cases(cases, len(specs), options), args, save=args.size != "quick")


if __name__ == "__main__":
    sys.exit(main())
