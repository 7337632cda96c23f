"""`--profile-steps`: where the time of some steps goes, as a trace that Perfetto and chrome://tracing show."""

import re
from pathlib import Path
from typing import Any

import torch

from postmill.stages.progress import Progress

SPAN = re.compile(r"(\d+)(?:-(\d+))?")


def span_of(text: str) -> tuple[int, int] | None:
    """First and last step of `3` or `3-5`, counted from 1; None of anything else."""
    found = SPAN.fullmatch(text)
    if found is None:
        return None
    first, last = int(found[1]), int(found[2] or found[1])
    return (first, last) if 1 <= first <= last else None


class Profiler:
    """Torch's profiler around the steps of a span; does nothing without one."""

    def __init__(self, span: str, folder: Path) -> None:
        self._span, self._folder = span_of(span), folder
        self._profile: Any = None

    def before(self, number: int) -> None:
        """Before step `number`, counted from 0."""
        if self._span is None or not self._span[0] <= number + 1 <= self._span[1] or self._profile is not None:
            return
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profile = torch.profiler.profile(activities=kinds, profile_memory=True)
        self._profile.start()

    def after(self, number: int, *, last: bool) -> None:
        """After it; writes the trace when the span is over, or the run is."""
        if self._profile is None or self._span is None or not (last or number + 1 == self._span[1]):
            return
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"profile-steps-{self._span[0]}-{number + 1}.json"
        self._profile.export_chrome_trace(str(path))
        self._profile = None
        Progress.say("train", f"profile of steps {self._span[0]} to {number + 1}: {path}", always=True)
