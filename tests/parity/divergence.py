"""The divergence of next-token distributions from an oracle's, of which a golden file keeps the best tokens."""

from __future__ import annotations

import torch


def divergences(logits: torch.Tensor, tokens: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Returns KL(expected, ours) in nats for each row, over the oracle's best tokens and one event for all the others.

    ``logits`` (rows, vocabulary); ``tokens`` and ``expected``, their log-probabilities: (rows, best). Never more than
    the divergence over the whole vocabulary, and never less than zero.
    """
    ours = torch.log_softmax(logits.double(), dim=-1).gather(1, tokens)
    p, q = (
        torch.cat([x, torch.log1p(-x.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-9))], dim=1) for x in (expected, ours)
    )
    return (p.exp() * (p - q)).sum(-1)
