"""Compares the results of a benchmark with those of an older one."""
