"""Architectures as data, and the one decoder that is assembled from them.

Responsible for the meaning of a checkpoint's metadata and tensor names. Never deals with files, devices or requests.
"""
