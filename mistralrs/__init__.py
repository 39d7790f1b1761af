"""mistralrs: large language models on your own machine.

The public names, and nothing else: importing the package loads neither torch nor numpy. Knows no model.
"""

from mistralrs.errors import (
    ContextLengthError,
    EngineError,
    FormatError,
    LoadError,
    MistralrsError,
    RequestError,
    UsageError,
)

__version__ = "0.1.0"

__all__ = [
    "ContextLengthError",
    "EngineError",
    "FormatError",
    "LoadError",
    "MistralrsError",
    "RequestError",
    "UsageError",
    "__version__",
]
