"""What the server measures of itself, in Prometheus' format."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from dogbreed.core.version import __version__

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Metrics of one server, in a registry of their own.

    Args:
        backbone: Name of the network.
        classes: How many it distinguishes.
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, backbone: str, classes: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        model = Gauge(
            "dogbreed_model", "1, with what is served", ["backbone", "classes", "version"], registry=self.registry
        )
        model.labels(backbone, str(classes), __version__).set(1)
        self._requests = Counter("dogbreed_requests", "Requests answered", ["route", "status"], registry=self.registry)
        histogram = partial(Histogram, buckets=SECONDS, registry=self.registry)
        self._seconds = histogram("dogbreed_request_seconds", "From a request's head to its response", ["route"])
        self._decode = histogram("dogbreed_decode_seconds", "From an image's bytes to the network's input")
        self._pass_seconds = histogram("dogbreed_pass_seconds", "One pass through the network")
        self._pass_images = histogram("dogbreed_pass_images", "Images in one pass", buckets=IMAGES)

    def watch(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Read two numbers at each scrape: requests under way, and images that no pass has taken yet."""
        Gauge("dogbreed_requests_running", "Requests under way", registry=self.registry).set_function(running)
        Gauge("dogbreed_images_waiting", "Images waiting for a pass", registry=self.registry).set_function(waiting)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that is answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_pass(self, images: int, seconds: float) -> None:
        """Count a pass through the network."""
        self._pass_images.observe(images)
        self._pass_seconds.observe(seconds)

    def time_decoding(self) -> AbstractContextManager[object]:
        """Time the decoding of one image."""
        timer: AbstractContextManager[object] = self._decode.time()
        return timer

    def text(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)
