"""Losses of embeddings, each of all texts of a step at once, however the step is cut (`train/coupling.py`).

With s the cosine, q_i a query, d_i the text that fits it, D all texts of the step, tau the temperature:

    infonce             mean of -log softmax of s(q_i, d) / tau over d in D, at d_i
    cosine              mean of (s(q_i, d_i) - label_i)^2
    contrastive         mean of (label (1 - s)^2 + (1 - label) relu(margin - (1 - s))^2) / 2
    online_contrastive  the same squares, summed without the half, over the pairs that are harder than the easiest of
                        the other kind
    cosent              log(1 + sum of exp((s_i - s_j) / tau) over pairs i, j with label_i < label_j)

They are sentence-transformers' MultipleNegativesRankingLoss, CosineSimilarityLoss, ContrastiveLoss,
OnlineContrastiveLoss and CoSENTLoss; a list of sizes is its MatryoshkaLoss. Sources: InfoNCE,
<https://arxiv.org/abs/1807.03748>; contrastive, Hadsell et al. 2006; CoSENT, <https://kexue.fm/archives/8847>;
Matryoshka, <https://arxiv.org/abs/2205.13147>. Queries as further candidates, texts told apart from texts, and the mask
of texts that may fit are those of Qwen3 Embedding, <https://arxiv.org/abs/2506.05176>.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.embedding_options import Embedding
from postmill.stages.train.objectives.interface import Loss, StepRows

QUERY, WRONG, RIGHT = 0, 1, 2


class EmbeddingLoss:
    """The loss of `options`."""

    def __init__(self, options: Embedding) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Vectors, which a pool head gives unasked."""
        return Ask()

    def summary(self, outputs: Outputs, batch: Batch) -> Tensor:
        """[R, H + 1]: the vector, and the label."""
        assert outputs.pooled_RH is not None
        label_R = batch.columns.get("label", torch.zeros(len(batch.row_R), device=outputs.pooled_RH.device))
        return torch.cat([outputs.pooled_RH, label_R.to(outputs.pooled_RH.dtype)[:, None]], dim=1)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """Not called: all losses look at the whole step."""
        raise NotImplementedError

    def step_loss(self, summary_RS: Tensor, rows: StepRows, norms: Mapping[str, float]) -> Loss:
        """The texts of a step."""
        vector_RH, label_R = summary_RS[:, :-1], summary_RS[:, -1]
        whole = vector_RH.shape[1]
        parts: dict[str, Tensor] = {}
        metrics: dict[str, tuple[Tensor, str]] = {}
        for size in dict.fromkeys([whole, *self._options.matryoshka]):
            unit_RH = F.normalize(vector_RH[:, : min(size, whole)], dim=-1)
            value, numbers = self._of_size(unit_RH, label_R, rows, norms)
            parts[self._options.loss if size == whole else f"loss_{size}"] = value
            metrics |= numbers if size == whole else {}
        total = torch.stack(list(parts.values())).sum()
        return Loss(total, {name: part.detach() for name, part in parts.items()}, metrics)

    def _of_size(
        self, unit_RH: Tensor, label_R: Tensor, rows: StepRows, norms: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, str]]]:
        o, texts = self._options, Texts(unit_RH, rows)
        if o.loss == "infonce":
            logits_QN, right_Q = info_nce_logits(o, texts)
            loss = F.cross_entropy(logits_QN, right_Q, reduction="sum") / norms["groups"]
            hits = (logits_QN.detach().argmax(1) == right_Q).double().sum()
            return loss, {"accuracy": (hits, "groups")}
        cosine_Q = (texts.query_QH * texts.right_QH).sum(1)
        label_Q = label_R[texts.query_Q]
        measured = {"cosine": (cosine_Q.detach().double().sum(), "groups")}
        return PAIR_LOSSES[o.loss](o, cosine_Q, label_Q, norms["groups"]), measured


class Texts:
    """The texts of a step by what they are, in the order of their groups."""

    def __init__(self, unit_RH: Tensor, rows: StepRows) -> None:
        def of(member: int) -> Tensor:
            rows_of_member = (rows.member_R == member).nonzero().squeeze(-1)
            return rows_of_member[rows.group_R[rows_of_member].argsort(stable=True)]

        self.query_Q, right_Q, wrong_W = of(QUERY), of(RIGHT), of(WRONG)
        self.query_QH, self.right_QH, self.wrong_WH = (unit_RH[at] for at in (self.query_Q, right_Q, wrong_W))
        self.owner_W = torch.searchsorted(rows.group_R[self.query_Q].contiguous(), rows.group_R[wrong_W].contiguous())
        """Which query each text that does not fit was given for."""


def info_nce_logits(o: Embedding, texts: Texts) -> tuple[Tensor, Tensor]:
    """[Q, N] logits of each query's candidates, -inf where one does not count; and where its own text is."""
    query_QH, right_QH = texts.query_QH, texts.right_QH
    document_DH = torch.cat([right_QH, texts.wrong_WH])
    at_Q = torch.arange(len(query_QH), device=query_QH.device)
    owner_D = torch.cat([at_Q, texts.owner_W])
    cosine_QD = query_QH @ document_DH.t()
    own_Q1 = cosine_QD.diagonal()[:, None]
    is_own_QD = owner_D == at_Q[:, None]
    blocks = [cosine_QD]
    allowed = [is_own_QD if not o.in_batch else torch.ones_like(is_own_QD)]
    if o.include_queries:
        blocks.append(query_QH @ query_QH.t())
        allowed.append(at_Q != at_Q[:, None])
    if o.include_documents:
        blocks.append(right_QH @ document_DH.t())
        allowed.append(~is_own_QD)
    cosine_QN, allowed_QN = torch.cat(blocks, dim=1), torch.cat(allowed, dim=1)
    if o.false_negatives is not None:
        allowed_QN &= cosine_QN.detach() <= own_Q1.detach() + o.false_negatives
    allowed_QN[at_Q, at_Q] = True
    return (cosine_QN / o.temperature).masked_fill(~allowed_QN, float("-inf")), at_Q


def _cosine(o: Embedding, cosine_Q: Tensor, label_Q: Tensor, count: float) -> Tensor:
    return (cosine_Q - label_Q).square().sum() / count


def _contrastive(o: Embedding, cosine_Q: Tensor, label_Q: Tensor, count: float) -> Tensor:
    distance_Q = 1 - cosine_Q
    near_Q, far_Q = label_Q * distance_Q.square(), (1 - label_Q) * F.relu(o.margin - distance_Q).square()
    return (near_Q + far_Q).sum() / (2 * count)


def _online_contrastive(o: Embedding, cosine_Q: Tensor, label_Q: Tensor, count: float) -> Tensor:
    distance_Q = 1 - cosine_Q
    far, near = distance_Q[label_Q == 0], distance_Q[label_Q == 1]
    limit_far = near.max() if len(near) > 1 else far.mean()
    limit_near = far.min() if len(far) > 1 else near.mean()
    hard_far, hard_near = far[far < limit_far], near[near > limit_near]
    return hard_near.square().sum() + F.relu(o.margin - hard_far).square().sum()


def _cosent(o: Embedding, cosine_Q: Tensor, label_Q: Tensor, count: float) -> Tensor:
    scaled_Q = cosine_Q / o.temperature
    gap_QQ = scaled_Q[:, None] - scaled_Q[None, :]
    gap_QQ = gap_QQ.masked_fill(label_Q[:, None] >= label_Q[None, :], float("-inf"))
    return torch.logsumexp(torch.cat([gap_QQ.new_zeros(1), gap_QQ.flatten()]), dim=0)


PAIR_LOSSES = {
    "cosine": _cosine,
    "contrastive": _contrastive,
    "online_contrastive": _online_contrastive,
    "cosent": _cosent,
}
