"""What Prometheus reads of a server, in a registry of its own."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters and histograms.

    Args:
        waiting: how many samples wait.
        image_features: how many images' features were in the engine's cache, and how many had to be computed.
    """

    def __init__(self, waiting: Callable[[], float], image_features: Callable[[], tuple[int, int]]):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        Gauge("jrm_queue_samples", "Samples that wait to be computed", **own).set_function(waiting)
        self.requests = Histogram(
            "jrm_request_seconds", "Time from a request's head to its answer", ["route"], buckets=SECONDS, **own
        )
        self.errors = Counter("jrm_errors", "Requests and samples that failed, by code", ["code"], **own)
        self.samples = Counter("jrm_samples", "Samples that were answered with a score or critiques", **own)
        self.replays = Counter("jrm_replays", "Requests whose key was known and whose answer was not made again", **own)
        self.batch_samples = Histogram("jrm_batch_samples", "Samples of a batch", buckets=SAMPLES, **own)
        self.batch_seconds = Histogram("jrm_batch_seconds", "Time that a batch took", buckets=SECONDS, **own)
        self.tokens = Counter("jrm_tokens", "Tokens of what was computed, before prefixes are shared", **own)
        self.body_bytes = Gauge("jrm_body_bytes", "Bytes of the bodies of requests that are not answered yet", **own)
        self.registry.register(_ImageFeatures(image_features))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _ImageFeatures:
    def __init__(self, count: Callable[[], tuple[int, int]]):
        self._count = count

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily("jrm_image_features", "Images asked for, by the cache", labels=["cache"])
        for name, number in zip(("hit", "miss"), self._count(), strict=True):
            family.add_metric([name], number)
        yield family
