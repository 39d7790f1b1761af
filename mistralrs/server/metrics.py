"""The numbers that ``GET /metrics`` reports, in Prometheus' format.

Requests and their times are counted here, with one observation for each piece of an answer; the engine's own counts are
read from the engine when the numbers are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mistralrs.engine.stats import EngineStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_GAUGES = {
    "mistralrs_requests_running": ("Sequences in the engine's batch.", "running"),
    "mistralrs_requests_waiting": ("Sequences that wait for a place in the batch.", "waiting"),
    "mistralrs_kv_blocks": ("Blocks of the KV cache.", "num_blocks"),
    "mistralrs_kv_blocks_free": ("Blocks that no sequence uses, those with reusable content included.", "free_blocks"),
    "mistralrs_kv_blocks_cached": ("Blocks whose content a new prompt could reuse.", "cached_blocks"),
}
"""Name, help, and the field of ``EngineStats``."""
_COUNTERS = {
    "mistralrs_prompt_tokens": ("Tokens of prompts whose first token has been drawn.", "prompt_tokens"),
    "mistralrs_prefix_hit_tokens": ("Prompt tokens that the prefix cache saved.", "cached_tokens"),
    "mistralrs_completion_tokens": ("Tokens drawn.", "completion_tokens"),
    "mistralrs_draft_tokens": ("Draft tokens that were computed.", "drafted_tokens"),
    "mistralrs_draft_tokens_accepted": ("Draft tokens that were accepted.", "accepted_tokens"),
    "mistralrs_forced_tokens": ("Tokens that grammars forced, taken without a step of their own.", "forced_tokens"),
    "mistralrs_engine_steps": ("Forward passes.", "steps"),
    "mistralrs_preemptions": ("Times that a running sequence had to wait again for want of KV blocks.", "preemptions"),
}


class Metrics:
    """The server's numbers, in a registry of its own: two servers in one process do not add up."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "mistralrs_requests", "Requests answered.", ("endpoint", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "mistralrs_request_seconds",
            "From the head of a request to the end of its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            "mistralrs_time_to_first_token_seconds",
            "From the submission of a request to its first token.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.inter_token = Histogram(
            "mistralrs_inter_token_seconds",
            "Between two pieces of an answer.",
            buckets=_STEP_SECONDS,
            registry=self._registry,
        )
        self.cancelled = Counter(
            "mistralrs_requests_cancelled", "Requests that were given up before their end.", registry=self._registry
        )
        self.open_requests = Gauge(
            "mistralrs_requests_open", "Requests being answered, waiting ones included.", registry=self._registry
        )
        self.serving = Gauge(
            "mistralrs_serving", "1 while requests are served, as /health says.", registry=self._registry
        )
        self.log_lost = Gauge("mistralrs_log_records_lost", "Records missing in the log.", registry=self._registry)

    def ended(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def render(self, stats: EngineStats | None) -> bytes:
        """The text format; without ``stats`` what the engine counts is left out."""
        text = generate_latest(self._registry)
        if stats is None:
            return text
        registry = CollectorRegistry()
        registry.register(_Snapshot(stats))
        return text + generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        return self._families()

    def _families(self) -> Iterator[Metric]:
        for name, (meaning, field) in _GAUGES.items():
            yield GaugeMetricFamily(name, meaning, value=getattr(self._stats, field))
        for name, (meaning, field) in _COUNTERS.items():
            yield CounterMetricFamily(name, meaning, value=getattr(self._stats, field))
