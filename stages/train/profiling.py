"""`--profile-steps`: where the time of some steps goes, as a trace that Perfetto and chrome://tracing show."""

from pathlib import Path
from typing import Any

import torch

from postmill.stages.progress import Progress


class Profiler:
    """Torch's profiler around the steps of a span, counted from 1; does nothing without one."""

    def __init__(self, span: tuple[int, int] | None, folder: Path) -> None:
        self._span, self._folder = span, folder
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
