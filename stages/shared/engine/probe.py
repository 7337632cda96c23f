"""Whether a model answers from pages as it answers by itself: asked once, when its weights are loaded."""

from typing import Any

import torch
from torch import Tensor

from postmill.stages.progress import Progress
from postmill.stages.shared.engine.live import Live
from postmill.stages.shared.engine.paged import PagedRows
from postmill.stages.shared.engine.protocol import Request, Sampling, Token

_PLAIN = frozenset({"full_attention", "sliding_attention"})
_LENGTHS = (5, 18, 2)
_TOLERANCE = 1e-3
"""Of the spread of the logits: sums in another order differ by 1e-6 of it, another attention by its size."""


def attends_plainly(model: Any) -> bool:
    """Whether all that a model remembers of a text are keys and values of an attention that can be replaced."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or _PLAIN)
    is_replaceable = getattr(model, "_supports_attention_backend", False) and not getattr(model, "_is_stateful", False)
    return bool(is_replaceable and kinds <= _PLAIN and not getattr(text, "is_encoder_decoder", False))


class Probe:
    """A few short prompts, and the logits after each by the model as it was loaded."""

    def __init__(self, model: Any) -> None:
        text = model.config.get_text_config()
        make = torch.Generator().manual_seed(0)
        self._prompts = [torch.randint(text.vocab_size, (length,), generator=make).tolist() for length in _LENGTHS]
        self._expected = [self._alone(model, prompt) for prompt in self._prompts]

    @staticmethod
    def _alone(model: Any, prompt: list[int]) -> Tensor:
        logits_V: Tensor = model(input_ids=torch.tensor([prompt]), use_cache=False, logits_to_keep=1).logits[0, -1]
        return logits_V.float()

    def compare(self, rows: PagedRows) -> str:
        """What differs, or an empty string. A model that cannot be asked differs."""
        lives = [
            Live(Request(key=str(n), prompt_ids=prompt[:-1], seed=0), Sampling(max_new_tokens=2), None)
            for n, prompt in enumerate(self._prompts)
        ]
        try:
            for live in lives:
                rows.add(live)
            rows.step()
            for live, prompt in zip(lives, self._prompts, strict=True):
                live.take(Token(id=prompt[-1]))
            stepped = rows.step()
        except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
            return self._say(f"{type(error).__name__}: {error}")
        if stepped.logits_BV is None or stepped.lives != lives:
            return self._say("no answer")
        for logits_V, expected_V in zip(stepped.logits_BV, self._expected, strict=True):
            gap = float((logits_V - expected_V).abs().max() / expected_V.std().clamp(min=1e-9))
            if not gap <= _TOLERANCE:
                return self._say(f"logits differ by {gap:.2g} of their spread")
        return ""

    @staticmethod
    def _say(what: str) -> str:
        Progress.show(f"engine: answers in padded batches, since this model cannot read pages ({what[:200]})")
        return what
