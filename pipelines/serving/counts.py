"""What a service has done, as Prometheus reads it."""

from collections import Counter

_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# Paths by what they are for: a client may make up any number of them.
_GROUPS = ("/v1/detect", "/v1/models", "/v2", "/healthz", "/readyz", "/metrics", "/page")


class Counts:
    """Counters of one ingress process."""

    def __init__(self) -> None:
        self.under_way = 0
        self._answers: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._within: Counter[tuple[str, float]] = Counter()
        self._total: dict[str, float] = {}
        self._images: Counter[tuple[str, str]] = Counter()
        self._detections: Counter[str] = Counter()

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request ended; status 0 = its client left."""
        group = next((group for group in _GROUPS if path.startswith(group)), "other")
        self._answers[group, status or 499] += 1
        self._seconds[group] += 1
        self._total[group] = self._total.get(group, 0.0) + seconds
        for bound in _BOUNDS:
            self._within[group, bound] += seconds <= bound

    def image(self, model: str, status: str, detections: int) -> None:
        """A record was made."""
        self._images[model, status] += 1
        self._detections[model] += detections

    def text(self) -> str:
        """In Prometheus' text format 0.0.4."""
        lines = ["# TYPE maskrcnn_requests_total counter"]
        lines += [
            f'maskrcnn_requests_total{{path="{group}",status="{status}"}} {count}'
            for (group, status), count in sorted(self._answers.items())
        ]
        lines.append("# TYPE maskrcnn_request_seconds histogram")
        for group, count in sorted(self._seconds.items()):
            for bound in _BOUNDS:
                lines.append(
                    f'maskrcnn_request_seconds_bucket{{path="{group}",le="{bound:g}"}} {self._within[group, bound]}'
                )
            lines.append(f'maskrcnn_request_seconds_bucket{{path="{group}",le="+Inf"}} {count}')
            lines.append(f'maskrcnn_request_seconds_sum{{path="{group}"}} {self._total[group]:.6f}')
            lines.append(f'maskrcnn_request_seconds_count{{path="{group}"}} {count}')
        lines.append("# TYPE maskrcnn_served_images_total counter")
        lines += [
            f'maskrcnn_served_images_total{{model="{model}",status="{status}"}} {count}'
            for (model, status), count in sorted(self._images.items())
        ]
        lines.append("# TYPE maskrcnn_served_detections_total counter")
        lines += [
            f'maskrcnn_served_detections_total{{model="{model}"}} {count}'
            for model, count in sorted(self._detections.items())
        ]
        lines += ["# TYPE maskrcnn_requests_under_way gauge", f"maskrcnn_requests_under_way {self.under_way}"]
        return "\n".join(lines) + "\n"
