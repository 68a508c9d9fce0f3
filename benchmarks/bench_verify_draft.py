"""Times `pygen.ops.verify_draft` against `_speculative_sampling` of transformers, which takes one row at a time.

python -m benchmarks.bench_verify_draft --table     drafts with the draft model's scores
python -m benchmarks.bench_verify_draft --quick     a look, in seconds
"""

from __future__ import annotations

import dataclasses
import sys

import torch
from transformers.generation.utils import _speculative_sampling

from benchmarks import cli
from benchmarks.harness import BASELINE, Case, Options, Variant
from benchmarks.inputs import make_logits, rotation
from pygen.ops import sample, verify_draft

REFERENCE_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Spec:
    """One shape. `spread` is the distance of the draft's scores from the target's, which sets how many drafts pass.

    The results' column `rows` counts positions of the target, n + 1 per row.
    """

    rows: int
    vocab_size: int
    num_drafts: int = 4
    spread: float = 0.5

    @property
    def label(self) -> str:
        return f"{self.rows} rows of {self.num_drafts} drafts, {self.spread:g} apart"


SPECS = {
    "quick": [Spec(2, 32000)],
    "table": [Spec(rows, 128256, spread=spread) for spread in (0.1, 0.5) for rows in (1, 8, 32)],
}


def in_transformers(drafts: torch.Tensor, draft: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
    """Returns the tokens of every row. `_speculative_sampling` takes one row, whose candidates end with the drafts."""
    n = drafts.shape[1]
    rows = zip(drafts, draft, target, strict=True)
    return [_speculative_sampling(ids[None], q[None], n, p[None], False)[0][0] for ids, q, p in rows]


def make_case(spec: Spec, options: Options, device: torch.device, backend: str) -> Case:
    n, vocab_size = spec.num_drafts, spec.vocab_size
    backend = device.type if backend == "auto" else backend
    flat = make_logits("normal5", spec.rows * (n + 1), vocab_size).to(device)
    target = flat.view(spec.rows, n + 1, vocab_size)
    apart = make_logits("normal1", spec.rows * n, vocab_size, seed=1).to(device).view(spec.rows, n, vocab_size)
    draft = target[:, :n] + spec.spread * apart
    drafts = sample(draft.view(-1, vocab_size), seed=1).token_ids.view(spec.rows, n)
    # Each buffer holds the rows in another order. Target and drafts keep their pairing.
    targets = rotation(target.view(spec.rows, -1), options.cache)
    count = len(targets)
    draft_buffers = [draft.roll(i, 0) for i in range(count)]
    id_buffers = [drafts.roll(i, 0) for i in range(count)]

    def shaped(i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        at = i % count
        return targets[at].view(target.shape), id_buffers[at], draft_buffers[at]

    def run(i: int) -> object:
        scores, ids, own = shaped(i)
        return verify_draft(scores, ids, own, seed=i, backend=backend)

    def run_transformers(i: int) -> object:
        scores, ids, own = shaped(i)
        return in_transformers(ids, own, scores)

    def check() -> dict[str, str]:
        few = slice(0, REFERENCE_ROWS)
        output = verify_draft(target, drafts, draft, seed=3, backend=backend)
        wanted = verify_draft(target[few], drafts[few], draft[few], seed=3, backend="torch")
        same = all(torch.equal(mine[few], theirs) for mine, theirs in zip(output, wanted, strict=True))
        return {} if same else {"pygen": "the verdicts are not those of the reference"}

    # Count the positions that verification reads. If all drafts of a row pass, its last position has no draft scores.
    reached = verify_draft(target, drafts, draft, seed=3, backend=backend).accepted_lengths + 1
    positions = int(reached.sum() + reached.clamp(max=n).sum())
    moved = positions * vocab_size * 4 + spec.rows * (8 * n + 8 + 8 + 4)
    variants = [
        Variant(BASELINE, "torch", run_transformers),
        Variant("pygen", backend, run),
    ]
    buffers = [scores.view(-1, vocab_size) for scores in targets]
    return Case("verify_draft", spec.label, "normal5", buffers, moved, variants, check)


def main() -> int:
    args = cli.parser("Times pygen.ops.verify_draft against transformers.", ("quick", "table")).parse_args()
    with cli.threads(args.threads):
        specs = SPECS[args.size]
        options = cli.options(args, "verify_draft", {"quick": 0.5, "table": 6.0}[args.size])
        cases = (make_case(spec, options, args.device, args.backend) for spec in specs)
        return cli.finish(cli.run_cases(cases, len(specs), options), args, save=args.size != "quick")


if __name__ == "__main__":
    sys.exit(main())
