"""What judges the beginnings of answers: a function of somebody's file, or a process reward model."""

import math
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import msgspec

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.stages.rollout.host import Host, Talk
from postmill.stages.rollout.tries import Path

_BIN_TOKENS = 4096


class FunctionGuide:
    """`function(row, text)` in the processes of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def __call__(self, items: Sequence[tuple[dict[str, Any], Path, str]]) -> list[float]:
        calls = []
        for prompt, path, text in items:
            columns: dict[str, Any] = msgspec.json.decode(prompt["extra"] or b"{}")
            row = columns | {"messages": msgspec.json.decode(prompt["messages"] or b"[]")}
            call = {"call": "judge", "row": row, "text": text, "finish": path.finish}
            calls.append((Talk(f"{prompt['row_id'].hex()}-{path.key}"), call))
        return [-math.inf if said.reward is None else said.reward for said in self._host.ask(calls)]


class ModelGuide:
    """A model with a head of tokens, read at the last token so far: the probability that the step is right (--objective
    prm), or what is still to be earned (--objective value)."""

    def __init__(self, folders: Sequence[FilePath], *, threads: int) -> None:
        """folders: a model, or a base and an adapter. Raises ArtifactError (78) for a model of another kind."""
        import torch

        from postmill.stages.shared import attention, hf
        from postmill.stages.shared.forward import Forward
        from postmill.stages.shared.saved_head import find_head

        base, *adapters = folders
        head = find_head(base, *adapters)
        if head.kind != "token" or head.outputs > 2:
            raise ArtifactError(
                f"--prm {folders[-1]}: does not judge steps; train one with --objective prm or value", MISMATCH
            )
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kernel = attention.choose("auto", device, torch.float32)
        net = hf.load_model(base, "float32", attention=kernel, head=head)
        if adapters:
            net = hf.base_of(hf.add_adapters(net, dict.fromkeys(adapters, 1.0)))
        self._forward = Forward(net.to(device), compute_dtype=torch.float32, backend="reference", head=head).eval()
        self._device = device

    def __call__(self, items: Sequence[tuple[dict[str, Any], Path, str]]) -> list[float]:
        rows = [prompt["input_ids"] + path.ids for prompt, path, _ in items]
        scores: list[float] = []
        first = 0
        while first < len(rows):
            last, total = first + 1, len(rows[first])
            while last < len(rows) and total + len(rows[last]) <= _BIN_TOKENS:
                total += len(rows[last])
                last += 1
            scores += self._scores(rows[first:last])
            first = last
        return scores

    def _scores(self, rows: list[list[int]]) -> list[float]:
        import numpy as np
        import torch

        from postmill.io.packed import Bin
        from postmill.stages.shared.asked import Ask
        from postmill.stages.shared.batch import collate

        ids = np.concatenate([np.array(row, np.int32) for row in rows])
        positions = np.concatenate([np.arange(len(row), dtype=np.int32) for row in rows])
        borders = np.cumsum([0, *map(len, rows)], dtype=np.int32)
        batch = collate([Bin(ids, positions, borders, np.ones(len(ids), np.float32), np.arange(len(rows)))])
        batch = batch.to(self._device)
        with torch.no_grad():
            values = self._forward(batch, Ask(points_N=batch.points_N)).values_NC
        assert values is not None
        found: list[float] = (values.softmax(-1)[:, 1] if values.shape[1] == 2 else values[:, 0]).tolist()
        return found
