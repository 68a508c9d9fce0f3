"""Triton kernels, one file per op, installed as `pygen.triton_kernels`. Importing this imports no Triton."""
