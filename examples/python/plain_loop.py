"""A training loop of your own on packed bins: rows never see each other, weights count as they were said.

usage: python examples/python/plain_loop.py PACKED MODEL [STEPS]
"""

import sys
from itertools import cycle, islice

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import postmill


def main(packed: str, model: str, steps: int = 10) -> list[float]:
    """Train every weight for a few steps; the loss of each."""
    bins = postmill.open(packed).dataset()
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    losses = []
    for batch in islice(cycle(DataLoader(bins, batch_size=1)), steps):
        logits = net(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        # token t + 1 is what is learned at t; its weight stands with it
        each = torch.nn.functional.cross_entropy(logits[0, :-1].float(), batch["input_ids"][0, 1:], reduction="none")
        weights = batch["weights"][0, 1:]
        loss = (each * weights).sum() / weights.count_nonzero()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    for number, value in enumerate(main(*sys.argv[1:3], *map(int, sys.argv[3:4]))):
        print(number + 1, round(value, 4))
