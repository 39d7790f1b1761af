"""Tests of mistralrs.text."""
