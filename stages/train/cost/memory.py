"""What one rank needs of memory in a training run, part by part, from the config and the model's sizes alone.

Weights, gradients and the optimizer's state are counted. Activations are what autograd keeps: bytes a token and block
were counted on Llama and Qwen3 with saved-tensor hooks, and are exact there. What a process takes beyond that, and how
much more an allocator holds than was asked of it, was measured (`tests/stages/train/cost/`, two CPU cores, glibc, torch
2.13, 2026-11-29); on GPUs it is a guess, and `postmill estimate --probe` measures it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from postmill.stages.options import tag
from postmill.stages.train.config import Train
from postmill.stages.train.cost.shape import Shape
from postmill.stages.train.parallel.options import Parallel

MIB, GIB = 2**20, 2**30


class Part(NamedTuple):
    """Bytes of one use."""

    name: str
    low: float
    expected: float
    high: float

    @classmethod
    def about(cls, name: str, expected: float, low: float = 1.0, high: float = 1.0) -> "Part":
        """`low` and `high` are factors."""
        return cls(name, expected * low, expected, expected * high)


def total(parts: Sequence[Part]) -> Part:
    """Their sum."""
    return Part("total", sum(p.low for p in parts), sum(p.expected for p in parts), sum(p.high for p in parts))


class Setting(NamedTuple):
    """Where and on what a run would be."""

    on_gpu: bool
    bin_tokens: int
    """The longest bin."""
    trained_share: float = 1.0
    """Of its tokens."""
    ranks: int = 1
    ranks_here: int = 1
    """Ranks of one machine."""

    def compute_bytes(self, cfg: Train) -> int:
        """Of a number that matrices are multiplied in."""
        wanted = cfg.compute.dtype
        return 2 if wanted == "bfloat16" or (wanted == "auto" and self.on_gpu) else 4


_STATE_BYTES = {"adamw": 8.0, "sgd": 4.0, "lion": 4.0, "adafactor": 0.1, "muon": 5.0}
"""A trained weight; muon keeps one number for matrices and two for the rest. Others: as adamw."""
_PROCESS = {False: 935 * MIB, True: 600 * MIB}
"""Python, torch, transformers and accelerate in memory; on a GPU its context. Measured on CPU, usual on CUDA."""
_HELD = {"full": 1.3, "adapter": 2.7}
"""What glibc holds of activations, over what autograd keeps. peft makes and frees many tensors between those kept."""
_HELD_GPU = 1.15
_CHECKPOINTED_ADAPTER = 0.5
"""With gradient checkpointing and adapters glibc still holds half of what it would without, on one run measured."""
_KEPT_AFTER = 0.9
"""Share of them that is still held when a checkpoint is written."""
_ARENA = 128 * MIB


def trained_weights(cfg: Train, shape: Shape) -> tuple[float, float, float]:
    """How many weights are trained: at least, probably, at most."""
    if tag(cfg.tuner) == "full":
        return (shape.weights,) * 3
    rank = getattr(cfg.tuner, "rank", 16)
    layers, targets = shape.linear_layers(), getattr(cfg.tuner, "targets", ["all-linear"])
    chosen = list(layers) if targets == ["all-linear"] else [name for name in layers if name in targets]
    num_weights = shape.layers * sum(rank * sum(layers[name]) for name in chosen)
    for name in getattr(cfg.tuner, "modules_to_save", []):
        num_weights += shape.embedding if name in ("embed_tokens", "lm_head") else shape.hidden
    # other methods of peft have as many weights as LoRA at most
    return (
        (num_weights,) * 3 if tag(cfg.tuner) == "lora" else (0.05 * num_weights, 0.5 * num_weights, 2.0 * num_weights)
    )


def of_activations(cfg: Train, shape: Shape, setting: Setting) -> tuple[float, float]:
    """Bytes that autograd keeps of a token in one block, and in all of them."""
    full, narrow = tag(cfg.tuner) == "full", setting.compute_bytes(cfg) == 2
    tp = cfg.parallel.tp
    inner = (shape.chosen * shape.inner + shape.shared_inner) if shape.experts else shape.inner
    if narrow:
        of_hidden, of_inner, of_queries, of_keys = 18.6 if not full else 22.0, 8.25, 6.2, 4.2
    else:
        of_hidden, of_inner, of_queries, of_keys = 24.0 if full else 16.0, 16.0, 12.0, 8.0
    if shape.has_head_norms:
        more = 4.2 if narrow else 8.0
        of_queries, of_keys = of_queries + more, of_keys + more
    block = of_hidden * shape.hidden
    block += (of_inner * inner + of_queries * shape.queries + of_keys * shape.keys) / tp
    if not full:
        block += (16.0 if narrow else 28.0) * getattr(cfg.tuner, "rank", 16)
    if shape.experts:  # tokens are copied for each expert they go to
        block += shape.chosen * shape.hidden * (4 if narrow else 8)
    if cfg.compute.gradient_checkpointing and not (full or setting.on_gpu):
        return block, _CHECKPOINTED_ADAPTER * shape.layers * block
    if cfg.compute.gradient_checkpointing:
        return block, shape.layers * (2 if narrow else 4) * shape.hidden + block
    return block, shape.layers * block


def shards_of(form: Parallel, setting: Setting) -> tuple[int, int]:
    """Ranks that share a copy of the weights beside tensor parallelism, and data ranks."""
    around = max(1, setting.ranks // form.tp // form.pp)
    within = {"none": 1, "fsdp": around, "zero1": 1, "zero2": 1, "zero3": around}
    shards = within.get(form.shard, form.shard_ranks or max(1, setting.ranks_here // form.tp))
    return min(shards, around), max(1, around // form.cp)


def rank_parts(cfg: Train, shape: Shape, setting: Setting) -> list[Part]:
    """The parts at the moment that needs most."""
    phases = [_loading(cfg, shape, setting), _step(cfg, shape, setting), _saving(cfg, shape, setting)]
    return max(phases, key=lambda parts: total(parts).expected)


def _state(cfg: Train, shape: Shape, setting: Setting) -> list[Part]:
    """What is there from the first step to the last."""
    shards, _ = shards_of(cfg.parallel, setting)
    shared_by = float(shards * cfg.parallel.tp)
    if cfg.parallel.ep > 1:  # experts are dealt, and not sharded beyond that
        experts = shape.layers * shape.experts * 3 * shape.hidden * shape.inner / shape.weights
        shared_by = 1 / ((1 - experts) / shared_by + experts / cfg.parallel.ep)
    if cfg.parallel.pp > 1:  # the first stage has the embedding besides its layers, the last one the head
        of_layers = shape.weights - shape.embedding * (1 if shape.tied else 2)
        shared_by *= shape.weights / (of_layers / cfg.parallel.pp + shape.embedding)
    trained = trained_weights(cfg, shape)
    full = tag(cfg.tuner) == "full"
    frozen = 0 if full else shape.weights * setting.compute_bytes(cfg)
    state = _STATE_BYTES.get(tag(cfg.optimizer), 8.0)
    if tag(cfg.optimizer) == "sgd" and not cfg.optimizer.momentum:
        state = 0.0
    parts = [
        Part("weights", *((frozen + 4 * n) / shared_by for n in trained)),
        Part("gradients", *(4 * n / shared_by for n in trained)),
        Part("optimizer", *(state * n / shared_by for n in trained)),
    ]
    return [
        *(_under_zero(cfg.parallel, parts, trained, setting) if cfg.parallel.is_zero else parts),
        Part.about("process", _PROCESS[setting.on_gpu], 0.85, 1.15),
    ]


def _under_zero(form: Parallel, parts: list[Part], trained: tuple[float, ...], setting: Setting) -> list[Part]:
    """Stages 1 and 2 deal moments, gradients and a copy of the weights they update; offloaded parts leave a GPU."""
    weights, gradients, optimizer = parts
    ranks = setting.ranks
    if form.shard != "zero3":
        copies = [4 * n for n in trained]
        optimizer = Part(optimizer.name, *((n + m) / ranks for n, m in zip(optimizer[1:], copies, strict=True)))
    if form.shard == "zero2":
        gradients = Part(gradients.name, *(n / ranks for n in gradients[1:]))
    if form.offload == "none" or not setting.on_gpu:
        return [weights, gradients, optimizer]
    return {"zero1": [weights, gradients], "zero2": [weights]}.get(form.shard, [])


def _loading(cfg: Train, shape: Shape, setting: Setting) -> list[Part]:
    """On a CPU every rank reads the whole model before it is cut; on a GPU that happens in main memory."""
    size = 4 if tag(cfg.tuner) == "full" else setting.compute_bytes(cfg)
    whole = 0 if setting.on_gpu else shape.weights * size
    # pages of the file count while they are read
    file = 0 if setting.on_gpu else shape.stored_bytes
    return [
        Part.about("weights, whole", whole),
        Part.about("file, while it is read", file, 0.0, 1.0),
        Part.about("process", _PROCESS[setting.on_gpu], 0.85, 1.15),
    ]


def _step(cfg: Train, shape: Shape, setting: Setting) -> list[Part]:
    tokens = cfg.batch.micro_bins * setting.bin_tokens / cfg.parallel.cp
    _, kept = of_activations(cfg, shape, setting)
    size, tp = setting.compute_bytes(cfg), cfg.parallel.tp
    trained_tokens = tokens * setting.trained_share
    full = tag(cfg.tuner) == "full"
    arena = min(trained_tokens * shape.vocab / tp * 4, max(_ARENA, shape.embedding / tp * 2 if full else 0))
    parts = [
        *_state(cfg, shape, setting),
        Part.about("activations", tokens * kept * _held(cfg, setting), 0.8, 1.3),
        Part.about("loss", arena, 0.7, 1.5),
    ]
    shards, _ = shards_of(cfg.parallel, setting)
    if shards > 1:  # two blocks and the outermost group (embedding, head) are whole while they compute
        outer = shape.embedding * (1 if shape.tied else 2)
        whole = (2 * shape.block() + outer) / tp * (4 if full else size)
        parts.append(Part.about("gathered", whole * (2 if full else 1), 0.7, 1.3))
    if full and size == 2:
        parts.append(Part.about("weights in bfloat16", 2 * shape.weights / tp / shards, 0.5, 1.0))
    return parts


def _saving(cfg: Train, shape: Shape, setting: Setting) -> list[Part]:
    """Rank 0 has whole tensors in main memory, and safetensors makes bytes of a file's tensors before it writes."""
    if setting.on_gpu:
        return _state(cfg, shape, setting)
    state = _state(cfg, shape, setting)
    trained = trained_weights(cfg, shape)
    per_weight = max(4.0, _STATE_BYTES.get(tag(cfg.optimizer), 8.0))
    copies = [per_weight * n for n in trained]
    shards, _ = shards_of(cfg.parallel, setting)
    if shards * cfg.parallel.tp > 1:
        copies = [n + (4.0 + per_weight) * m for n, m in zip(copies, trained, strict=True)]
    held = setting.bin_tokens * cfg.batch.micro_bins / cfg.parallel.cp * of_activations(cfg, shape, setting)[1]
    return [
        *state,
        Part("checkpoint, while it is written", *copies),
        Part.about("held of activations", held * _held(cfg, setting) * _KEPT_AFTER, 0.6, 1.3),
    ]


def _held(cfg: Train, setting: Setting) -> float:
    return _HELD_GPU if setting.on_gpu else _HELD["full" if tag(cfg.tuner) == "full" else "adapter"]


def disk_bytes(cfg: Train, shape: Shape) -> list[Part]:
    """Checkpoints at their most numerous, and the result."""
    low, expected, high = trained_weights(cfg, shape)
    of_one = 4 + _STATE_BYTES.get(tag(cfg.optimizer), 8.0)
    number = cfg.checkpoints.keep_last + cfg.checkpoints.keep_best + 1
    result_bytes = 4.0
    if tag(cfg.tuner) == "full":
        stored = shape.stored_bytes / shape.counted if shape.counted else 2.0
        result_bytes = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}.get(cfg.compute.save_dtype, stored)
    return [
        Part(f"{number} checkpoints", *(number * of_one * n for n in (low, expected, high))),
        Part("result", *(result_bytes * n for n in (low, expected, high))),
    ]
