"""Options of embeddings: a vector for each text, near those of texts that fit it."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.heads import Head, Pooling
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective

_NEED_LABELS = ("cosine", "contrastive", "online_contrastive", "cosent")


class Embedding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="embedding"):
    """Train a text embedding model on queries with texts that fit them, or on pairs of texts with a similarity."""

    loss: Literal["infonce", "cosine", "contrastive", "online_contrastive", "cosent"] = "infonce"
    """infonce: each query's own text against all other texts of the step; the others are for pairs with a `label`.
    cosine: squared distance of the cosine to it; contrastive: labels 0 and 1, other pairs pushed beyond a margin;
    online_contrastive: only the hard pairs of the step; cosent: pairs in the order of their labels."""
    pooling: Pooling = "mean"
    """What a text's vector is made of: the mean over its tokens, its last token (usual for decoders) or its first."""
    temperature: Annotated[float, Meta(gt=0)] = 0.05
    """Cosines are divided by this; for infonce and cosent. sentence-transformers' scale is its inverse."""
    margin: Annotated[float, Meta(ge=0)] = 0.5
    """Distance that pairs which do not fit are pushed to; for contrastive and online_contrastive."""
    in_batch: bool = True
    """Whether texts of other queries count as texts that do not fit; for infonce."""
    include_queries: bool = False
    """Whether other queries do, too; for infonce."""
    include_documents: bool = False
    """Whether the query's own text is told apart from other texts as well; for infonce."""
    false_negatives: Annotated[float, Meta(ge=0)] | None = None
    """Leave out other texts whose cosine exceeds that of the query's own text by more than this: they may well fit.
    0.1 is usual; for infonce."""
    matryoshka: list[Annotated[int, Meta(ge=1)]] = []
    """Also train the first so many numbers of each vector to be an embedding: 256,128,64. Losses are added."""

    def __post_init__(self) -> None:
        if len(set(self.matryoshka)) < len(self.matryoshka):
            raise ValueError("matryoshka: a size is named twice")

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(
            head=Head(kind="pool", pooling=self.pooling),
            columns=("label",) if self.loss in _NEED_LABELS else (),
            group="list",
            coupling="step_gradients",
            measures=("groups",),
        )

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.embedding import EmbeddingLoss

        return EmbeddingLoss(self)
