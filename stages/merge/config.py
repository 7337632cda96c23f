"""What `postmill merge` can be told."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.stages.merge.mix.options import MIXES, Linear
from postmill.stages.merge.mix.settings import parse_rule, settings_of
from postmill.stages.spec import Port, Stage


class Merge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Put adapters into the weights of their model, or models into one, tensor by tensor."""

    to: Literal["hf", "mcore"] = "hf"
    """Layout of the result: Hugging Face's, or mcore, a checkpoint that Megatron-Core loads under any split over ranks.
    A checkpoint of Megatron as input becomes a Hugging Face model."""
    scale: list[float] = []
    """Strength of each adapter, once for each in their order; none is 1 for all."""
    method: Annotated[Any, MIXES] = Linear()
    """How to make one model of several models."""
    rule: list[str] = []
    """Other numbers for some tensors: part of their names, then settings: 'mlp t=0.3'. The first that fits is used."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What weights are saved in; auto is what the base's are stored in, tensor by tensor."""
    parity: Literal["rows", "off"] = "rows"
    """`rows` compares logits of base with adapters and of the merged model on a few prompts, which loads both (fp32);
    `off` skips that and needs neither torch nor memory for a model."""
    tolerance: Annotated[float, Meta(gt=0)] = 2.0
    """Fail if merged logits differ from base + adapter by more than this many times the rounding error."""
    parity_tokens: Annotated[int, Meta(ge=1)] = 256
    """Tokens compared at most."""

    def __post_init__(self) -> None:
        known = settings_of(self.method)
        for text in self.rule:
            for name in parse_rule(text).settings:
                if name not in known:
                    raise ValueError(f"rule {text!r}: the method has no {name}; it has {', '.join(known) or 'none'}")


def output_kind(cfg: Any) -> str:
    """`mcore` or `model`."""
    return "mcore" if cfg.to == "mcore" else "model"


STAGE = Stage(
    name="merge",
    version=2,
    config=Merge,
    inputs={
        "parts": Port(
            kinds=("adapter", "model", "mcore"),
            help="adapters, merged in this order; or models; or one checkpoint of Megatron-Core",
            many=True,
        ),
        "model": Port(
            kinds=("model",),
            flag="-m",
            required=False,
            help="the base model, a folder or owner/name; default: the one the adapter was trained on. For a"
            " checkpoint of Megatron a model of the same shape",
        ),
        "onto": Port(
            kinds=("model",),
            flag="--onto",
            required=False,
            help="instead of -m: merge into this model though the adapter was trained on another of its shapes,"
            " like one that was quantized from it",
        ),
        "rows": Port(
            kinds=("tokens",), flag="--rows", required=False, help="tokens to compare logits on, instead of own prompts"
        ),
    },
    output=output_kind,
    implied="postmill.stages.shared.base_model:imply_merged",
    example="postmill merge run/ -m base/ -o tuned/",
)
