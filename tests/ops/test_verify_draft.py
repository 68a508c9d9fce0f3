"""verify_draft: hand-checked rows, a naive oracle on lists, and the distribution of the tokens."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pygen import rng
from pygen.ops import DraftOutput, RowStatus, sample, verify_draft
from tests.helpers.draws import ALPHA, assert_distribution, chi_squared_p_value
from tests.helpers.extra_backends import EMULATED
from tests.helpers.faults import Fault, fault, plant
from tests.helpers.logits import make_logits, strided_rows
from tests.helpers.naive_drafts import philox_noise, verify_row

INF, NAN = math.inf, math.nan
LN2 = math.log(2)
# Probabilities 1/2, 1/4, 1/4, 0 and 1/4, 1/2, 1/4, 0, and 1/2, 1/2, 0, 0.
P, Q, HALVES = [LN2, 0, 0, -INF], [0, LN2, 0, -INF], [0, 0, -INF, -INF]
EVEN = [1.0, 1.0, 1.0, 1.0]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Row(NamedTuple):
    """A row with given noise: `uniforms` per draft, and E of every token of the final draw."""

    fact: str
    target: list[list[float]]
    drafts: list[int]
    draft: list[list[float]] | None
    uniforms: list[float]
    noise: list[float]
    knobs: dict[str, Any]
    accepted: int
    token_id: int
    status: str = "OK"


ROWS = [
    Row("no drafts: a draw from p", [P], [], None, [], [1, 0.25, 1, 1e-9], {}, 0, 1),
    Row("no drafts: the largest p / E", [P], [], None, [], EVEN, {}, 0, 0),
    Row("p >= q stays for any u", [P, P], [0], [Q], [0.999], EVEN, {}, 1, 0),
    Row("u below p / q stays", [P, Q], [1], [Q], [0.49], EVEN, {}, 1, 1),
    Row("u above it does not", [P, Q], [1], [Q], [0.51], EVEN, {}, 0, 0),
    Row("u at it does not", [HALVES, P], [0], [[0, -INF, -INF, -INF]], [0.5], EVEN, {}, 0, 1),
    Row("p = 0 never stays", [P, Q], [3], [EVEN], [0.0], EVEN, {}, 0, 0),
    Row("q = 0 is no reason to refuse", [P, P], [0], [[-INF, 0, 0, 0]], [0.999], EVEN, {}, 1, 0),
    # max(p - q, 0) is 1/4, 0, 0, 0, whatever the noise
    Row("recovered from p - q only", [P, Q], [1], [Q], [0.9], [1e9, 1e-9, 1e-9, 1e-9], {}, 0, 0),
    # p - q = 1/4, 1/4, -1/2, 0
    Row("recovered by p - q over E", [HALVES, P], [2], [[0, 0, LN2, -INF]], [0.1], [1, 0.5, 1, 1], {}, 0, 1),
    Row("equal distributions always stay", [P, P, P], [1, 2], [P, P], [0.99, 0.99], EVEN, {}, 2, 0),
    Row("certain drafts stay with p", [P, Q], [1], None, [0.24], EVEN, {}, 1, 1),
    Row("and leave p without themselves", [P, Q], [1], None, [0.26], [1, 1e-9, 0.25, 1], {}, 0, 2),
    Row("a certain draft that p is sure of", [[0, -INF, -INF, -INF], Q], [0], None, [0.999], EVEN, {}, 1, 1),
    Row("a second draft counts behind the first only", [P, P, Q], [1, 0], [Q, Q], [0.9, 0.1], EVEN, {}, 0, 0),
    Row("every draft has its own u", [P, P, Q], [1, 1], [Q, Q], [0.1, 0.9], EVEN, {}, 1, 0),
    Row("temperature acts on both", [P, P], [1], [Q], [0.71], EVEN, {"temperature": 2.0}, 0, 0),
    Row("p / q is then 1 / sqrt 2", [P, Q], [1], [Q], [0.70], EVEN, {"temperature": 2.0}, 1, 1),
    Row("shorter drafts", [P, Q, Q], [0, 0], [Q, Q], [0, 0], EVEN, {"draft_lengths": 1}, 1, 1),
    Row("an id below the vocabulary is no draft", [P, Q], [-1], [P], [0.0], EVEN, {}, 0, 0),
    Row("nor is one above it", [P, Q], [4], None, [0.0], [1, 0.25, 1, 1], {}, 0, 1),
    Row("greedy: the argmax stays", [P, Q, P], [0, 1], None, [0.9, 0.9], EVEN, {"temperature": 0}, 2, 0),
    Row("greedy: the argmax follows", [P, Q, P], [0, 0], None, [0, 0], EVEN, {"do_sample": False}, 1, 1),
    Row("greedy: ties to the lowest id", [EVEN, Q], [1], None, [0], EVEN, {"do_sample": False}, 0, 0),
    Row("greedy rows read no draft logits", [P, Q], [0], [[NAN] * 4], [0], EVEN, {"do_sample": False}, 1, 1),
    Row("NaN ends the row", [P, [NAN, 1, 2, 0], P], [0, 2], [P, P], [0, 0], EVEN, {}, 1, 2, "NAN"),
    Row("so does +inf", [P, [INF, 1, INF, 0], P], [0, 0], [P, P], [0, 0], EVEN, {}, 1, 0, "POS_INF"),
    Row("all masked", [P, [-INF] * 4], [0], [P], [0], EVEN, {}, 1, 0, "ALL_MASKED"),
    Row("NaN in the drafts' scores", [P, P], [1], [[0, NAN, 0, 0]], [0], EVEN, {}, 0, 0, "NAN"),
    Row("nobody looks behind the end", [P, [NAN] * 4], [1], [Q], [0.9], EVEN, {}, 0, 0),
    Row("nor at the scores of no draft", [P, P], [0], [[NAN] * 4], [0], EVEN, {"draft_lengths": 0}, 0, 0),
    Row("greedy and NaN", [[1, NAN, 2, 0], P], [2], None, [0], EVEN, {"temperature": 0}, 0, 2, "NAN"),
    Row("under a tiny temperature the best are certain", [P, P], [0], [P], [0.9], EVEN, {"temperature": 1e-41}, 1, 0),
    Row("p = e^-800 is not 0", [[0, -800, -900, -INF], P], [1], [[0, -900, 0, 0]], [0.9], EVEN, {}, 1, 0),
    Row("nor is q = e^-800", [[0, -900, 0, -INF], Q], [1], [[0, -800, 0, 0]], [1e-6], EVEN, {}, 0, 0),
    Row("nor q = e^-700 of a token without p", [[0, -INF, 0, 0], Q], [1], [[0, -700, 0, 0]], [0], EVEN, {}, 0, 0),
]


def check_by_hand(backend: str) -> None:
    for row in ROWS:
        n = len(row.drafts)
        output = verify_draft(
            torch.tensor([row.target], dtype=torch.float32),
            torch.tensor([row.drafts], dtype=torch.int64),
            None if row.draft is None else torch.tensor([row.draft], dtype=torch.float32),
            uniforms=torch.tensor([row.uniforms], dtype=torch.float32).view(1, n),
            noise=torch.tensor([row.noise], dtype=torch.float32),
            backend=backend,
            **row.knobs,
        )
        found = (output.accepted_lengths.item(), output.token_ids.item(), RowStatus(int(output.status)).name)
        assert found == (row.accepted, row.token_id, row.status), row.fact


def test_by_hand(backend: str) -> None:
    check_by_hand(backend)


def make_case(rows: int, n: int, vocab_size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns correlated target and draft scores, and drafts drawn from the draft scores."""
    common = make_logits("normal", rows * (n + 1), vocab_size, seed).view(rows, n + 1, vocab_size)
    target = common + make_logits("masked", rows * (n + 1), vocab_size, seed + 1).view_as(common).clamp(max=1)
    target = torch.where(target == -INF, common - 1, target)
    target[:, :, vocab_size - 1] = -INF if vocab_size > 1 else 0
    draft = common[:, :n] + 0.5 * make_logits("normal", rows * n, vocab_size, seed + 2).view(rows, n, vocab_size)
    flat = sample(draft.reshape(rows * n, vocab_size), seed=seed + 999, backend="torch").token_ids
    return target, flat.view(rows, n), draft


@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 2, 7, 65])
def test_the_oracle(backend: str, vocab_size: int, dtype: torch.dtype, certain: bool) -> None:
    rows, n = 24, 3
    target, drafts, draft = make_case(rows, n, vocab_size)
    target, draft = target.to(dtype), draft.to(dtype)
    target[1, 0, 0], target[2, 1, 0], target[3, :, :] = NAN, INF, -INF
    drafts[4, 1], drafts[5, 0] = -1, vocab_size
    lengths = torch.arange(rows) % (n + 1)
    lengths[:6] = n
    temperature = torch.tensor([1.0, 0.7, 0.0, 1.5]).repeat(rows // 4)
    seeds, step = rng.row_seeds(8, rows), 2**32 - 2
    output = verify_draft(
        target,
        drafts,
        None if certain else draft,
        draft_lengths=lengths,
        temperature=temperature,
        seed=seeds,
        step=step,
        backend=backend,
    )
    compared = 0
    for r in range(rows):
        scores = None if certain else draft[r].float().tolist()
        wanted = verify_row(
            target[r].float().tolist(),
            drafts[r, : lengths[r]].tolist(),
            scores,
            temperature[r].item(),
            *philox_noise(int(seeds[r]) % 2**64, step),
        )
        if wanted.clear:
            compared += 1
            assert tuple(column[r].item() for column in output) == wanted[:3], r
    assert compared >= rows - 1


@pytest.mark.parametrize("certain", [True, False])
@pytest.mark.parametrize("vocab_size", [5003] if EMULATED else [32003, 128256])
def test_large_vocabularies(kernel_backend: str, vocab_size: int, certain: bool) -> None:
    target, drafts, draft = make_case(2, 2, vocab_size)
    scores = None if certain else draft
    expected = verify_draft(target, drafts, scores, seed=1, backend="torch")
    assert equal(verify_draft(target, drafts, scores, seed=1, backend=kernel_backend), expected)


def test_ties_and_faults_far_apart(kernel_backend: str) -> None:
    """The rows have a tie, a NaN after the largest score, a +inf, and a NaN among -inf; greedy and drawn."""
    target, _, draft = make_case(4, 1, 5003)
    target[0, 0, [1024, 3000, 5001]], target[1, 0, [100, 5002]] = 50, torch.tensor([50, NAN])
    target[2, 0, [2500, 4600]], target[3, 0, :], target[3, 0, 0] = INF, -INF, NAN
    drafts = torch.tensor([[1024], [100], [2500], [1]])
    for temperature in (0.0, 0.9):
        output = verify_draft(target, drafts, draft, temperature=temperature, seed=1, backend=kernel_backend)
        assert output.status.tolist() == [RowStatus.OK, RowStatus.NAN, RowStatus.POS_INF, RowStatus.NAN]
        assert output.token_ids[1:].tolist() == [100, 2500, 1] and not output.accepted_lengths[1:].any()
        assert equal(output, verify_draft(target, drafts, draft, temperature=temperature, seed=1, backend="torch"))


def equal(first: DraftOutput, second: DraftOutput) -> bool:
    return all(a.equal(b) for a, b in zip(first, second, strict=True))


def test_without_drafts_it_is_sample(backend: str) -> None:
    target, drafts, draft = make_case(9, 2, 111)
    wanted = sample(target[:, 0], temperature=0.8, seed=4, step=7, backend=backend).token_ids
    for keywords in ({"draft_lengths": 0}, {"draft_lengths": torch.zeros(9, dtype=torch.int64)}):
        output = verify_draft(target, drafts, draft, temperature=0.8, seed=4, step=7, backend=backend, **keywords)
        assert output.token_ids.equal(wanted) and not output.accepted_lengths.any()
    none = drafts[:, :0]
    assert verify_draft(target[:, :1], none, temperature=0.8, seed=4, step=7, backend=backend).token_ids.equal(wanted)


def test_a_row_does_not_depend_on_the_others(backend: str) -> None:
    target, drafts, draft = make_case(6, 3, 300)
    seeds, steps = rng.row_seeds(3, 6), torch.arange(6)
    whole = verify_draft(target, drafts, draft, seed=seeds, step=steps, backend=backend)
    for r in range(6):
        at = slice(r, r + 1)
        alone = verify_draft(target[at], drafts[at], draft[at], seed=seeds[at], step=r, backend=backend)
        assert equal(alone, DraftOutput(*(column[at] for column in whole)))
    assert equal(verify_draft(target, drafts, draft, seed=3, step=steps, backend=backend), whole)


def test_layouts_and_inputs(backend: str) -> None:
    """Takes strided rows and positions, and scores of two dtypes; writes to no input, and has no gradient."""
    target, drafts, draft = make_case(5, 3, 65)
    target, draft = target.bfloat16().float(), draft.half()
    expected = verify_draft(target, drafts, draft, seed=1, backend=backend)
    apart = strided_rows(target.view(20, 65)).view(5, 4, 65).to(torch.bfloat16).requires_grad_()
    turned = draft.transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.cat([drafts, drafts], dim=1)[:, :3]
    before = [tensor.clone() for tensor in (apart, turned, wide)]
    output = verify_draft(apart, wide, turned, seed=1, backend=backend)
    assert equal(output, expected) and not any(column.requires_grad for column in output)
    assert all(tensor.equal(copy) for tensor, copy in zip((apart, turned, wide), before, strict=True))
    assert [column.dtype for column in output] == [torch.int64, torch.int64, torch.int32]


def test_no_rows(backend: str) -> None:
    output = verify_draft(torch.empty(0, 3, 9), torch.empty(0, 2, dtype=torch.int64), seed=1, backend=backend)
    assert [column.shape for column in output] == [(0,)] * 3


def test_the_generator_gives_a_seed_where_there_is_none() -> None:
    target, drafts, draft = make_case(50, 2, 30)
    first, second = (
        verify_draft(target, drafts, draft, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1)
    )
    assert equal(first, second)
    other = verify_draft(target, drafts, draft, generator=torch.Generator().manual_seed(2))
    assert not equal(first, other)
    idle = torch.Generator().manual_seed(2)
    state = idle.get_state()
    verify_draft(target, drafts, draft, do_sample=False, generator=idle)
    assert idle.get_state().equal(state)


DRAWS = 2**19


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("kind", ["drawn", "certain", "unlike"])
def test_distribution(kind: str, temperature: float) -> None:
    """For any draft distribution, the token at every position reached is a draw from the target."""
    n, vocab_size = 2, 13
    target = make_logits("normal", n + 1, vocab_size, seed=5) * 1.5
    target[:, 3] = -INF
    draft = target[:n] + make_logits("normal", n, vocab_size, seed=6) * (3 if kind == "unlike" else 0.5)
    draft[:, 3], draft[:, 4] = 0.5, -INF
    many = [scores.expand(DRAWS, *scores.shape) for scores in (target, draft)]
    columns = [
        sample(many[1][:, i], temperature=temperature, seed=i + 70, backend="cpu").token_ids
        if kind != "certain"
        else torch.full((DRAWS,), (0, 5)[i])
        for i in range(n)
    ]
    drafts = torch.stack(columns, dim=1)
    scores = None if kind == "certain" else many[1]
    output = verify_draft(many[0], drafts, scores, temperature=temperature, seed=1, backend="cpu")
    assert not output.status.any()
    tokens = torch.cat([drafts, drafts[:, :1]], dim=1)
    tokens[torch.arange(DRAWS), output.accepted_lengths] = output.token_ids
    for i in range(n + 1):
        reached = output.accepted_lengths >= i
        assert reached.sum() > 2**12
        assert_distribution(tokens[reached, i], target[i] / temperature)
    first, second = tokens[output.accepted_lengths >= 1, :2].t()
    p = torch.softmax(target[1].double() / temperature, 0)
    for draft_id in first.unique().tolist():
        counts = torch.bincount(second[first == draft_id], minlength=vocab_size)
        assert chi_squared_p_value(counts[p > 0], p[p > 0]) > ALPHA


def test_the_share_that_stays_is_the_overlap() -> None:
    """A draft passes with probability sum min(p, q), the maximum for any such rule."""
    p, q = torch.tensor([P, Q]).softmax(-1)
    drafts = sample(torch.tensor([Q]).expand(DRAWS, 4), seed=70, backend="cpu").token_ids[:, None]
    target, draft = torch.tensor([[P, P]]), torch.tensor([[Q]])
    output = verify_draft(target.expand(DRAWS, 2, 4), drafts, draft.expand(DRAWS, 1, 4), seed=2, backend="cpu")
    share = output.accepted_lengths.double().mean().item()
    overlap = torch.minimum(p, q).sum().item()
    assert abs(share - overlap) < 6 * math.sqrt(overlap * (1 - overlap) / DRAWS)


REFERENCE = "pygen.reference.verify_draft"

FAULTS = [
    fault("q / p for p / q", REFERENCE, ("(p[draft] - q[draft]).exp()", "(q[draft] - p[draft]).exp()")),
    fault("p for p / q", REFERENCE, ("uniform < (p[draft] - q[draft]).exp()", "uniform < p[draft].exp()")),
    fault("u at p / q stays", REFERENCE, ("uniform < (p[draft]", "uniform <= (p[draft]")),
    fault("p = 0 may stay", REFERENCE, ("if p[draft] > -math.inf and uniform <", "if uniform <=")),
    fault("recovered from p", REFERENCE, ("_draw(rest if rest.isfinite().any() else p,", "_draw(p,")),
    fault(
        "recovered from q - p",
        REFERENCE,
        ("torch.where(q < p, p + torch.log1p(-(q - p).exp())", "torch.where(p < q, q + torch.log1p(-(p - q).exp())"),
    ),
    fault(
        "a refused certain draft comes back", REFERENCE, ("        q[draft] = 0.0\n", "        q[draft] = p[draft]\n")
    ),
    fault(
        "no temperature for the drafts",
        REFERENCE,
        ("log_probabilities(y, temperature)", "log_probabilities(y, torch.ones(()))"),
    ),
    fault(
        "no temperature for the target",
        REFERENCE,
        ("p = log_probabilities(x, temperature)", "p = log_probabilities(x, torch.ones(()))"),
    ),
    fault("lengths are ignored", REFERENCE, ("if i < lengths[r].clamp(max=positions - 1)", "if i < positions - 1")),
    fault("ids above the vocabulary are drafts", REFERENCE, ("if not 0 <= draft < vocab_size:", "if draft < 0:")),
    fault(
        "greedy by the highest id",
        REFERENCE,
        ("_best(x), row_status(x)", "len(x) - 1 - _best(x.flip(0)), row_status(x)"),
    ),
    fault("bad drafts are used", REFERENCE, ("status or row_status(y)", "status")),
    fault(
        "probabilities that underflow are 0",
        REFERENCE,
        (
            "torch.log_softmax((x / fitting_temperature(temperature, x)).double(), dim=0)",
            "torch.softmax(x / temperature, 0).log()",
        ),
    ),
    fault("a tiny temperature overflows", REFERENCE, ("x / fitting_temperature(temperature, x)", "x / temperature")),
    fault("the noise of one position for all", REFERENCE, ("uniforms[r, i]", "uniforms[r, 0]")),
]


@pytest.mark.parametrize("planted", FAULTS, ids=[planted.name for planted in FAULTS])
def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch, planted: Fault) -> None:
    plant(monkeypatch, planted, [REFERENCE])
    with pytest.raises((AssertionError, IndexError)):
        check_by_hand("torch")
