"""Times `pygen.ops.beam_finalize` against transformers, which copies every sequence in every step instead.

python -m benchmarks.bench_beam_finalize --table     three batch sizes
python -m benchmarks.bench_beam_finalize --quick     a look, in seconds
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from transformers import GenerationMixin

from benchmarks import cli
from benchmarks.harness import BASELINE, Case, Variant
from pygen.ops import BeamState, beam_finalize


@dataclasses.dataclass(frozen=True)
class Spec:
    """A finished search: the `num_beams` best hypotheses of every prompt ended in the last step."""

    batch_size: int
    num_beams: int = 4
    prompt: int = 512
    generated: int = 256

    @property
    def rows(self) -> int:
        return self.batch_size * self.num_beams

    @property
    def label(self) -> str:
        return f"{self.num_beams} beams, {self.prompt} + {self.generated} tokens"


SPECS = {"quick": [Spec(1, prompt=16, generated=32)], "table": [Spec(batch_size) for batch_size in (1, 8, 64)]}


def bytes_moved(spec: Spec) -> int:
    """The fewest bytes to read and write: prompts and traced tokens in, sequences and beam indices out."""
    return spec.rows * (2 * 8 * spec.prompt + 2 * (8 + 4) * spec.generated)


def make_state(spec: Spec, device: torch.device) -> BeamState:
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator).to(device)

    n, shape = spec.num_beams, (spec.batch_size, spec.num_beams)
    state = BeamState.create(draw(32000, spec.batch_size, spec.prompt), spec.generated, n)
    first = torch.arange(spec.rows, device=device) // n * n
    state.step_tokens.copy_(draw(32000, spec.generated, spec.rows))
    state.step_parents.copy_(draw(n, spec.generated, spec.rows) + first)
    state.finished_steps.fill_(spec.generated - 1)
    state.finished_tokens.copy_(draw(32000, *shape))
    state.finished_parents.copy_(draw(n, *shape) + first.view(shape))
    return state


def carried(state: BeamState) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (sequences, beam_indices) as transformers keeps them.

    Every step of transformers gathers full rows of 2n candidates, n running beams and n finished hypotheses. Here the
    running beams appear twice as the candidates.
    """
    gather: Any = GenerationMixin._gather_beams
    batch_size, n, steps = state.batch_size, state.num_beams, state.max_new_tokens
    first = torch.arange(batch_size, device=state.slots.device)[:, None] * n
    running = state.token_ids.view(batch_size, n, -1).clone()
    indices = torch.full((batch_size, n, steps), -1, dtype=torch.int32, device=running.device)
    sequences, beam_indices = running.clone(), indices.clone()
    keep = torch.arange(n, device=running.device).expand(batch_size, n)
    for step in range(steps):
        last = step == steps - 1
        tokens = state.finished_tokens if last else state.step_tokens[step].view(batch_size, n)
        parents = state.finished_parents if last else state.step_parents[step].view(batch_size, n)
        beams = (parents - first).long().repeat(1, 2)
        candidates, candidate_indices = gather(running, beams), gather(indices, beams)
        candidates[:, :, state.prompt_length + step] = tokens.repeat(1, 2)
        candidate_indices[:, :, step] = parents.repeat(1, 2)
        running, indices = gather(candidates, keep), gather(candidate_indices, keep)
        best = keep + n if last else keep
        sequences = gather(torch.cat([sequences, candidates], 1), best)
        beam_indices = gather(torch.cat([beam_indices, candidate_indices], 1), best)
    return sequences.flatten(0, 1), beam_indices.flatten(0, 1)


def make_case(spec: Spec, device: torch.device, backend: str) -> Case:
    state = make_state(spec, device)
    backend = device.type if backend == "auto" else backend

    def check() -> dict[str, str]:
        output = beam_finalize(state, spec.num_beams, backend=backend)
        sequences, beam_indices = carried(state)
        same = torch.equal(output.sequences, sequences) and torch.equal(output.beam_indices, beam_indices)
        return {} if same else {"pygen": "the sequences are not those of transformers"}

    variants = [
        Variant(BASELINE, "torch", lambda i: carried(state)),
        Variant("pygen", backend, lambda i: beam_finalize(state, spec.num_beams, backend=backend)),
    ]
    return Case("beam_finalize", spec.label, "uniform", [state.token_ids], bytes_moved(spec), variants, check, False)


def main() -> int:
    args = cli.parser("Times pygen.ops.beam_finalize against transformers.", ("quick", "table")).parse_args()
    with cli.threads(args.threads):
        specs = SPECS[args.size]
        options = cli.options(args, "beam_finalize", {"quick": 0.5, "table": 6.0}[args.size])
        cases = (make_case(spec, args.device, args.backend) for spec in specs)
        return cli.finish(cli.run_cases(cases, len(specs), options), args, save=args.size != "quick")


if __name__ == "__main__":
    sys.exit(main())
