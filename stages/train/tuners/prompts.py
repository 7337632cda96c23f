"""Prompt methods: the model stays as it is, and vectors that are trained stand before every row."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Start, Tuner

Count = Annotated[int, Meta(ge=1)]


class PromptTuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="prompt-tuning"):
    """Embeddings of tokens that do not exist, before every row (<https://arxiv.org/abs/2104.08691>)."""

    default_lr: ClassVar[float] = 0.01
    makes: ClassVar[str] = "adapter"

    length: Count = 20
    """Trained embeddings before each row."""
    init: Literal["vocabulary", "random"] = "vocabulary"
    """First embeddings: those of tokens drawn from the vocabulary, or random numbers."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.prompt_model import prompt_tuner

        return prompt_tuner("prompt-tuning", self._config)

    def _config(self, base: Any, given: "Start") -> Any:
        from peft import PromptTuningConfig

        how = {"vocabulary": "SAMPLE_VOCAB", "random": "RANDOM"}[self.init]
        return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.length, prompt_tuning_init=how)


class PTuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="p-tuning"):
    """The same, with a small network that makes the embeddings while they are trained
    (<https://arxiv.org/abs/2103.10385>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"

    length: Count = 20
    """Trained embeddings before each row."""
    hidden_size: Count = 128
    """Hidden size of the network."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.prompt_model import prompt_tuner

        return prompt_tuner("p-tuning", self._config)

    def _config(self, base: Any, given: "Start") -> Any:
        from peft import PromptEncoderConfig

        return PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=self.length, encoder_hidden_size=self.hidden_size
        )


class PrefixTuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="prefix-tuning"):
    """Keys and values that every layer's attention sees before each row (<https://arxiv.org/abs/2101.00190>)."""

    default_lr: ClassVar[float] = 0.01
    makes: ClassVar[str] = "adapter"

    length: Count = 20
    """Keys and values of each layer."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.prompt_model import prompt_tuner

        return prompt_tuner("prefix-tuning", self._config)

    def _config(self, base: Any, given: "Start") -> Any:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.length)
