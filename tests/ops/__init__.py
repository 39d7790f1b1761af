"""Kernels, twins and the laws that bind them."""
