"""What a token of a model costs at least: bytes that decode reads, and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Of one token of one sequence. A mixture counts the experts that a token uses."""

    bytes: float
    """Packed weights that a step of one token reads, the head included."""
    layer_macs: float
    head_macs: float

    def prefill_macs(self, length: int) -> float:
        """Multiply-accumulates of one token of a prompt, of which only the last one needs the head."""
        return self.layer_macs + self.head_macs / length

    @property
    def decode_macs(self) -> float:
        return self.layer_macs + self.head_macs


def token_cost(path: Path) -> TokenCost:
    """Reads the shapes of the matrices of a GGUF file. Attention over the context is not counted."""
    reader = GGUFReader(path)
    shares = [field for name, field in reader.fields.items() if name.endswith((".expert_used_count", ".expert_count"))]
    used = {field.name.rpartition(".")[2]: float(field.contents()) for field in shares}
    expert_share = used["expert_used_count"] / used["expert_count"] if used else 1.0
    matrices = {tensor.name: tensor for tensor in reader.tensors if len(tensor.shape) > 1}
    head = matrices.pop("output.weight", None)
    embedding = matrices.pop("token_embd.weight")
    tied = embedding if head is None else head
    total, macs = float(tied.n_bytes), 0.0
    for name, tensor in matrices.items():
        share = expert_share if "_exps." in name else 1.0
        total += share * tensor.n_bytes
        macs += share * float(tensor.n_elements)
    return TokenCost(total, macs, float(tied.n_elements))
