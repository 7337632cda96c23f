"""Options of how several ranks share the work, and the table of layouts. Nothing here loads torch before `build`.

A layout is a struct of options that says one thing before torch loads, and builds what the loop calls:

    cuts_model: ClassVar[bool]      whether a rank has less than the whole model or less than whole bins
    build(form, accelerator)        the `Layout` (layout.py) of this rank, among the ranks of a launcher

The layout `mesh` has five forms of parallelism that mix; another layout stands alone.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.options import tag
from postmill.stages.spec import LAST_BITS, SAME_BYTES, Choice

if TYPE_CHECKING:
    from accelerate import Accelerator

    from postmill.stages.train.parallel.layout import Layout

IN_STAGES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")
"""Families that --pp was tested with: their decoder is an embedding, layers in a row, and a norm."""
LAYOUTS = Choice(
    group="postmill.layouts",
    table={
        "mesh": "postmill.stages.train.parallel.options:Mesh",
    },
)
"""How a model lies on the ranks of a run."""


class Mesh(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mesh"):
    """Copies, shards, tensors, tokens, experts and stages, in any mixture."""

    cuts_model: ClassVar[bool] = False
    """That depends on its forms, which are options of `Parallel`."""

    def build(self, form: "Parallel", accelerator: "Accelerator") -> "Layout":
        """Copies, if no form is asked for. Raises ConfigError (2) for forms that these ranks cannot have."""
        if not form.has_forms:
            from postmill.stages.train.parallel.replicated import Replicated

            return Replicated(accelerator)
        if form.is_zero:
            from postmill.stages.train.parallel.zero import Zero

            return Zero(accelerator, form)
        if accelerator.num_processes == 1:
            sizes = f"--tp {form.tp} --cp {form.cp} --ep {form.ep} --pp {form.pp}"
            given = f"--shard {form.shard}" if form.shard != "none" else sizes
            raise ConfigError(
                f"{given}: one rank shares with nobody; start several (postmill launch --ranks 2 ...)", USAGE
            )
        from postmill.stages.train.parallel.meshed import Meshed

        return Meshed(accelerator, form)


class Parallel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How several ranks share the work. Ranks that no other form takes share the bins of a step."""

    shard: Annotated[Literal["none", "fsdp", "hsdp", "zero1", "zero2", "zero3"], LAST_BITS] = "none"
    """How ranks hold the model. none: each all of it; fsdp: each a part of weights, gradients and the optimizer's state
    (torch's FSDP2), for models that do not fit on one; hsdp: so within groups of --shard-ranks. zero1, zero2, zero3:
    DeepSpeed's ZeRO, a part of the optimizer's state, of gradients too, of weights too."""
    shard_ranks: Annotated[int, Meta(ge=0), LAST_BITS] = 0
    """Ranks that hold the model once with --shard hsdp; 0 for those of one machine."""
    offload: Annotated[Literal["none", "cpu", "nvme"], LAST_BITS] = "none"
    """Where the parts lie that ZeRO deals to a rank, while they are not used: on the GPU, in main memory, or in files
    on a fast disk (with zero3)."""
    offload_to: Annotated[str, SAME_BYTES] = ""
    """Folder of the files of --offload nvme, on a disk of this machine."""
    tp: Annotated[int, Meta(ge=1), LAST_BITS] = 1
    """Ranks that each hold a slice of every matrix (tensor parallelism); best on one machine."""
    cp: Annotated[int, Meta(ge=1), LAST_BITS] = 1
    """Ranks that each compute a slice of every bin's tokens (context parallelism), for very long rows."""
    ep: Annotated[int, Meta(ge=1), LAST_BITS] = 1
    """Of the ranks that share tokens, those that the experts of a mixture are dealt to (expert parallelism)."""

    pp: Annotated[int, Meta(ge=1), LAST_BITS] = 1
    """Stages of layers, each on ranks of its own, that bins pass through one after another (pipeline parallelism); of
    bins a data rank has, take several times as many as stages. Not with --shard or --ep."""

    layout: Annotated[Any, LAYOUTS, LAST_BITS] = Mesh()
    """Which code lays the model on the ranks. mesh: all of the forms above, in any mixture."""

    def __post_init__(self) -> None:
        if not isinstance(self.layout, Mesh) and self.has_forms:
            raise ValueError(
                f"layout {tag(self.layout)}: shard, tp, cp, ep and pp are forms of the layout mesh; leave them out"
            )
        if self.is_zero and max(self.tp, self.cp, self.ep, self.pp) > 1:
            raise ValueError(f"shard {self.shard}: DeepSpeed deals all ranks alike; take fsdp with tp, cp and ep")
        if self.offload != "none" and not self.is_zero:
            raise ValueError(f"offload {self.offload}: only shard zero1, zero2 and zero3 have it")
        if self.offload == "nvme" and self.shard != "zero3":
            raise ValueError(f"offload nvme: shard {self.shard} keeps its parts in memory; take zero3")

    @property
    def has_forms(self) -> bool:
        """Whether a form of the mesh is asked for."""
        return self.shard != "none" or max(self.tp, self.cp, self.ep, self.pp) > 1

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed lays the model on the ranks."""
        return self.shard.startswith("zero")

    @property
    def cuts_model(self) -> bool:
        """Whether a rank has less than the whole model or less than whole bins."""
        return bool(self.layout.cuts_model) or self.has_forms
