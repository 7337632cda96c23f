"""Which modules of a model get an adapter, from the names that a user gives."""

from typing import Any

from torch import nn

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.heads import CLASSIFIERS, PEFT_TASK, Head
from postmill.stages.shared.media.groups import GROUPS as PARTS
from postmill.stages.shared.media.groups import group_of
from postmill.stages.tables import closest


def find_targets(base: Any, wanted: list[str], tuner: str) -> list[str]:
    """Last parts of the names of the modules that get an adapter, sorted.

    all-linear is every linear layer but the head, all-norm every norm, all-embedding the embedding of the input. Of a
    model that reads pictures these are the decoder's, by their whole names: a tower's layers have the same last parts.
    Its parts (vision, projector, language) are their linear layers.
    Raises ConfigError (2) for a name that no module has, or for the head: its adapter would hide from the fused loss.
    """
    targets = split(wanted)
    parts = group_of(base)
    if parts and not set(targets).isdisjoint({*PARTS, *GROUPS}):
        return sorted({name for word in targets for name in _of_part(base, word, parts, tuner)})
    if len(targets) == 1 and targets[0] in GROUPS:
        return sorted(GROUPS[targets[0]](base))
    heads = _heads(base)
    names = [name for name, _ in base.named_modules()]
    for target in targets:
        hits = [name for name in names if name == target or name.endswith(f".{target}")]
        if not hits:
            known = sorted(_linear(base))
            near = closest(target, known)
            raise ConfigError(
                f"--{tuner}.targets {target}: no such module{near}; linear ones are {', '.join(known)}", USAGE
            )
        if target in _READ_PAST.get(base.config.model_type, set()):
            raise ConfigError(
                f"--{tuner}.targets {target}: {base.config.model_type} layers never call it, so an adapter would do"
                " nothing; leave it out",
                USAGE,
            )
        if any(base.get_submodule(name) in heads for name in hits):
            raise ConfigError(
                f"--{tuner}.targets {target}: the output head takes no adapter; train it whole with"
                f" --{tuner}.modules-to-save {target}",
                USAGE,
            )
    if parts:  # in the decoder, where a last part names many modules
        ends = tuple(f".{target}" for target in targets)
        hits = [name for name in names if name.endswith(ends) and parts[name] == "language"]
        return sorted({*hits, *(target for target in targets if target in names)})
    return sorted(set(targets))


def _of_part(base: Any, word: str, parts: dict[str, str], tuner: str) -> list[str]:
    """Whole names of what a word for modules means in a model that reads pictures."""
    if word not in PARTS and word not in GROUPS:
        known = ", ".join([*PARTS, *GROUPS])
        raise ConfigError(f"--{tuner}.targets {word}: names cannot stand beside one of {known}; give either", USAGE)
    part, heads = (word if word in PARTS else "language"), _heads(base)
    if word in PARTS or word == "all-linear":
        found = [name for name, m in base.named_modules() if _is_linear(m) and m not in heads]
    else:
        ends = GROUPS[word](base)
        found = [name for name, _ in base.named_modules() if _last(name) in ends]
    return [name for name in found if parts[name] == part]


def _linear(base: Any) -> set[str]:
    heads, unused = _heads(base), _READ_PAST.get(base.config.model_type, set())
    return {_last(name) for name, m in base.named_modules() if _is_linear(m) and m not in heads} - unused


def _is_linear(module: Any) -> bool:
    """Whether it is a linear layer that gives one tensor, to which an adapter's can be added: Llama 4's router is one
    that gives scores and logits."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers are of a class of their own

    return isinstance(module, (nn.Linear, Conv1D)) and not type(module).__name__.endswith("Router")


_READ_PAST = {
    "mamba": {"out_proj", "dt_proj"},
    "falcon_mamba": {"out_proj", "dt_proj"},
    "mamba2": {"out_proj"},
    "falcon_h1": {"out_proj"},
    "nemotron_h": {"out_proj"},
    "jamba": {"dt_proj"},
}
"""Families whose layers take the weight out of a linear layer and never call it: an adapter there would do nothing.
PEFT refuses the first of each; the second were found by adapters without a gradient. Transformers 5.23."""


def _heads(base: Any) -> list[Any]:
    return [base.get_output_embeddings(), *(getattr(base, name, None) for name in CLASSIFIERS)]


def _norms(base: Any) -> set[str]:
    return {_last(name) for name, m in base.named_modules() if type(m).__name__.lower().endswith("norm")}


def _embedding(base: Any) -> set[str]:
    return {_last(name) for name, m in base.named_modules() if m is base.get_input_embeddings()}


def embedding_name(base: Any) -> str:
    """Last part of the name of the embedding of the input."""
    return next(iter(_embedding(base)))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


GROUPS = {"all-linear": _linear, "all-norm": _norms, "all-embedding": _embedding}
"""Words for kinds of modules."""


def whole_modules(base: Any, wanted: list[str], tuner: str) -> list[str]:
    """Modules that are trained whole: those named, and a classifier.

    Raises ConfigError (2) for a name that no module with weights has.
    """
    weighted = [name for name, m in base.named_modules() if name and any(True for _ in m.parameters(recurse=False))]
    names = split(wanted) + [name for name in CLASSIFIERS if hasattr(base, name)]
    for target in names:
        if not any(name == target or name.endswith(f".{target}") for name, _ in base.named_modules()):
            known = sorted({name.rpartition(".")[2] for name in weighted})
            raise ConfigError(
                f"--{tuner}.modules-to-save {target}: no such module; there are {', '.join(known)}", USAGE
            )
    return names


def split(names: list[str]) -> list[str]:
    """Names given one by one, or with commas between them."""
    return [part.strip() for name in names for part in name.split(",") if part.strip()]


def of_head(head: Head, base: Any) -> dict[str, Any]:
    """What peft's config says of the head that the model has."""
    if getattr(base.config, "is_encoder_decoder", False):
        return {"task_type": "SEQ_2_SEQ_LM"}
    pooler = {"exclude_modules": r".*\bpooler\b.*"} if head.kind == "pool" else {}
    return {"task_type": PEFT_TASK[head.kind]} | pooler
