"""What `postmill quantize` can be told."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.stages.quantize.gguf.mix import FILE_TYPES
from postmill.stages.quantize.methods.rtn import Rtn
from postmill.stages.quantize.methods.table import METHODS
from postmill.stages.spec import Port, Stage


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far answers may move before nothing is committed. Limits left out follow from bits and size of the model."""

    parity: Literal["on", "off"] = "on"
    """on: compare the result, as read back from disk, with the source model; off: compare nothing."""
    parity_tokens: Annotated[int, Meta(ge=2)] = 4096
    """Tokens compared at most."""
    max_ppl_increase: Annotated[float, Meta(ge=0)] | None = None
    """Fail if perplexity rises by more than this share, like 6%. Default: 1% for 8 bits, 5% with activations in
    models of less than a billion weights; 6% for fewer, 25% in models
    of less than a billion weights. With own prompts instead of --gate rows it is reported, not judged."""
    min_agreement: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Fail if the likeliest token is the same at fewer positions. Default: 0.97 for 8 bits, 0.85 with activations in
    models of less than a billion weights; 0.88 for fewer, 0.7 in models of less than a billion weights; less by two
    standard errors of it."""
    max_kl: Annotated[float, Meta(ge=0)] | None = None
    """Fail if the mean KL divergence from the source, in nats a token, is larger. Default: 0.02 for 8 bits, 0.06 with
    activations in models of less than a billion weights; 0.15 for
    fewer, 0.5 in models of less than a billion weights."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of --rows methods look at: those of the smallest row ids, whole or cut."""

    calibration_tokens: Annotated[int, Meta(ge=2)] = 65536
    """Tokens looked at, at most."""
    calibration_length: Annotated[int, Meta(ge=2)] = 512
    """Tokens of one row, at most."""


class Quantize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Store a model's weights in few bits, layer by layer, and check what that does to its answers."""

    method: Annotated[Any, METHODS] = Rtn()
    """How codes and scales are chosen."""
    scheme: Literal[
        "w2a16", "w4a16", "w8a16", "w8a8", "fp8", "fp8_block", "nvfp4a16", "mxfp4a16",
        "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1",
        "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k",
        "iq4_nl", "iq4_xs",
    ] = "w4a16"  # fmt: skip
    """Bits of weights and of activations; w8a8, fp8 and fp8_block round those too when the model runs.
    From f32 on they are types and mixes of llama.cpp: the result is a GGUF file with a Modelfile for Ollama."""
    layout: Literal["compressed-tensors", "gptq", "awq"] = "compressed-tensors"
    """How the same codes lie in the folder: as compressed-tensors, GPTQModel or AutoAWQ arrange them. gptq takes w2a16,
    w4a16 and w8a16, awq takes w4a16, one of them for all layers. A GGUF file has its own."""
    group_size: Literal[32, 64, 128, -1] = 128
    """Columns that share a scale, for w2a16, w4a16 and w8a16; -1 is a whole row."""
    symmetric: bool = True
    """Steps lie evenly around zero, and there is no zero point. Fewer bytes and every engine; asymmetric is closer."""
    rule: list[str] = []
    """REGEX=SCHEME for layers whose name matches, or REGEX=keep to leave them as they are; the last that matches wins.
    In a GGUF file, REGEX=TYPE, like down_proj=q6_k.
    The head, embeddings, norms and everything outside the layers stay as they are, unless a rule names them."""
    calibration: Calibration = Calibration()
    gate: Gate = Gate()


def kind_made(config: Quantize) -> str:
    """`gguf` for a file of llama.cpp's, else a model folder."""
    return "gguf" if config.scheme in FILE_TYPES else "model"


STAGE = Stage(
    name="quantize",
    version=2,
    config=Quantize,
    inputs={
        "model": Port(kinds=("model",), help="the model: a folder, or owner/name on Hugging Face"),
        "rows": Port(
            kinds=("tokens",),
            flag="--rows",
            required=False,
            help="tokens that methods which look at data (gptq, awq, smoothquant) are calibrated on",
        ),
        "held_out": Port(
            kinds=("tokens",),
            flag="--gate",
            required=False,
            help="tokens to compare source and result on, instead of rows that calibration left or own prompts",
        ),
    },
    output=kind_made,
    example="postmill quantize tuned/ -o tuned-w4/ --method gptq --rows tokens/",
)
