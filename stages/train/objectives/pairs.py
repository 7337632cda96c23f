"""What preference objectives know of a row, and which rows make a pair. Letters: T tokens, R rows, P pairs."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from postmill.stages.shared.asked import Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss


class Pairs(NamedTuple):
    """Rows of the two answers to one prompt, in the order of the groups."""

    chosen_P: Tensor
    rejected_P: Tensor

    @classmethod
    def of(cls, group_R: Tensor, member_R: Tensor) -> "Pairs":
        """The pairs of these rows. Padding, whose member is -1, is in none."""

        def rows(member: int) -> Tensor:
            places = (member_R == member).nonzero().squeeze(-1)
            return places[group_R[places].argsort(stable=True)]

        return cls(rows(0), rows(1))

    def split(self, values_R: Tensor) -> tuple[Tensor, Tensor]:
        """The values of chosen and of rejected rows."""
        return values_R[self.chosen_P], values_R[self.rejected_P]


def row_sum(values_T: Tensor, batch: Batch) -> Tensor:
    """Sum over each row, [R]."""
    return values_T.new_zeros(len(batch.row_R)).index_add(0, batch.row_T, values_T)


def row_length(batch: Batch, dtype: torch.dtype) -> Tensor:
    """Scored tokens of each row, [R], at least 1."""
    return row_sum(batch.mask_T.to(dtype), batch).clamp(min=1)


class Answers(NamedTuple):
    """The two answers of each pair, without a reference."""

    chosen_P: Tensor
    """Sum of weight * log-prob."""
    rejected_P: Tensor
    chosen_mean_P: Tensor
    """The same over the number of tokens."""
    rejected_mean_P: Tensor

    @classmethod
    def of(cls, outputs: Outputs, batch: Batch) -> "Answers":
        """From log-probs."""
        assert outputs.logp_T is not None
        pairs = Pairs.of(batch.group_R, batch.member_R)
        logp_R = row_sum(batch.weights_T * outputs.logp_T, batch)
        return cls(*pairs.split(logp_R), *pairs.split(logp_R / row_length(batch, logp_R.dtype)))


def loss_of_pairs(
    pair_P: Tensor, answers: Answers, rewards: tuple[Tensor, Tensor], nll_weight: float, norms: Mapping[str, float]
) -> Loss:
    """Mean of `pair_P` over pairs, and `nll_weight` times the cross-entropy of the chosen answers over their tokens.

    rewards: of chosen and rejected answers, for the record.
    """
    parts = {"preference": pair_P.sum() / norms["groups"]}
    if nll_weight:
        parts["nll"] = -nll_weight * answers.chosen_P.sum() / norms["chosen_tokens"]
    chosen_P, rejected_P = (reward_P.detach() for reward_P in rewards)
    metrics = {
        "reward_chosen": (chosen_P.sum(), "groups"),
        "reward_rejected": (rejected_P.sum(), "groups"),
        "reward_accuracy": ((chosen_P > rejected_P).double().sum(), "groups"),
    }
    total = torch.stack(list(parts.values())).sum()
    return Loss(total, {name: part.detach() for name, part in parts.items()}, metrics)


def tail_factors(batch: Batch, pairs: Pairs, alpha: float, dtype: torch.dtype) -> Tensor:
    """[T]: `alpha` beyond the length of the shorter answer of each pair, else 1 (LD-DPO).

    Source: Length Desensitization in DPO, section 4.2, <https://arxiv.org/abs/2409.06411>.
    """
    length_R = row_sum(batch.mask_T.to(torch.int64), batch)
    shared_P = torch.minimum(*pairs.split(length_R))
    shared_R = length_R.index_copy(0, pairs.chosen_P, shared_P).index_copy(0, pairs.rejected_P, shared_P)
    scored_T = batch.mask_T.to(torch.int64)
    seen_T = scored_T.cumsum(0)
    starts_R = torch.tensor(batch.row_starts[:-1], device=seen_T.device)
    before_R = (seen_T - scored_T)[starts_R]
    rank_T = seen_T - before_R[batch.row_T]
    return torch.ones_like(rank_T, dtype=dtype).masked_fill(rank_T > shared_R[batch.row_T], alpha)
