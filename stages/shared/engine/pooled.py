"""Models that say something of a whole text: embeddings, classifiers, rerankers, reward models. Numbers, no tokens.

Requests that wait together are laid end to end, as `score` and `train` lay rows, and computed in one pass. The numbers
are those that `score` writes.
"""

from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.json_file import load_json
from postmill.io.packed import Bin
from postmill.stages.shared import attention, hf
from postmill.stages.shared.apart import settle
from postmill.stages.shared.asked import Ask
from postmill.stages.shared.batch import collate
from postmill.stages.shared.engine.protocol import About, Constraint, Event, Loaded, Reply, Request, Sampling
from postmill.stages.shared.engine.weights import tensors_digest
from postmill.stages.shared.forward import Forward
from postmill.stages.shared.heads import Head

_STEP_TOKENS = 4096


class PooledEngine:
    """A model with a head that reads rows; a StepEngine whose replies have `values` and no ids.

    A vector is normalised; a classifier's numbers are as the model gives them.
    """

    def __init__(self, folders: list[Path], head: Head, *, dtype: str = "auto", threads: int = 1) -> None:
        """folders: a model, or a base and an adapter. Raises ArtifactError (78) for a head that reads single tokens."""
        if head.kind not in ("pool", "sequence", "answers"):
            raise ArtifactError(f"{folders[-1]}: a head of kind {head.kind} says nothing of a whole text", MISMATCH)
        self._folders, self._dtype, self._threads, self.head = folders, dtype, threads, head
        self._waiting: deque[Request] = deque()
        self._done: list[Event] = []
        versions = hf.need("torch", "transformers", remedy="pip install 'postmill[train]'")
        self.loaded = self.load(folders)
        config = load_json(folders[0] / "config.json")
        self.about = About(
            kind="pooled",
            versions=versions,
            can=frozenset({"values", "steps", "load"}),
            max_tokens=config.get("max_position_embeddings"),
            vocab_size=int(self._forward.model.get_input_embeddings().num_embeddings),
            stop_ids=frozenset(),
        )

    def load(self, folders: list[Path]) -> Loaded:
        """Take other weights with the same kind of head."""
        torch.set_num_threads(self._threads)
        base, *adapters = folders
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self._dtype == "bfloat16" else torch.float32
        kernel = attention.choose("auto", device, dtype)
        net: Any = hf.load_model(base, str(dtype).removeprefix("torch."), attention=kernel, head=self.head)
        if adapters:
            net = hf.base_of(hf.add_adapters(net, dict.fromkeys(adapters, 1.0)))
        self._forward = Forward(net.to(device), compute_dtype=dtype, backend="auto", head=self.head).eval()
        settle(self._forward, "serve", device)
        self._device = device
        return Loaded(digest=tensors_digest(sorted(self._forward.model.state_dict().items())), proof="memory")

    def submit(self, request: Request, sampling: Sampling) -> None:
        """Take a request. One that is too long gets a Reply with an error from the next step."""
        most, length = self.about.max_tokens, len(request.prompt_ids)
        if not length or (most is not None and length > most):
            self._done.append(Reply(key=request.key, error=f"a text of {length} tokens; the model reads 1 to {most}"))
        else:
            self._waiting.append(request)

    def step(self) -> list[Event]:
        """One pass for as many of the waiting as fit into it."""
        events, self._done = self._done, []
        taken: list[Request] = []
        total = 0
        while self._waiting and (not taken or total + len(self._waiting[0].prompt_ids) <= _STEP_TOKENS):
            taken.append(self._waiting.popleft())
            total += len(taken[-1].prompt_ids)
        if taken:
            values = self.values([request.prompt_ids for request in taken])
            events += [
                Reply(key=request.key, values=row_values, finish="stop")
                for request, row_values in zip(taken, values, strict=True)
            ]
        return events

    def values(self, rows: list[list[int]]) -> list[list[float]]:
        """Of each row's tokens: its vector, or its classifier's numbers."""
        lengths = np.array([len(row) for row in rows])
        laid = Bin(
            input_ids=np.concatenate([np.array(row, np.int32) for row in rows]),
            position_ids=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            weights=np.zeros(int(lengths.sum()), np.float32),
            rows=np.arange(len(rows), dtype=np.int64),
        )
        with torch.no_grad():
            outputs = self._forward(collate([laid]).to(self._device), Ask())
        values = outputs.values_NC if outputs.pooled_RH is None else normalize(outputs.pooled_RH, dim=-1)
        assert values is not None
        listed: list[list[float]] = values.float().cpu().tolist()
        return listed

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """All of them; `step` cuts."""
        return [requests]

    def answer(self, batch: list[Request], sampling: Sampling) -> list[Reply]:
        """One reply a request, in order."""
        for request in batch:
            self.submit(request, sampling)
        replies: dict[str, Reply] = {}
        while len(replies) < len(batch):
            replies |= {event.key: event for event in self.step() if isinstance(event, Reply)}
        return [replies[request.key] for request in batch]

    def abort(self, keys: Collection[str]) -> None:
        """Forget requests that still wait."""
        gone = [request for request in self._waiting if request.key in keys]
        for request in gone:
            self._waiting.remove(request)
            self._done.append(Reply(key=request.key, finish="abort"))

    def add_adapter(self, name: str, folder: Path) -> str:
        """Raises ArtifactError (78): there is one set of weights."""
        raise ArtifactError(f"{folder}: a model that makes no text has no adapters by name; serve it itself", MISMATCH)

    def constraint_fault(self, constraint: Constraint) -> str:
        """It says nothing that could be held to a grammar."""
        return "the model makes no text"

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._waiting and not self._done
