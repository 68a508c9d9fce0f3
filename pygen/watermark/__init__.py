"""Watermark detectors; the configurations are in `pygen.config`, the processors in `pygen.processors`."""
