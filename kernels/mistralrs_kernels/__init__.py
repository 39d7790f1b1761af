"""The compiled kernels and their Python mirrors. Imports nothing of ``mistralrs``."""
