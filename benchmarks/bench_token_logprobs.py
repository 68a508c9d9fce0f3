"""Times `pygen.ops.token_logprobs` against torch: log_softmax, gather, and topk if the best tokens are requested.

python -m benchmarks.bench_token_logprobs --table     dtypes, batch sizes, with and without the best tokens
python -m benchmarks.bench_token_logprobs --quick     a look, in seconds
"""

from __future__ import annotations

import dataclasses
import sys

import torch

from benchmarks import cli
from benchmarks.harness import BASELINE, Case, Options, Variant
from benchmarks.inputs import make_logits, random_ids, rotation
from pygen.ops import token_logprobs


@dataclasses.dataclass(frozen=True)
class Spec:
    rows: int
    vocab_size: int
    top: int = 0
    dtype: torch.dtype = torch.float32
    distribution: str = "normal1"

    @property
    def label(self) -> str:
        return f"one token, {self.top} best" if self.top else "one token"


SPECS = {
    "quick": [Spec(4, 32000, 5)],
    "table": [Spec(rows, 128256, top, dtype) for dtype in (torch.float32, torch.bfloat16) for top in (0, 20)
              for rows in (1, 8, 512)],
}  # fmt: skip


def in_torch(logits: torch.Tensor, token_ids: torch.Tensor, top: int) -> tuple[torch.Tensor, ...]:
    """Computes the same in torch, as a caller without the op would."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, token_ids[:, None])[:, 0]
    return (own, *logprobs.topk(top)) if top > 0 else (own,)


def make_case(spec: Spec, options: Options, device: torch.device, backend: str) -> Case:
    logits = make_logits(spec.distribution, spec.rows, spec.vocab_size, spec.dtype).to(device)
    token_ids = random_ids(spec.rows, 1, spec.vocab_size)[:, 0].to(device)
    buffers = rotation(logits, options.cache)
    n = len(buffers)
    backend = device.type if backend == "auto" else backend

    def run(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = token_logprobs(tensor, token_ids, top=spec.top, backend=backend)
        best = output.top_logprobs
        return (output.logprobs,) if best is None else (output.logprobs, best.logprobs, best.token_ids)

    def check() -> dict[str, str]:
        own, *best = run(logits)
        wanted, *wanted_best = in_torch(logits, token_ids, spec.top)
        if not torch.allclose(own, wanted, rtol=1e-5, atol=1e-5):
            return {"pygen": "the log-probabilities are not torch's"}
        # torch does not define the order of equal tokens, so only scores are compared.
        if best and not torch.allclose(best[0], wanted_best[0], rtol=1e-5, atol=1e-5):
            return {"pygen": "the best are not torch's"}
        return {}

    moved = logits.numel() * logits.element_size() + spec.rows * (8 + 4 + 4 + 12 * spec.top)
    variants = [
        Variant(BASELINE, "torch", lambda i: in_torch(buffers[i % n], token_ids, spec.top)),
        Variant("pygen", backend, lambda i: run(buffers[i % n])),
    ]
    return Case("token_logprobs", spec.label, spec.distribution, buffers, moved, variants, check)


def main() -> int:
    args = cli.parser("Times pygen.ops.token_logprobs against torch.", ("quick", "table")).parse_args()
    with cli.threads(args.threads):
        specs = SPECS[args.size]
        options = cli.options(args, "token_logprobs", {"quick": 0.5, "table": 6.0}[args.size])
        cases = (make_case(spec, options, args.device, args.backend) for spec in specs)
        return cli.finish(cli.run_cases(cases, len(specs), options), args, save=args.size != "quick")


if __name__ == "__main__":
    sys.exit(main())
