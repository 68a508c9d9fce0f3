"""Diverse beam search: beams in groups, each of which avoids the tokens that the groups before it chose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pygen.call.call import Call
from pygen.decode.beam import Search, beam, first_steps, refuse_with, searched, sizes, texts
from pygen.decode.beam_observer import BeamRecorder
from pygen.decode.group_plans import check_groups, group_plans
from pygen.ops import BeamOutput, BeamStepOutput, beam_finalize
from pygen.ops._beam_state import NEVER_WINS, BeamState
from pygen.outputs import GenerateOutput
from pygen.plan.beam_pipeline import BeamBinding, SearchArguments
from pygen.plan.pipeline import Op, Pipeline, check_knobs
from pygen.plan.plan import Plan, make_plan
from pygen.plan.stages import Fused


def generate_with_groups(call: Call) -> Tensor | GenerateOutput:
    """Diverse beam search: `num_beam_groups` groups of beams that avoid each other's tokens."""
    config = call.config
    groups = config.num_beam_groups or 1
    check_groups(call.num_copies, groups, config.diversity_penalty, config.do_sample)
    refuse_with("num_beam_groups", call)
    plan = make_plan(dataclasses.replace(call, num_copies=call.num_copies // groups))
    # Beams that no memory holds are refused here, and not after very many groups.
    torch.empty((call.rows, call.prompt.input_ids.shape[1] + 1), dtype=torch.int64)
    state = DiverseBeamState.create(*sizes(call), groups, **texts(call, plan), step_capacity=first_steps(call))

    def loop(search: Search) -> int:
        for group in state.groups:
            check_knobs(plan, BeamBinding(plan, group, search.arguments), group.rows, group.token_ids.device)
        call.start()
        penalty = config.diversity_penalty or 0.0
        chooser = GroupsChooser(plan, state, search.arguments, search.recorder, diversity_penalty=penalty)
        max_new_tokens = call.lengths.max_new_tokens
        return beam(call.adapter, state, chooser, search.report, search.monitor, max_new_tokens=max_new_tokens)

    return searched(call, state, loop, state.finalize)


@dataclass
class DiverseBeamState:
    """One `BeamState` per group, and the rows of all groups as one batch of the model.

    With B prompts and n beams in g groups of m = n / g, row j and beam j of prompt b in group i are b * m + j in the
    group's own state and b * n + i * m + j for the model and in results.

    slots: (B, n) int64, the row that held each beam at the last forward.
    """

    groups: tuple[BeamState, ...]
    slots: Tensor

    @classmethod
    def create(
        cls,
        prompt_ids: Tensor,
        max_new_tokens: int,
        num_beams: int,
        num_beam_groups: int,
        *,
        step_capacity: int | None = None,
        eos_token_ids: list[int] | None = None,
        pad_token_id: int = 0,
        visible: Tensor | None = None,
    ) -> DiverseBeamState:
        """State before the first step; see `BeamState.create`."""
        groups = tuple(
            BeamState.create(
                prompt_ids,
                max_new_tokens,
                num_beams // num_beam_groups,
                step_capacity=step_capacity,
                eos_token_ids=eos_token_ids,
                pad_token_id=pad_token_id,
                visible=visible,
            )
            for _ in range(num_beam_groups)
        )
        rows = torch.arange(len(prompt_ids) * num_beams, device=prompt_ids.device)
        return cls(groups, rows.view(len(prompt_ids), num_beams))

    @property
    def batch_size(self) -> int:
        return self.slots.shape[0]

    @property
    def num_beams(self) -> int:
        return self.slots.shape[1]

    @property
    def group_size(self) -> int:
        return self.groups[0].num_beams

    @property
    def rows(self) -> int:
        return self.slots.numel()

    @property
    def prompt_length(self) -> int:
        return self.groups[0].prompt_length

    @property
    def unfinished(self) -> Tensor:
        """(1,) int64, how many prompts have an open group."""
        return torch.stack([group.open for group in self.groups]).any(0).sum().view(1)

    def update_slots(self) -> None:
        self.slots = self.joined_rows([group.slots.flatten() for group in self.groups]).view_as(self.slots)

    def tokens(self, generated: int) -> Tensor:
        """(rows, P + generated) by row: a copy of the prompt and the first `generated` tokens."""
        return self.joined([group.tokens(generated) for group in self.groups])

    def chosen(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """See `BeamState.chosen`; the finished hypotheses of a group follow those of the one before."""
        token_ids, parents = zip(*(group.chosen(step) for group in self.groups), strict=True)
        return self.joined(token_ids), self.joined_rows(parents)

    def part(self, table: Tensor, group: int) -> Tensor:
        """The rows of a group out of a table (rows, ...)."""
        shape = (self.batch_size, len(self.groups), self.group_size, *table.shape[1:])
        return table.view(shape)[:, group].flatten(0, 1)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Tables (B * m, ...) of the groups as one of all rows."""
        shape = (self.batch_size, self.group_size, *parts[0].shape[1:])
        return torch.stack([part.reshape(shape) for part in parts], dim=1).flatten(0, 2)

    def joined_rows(self, parts: Sequence[Tensor]) -> Tensor:
        """The same for tables that hold row or beam numbers within a group; negative numbers stay."""
        m, offsets = self.group_size, range(0, self.num_beams, self.group_size)
        moved = [part + offset + part // m * (self.num_beams - m) for part, offset in zip(parts, offsets, strict=True)]
        return self.joined([torch.where(part < 0, part, new) for part, new in zip(parts, moved, strict=True)])

    def finalize(self, num_return_sequences: int = 1) -> BeamOutput:
        """The best hypotheses of every prompt, whichever group they are from, as `beam_finalize` returns them.

        Ties go to the lower group, and within a group to the better rank.
        """
        outputs = [beam_finalize(group, self.group_size) for group in self.groups]
        longest = max(output.beam_indices.shape[1] for output in outputs)
        pad = self.groups[0].pad_token_id

        def widened(table: Tensor, value: int, width: int) -> Tensor:
            return torch.nn.functional.pad(table, (0, width - table.shape[1]), value=value)

        shape = (self.batch_size, self.num_beams)
        scores = self.joined([output.sequences_scores for output in outputs]).view(shape)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :num_return_sequences]
        rows = (best + torch.arange(self.batch_size, device=best.device)[:, None] * self.num_beams).flatten()
        beam_indices = self.joined_rows([widened(output.beam_indices, -1, longest) for output in outputs])[rows]
        width = self.prompt_length + longest
        sequences = self.joined([widened(output.sequences, pad, width) for output in outputs])[rows]
        longest = int((beam_indices >= 0).sum(1).max()) if len(rows) else 0
        return BeamOutput(
            sequences[:, : self.prompt_length + longest], scores.flatten()[rows], beam_indices[:, :longest]
        )


class GroupsChooser:
    """The `BeamChooser` of a search in groups. Each step, from the first group to the last::

        s = log_softmax(logits) - diversity_penalty * (beams of earlier groups that this step continued with the token)
        the group's own beam_step, on s with every processor applied

    A group that has finished its search for a prompt chooses nothing there (Vijayakumar et al. 2018).
    """

    def __init__(
        self,
        plan: Plan,
        state: DiverseBeamState,
        search: SearchArguments,
        recorder: BeamRecorder,
        *,
        diversity_penalty: float,
    ) -> None:
        """plan: for the rows of one group, without sampling; NotImplementedError as of `group_plans`.

        search: `length_penalty`, `early_stopping` and `stopping_criteria` of `beam_step`.
        """
        self._plans = group_plans(plan, len(state.groups))
        self._state = state
        self._search = search
        self._recorder = recorder
        self._diversity_penalty = diversity_penalty
        self._last_step = state.groups[0].max_new_tokens - 1

    def bind(self, logits: Tensor) -> None:
        rows = self._state.rows // len(self._state.groups)
        # Of the tokens chosen in this step, (B * m, vocab_size); zero between steps.
        self._penalties = torch.zeros((rows, logits.shape[1]), device=logits.device)
        self._prepare(logits, self._search)

    def __call__(self, logits: Tensor, step: int) -> BeamStepOutput:
        output, processed = self._advance(logits, step)
        self._recorder.see(logits, processed)
        self._state.update_slots()
        self._recorder.add(step)
        return output

    def _prepare(self, logits: Tensor, search: SearchArguments) -> None:
        groups = self._state.groups
        bindings = [BeamBinding(self._plans[0], groups[0], search)]
        bindings += [
            _GroupBinding(plan, group, search, self._penalties)
            for plan, group in zip(self._plans[1:], groups[1:], strict=True)
        ]
        self._pipelines = [
            Pipeline(plan, self._state.part(logits, number), binding)
            for number, (plan, binding) in enumerate(zip(self._plans, bindings, strict=True))
        ]

    def _advance(self, logits: Tensor, step: int) -> tuple[BeamStepOutput, Tensor | None]:
        """The moves of all rows, and what `Pipeline.processed` returns, by row."""
        state = self._state
        if step == self._last_step:
            self._prepare(logits, {**self._search, "stopping_criteria": self._look_at_candidates})
        outputs = self._outputs = list[BeamStepOutput]()
        processed: list[Tensor] = []
        chosen: list[Tensor] = []
        for number, (group, pipeline) in enumerate(zip(state.groups, self._pipelines, strict=True)):
            scores = pipeline.shape(state.part(logits, number), step)
            of_group = pipeline.processed(scores, step)
            if of_group is not None:
                processed.append(of_group)
            was_open = group.open[:, None].clone()
            outputs.append(pipeline.choose(scores, step=step))
            token_ids, goes_on = self._continued(group, step)
            chosen.append(self._penalize(token_ids, goes_on & was_open))
            self._close(group)
        for token_ids in chosen:
            self._penalties.scatter_(1, token_ids, 0.0)
        output = BeamStepOutput(
            token_ids=state.joined([output.token_ids for output in outputs]),
            source_rows=state.joined_rows([output.source_rows for output in outputs]),
            shared=state.joined([output.shared for output in outputs]),
            status=state.joined([output.status for output in outputs]),
        )
        return output, state.joined(processed) if processed else None

    def reorder(self, step: int, output: BeamStepOutput) -> None:
        for group, pipeline, output in zip(self._state.groups, self._pipelines, self._outputs, strict=True):
            pipeline.reorder(output.source_rows, group.step_parents[step])

    def _look_at_candidates(self, sequences: Tensor) -> bool:
        """Stands for the caller's criteria in the last step, where they have nothing to say."""
        self._candidates = sequences[:, -1].view(self._state.batch_size, -1)
        return False

    def _continued(self, group: BeamState, step: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, some) and which of them, True, the beams of a group have gone on with."""
        if step < self._last_step:
            token_ids = group.step_tokens[step].view(group.slots.shape)
            return token_ids, group.running_scores > NEVER_WINS
        # Every candidate ends here, but those would have gone on that hold no EOS token.
        token_ids = self._candidates
        goes_on = torch.ones_like(token_ids, dtype=torch.bool)
        if group.eos_token_ids is not None:
            goes_on = ~torch.isin(token_ids, group.eos_token_ids)
        return token_ids, goes_on & (goes_on.cumsum(1) <= group.num_beams)

    def _penalize(self, token_ids: Tensor, counts: Tensor) -> Tensor:
        """Makes tokens (B, some) expensive where `counts`; returns which entries of the table those are."""
        m = self._state.group_size
        token_ids = token_ids.masked_fill(~counts, 0).repeat_interleave(m, dim=0)
        losses = (counts * -self._diversity_penalty).repeat_interleave(m, dim=0)
        self._penalties.scatter_add_(1, token_ids, losses)
        return token_ids

    def _close(self, group: BeamState) -> None:
        """Makes `open` False for good where the search of a group alone would have ended."""
        group.open &= group.unfinished > 0
        if self._search["early_stopping"] is True:
            group.open &= ~group.finished.all(1)


class _GroupBinding(BeamBinding):
    """The rows of one group; `penalties` (rows, vocab_size) float32 is added to every step's log-probabilities."""

    def __init__(self, plan: Plan, state: BeamState, search: SearchArguments, penalties: Tensor) -> None:
        super().__init__(plan, state, search)
        self._penalties = penalties

    def keeps(self, plan: Plan, last: Fused) -> bool:
        return plan.keep_scores or plan.num_logprobs > 0

    def start(self, logits: Tensor) -> Tensor:
        return super().start(logits) + self._penalties

    def choose(self, example: Tensor, first: bool, **knobs: Any) -> Op:
        if not first:
            return super().choose(example, first, **knobs)
        if "bias" not in knobs:
            return super().choose(example, first, bias=self._penalties, **knobs)
        op = super().choose(self._penalties, False, **knobs)
        return lambda scores, *, step: op(self.start(scores), step=step)
