"""The order of a decoding loop, written once: launch, look, and take back what was launched too much."""

from __future__ import annotations

from typing import Protocol, TypeVar

Report_co = TypeVar("Report_co", covariant=True)
Report_contra = TypeVar("Report_contra", contravariant=True)
ReportT = TypeVar("ReportT")


class Stepper(Protocol[Report_co]):
    """How the steps of one call run on the device.

    An eager launch is the forward that a step chooses from; a captured launch replays the whole step.
    """

    lag: int
    """How many launches may be ahead of the step that the monitor looks at; each may have to be taken back."""

    def launch(self, step: int) -> None:
        """Queues `step`; steps come in order, and the host waits for nothing."""
        ...

    def report(self, step: int) -> Report_co:
        """Waits for `step`, the first without a report, and says what it did."""
        ...

    def finish(self, steps: int) -> None:
        """Takes back all launches but the first `steps`, so that the call's state and cache are those of `steps`."""
        ...

    def close(self) -> None:
        """Ends the call, whether or not it failed."""
        ...


class Looker(Protocol[Report_contra]):
    def look(self, step: int, report: Report_contra) -> bool:
        """Whether `step` was the last."""
        ...


def run(stepper: Stepper[ReportT], monitor: Looker[ReportT], *, max_steps: int) -> int:
    """Runs steps until one of them was the last, and returns how many count."""
    launched = steps = 0
    lag, over = stepper.lag, False
    launch, report, look = stepper.launch, stepper.report, monitor.look
    try:
        while steps < max_steps and not over:
            while launched <= steps + lag and launched < max_steps:
                launch(launched)
                launched += 1
            over = look(steps, report(steps))
            steps += 1
        stepper.finish(steps)
    finally:
        stepper.close()
    return steps
