"""Loaded by `model.generate(..., custom_generate=<this repository>, trust_remote_code=True)`."""

import pygen


def generate(*args, model, **kwargs):
    """`pygen.generate`, with the arguments of transformers' `generate`."""
    return pygen.generate(model, *args, **kwargs)
