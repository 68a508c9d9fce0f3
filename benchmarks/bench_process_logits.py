"""Times `pygen.ops.process_logits` against transformers' chain of processors.

python -m benchmarks.bench_process_logits --table     three batch sizes, two settings
python -m benchmarks.bench_process_logits --quick     a look, in seconds
"""

from __future__ import annotations

import dataclasses
import sys

import torch

from benchmarks import cli
from benchmarks.baseline import Settings, TransformersStep
from benchmarks.harness import BASELINE, Case, Options, Variant
from benchmarks.inputs import make_logits, random_ids, rotation
from pygen.ops import prepare_process_logits

FIRST = Settings(temperature=0.7, repetition_penalty=1.1, top_k=50, top_p=0.9)
REFERENCE_ROWS = 8
# transformers accumulates a row's probabilities sequentially in float32, so its boundary is off by this much mass.
BAND = 1e-4


@dataclasses.dataclass(frozen=True)
class Spec:
    settings: Settings
    rows: int
    vocab_size: int
    distribution: str = "normal1"


SPECS = {
    "quick": [Spec(FIRST, 4, 32000)],
    "table": [Spec(settings, rows, 128256) for settings in (FIRST, Settings(top_p=0.9)) for rows in (1, 8, 64)],
}


def make_case(spec: Spec, options: Options, device: torch.device, backend: str) -> Case:
    logits = make_logits(spec.distribution, spec.rows, spec.vocab_size).to(device)
    input_ids = random_ids(spec.rows, spec.settings.history, spec.vocab_size).to(device)
    buffers = rotation(logits, options.cache)
    step = TransformersStep(spec.settings, input_ids)
    out = torch.empty(logits.shape, dtype=torch.float32, device=device)
    knobs = spec.settings.pygen_knobs(input_ids)
    prepared = prepare_process_logits(logits, **knobs, backend=backend, out=out)
    n = len(buffers)

    def check() -> dict[str, str]:
        few = slice(0, REFERENCE_ROWS)
        reference_knobs = spec.settings.pygen_knobs(input_ids[few])
        reference = prepare_process_logits(logits[few], **reference_knobs, backend="torch")(logits[few])
        fault = check_scores(prepared(logits), reference, step, logits)
        return {"pygen": fault} if fault else {}

    moved = logits.numel() * logits.element_size() + 4 * logits.numel()
    if spec.settings.needs_ids:
        moved += input_ids.numel() * input_ids.element_size()
    variants = [
        Variant(BASELINE, "torch", lambda i: step.scores(buffers[i % n])),
        Variant("pygen", prepared.backend, lambda i: prepared(buffers[i % n])),
    ]
    return Case("process_logits", spec.settings.label, spec.distribution, buffers, moved, variants, check)


def check_scores(scores: torch.Tensor, reference: torch.Tensor, step: TransformersStep, logits: torch.Tensor) -> str:
    """Returns what is wrong with the scores, or "".

    The first rows keep exactly the reference's tokens. All rows keep transformers' tokens, but for tokens with a total
    mass below BAND. Tokens that both keep have equal scores.
    """
    few = slice(0, len(reference))
    if not torch.equal(scores[few] == -torch.inf, reference == -torch.inf):
        return "the kept tokens are not those of the reference"
    if not torch.allclose(scores[few], reference, rtol=1e-6, atol=1e-6):
        return "the scores are not those of the reference"
    wanted = step.scores(logits)
    both = torch.maximum(scores, wanted).softmax(-1)
    differing = both.masked_fill((scores == -torch.inf) == (wanted == -torch.inf), 0.0).sum(-1)
    if float(differing.max()) > BAND:
        row = int(differing.argmax())
        return f"row {row}: mass {float(differing[row]):.2g} is kept by one of pygen and transformers only"
    common = (scores != -torch.inf) & (wanted != -torch.inf)
    if not torch.allclose(scores[common], wanted[common], rtol=1e-6, atol=1e-6):
        return "the scores are not those of transformers"
    return ""


def main() -> int:
    args = cli.parser("Times pygen.ops.process_logits against transformers.", ("quick", "table")).parse_args()
    with cli.threads(args.threads):
        specs = SPECS[args.size]
        options = cli.options(args, "process_logits", {"quick": 0.5, "table": 8.0}[args.size])
        cases = (make_case(spec, options, args.device, args.backend) for spec in specs)
        return cli.finish(cli.run_cases(cases, len(specs), options), args, save=args.size != "quick")


if __name__ == "__main__":
    sys.exit(main())
