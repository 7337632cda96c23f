"""Generation with transformers' own model classes, in this process.

Equal prompts of a batch are read once, and their cache is copied to each sample. Prompts are padded on the left, so
that all rows go on at the same place; positions count from each row's first token. Rows that are done leave the batch.
Letters: B rows, T tokens, V vocabulary.
"""

import importlib
from pathlib import Path
from typing import Any

from postmill.stages.shared.base_model import all_stop_ids
from postmill.stages.shared.engine.protocol import About, Loaded, Reply, Request, Sampling
from postmill.stages.shared.hf import add_adapters, load_model, need

_REMEDY = "pip install 'postmill[train]'"


class LocalEngine:
    """A model (its folder) or an adapter over its base (base, adapter), loaded."""

    def __init__(self, folders: list[Path], *, dtype: str = "auto", batch_size: int = 16, threads: int = 1) -> None:
        versions = need("torch", "transformers", remedy=_REMEDY)
        if len(folders) > 1:
            versions |= need("peft", remedy=_REMEDY)
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(threads)
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        self._dtype = dtype if dtype != "auto" else "float32" if self._device == "cpu" else "bfloat16"
        self._batch_size = batch_size
        self.loaded = self.load(folders)
        self.about = About(
            kind="transformers",
            versions=versions,
            can=frozenset({"logp", "seed", "adapters", "load", "shared_prefix", "repeatable"}),
            max_tokens=getattr(self._model.config.get_text_config(), "max_position_embeddings", None),
            stop_ids=frozenset(all_stop_ids(folders)),
        )

    def load(self, folders: list[Path]) -> Loaded:
        """Replace the weights by those of a model, or of a base and adapters."""
        base, *adapters = folders
        model = load_model(base, self._dtype)
        if adapters:
            model = add_adapters(model, dict.fromkeys(adapters, 1.0))
        self._model = model.to(self._device)
        self.loaded = Loaded(digest=self._digest(), proof="memory")
        return self.loaded

    def _digest(self) -> str:
        """Of names, dtypes, shapes and bytes of all parameters in memory."""
        from blake3 import blake3

        hasher = blake3()
        for name, tensor in sorted(self._model.state_dict().items()):
            hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(self._torch.uint8).numpy().data)
        return f"blake3:{hasher.hexdigest()}"

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """Rows of like length together, since a batch costs as much as its longest row; equal prompts side by side."""
        ordered = sorted(requests, key=lambda r: (-len(r.prompt_ids), r.prompt_ids, r.key))
        size = self._batch_size
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def answer(self, batch: list[Request], sampling: Sampling) -> list[Reply]:
        """One reply a request; a prompt that is empty or leaves no room for the answer gets an error."""
        replies: dict[str, Reply] = {}
        ready: list[Request] = []
        for request in batch:
            fault = self._fault(request, sampling)
            if fault:
                replies[request.key] = Reply(key=request.key, error=fault)
            else:
                ready.append(request)
        if ready:
            with self._torch.inference_mode():
                replies |= {reply.key: reply for reply in self._generate(ready, sampling)}
        return [replies[request.key] for request in batch]

    def _fault(self, request: Request, sampling: Sampling) -> str:
        if not request.prompt_ids:
            return "the prompt has no tokens"
        most, length = self.about.max_tokens, len(request.prompt_ids)
        if most is not None and length + sampling.max_new_tokens > most:
            return f"prompt of {length} tokens leaves no room for {sampling.max_new_tokens} of {most}"
        return ""

    def _prefill(self, prompts: list[list[int]]) -> tuple[Any, Any, Any, Any]:
        """Read prompts: logits after each [B, V], the cache, the attention mask [B, T], the next positions [B, 1]."""
        torch = self._torch
        width = max(map(len, prompts))
        ids_BT = torch.zeros((len(prompts), width), dtype=torch.long)
        mask_BT = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, width - len(prompt) :] = 1
        ids_BT, mask_BT = ids_BT.to(self._device), mask_BT.to(self._device)
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        result = self._model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=True, logits_to_keep=1
        )
        return result.logits[:, -1], result.past_key_values, mask_BT, positions_BT[:, -1:] + 1

    def _generate(self, requests: list[Request], sampling: Sampling) -> list[Reply]:
        from postmill.stages.shared.engine.choose import choose

        torch = self._torch
        # each distinct prompt once, in the order of the requests
        prompts = list(dict.fromkeys(tuple(request.prompt_ids) for request in requests))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        logits_BV, cache, mask_BT, next_B1 = self._prefill([list(prompt) for prompt in prompts])
        at_B = torch.tensor([place[tuple(request.prompt_ids)] for request in requests], device=self._device)
        if len(prompts) < len(requests):
            cache.batch_select_indices(at_B)
        logits_BV, mask_BT, next_B1 = logits_BV[at_B], mask_BT[at_B], next_B1[at_B]
        ids: list[list[int]] = [[] for _ in requests]
        logp: list[list[float]] = [[] for _ in requests]
        sampled: list[list[float]] = [[] for _ in requests]
        live = list(range(len(requests)))
        for position in range(sampling.max_new_tokens):
            chosen = choose(logits_BV, sampling, [requests[row].seed for row in live], position)
            for at, row in enumerate(live):
                ids[row].append(chosen.ids[at])
                logp[row].append(chosen.logp[at])
                sampled[row].append(chosen.sampled_logp[at])
            going = [at for at, row in enumerate(live) if ids[row][-1] not in sampling.stop_ids]
            if not going or position + 1 == sampling.max_new_tokens:
                break
            if len(going) < len(live):
                keep_B = torch.tensor(going, device=self._device)
                cache.batch_select_indices(keep_B)
                mask_BT, next_B1 = mask_BT[keep_B], next_B1[keep_B]
                live = [live[at] for at in going]
            last_B1 = torch.tensor([ids[row][-1] for row in live], device=self._device)[:, None]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones((len(live), 1))], dim=-1)
            result = self._model(
                input_ids=last_B1,
                attention_mask=mask_BT,
                position_ids=next_B1,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits_BV, cache, next_B1 = result.logits[:, -1], result.past_key_values, next_B1 + 1
        return [
            Reply(
                key=request.key,
                ids=ids[row],
                logp=logp[row],
                sampled_logp=sampled[row],
                finish="stop" if ids[row][-1] in sampling.stop_ids else "length",
            )
            for row, request in enumerate(requests)
        ]
