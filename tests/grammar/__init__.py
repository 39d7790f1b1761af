"""Tests of ``mistralrs.grammar``."""
