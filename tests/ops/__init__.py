"""Kernels, their reference implementations and the laws that bind them."""
