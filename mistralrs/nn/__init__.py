"""Blocks of a decoder: attention, feed-forward and rotary frequencies, each as a list of bound operations.

Never deals with names of architectures, with file formats or with the device that computes.
"""
