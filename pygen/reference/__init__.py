"""The definition of every op in plain torch, one module per op: the `torch` backend, and the oracle of the kernels."""
