"""TRL's own policy loss, called unbound on a stub: the oracle of ours."""

from collections import defaultdict
from types import SimpleNamespace

import torch
from trl.trainer.grpo_trainer import GRPOTrainer


class OneProcess:
    num_processes, sync_gradients, device = 1, True, "cpu"

    @staticmethod
    def gather(tensor):
        return tensor

    gather_for_metrics = gather

    @staticmethod
    def reduce(tensor, reduction="sum"):
        return tensor

    @staticmethod
    def pad_across_processes(tensor, dim=0, pad_index=0):
        return tensor


def grpo_loss(case, loss_type, *, level, beta, delta, mismatch, quantile, off_policy, unbiased):
    """Value, and gradient with respect to `case.logp`. Tensors of `case` are [rows, tokens], `advantage` [rows]."""
    logp = case.logp.clone().requires_grad_()
    args = SimpleNamespace(
        delta=delta,
        use_bias_correction_kl=unbiased,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=1,
        entropy_target=0.2,
        vespo_k_pos=2.0,
        vespo_lambda_pos=3.0,
        vespo_k_neg=3.0,
        vespo_lambda_neg=2.0,
    )
    stub = SimpleNamespace(
        args=args,
        accelerator=OneProcess(),
        aux_loss_enabled=False,
        top_entropy_quantile=quantile,
        off_policy_mask_threshold=off_policy,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=5.0 if loss_type == "cispo" else 0.28,
        use_vllm=mismatch is not None,
        vllm_importance_sampling_correction=mismatch is not None,
        max_completion_length=16,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
    )
    stub._get_per_token_logps_and_entropies = lambda *a, **k: (logp, case.entropy, None)
    stub.get_high_entropy_mask = lambda *a: GRPOTrainer.get_high_entropy_mask(stub, *a)
    inputs = {
        "prompt_ids": torch.zeros(len(logp), 2),
        "prompt_mask": torch.ones(len(logp), 2),
        "completion_ids": torch.zeros_like(logp),
        "completion_mask": case.mask,
        "advantages": case.advantage,
        "old_per_token_logps": case.old,
        "ref_per_token_logps": case.ref,
        "num_items_in_batch": case.mask.sum(),
    }
    if off_policy is not None or mismatch:
        inputs["sampling_per_token_logps"] = case.engine
    if mismatch:  # as in TRL's _generate_and_score_completions
        gap = (case.old - case.engine) * case.mask
        gap = gap.sum(-1, keepdim=True) if mismatch.startswith("sequence") else gap
        ratio = gap.exp()
        capped = ratio.clamp(max=3.0) if mismatch.endswith("truncate") else ratio.masked_fill(ratio > 3.0, 0.0)
        inputs["importance_sampling_ratio"] = capped
    loss = GRPOTrainer._compute_loss(stub, None, inputs)
    loss.backward()
    return loss.detach(), logp.grad
