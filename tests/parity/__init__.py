"""Whole models against `transformers`, and laws that hold from the scheduler down to the kernels."""
