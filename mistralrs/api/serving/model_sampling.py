"""The sampling parameters that a model's makers recommend, as far as they can be used."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mistralrs.engine.admission import check
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import RequestError

_logger = logging.getLogger(__name__)


def usable_sampling(recommended: Mapping[str, float]) -> dict[str, float]:
    """Returns the parameters that are in their ranges; the log names the others. ``top_k`` of -1 is 0, which is off."""
    usable: dict[str, float] = {}
    for name, value in recommended.items():
        number = 0 if name == "top_k" and value == -1 else value
        try:
            check(SamplingParams(**{name: number}), vocab_size=1)  # type: ignore[arg-type]
        except RequestError as error:
            _logger.warning("the model's own %s is not used: %s", name, error.message)
        else:
            usable[name] = number
    return usable
