"""Times `pygen.ops.beam_step` against how transformers finds the continuations of a beam search.

python -m benchmarks.bench_beam_step --table     many prompts, many beams, draws, penalties
python -m benchmarks.bench_beam_step --quick     a look, in seconds

pygen does the whole step: it also updates the beams, moves rows and appends tokens. The timing of transformers ends
with the candidates: float32 copy, log-softmax, processors, running scores, and topk or softmax and multinomial.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from typing import Any

import torch

from benchmarks import cli
from benchmarks.baseline import Settings
from benchmarks.harness import BASELINE, Case, Options, Target, Variant
from benchmarks.inputs import make_logits, random_ids, rotation
from pygen.ops import BeamState, BeamStepOutput, prepare_beam_step

SEED = 20
MAX_NEW_TOKENS = 64
BIG, GPT2 = 128256, 50257
SEARCH = Settings(do_sample=False)
DRAWS = Settings(temperature=0.7, top_k=50, top_p=0.9)
PENALTIES = Settings(do_sample=False, repetition_penalty=1.1, no_repeat_ngram_size=3)


@dataclasses.dataclass(frozen=True)
class Spec:
    settings: Settings
    batch_size: int
    num_beams: int
    vocab_size: int
    target: Target = dataclasses.field(default_factory=Target)

    @property
    def rows(self) -> int:
        return self.batch_size * self.num_beams

    @property
    def label(self) -> str:
        words = (f"{self.num_beams} beams", self.settings.label.removeprefix("greedy").removeprefix(", "))
        return ", ".join(filter(None, words))

    @property
    def knobs(self) -> dict[str, Any]:
        draws = {"rng": "torch"} if self.settings.do_sample else {}
        return {"do_sample": self.settings.do_sample, **self.settings.active, **draws}


SPECS = {
    "quick": [Spec(settings, 2, 4, 32000) for settings in (SEARCH, DRAWS, PENALTIES)],
    "table": [
        Spec(SEARCH, 8, 4, BIG, Target(speedup=6, reads=6)),
        Spec(SEARCH, 1, 64, BIG, Target(speedup=5)),
        Spec(SEARCH, 8, 4, GPT2),
        Spec(DRAWS, 8, 4, BIG),
        Spec(DRAWS, 8, 4, GPT2),
        Spec(PENALTIES, 8, 4, BIG),
        Spec(PENALTIES, 8, 4, GPT2),
    ],
}


class RunningSearch:
    """A search without end tokens, so that all prompts stay open.

    Before its last step it goes back to the state after the first step, in which every beam sits in its own row.
    """

    def __init__(self, spec: Spec, logits: torch.Tensor, backend: str) -> None:
        prompts = random_ids(spec.batch_size, spec.settings.history - 1, spec.vocab_size).to(logits.device)
        self.state = BeamState.create(prompts, MAX_NEW_TOKENS, spec.num_beams)
        self._step_of = prepare_beam_step(logits, self.state, **spec.knobs, backend=backend)
        self.backend = self._step_of.backend
        self._step_of(logits, step=0)
        self._begin = copy.deepcopy(self.state)
        self.rewind()

    def rewind(self) -> None:
        for name, value in vars(self._begin).items():
            if isinstance(value, torch.Tensor):
                getattr(self.state, name).copy_(value)
        self._step = 1

    def one_step(self, logits: torch.Tensor) -> BeamStepOutput:
        """Takes the same step of the search every time, as a graph replays it."""
        return self._step_of(logits, step=1)

    def __call__(self, logits: torch.Tensor) -> BeamStepOutput:
        out = self._step_of(logits, step=self._step)
        self._step += 1
        if self._step == MAX_NEW_TOKENS - 1:
            self.rewind()
        return out


class TransformersBeams:
    """Computes the candidates of one step of `generate()`, for a search that has just begun."""

    def __init__(self, spec: Spec, state: BeamState) -> None:
        self.spec = spec
        self.count = state.num_candidates
        self.input_ids = state.tokens(1).clone()
        self.running_scores = state.running_scores.view(-1, 1).clone()
        self.processors: Any = spec.settings.processors()

    def candidates(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns summed scores and indices into num_beams * vocab_size, (batch_size, K) each."""
        log_probs = logits.to(copy=True, dtype=torch.float32).log_softmax(-1)
        sums = self.processors(self.input_ids, log_probs) + self.running_scores
        sums = sums.view(self.spec.batch_size, -1)
        if not self.spec.settings.do_sample:
            best = sums.topk(self.count)
            return best.values, best.indices
        places = torch.multinomial(sums.softmax(-1), self.count)
        return sums.gather(1, places), places


def check_step(spec: Spec, search: RunningSearch, theirs: TransformersBeams, logits: torch.Tensor) -> str:
    """Returns "" if the beams after a step are the best of transformers' candidates, otherwise the error."""
    search.rewind()
    torch.manual_seed(SEED)
    search(logits)
    state = torch.get_rng_state()
    torch.manual_seed(SEED)
    sums, places = theirs.candidates(logits)
    if not torch.equal(state, torch.get_rng_state()):
        return "the generator is not where transformers leaves it"
    best = sums.topk(spec.num_beams)
    places = places.gather(1, best.indices)
    shape = (spec.batch_size, spec.num_beams)
    first = torch.arange(spec.batch_size, device=places.device)[:, None] * spec.num_beams
    for name, found, wanted in (
        ("tokens", search.state.step_tokens[1], places % spec.vocab_size),
        ("parents", search.state.step_parents[1], places // spec.vocab_size + first),
    ):
        if not torch.equal(found.view(shape).long(), wanted):
            return f"the {name} of the beams are not those of transformers"
    if not torch.allclose(search.state.running_scores, best.values, rtol=1e-5, atol=1e-5):
        return "the scores of the beams are not those of transformers"
    return ""


def make_case(spec: Spec, options: Options, device: torch.device, backend: str) -> Case:
    logits = make_logits("normal1", spec.rows, spec.vocab_size).to(device)
    buffers = rotation(logits, options.cache)
    search = RunningSearch(spec, logits, backend)
    theirs = TransformersBeams(spec, search.state)
    n = len(buffers)

    def check() -> dict[str, str]:
        fault = check_step(spec, search, theirs, logits)
        return {"pygen": fault} if fault else {}

    moved = logits.numel() * logits.element_size()
    if spec.settings.needs_ids:
        moved += theirs.input_ids.numel() * theirs.input_ids.element_size()
    variants = [
        Variant(BASELINE, "torch", lambda i: theirs.candidates(buffers[i % n])),
        Variant("pygen", search.backend, lambda i: search(buffers[i % n]), spec.target),
    ]
    return Case("beam_step", spec.label, "normal1", buffers, moved, variants, check)


def main() -> int:
    args = cli.parser("Times pygen.ops.beam_step against transformers.", ("quick", "table")).parse_args()
    with cli.threads(args.threads):
        specs = SPECS[args.size]
        options = cli.options(args, "beam_step", {"quick": 0.5, "table": 8.0}[args.size])
        cases = (make_case(spec, options, args.device, args.backend) for spec in specs)
        return cli.finish(cli.run_cases(cases, len(specs), options), args, save=args.size != "quick")


if __name__ == "__main__":
    sys.exit(main())
