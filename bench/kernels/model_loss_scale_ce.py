"""Modelled, not measured: what the loss head of one step asks of an H100, for four ways of computing it.

    python bench/kernels/model_loss_scale_ce.py

Operations of the matrix products over 989 TFLOP/s (bfloat16, dense) against bytes between chip and memory over
3.35 TB/s (NVIDIA's figures for the SXM part); the larger is a time no implementation of that scheme can beat. Measured
times are in `bench/results/`. Bytes are those of each scheme's own description, in bfloat16 unless said:

- postmill stored: head read twice a chunk of rows, E written once, read and written when it becomes dz, and read twice;
  dW written once, or kept in float32 and read and written between chunks of rows.
- postmill recomputed: head read three times, dz written once and read twice, dX in float32 read and written a slice.
- Liger 0.8: all rows, masked or not; chunks of next_power_of_2(T / ceil(V / H)) rows; logits written by the product,
  read twice and written once by its kernel, read twice by two products; float32 dW read and written by every chunk.
- CCE 25.1: masked rows dropped; logits made again in the backward pass, never in memory; dW and dX tiles of 128 rows
  are added in place, dX from the L2 cache. Without its gradient filter, which drops blocks below a threshold.
"""

import math
from typing import NamedTuple

FLOPS_PER_S, BYTES_PER_S = 989e12, 3.35e12
STORE_BYTES, STORE_SHARE, SLICE_BYTES = 1 << 30, 8, 256 << 20  # as in kernels/loss_scale_ce/triton_host.py


class Head(NamedTuple):
    num_tokens: int
    active: float
    hidden_size: int
    vocab_size: int


def stored(head: Head) -> tuple[float, float]:
    rows, vh = round(head.num_tokens * head.active), head.vocab_size * head.hidden_size
    row_bytes = 2 * head.vocab_size
    is_one_chunk = head.num_tokens * row_bytes <= STORE_BYTES + 4 * vh
    chunk_rows = (STORE_BYTES + 4 * vh // STORE_SHARE) // row_bytes
    chunks = 1 if is_one_chunk else math.ceil(rows / chunk_rows)
    num_bytes = chunks * 2 * 2 * vh + 5 * rows * row_bytes + (chunks - 1) * 2 * 4 * vh + 2 * vh
    return 6 * rows * vh, num_bytes + 5 * 2 * rows * head.hidden_size


def recomputed(head: Head) -> tuple[float, float]:
    rows, vh = round(head.num_tokens * head.active), head.vocab_size * head.hidden_size
    slices = math.ceil(2 * head.num_tokens * head.vocab_size / SLICE_BYTES)
    d_hidden = slices * (2 * 4 + 2 * 2) * rows * head.hidden_size
    return 8 * rows * vh, 3 * 2 * vh + 3 * 2 * rows * head.vocab_size + 2 * vh + d_hidden


def liger(head: Head) -> tuple[float, float]:
    rows, vh = head.num_tokens, head.vocab_size * head.hidden_size
    chunk = 2 ** math.ceil(math.log2(rows / math.ceil(head.vocab_size / head.hidden_size)))
    chunks = math.ceil(rows / chunk)
    return 6 * rows * vh, chunks * (2 * 2 * vh + 2 * 4 * vh) + 6 * 2 * rows * head.vocab_size


def cce(head: Head) -> tuple[float, float]:
    rows, vh = round(head.num_tokens * head.active), head.vocab_size * head.hidden_size
    return 8 * rows * vh, 2 * 2 * vh + math.ceil(rows / 128) * 2 * 2 * vh


SCHEMES = {"postmill stored": stored, "postmill recomputed": recomputed, "Liger": liger, "CCE": cce}


def main() -> None:
    print("| T | active | H | V | " + " | ".join(f"{name}, ms (GB)" for name in SCHEMES) + " |")
    print("|---|---|---|---|" + "---|" * len(SCHEMES))
    for hidden_size, vocab_size in ((1024, 151_936), (4096, 151_936), (4096, 128_256)):
        for num_tokens in (4096, 16_384):
            for active in (0.25, 1.0):
                head = Head(num_tokens, active, hidden_size, vocab_size)
                cells = []
                for scheme in SCHEMES.values():
                    flops, num_bytes = scheme(head)
                    time_ms = 1e3 * max(flops / FLOPS_PER_S, num_bytes / BYTES_PER_S)
                    bound = "" if flops / FLOPS_PER_S >= num_bytes / BYTES_PER_S else ", memory-bound"
                    cells.append(f"{time_ms:.1f} ({num_bytes / 1e9:.0f}{bound})")
                print(f"| {num_tokens} | {active:.0%} | {hidden_size} | {vocab_size} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
