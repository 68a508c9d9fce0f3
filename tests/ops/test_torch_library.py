"""`torch.ops.pygen.*`: opcheck, and ops in graphs of torch.compile and torch.export against the same calls outside."""

from __future__ import annotations

import copy
import inspect
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pygen
from pygen import ops
from pygen.knobs import KNOBS
from pygen.ops import BeamState, DecodeState
from pygen.ops import _checks as checks
from pygen.ops._cuda import taken_noise
from pygen.ops._outputs import tensors_of
from pygen.ops._schemas import flat_state
from tests.helpers.logits import make_history, make_logits

PYGEN: Any = torch.ops.pygen
ROWS, VOCAB_SIZE = 6, 40
LOGITS = make_logits("normal", ROWS, VOCAB_SIZE)
IDS = make_history(ROWS, 5, VOCAB_SIZE)
SEEDS, STEPS = torch.arange(ROWS) - 3, torch.arange(ROWS)
TEMPERATURES = torch.linspace(0, 2, ROWS)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def beam_state(**options: Any) -> BeamState:
    return BeamState.create(IDS[:2], 4, 3, eos_token_ids=[1], **options)


def decode_state() -> DecodeState:
    state = DecodeState.create(IDS, 4, eos_token_ids=[1, 2, 3], visible=IDS > 4)
    state.token_ids[:, 5:], state.history[:, 5:] = 0, 0  # the memory of `torch.empty`, which a copy has to equal
    return state


def draft_arguments() -> tuple[Tensor, ...]:
    return (
        make_logits("normal", 3 * ROWS, VOCAB_SIZE).view(ROWS, 3, VOCAB_SIZE),
        IDS[:, :2],
        LOGITS[:, None].repeat(1, 2, 1),
    )


def tensors(value: Any) -> list[Any]:
    value = vars(value) if isinstance(value, (BeamState, DecodeState)) else value
    return tree_leaves(value, is_leaf=lambda leaf: leaf is None)


def check_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(tensors(one), tensors(other), rtol=0, atol=0, equal_nan=True)


PER_ROW = {"per_row": "temperature,seed,step", "row_values": [TEMPERATURES, SEEDS, STEPS]}
SHAPING = {"top_p": 0.9, "repetition_penalty": 1.2, "input_ids": IDS, "bias": LOGITS[0], "suppress": IDS[0]}
CASES: dict[str, Callable[[], tuple[Any, tuple[Any, ...], dict[str, Any]]]] = {
    "sample": lambda: (PYGEN.sample.default, (LOGITS,), {"do_sample": False}),
    "sample(knobs)": lambda: (PYGEN.sample_deterministic.default, (LOGITS,), {**PER_ROW, **SHAPING, "logprobs": 2}),
    "sample(kept)": lambda: (
        PYGEN.sample_deterministic.default,
        (LOGITS,),
        {"seed": 3, "top_k": 9, "output_kept": True, "kept_limit": 7},
    ),
    "sample.out": lambda: (
        PYGEN.sample.out,
        (LOGITS,),
        {"seed": 3, "logprobs": 2, "out": [*map(torch.zeros_like, tensors_of(ops.sample(LOGITS, logprobs=2)))]},
    ),
    "sample_append": lambda: (
        PYGEN.sample_append.default,
        (LOGITS,),
        {**flat_state(decode_state()), "seed": 3, "out": [SEEDS.clone(), SEEDS.int()]},
    ),
    "process_logits": lambda: (PYGEN.process_logits.default, (LOGITS,), {"top_k": 9, **SHAPING}),
    "process_logits(gradient)": lambda: (PYGEN.process_logits.default, (LOGITS.clone().requires_grad_(),), {}),
    "process_logits.out": lambda: (PYGEN.process_logits.out, (LOGITS,), {"out": [torch.zeros_like(LOGITS)]}),
    "token_logprobs": lambda: (PYGEN.token_logprobs.default, (LOGITS.half(), IDS), {"top": 3}),
    "token_logprobs.out": lambda: (
        PYGEN.token_logprobs.out,
        (LOGITS, IDS),
        {"out": [torch.zeros(IDS.shape), SEEDS.int()]},
    ),
    "verify_draft": lambda: (PYGEN.verify_draft.default, draft_arguments(), {"do_sample": False}),
    "verify_draft(seed)": lambda: (PYGEN.verify_draft_deterministic.default, draft_arguments(), {"seed": 3}),
    "beam_step": lambda: (PYGEN.beam_step.default, (LOGITS,), flat_state(beam_state())),
    "beam_step(seed)": lambda: (
        PYGEN.beam_step_deterministic.default,
        (LOGITS,),
        {**flat_state(beam_state(visible=IDS[:2] > 4)), "do_sample": True, "seed": 3},
    ),
    "beam_step.out": lambda: (
        PYGEN.beam_step.out,
        (LOGITS,),
        {**flat_state(beam_state()), "out": [SEEDS.clone(), SEEDS.clone(), SEEDS.clone(), SEEDS.int()]},
    ),
    "beam_finalize": lambda: (PYGEN.beam_finalize.default, (2,), flat_state(beam_state())),
    "reorder_cache": lambda: (
        PYGEN.reorder_cache.default,
        ([torch.randn(ROWS, 1, 3, 4), torch.randn(ROWS, 2, 3, 4)], STEPS.flip(0)),
        {"start": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str) -> None:
    opcheck(*CASES[name]())


def test_every_op_has_an_operator_with_its_arguments() -> None:
    for name in ops.DISPATCHERS:
        arguments = {argument.name for argument in getattr(PYGEN, name).default._schema.arguments}
        missing = {*inspect.signature(getattr(ops, name)).parameters} - arguments
        assert missing <= {"state", "generator", "stopping_criteria", "out"}, name
        assert ("state" in missing) == any(argument.startswith("state_") for argument in arguments)
        assert not {knob.name for knob in KNOBS} & missing


def test_operators_that_draw_say_so() -> None:
    drawing = {name for name in ops.DISPATCHERS if hasattr(PYGEN, f"{name}_deterministic")}
    assert drawing == {"sample", "verify_draft", "beam_step"}
    for name in drawing:
        deterministic = getattr(PYGEN, f"{name}_deterministic").default
        assert torch.Tag.nondeterministic_seeded in getattr(PYGEN, name).default.tags
        assert torch.Tag.nondeterministic_seeded not in deterministic.tags
        assert str(deterministic._schema).replace("_deterministic", "", 1) == str(getattr(PYGEN, name).default._schema)


def decoding_step(hidden: Tensor, head: Tensor, ids: Tensor, temperature: Tensor, seed: Tensor, step: Tensor) -> Any:
    scores = ops.process_logits(hidden @ head, repetition_penalty=1.2, input_ids=ids)
    scores = scores.masked_fill(scores < -2.5, float("-inf"))  # a caller's processor
    drawn = ops.sample(scores, temperature=temperature, top_k=9, seed=seed, step=step, suppress=[3], logprobs=2)
    greedy = ops.sample(scores, do_sample=False)
    given = ops.token_logprobs(scores, drawn.token_ids, top=1)
    free = [ops.sample(scores), ops.sample(scores), ops.sample(scores, rng="torch", top_p=0.9)]
    return torch.cat([ids, drawn.token_ids[:, None]], dim=1), drawn, greedy, given, free


@pytest.mark.parametrize(("backend", "compiler"), [("cpu", "inductor"), ("torch", "aot_eager")])
def test_a_decoding_step_is_one_graph_for_all_shapes(backend: str, compiler: str) -> None:
    counter = CompileCounterWithBackend(compiler)
    compiled = torch.compile(decoding_step, fullgraph=True, backend=counter, dynamic=True)
    for rows, width, vocab_size in ((3, 4, 50), (6, 5, 61), (2, 9, 33)):
        hidden, head = make_logits("normal", rows, 8), make_logits("normal", 8, vocab_size)
        arguments = (
            hidden,
            head,
            make_history(rows, width, vocab_size),
            TEMPERATURES[:rows],
            SEEDS[:rows],
            STEPS[:rows],
        )
        results = []
        for function in (compiled, decoding_step):
            torch.manual_seed(5)
            with pygen.use_backend(backend):
                results.append((function(*arguments), torch.get_rng_state()))
        check_equal(*results)
    assert counter.frame_count == 1


SINGLE_CALLS: dict[str, Callable[[Tensor], Any]] = {
    "lists": lambda x: ops.sample(x, seed=[1, 2, 3, 2**64 - 1, 5, 6], temperature=[0.5] * ROWS, top_k=[3] * ROWS),
    "numbers in tensors": lambda x: ops.sample(x, seed=4, temperature=x[0, 0].abs(), top_p=torch.tensor(0.7)),
    "a large seed": lambda x: ops.sample(x, seed=2**64 - 3, top_h=0.4, rng="philox"),
    "rows that draw": lambda x: ops.sample(x, do_sample=x[:, 0] > 0, prompt_lengths=STEPS, seed=3, step=7),
    "noise": lambda x: ops.sample(x, noise=x.exp()),
    "torch's generator": lambda x: ops.sample(x, generator=torch.default_generator),
    "prepared": lambda x: ops.prepare_sample(x, seed=3, input_ids=IDS, repetition_penalty=1.5)(x, step=2, length=2),
    "bfloat16": lambda x: ops.token_logprobs(x.bfloat16(), IDS),
    "drafts": lambda x: ops.verify_draft(x[:, None], IDS[:, :0], temperature=TEMPERATURES, seed=SEEDS, step=STEPS),
    "beams": lambda x: ops.beam_step(
        x, beam_state(), do_sample=True, seed=2, early_stopping="never", length_penalty=2.0
    ),
}


@pytest.mark.parametrize("name", SINGLE_CALLS)
def test_arguments_of_every_form(name: str) -> None:
    call, results = SINGLE_CALLS[name], []
    for function in (torch.compile(call, fullgraph=True, backend="eager"), call):
        torch.manual_seed(5)
        results.append(function(LOGITS))
    check_equal(*results)


def test_kept_tokens_have_a_fixed_shape_in_a_graph() -> None:
    def call(x: Tensor) -> Any:
        return ops.sample(x, seed=3, top_p=TEMPERATURES.clamp(max=1), output_kept=True, kept_limit=7, logprobs=1)

    result = torch.compile(call, fullgraph=True, backend="aot_eager")(LOGITS)
    assert result.kept.token_ids.shape == (ROWS, 7)
    check_equal(result._replace(kept=result.kept.compressed()), call(LOGITS))


def test_results_go_into_given_tensors() -> None:
    def call(x: Tensor, out: Any, of_ids: Any, scores: Tensor, beams: Any, state: BeamState) -> Tensor:
        ops.token_logprobs(x, IDS, top=2, out=of_ids)
        ops.process_logits(x, top_k=3, out=scores)
        ops.beam_step(x, state, out=beams)
        token_ids: Tensor = ops.sample(x + 1, seed=3, logprobs=2, out=out).token_ids
        return token_ids + 1

    given = (ops.sample(LOGITS, logprobs=2), ops.token_logprobs(LOGITS, IDS, top=2), torch.zeros_like(LOGITS))
    more = (ops.beam_step(LOGITS, beam_state()), beam_state())
    one, other = copy.deepcopy((*given, *more)), copy.deepcopy((*given, *more))
    check_equal(torch.compile(call, fullgraph=True, backend="aot_eager")(LOGITS, *one), call(LOGITS, *other))
    check_equal([tensors(value) for value in one], [tensors(value) for value in other])


@pytest.mark.parametrize("masks", [False, True])
def test_a_beam_search_with_a_cache(masks: bool) -> None:
    def step_of(x: Tensor, state: BeamState, cache: list[Tensor], step: int) -> Any:
        out = ops.beam_step(x, state, step=step, repetition_penalty=1.2)
        ops.reorder_cache(cache, out.source_rows, out.shared, 4)
        return out, cache[0].sum()

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step_of, fullgraph=True, backend=counter)
    one = (
        beam_state(visible=IDS[:2] > 4) if masks else beam_state(),
        [torch.randn(ROWS, 1, 4, 2), torch.randn(ROWS, 2, 4, 2)],
    )
    other = copy.deepcopy(one)
    for step in range(4):
        logits = make_logits("normal", ROWS, VOCAB_SIZE).roll(step, 1)
        check_equal(compiled(logits, *one, step), step_of(logits, *other, step))
        check_equal([tensors(one[0]), one[1]], [tensors(other[0]), other[1]])
    assert counter.frame_count == 2  # step 0, and all others
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        best = torch.compile(ops.beam_finalize, fullgraph=True, backend="eager")(one[0], 2)
    check_equal(best, ops.beam_finalize(other[0], 2))


@pytest.mark.parametrize("saved", [False, True])
def test_a_decode_state(saved: bool) -> None:
    def step_of(x: Tensor, state: DecodeState, step: int) -> Any:
        noise: dict[str, Any] = {"rng": "torch"} if saved else {"seed": 3}
        append = ops.prepare_sample(x, state=state, top_k=3, output_kept=saved, kept_limit=3, logprobs=1, **noise)
        return append(x, step=step), state.token_ids.sum()

    one = decode_state()
    one.generator_state = torch.Generator().get_state() if saved else None
    other = copy.deepcopy(one)
    compiled = torch.compile(step_of, fullgraph=True, backend="aot_eager")
    for step in range(4):
        check_equal(compiled(LOGITS, one, step), step_of(LOGITS, other, step))
        check_equal(one, other)


class Step(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(VOCAB_SIZE, 4), torch.nn.Linear(4, VOCAB_SIZE)

    def forward(self, ids: Tensor, seed: Tensor) -> Any:
        logits = self.head(self.embedding(ids).sum(1))
        return ops.sample(logits, top_k=9, repetition_penalty=1.2, input_ids=ids, seed=seed, logprobs=1)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    rows, module, file = Dim("rows"), Step().eval(), io.BytesIO()
    shapes = {"ids": {0: rows, 1: Dim("length")}, "seed": {0: rows}}
    torch.export.save(torch.export.export(module, (IDS, SEEDS), dynamic_shapes=shapes, strict=strict), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for ids in (IDS, IDS[:3, :2]):
        check_equal(loaded(ids, SEEDS[: len(ids)]), module(ids, SEEDS[: len(ids)]))


UNTYPED: Any = ops
PREPARED = ops.prepare_sample(LOGITS)
REFUSALS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "value": (lambda x: ops.sample(x, top_p=1.2), r"`top_p` must be in \[0, 1\], got 1.2"),
    "type": (lambda x: UNTYPED.sample(x, top_p="0.9"), r"a value of type .{1,2}float.{1,2} for argument .{1,2}top_p"),
    "name": (lambda x: UNTYPED.sample(x, tpo_k=3), "Unknown keyword argument .{1,2}tpo_k"),
    "shape": (lambda x: ops.sample(x[0]), r"`logits` must have shape \(rows, vocab_size\), got \(40,\)"),
    "seed": (lambda x: ops.sample(x, seed=-1), r"`seed` must be in \[0, 2\*\*64\)"),
    "generator": (lambda x: ops.sample(x, generator=torch.Generator()), "`generator` must be None in a compiled graph"),
    "criteria": (
        lambda x: ops.beam_step(x, beam_state(), stopping_criteria=lambda ids: False),
        "`stopping_criteria` must be None in a compiled graph",
    ),
    "prepared": (PREPARED, "a prepared op holds addresses: call the op itself inside the graph"),
    "preparation": (ops.prepare_process_logits, "call `process_logits` itself inside the graph"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    call, words = REFUSALS[name]
    with pytest.raises(Exception, match=words):
        torch.compile(lambda x: call(x), fullgraph=True, backend="eager")(LOGITS)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_prepared_op_runs_between_two_graphs() -> None:
    def call(x: Tensor) -> Tensor:
        return ops.process_logits(PREPARED(x * 2).token_ids[None].float())

    torch.manual_seed(5)
    check_equal(torch.compile(call, backend="eager")(LOGITS), call(LOGITS))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"per_row": "top_k,top_k", "row_values": [STEPS, STEPS]}, "name arguments without another value, got 'top_k'"),
        ({"per_row": "top_k", "row_values": [STEPS], "top_k": 3}, "name arguments without another value, got 'top_k'"),
        ({"per_row": "logprobs", "row_values": [STEPS]}, "got 'logprobs'"),
    ],
)
def test_direct_calls(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        PYGEN.sample(LOGITS, **arguments)
    (ids, _status) = PYGEN.sample(LOGITS, seed=-1, per_row="top_k", row_values=[STEPS])
    assert ids.equal(ops.sample(LOGITS, seed=2**64 - 1, top_k=STEPS).token_ids)


class WithoutReads(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU, which ends the capture of a CUDA graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


def test_a_captured_call_reads_no_element(monkeypatch: pytest.MonkeyPatch) -> None:
    top_k, cache, uniforms = STEPS + 1, torch.randn(ROWS, 1, 3, 2), torch.full((ROWS, 2), 0.5)

    def calls() -> Any:
        drawn = ops.sample(LOGITS, seed=3, temperature=TEMPERATURES, top_k=top_k, top_p=torch.tensor(0.9))
        penalised = ops.process_logits(LOGITS, presence_penalty=TEMPERATURES, input_ids=IDS)
        verified = ops.verify_draft(*draft_arguments(), uniforms=uniforms, noise=LOGITS.exp())
        moved = cache.clone()
        ops.reorder_cache(moved, STEPS.flip(0), start=STEPS % 2)
        return drawn, penalised, verified, ops.sample(LOGITS, noise=LOGITS.exp()), moved

    expected = calls()
    monkeypatch.setattr(checks, "is_captured", lambda device: True)
    with WithoutReads(), pygen.use_backend("cpu"):
        results = calls()
    with pytest.raises(ValueError, match="`seed` must be given while a CUDA graph captures the call"):
        ops.sample(LOGITS, top_k=17)  # unlike all other calls, which could leave a plan
    with (
        pytest.raises(pygen.BackendError, match="rng='torch' cannot run while"),
        taken_noise(torch.default_generator, 4),
    ):
        pass
    check_equal(results, expected)


def test_wrap_triton_loses_tuples_of_pointers() -> None:
    """All kernels take such tuples, so their launches stay inside an operator: see docs/guide/torch-compile.md."""
    pytest.importorskip("triton")
    from pygen.triton_kernels.process_logits import filter_rows_kernel
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.library import wrap_triton

    def launch(x: Tensor, table: Tensor) -> Tensor:
        numbers = dict.fromkeys(("vocab_size", "f32_stride", "i32_stride", "scores_stride", "parts"), 1)
        wrap_triton(filter_rows_kernel)[(1,)](knobs=x, int_knobs=table, workspace=(x, table), **numbers, PDL=False)
        return x

    with FakeTensorMode():
        graph = make_fx(launch)(torch.empty(8, device="cuda"), torch.empty(8, device="cuda", dtype=torch.int32))
    (recorded,) = [node.kwargs["kwargs"] for node in graph.graph.nodes if "kwargs" in node.kwargs]
    assert {"knobs", "int_knobs", "vocab_size"} <= set(recorded) and "workspace" not in recorded
