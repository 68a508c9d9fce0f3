"""Tests of `pygen.integrations` with the real packages, which the environment of `make test-integrations` has."""
