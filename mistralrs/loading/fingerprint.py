"""What tells one model's weights from another's, without reading them all. Knows checkpoints; no architecture."""

from __future__ import annotations

import hashlib

from mistralrs.loading.checkpoint import Checkpoint

SAMPLE = 4096
"""Bytes that are read from the beginning and from the end of each tensor."""


def fingerprint(checkpoint: Checkpoint, *facts: object) -> str:
    """A digest (32 hex digits) of names, types, shapes and samples of all tensors, and of what else is to count."""
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16, person=b"checkpoint")
    for name, tensor in sorted(checkpoint.tensors.items()):
        digest.update(repr((name, tensor.type.name, tensor.shape)).encode())
        digest.update(tensor.data[:SAMPLE])
        digest.update(tensor.data[-SAMPLE:])
    return digest.hexdigest()
