"""One of two processes of test_loss_scale_ce_vocab_parallel.py: its slice of the vocabulary, its results in a file."""

import sys
from pathlib import Path

import torch

from postmill.kernels.loss_scale_ce.vocab_parallel import loss_scale_ce_vocab_parallel

sys.path.insert(0, str(Path(__file__).parent))
from loss_problem import OPTIONS, leaves, problem


def main(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    *tensors, targets, weights = problem()
    v0, v1 = ((0, 100), (100, 251))[rank]
    hidden, weight, bias = leaves(tensors[0], tensors[1][v0:v1], tensors[2][v0:v1])
    out = loss_scale_ce_vocab_parallel(
        hidden,
        weight,
        targets,
        weights,
        vocab_start=v0,
        vocab_size=251,
        normaliser=3.0,
        bias_N=bias,
        return_logp=True,
        return_entropy=True,
        return_correct=True,
        **OPTIONS,
    )
    (out.loss + (out.logp_T * 0.5).sum()).backward()
    result = [*(x.detach() for x in out if x is not None), hidden.grad, weight.grad, bias.grad]
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
