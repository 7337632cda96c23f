"""Counts of what the server does, in the text format of Prometheus. Labels hold nothing that a client chose."""

from collections import Counter

_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Histogram:
    """Seconds, counted by upper bound."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        at = next((n for n, bound in enumerate(_BOUNDS) if seconds <= bound), len(_BOUNDS))
        self._counts[at] += 1
        self._total += seconds

    def lines(self, name: str) -> list[str]:
        lines, so_far = [f"# TYPE {name} histogram"], 0
        for bound, count in zip([*map(str, _BOUNDS), "+Inf"], self._counts, strict=True):
            so_far += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
        return [*lines, f"{name}_sum {self._total:.6f}", f"{name}_count {so_far}"]


class Metrics:
    """All counts of a server. Names are vLLM's where it counts the same."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.aborted = 0
        self.refused = 0
        self.first_token = Histogram()
        self.latency = Histogram()

    def text(self, *, running: int) -> str:
        """What /metrics answers."""
        lines = ["# TYPE postmill:num_requests_running gauge", f"postmill:num_requests_running {running}"]
        counters = {
            "prompt_tokens": self.prompt_tokens,
            "prompt_tokens_cached": self.cached_tokens,
            "generation_tokens": self.generation_tokens,
            "requests_aborted": self.aborted,
            "requests_refused": self.refused,
        }
        for name, value in counters.items():
            lines += [f"# TYPE postmill:{name}_total counter", f"postmill:{name}_total {value}"]
        lines.append("# TYPE postmill:http_requests_total counter")
        for (route, status), count in sorted(self.requests.items()):
            lines.append(f'postmill:http_requests_total{{route="{route}",status="{status}"}} {count}')
        lines += self.first_token.lines("postmill:time_to_first_token_seconds")
        lines += self.latency.lines("postmill:e2e_request_latency_seconds")
        return "\n".join(lines) + "\n"
