"""Tests of the terminal application, driven by a model of scripted answers."""
