"""Learning from sampled answers: what each token adds is in `policy_loss.py`; here is which tokens count, and how much.

Every token's share is known before the forward pass: from its row's length and from sums over the step. Rows without an
advantage are in neither. Letters: T tokens of a batch, R its rows, N its sampled tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss, Past
from postmill.stages.train.objectives.policy_loss import (
    Sampled,
    clipped,
    log_importance,
    mismatch_metrics,
    mismatch_weights,
    token_losses,
)
from postmill.stages.train.objectives.rl_options import SHARE_MEASURES, Rl
from postmill.stages.train.objectives.token_choice import choice_of, draws


def live_tokens(batch: Batch) -> Tensor:
    """int64 [N]: the tokens that predict a sampled one of a row with an advantage."""
    is_live_R = ~batch.columns["advantage"].isnan()
    found: Tensor = (batch.mask_T & is_live_R[batch.row_T]).nonzero().squeeze(-1)
    return found


def row_shares(cfg: Rl, tokens_R: Tensor, batch: Batch, norms: Mapping[str, float]) -> Tensor:
    """What each token of a row is multiplied by, [R]. tokens_R: live tokens of each row."""
    over = norms[SHARE_MEASURES[cfg.share]]
    if cfg.share == "seq_mean_token_mean":
        return 1.0 / (over * tokens_R.clamp(min=1))
    if cfg.share == "seq_mean_token_sum_norm":
        assert cfg.max_tokens is not None
        return torch.full_like(tokens_R, 1.0 / (over * cfg.max_tokens))
    if cfg.share == "group_mean_token_mean":
        return 1.0 / (over * batch.columns["group_tokens"].to(tokens_R.dtype).clamp(min=1))
    return torch.full_like(tokens_R, 1.0 / over)


def _places(batch: Batch, at_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each live token and its number in the row, [N]; how many a row has, [R]."""
    row_N = batch.row_T[at_N]
    count_R = torch.bincount(row_N, minlength=len(batch.row_R))
    first_R = count_R.cumsum(0) - count_R
    return row_N, torch.arange(len(at_N), device=at_N.device) - first_R[row_N], count_R


class RlLoss:
    """The loss of `options`."""

    def __init__(self, options: Rl) -> None:
        self.needs, self._options, self._choice = options.needs, options, choice_of(options)

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the sampled tokens, and entropies where they are used."""
        return Ask(self.needs.stats)

    def summary(self, outputs: Outputs, batch: Batch) -> Tensor:
        """[R, S]: what is seen of the row's live tokens, one after the other, then NaN. The longest row has S."""
        at_N = live_tokens(batch)
        choice = self._choice
        assert choice is not None
        seen_NK = choice.seen(self._sampled(outputs, batch, at_N))
        row_N, place_N, count_R = _places(batch, at_N)
        found = seen_NK.new_full((len(count_R), int(count_R.max()), choice.width), float("nan"))
        return found.index_put((row_N, place_N), seen_NK).flatten(1)

    def constants(self, summary_RS: Tensor, norms: Mapping[str, float], past: Past = ()) -> dict[str, float]:
        """The limits of this step."""
        assert self._choice is not None
        seen_NK = summary_RS.reshape(-1, self._choice.width).double()
        return self._choice.limits(seen_NK[~seen_NK[:, 0].isnan()])

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The live rows of `batch`."""
        cfg = self._options
        s = self._sampled(outputs, batch, live_tokens(batch))._replace(limits=constants)
        share_N = row_shares(cfg, s.row_sum(torch.ones_like(s.logp_T)), batch, norms)[s.row_T]
        terms = token_losses(cfg, s)
        parts = {name: (term_N * share_N).sum() for name, term_N in terms.items()}
        total = torch.stack(list(parts.values())).sum()
        return Loss(total, {name: part.detach() for name, part in parts.items()}, self._metrics(s, batch))

    def _sampled(self, outputs: Outputs, batch: Batch, at_N: Tensor) -> Sampled:
        assert outputs.logp_T is not None
        logp_N = outputs.logp_T[at_N]
        row_N = batch.row_T[at_N]

        def column(name: str) -> Tensor | None:
            return batch.columns[name][at_N].to(logp_N.dtype) if name in batch.columns else None

        engine_N, old_N, by_token_N = column("engine_logp"), column("old_logp"), column("advantages")
        assert engine_N is not None
        if self._options.old == "engine":
            old_N = torch.where(engine_N.isnan(), logp_N.detach(), engine_N)
        return Sampled(
            logp_T=logp_N,
            old_T=logp_N.detach() if old_N is None else old_N,
            advantage_T=by_token_N if by_token_N is not None else batch.columns["advantage"][row_N].to(logp_N.dtype),
            row_T=row_N,
            num_rows=len(batch.row_R),
            ref_T=column("ref_logp"),
            engine_T=engine_N,
            entropy_T=None if outputs.entropy_T is None else outputs.entropy_T[at_N],
            draw_T=draws(batch.row_R[row_N], _places(batch, at_N)[1]) if self._options.is_by_covariance else None,
        )

    def _metrics(self, s: Sampled, batch: Batch) -> dict[str, tuple[Tensor, str]]:
        """Means over live tokens. `nats` estimates the entropy: what the tokens cost the weights of this step."""
        cfg, logp_N = self._options, s.logp_T.detach()
        sums = {"nats": -logp_N.sum()}
        if s.entropy_T is not None:
            sums["entropy"] = s.entropy_T.detach().sum()
        if "old_logp" in batch.columns or cfg.old == "engine":
            log_N = log_importance(cfg.level, s).detach()
            sums |= {"ratio": log_N.exp().sum(), "clipped": clipped(cfg, s, log_N).sum()}
        if s.ref_T is not None:
            sums["ref_gap"] = (logp_N - s.ref_T).sum()
        sums |= mismatch_metrics(s._replace(old_T=logp_N) if cfg.old == "engine" else s)
        if cfg.mismatch != "none":
            sums["mismatch_dropped"] = (mismatch_weights(cfg, s) == 0).sum()
        return {name: (value, "sampled") for name, value in sums.items()}
