"""Options of the objectives, and the table of them. Each has its name as tag."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.spec import Choice
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Sft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sft"):
    """Weighted cross-entropy of the next token: supervised fine-tuning and continued pre-training."""

    normalize: Literal["tokens", "weights", "rows"] = "tokens"
    """What a step's sum of weight * loss is divided by: trained tokens (as ms-swift), the sum of weights, or rows."""
    label_smoothing: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of each target's probability that is spread over the vocabulary."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(measures=(self.normalize,), linear=True)

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.sft import SftLoss

        return SftLoss(self)


OBJECTIVES = Choice(
    group="postmill.objectives",
    files="own",
    files_port="own_loss",
    table={
        "sft": "postmill.stages.train.objectives.options:Sft",
        "pretrain": "postmill.stages.train.objectives.pretrain_options:Pretrain",
        "dft": "postmill.stages.train.objectives.dft_options:Dft",
        "eaft": "postmill.stages.train.objectives.adaptive_options:Eaft",
        "focal": "postmill.stages.train.objectives.adaptive_options:Focal",
        "gkd": "postmill.stages.train.objectives.gkd_options:Gkd",
        "asft": "postmill.stages.train.objectives.gkd_options:Asft",
        "dpo": "postmill.stages.train.objectives.dpo_options:Dpo",
        "cpo": "postmill.stages.train.objectives.cpo_options:Cpo",
        "simpo": "postmill.stages.train.objectives.simpo_options:Simpo",
        "orpo": "postmill.stages.train.objectives.orpo_options:Orpo",
        "kto": "postmill.stages.train.objectives.kto_options:Kto",
        "rm": "postmill.stages.train.objectives.rm_options:Rm",
        "seq_cls": "postmill.stages.train.objectives.seq_cls_options:SeqCls",
        "value": "postmill.stages.train.objectives.value_options:Value",
        "prm": "postmill.stages.train.objectives.prm_options:Prm",
        "embedding": "postmill.stages.train.objectives.embedding_options:Embedding",
        "reranker": "postmill.stages.train.objectives.reranker_options:Reranker",
        "own": "postmill.stages.train.objectives.own_options:Own",
        "rl": "postmill.stages.train.objectives.rl_options:Rl",
    },
)
"""What is learned."""
