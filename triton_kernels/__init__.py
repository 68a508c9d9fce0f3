"""Triton kernels, one file per op; installed as `pygen.triton_kernels`. Nothing is imported here, so Triton stays optional."""
