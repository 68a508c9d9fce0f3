"""What a trainer needs of rollouts (`output_kept` of `generate`)."""

from pygen.rollout.renormalize import renormalized_logprobs

__all__ = ["renormalized_logprobs"]
