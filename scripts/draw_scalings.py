"""Draws docs/pictures/scalings.svg, or another file that is named, with `mistralrs adapter scalings`.

    python scripts/draw_scalings.py [FILE]

The model is synthetic: a tiny random one with a random X-LoRA. The picture shows the form and no finding.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from mistralrs_cli.app import main as run

ROOT = Path(__file__).parents[1]
PROMPT = "The cat and the dog are in the garden."


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from tests.adapters.xlora_files import axis_of, write_xlora
    from tests.architectures import VARIANTS, write_folder

    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures" / "scalings.svg"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = write_folder(folder / "base", VARIANTS["llama"])
        axis = axis_of("llama", targets=("q_proj", "v_proj"))
        xlora = write_xlora(folder / "xlora", base, axis, softmax_temperature=0.7)
        words = ["--dtype", "f32", "adapter", "scalings", "--prompt", PROMPT, "--svg", str(picture), "--force"]
        return run([*words, "auto", str(base), "--xlora", str(xlora)])


if __name__ == "__main__":
    sys.exit(main())
