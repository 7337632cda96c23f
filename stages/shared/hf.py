"""Models and tokenizers through transformers: from disk only, no code from the folder, no talk."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.model_folder import ADAPTER_CONFIG
from postmill.stages.shared.answer_tokens import answer_ids
from postmill.stages.shared.heads import AUTO_CLASS, LM, PROBLEM_TYPE, WITH_LM_HEAD, Head
from postmill.stages.shared.media.families.table import image_options


def need(*packages: str, remedy: str) -> dict[str, str]:
    """Import packages and return their versions. Raises ConfigError (2) naming the one that is not installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = str(importlib.import_module(package).__version__)
        except ImportError:
            raise ConfigError(f"{package} is not installed; {remedy}", USAGE) from None
    return versions


def _transformers() -> Any:
    module: Any = importlib.import_module("transformers")
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep transformers' and peft's notices to themselves: stderr is for what a user can act on."""
    talk: Any = importlib.import_module("transformers").utils.logging
    before, kernels = talk.get_verbosity(), logging.getLogger("bitsandbytes")
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    kernels.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, UserWarning, RuntimeWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        talk.set_verbosity(before)
        talk.enable_progress_bar()
        kernels.setLevel(logging.NOTSET)


def load_model(path: Path, dtype: Any, *, attention: str | None = None, head: Head = LM, quant: str = "none") -> Any:
    """The model in `path` with the class its config names, or the one that `head` needs; weights as `dtype`, in
    evaluation mode on the CPU.

    dtype: a torch.dtype, or its name. attention: name of the implementation; transformers' own choice without it.
    quant: nf4, fp4 or int8 quantizes plain weights while they load, by bitsandbytes.
    A classifier that is not there is drawn from torch's generator. Never runs code from the folder.
    Raises ArtifactError (78) for a family that cannot compute attention that way, or a classifier of another size;
    ConfigError (2) for quantized weights whose package is not installed, or answers that are no tokens.
    """
    transformers: Any = importlib.import_module("transformers")
    torch: Any = importlib.import_module("torch")
    options: dict[str, Any] = {}
    if attention is not None and not is_encoder_decoder(path):  # whose rows are computed one by one, with biases
        options["attn_implementation"] = _for_decoder(path, attention)
    kind = _class_of(transformers, path)
    if head.kind not in WITH_LM_HEAD:
        kind = getattr(transformers, AUTO_CLASS[head.kind])
        options |= {} if head.kind == "pool" else {"num_labels": head.outputs}
        options |= {"problem_type": PROBLEM_TYPE[head.problem]} if head.problem else {}
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    quantization = load_json(path / "config.json").get("quantization_config")
    if quantization:
        base: Any = importlib.import_module("postmill.stages.shared.quantized_base")
        if base.is_ours(quantization) and head.kind in WITH_LM_HEAD:
            empty = build_empty(path)
            if attention is not None:
                empty.set_attn_implementation(attention)
            return _with_answers(base.load_packed(path, empty, dtype), path, head)
        base.check_packages(path, quantization)
    if quant != "none":
        need("bitsandbytes", remedy=f"pip install 'postmill[qlora]', or leave --quant {quant} out")
        options["quantization_config"] = _bitsandbytes(transformers, quant, dtype)
    with quiet_libraries():
        try:
            model = kind.from_pretrained(path, dtype=dtype, trust_remote_code=False, local_files_only=True, **options)
        except KeyError as error:
            if error.args != (attention,):
                raise
            family = load_json(path / "config.json").get("model_type")
            raise ArtifactError(
                f"{path}: {family} models compute attention in a way of their own, which cannot keep the rows of a bin"
                " apart; use a model of another family",
                MISMATCH,
            ) from None
        except RuntimeError as error:
            if "num_labels" not in options or "size mismatch" not in str(error):
                raise
            raise ArtifactError(
                f"{path}: its classifier does not give {head.outputs} numbers; train from the base model, or ask for as"
                " many as it has",
                MISMATCH,
            ) from None
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # after one pass without gradients bitsandbytes would go over to a kernel for inference, for good: it has no
            # backward pass, and rounds to bfloat16
            module.support_avx512bf16_for_cpu = False
    _drop_as_said(model, head)
    return _with_answers(model.eval(), path, head)


def _with_answers(model: Any, path: Path, head: Head) -> Any:
    """The model, which knows the ids of the two tokens that its head compares."""
    if head.answers is not None:
        model.answer_ids = answer_ids(path, head.answers)
    return model


def _drop_as_said(model: Any, head: Head) -> None:
    """Let a head of tokens drop nothing while it is trained where the config does not say what share: transformers
    would drop a tenth."""
    names = ("classifier_dropout", "hidden_dropout", "hidden_dropout_prob", "dropout")
    is_said = any(getattr(model.config, name, None) is not None for name in names)
    if head.kind == "token" and hasattr(model, "dropout") and not is_said:
        model.dropout.p = 0.0


def is_encoder_decoder(path: Path) -> bool:
    """Whether the model in `path` reads a prompt with one part and answers with another."""
    return bool(load_json(path / "config.json").get("is_encoder_decoder", False))


def _towers(path: Path) -> list[str]:
    """The parts of a model's config that are no text: `vision_config`, `audio_config`."""
    config = load_json(path / "config.json")
    parts = [name for name, value in config.items() if name.endswith("_config") and isinstance(value, dict)]
    return [name for name in parts if name in ("vision_config", "audio_config")]


def _for_decoder(path: Path, attention: str) -> str | dict[str, str]:
    """`attention` for the decoder alone: a tower's attention is not causal, and knows nothing of rows."""
    towers = dict.fromkeys(_towers(path), "sdpa")
    return {"": attention, "text_config": attention, **towers} if towers else attention


def _bitsandbytes(transformers: Any, quant: str, dtype: Any) -> Any:
    if quant == "int8":
        # columns of outliers are looked for in all rows of a bin at once, and rows must not see each other
        return transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant, bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


def _class_of(transformers: Any, path: Path) -> Any:
    """The class that config.json names, or the causal language model of its family: a bare decoder has no head."""
    named = (load_json(path / "config.json").get("architectures") or [""])[0]
    is_bare = named.endswith("Model") and not named.endswith("LMHeadModel")
    kind = None if is_bare else getattr(transformers, named, None)
    # AutoModelForCausalLM refuses a model with a vision tower, or drops the tower
    auto = transformers.AutoModelForMultimodalLM if _towers(path) else transformers.AutoModelForCausalLM
    return kind or auto


def build_empty(path: Path) -> Any:
    """The model in `path` without weights, on the meta device; buffers that are computed, not stored, are real."""
    accelerate: Any = importlib.import_module("accelerate")
    transformers = _transformers()
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    config.quantization_config = None
    kind = _class_of(transformers, path)
    with accelerate.init_empty_weights(include_buffers=False):
        model = kind.from_config(config) if kind is transformers.AutoModelForCausalLM else kind(config)
    return model.eval()


OWN_KINDS = ("BOTTLENECK", "SCEDIT", "RES_TUNING", "REFT")
"""`peft_type` of adapters that are ours, see `inserts`."""
_ALL_ROWS = "it mixes experts by the mean over all rows that are computed together"
_BEFORE = "it puts vectors before each prompt"
NOT_COMPUTED = {
    "PROMPT_TUNING": _BEFORE,
    "MULTITASK_PROMPT_TUNING": _BEFORE,
    "P_TUNING": _BEFORE,
    "PREFIX_TUNING": _BEFORE,
    "CPT": _BEFORE,
    "CARTRIDGE": _BEFORE,
    "LILY": _ALL_ROWS,
    "XLORA": "it asks the model twice",
    "POLY": "it asks which task a row is of",
    "SHADOW": "it has a second model",
}
"""Methods of PEFT whose effect is lost, or wrong, where rows are laid end to end through the model's own layers."""


def decoder_of(model: Any) -> Any:
    """The layers of a model's decoder, without its head: where transformers' own look ends at a model with a head
    inside another, as in Llama 4, those inside it."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    return found.model if hasattr(found, "lm_head") else found


def base_of(net: Any) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    return net.get_base_model() if hasattr(net, "peft_config") else net


def add_adapters(model: Any, adapters: dict[Path, float]) -> Any:
    """The model with every adapter (path -> scale) active: peft's model around it, or the model itself with our own
    inserts. Raises ConfigError (2) for a method in NOT_COMPUTED, and for inserts beside another adapter."""
    for path, scale in adapters.items():
        kind = load_json(path / ADAPTER_CONFIG).get("peft_type")
        if kind in NOT_COMPUTED:
            raise ConfigError(
                f"{path / ADAPTER_CONFIG}: {kind} is not computed here: {NOT_COMPUTED[kind]}; use PEFT itself", USAGE
            )
        if kind in OWN_KINDS:
            if len(adapters) > 1 or scale != 1:
                raise ConfigError(f"{path}: {kind} adapters stand alone, at full strength; leave the others out", USAGE)
            inserts: Any = importlib.import_module("postmill.stages.shared.inserts")
            return inserts.attach(model, path)
    with quiet_libraries():
        peft: Any = importlib.import_module("peft")
    lora: Any = importlib.import_module("peft.tuners.lora")
    # peft asks transformers in a way that this warns of; nobody here can change that
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    scales = {f"adapter{index}": scale for index, scale in enumerate(adapters.values())}
    first, *others = zip(scales, adapters, strict=True)
    wrapped = peft.PeftModel.from_pretrained(model, str(first[1]), adapter_name=first[0], local_files_only=True)
    for name, path in others:
        wrapped.load_adapter(str(path), name, local_files_only=True)
    wrapped.base_model.set_adapter(list(scales))
    for module in wrapped.modules():
        if isinstance(module, lora.LoraLayer):
            for name in [name for name, scale in scales.items() if scale != 1 and name in module.scaling]:
                module.set_scale(name, scales[name])
    return wrapped.eval()


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in `path`, with its chat template."""
    return _transformers().AutoTokenizer.from_pretrained(path, local_files_only=True)


def load_processor(path: Path) -> Any:
    """What turns conversations with pictures into what the model in `path` reads."""
    return _transformers().AutoProcessor.from_pretrained(path, local_files_only=True)


def load_image_processor(path: Path) -> Any:
    """What turns pictures into what the model in `path` reads of them."""
    return _transformers().AutoImageProcessor.from_pretrained(path, local_files_only=True, **image_options(path))


def load_feature_extractor(path: Path) -> Any:
    """What turns samples of a sound into what the model in `path` reads of them."""
    return _transformers().AutoFeatureExtractor.from_pretrained(path, local_files_only=True)


def load_video_processor(path: Path) -> Any:
    """What turns the frames of a video into what the model in `path` reads of them."""
    return _transformers().AutoVideoProcessor.from_pretrained(path, local_files_only=True)
