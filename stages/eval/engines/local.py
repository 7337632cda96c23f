"""Generation with transformers, in this process.

A batch is padded on the left, so that all rows go on at the same place; positions count from each row's first token.
The loop is our own: stop ids, seeds per row and finish reasons are then exactly what is recorded. Letters: B rows, T
tokens, V words.
"""

import importlib
from pathlib import Path
from typing import Any

from postmill.stages.eval.config import Eval
from postmill.stages.eval.engine import Reply, Request
from postmill.stages.shared.base_model import all_stop_ids
from postmill.stages.shared.hf import add_adapters, load_model, load_tokenizer, need


class LocalEngine:
    """A model (`folders` is its folder) or an adapter over its base (base, adapter), loaded."""

    def __init__(self, cfg: Eval, folders: list[Path], threads: int) -> None:
        self.versions = need("torch", "transformers", remedy="pip install 'postmill[eval]'")
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(threads)
        self._cfg = cfg
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        dtype = cfg.dtype if cfg.dtype != "auto" else "float32" if self._device == "cpu" else "bfloat16"
        base, *adapters = folders
        model = load_model(base, dtype)
        if adapters:
            self.versions |= need("peft", remedy="pip install 'postmill[eval]'")
            model = add_adapters(model, dict.fromkeys(adapters, 1.0))
        self._model = model.to(self._device)
        speaker = next((path for path in reversed(folders) if (path / "tokenizer.json").is_file()), base)
        self._tokenizer = load_tokenizer(speaker)
        self._stop_ids = all_stop_ids(folders) or {self._tokenizer.eos_token_id} - {None}
        self._longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """Rows of like length together, since a batch costs as much as its longest row."""
        by_length = sorted(requests, key=lambda r: (-sum(len(m["content"]) for m in r.messages), r.item_id))
        size = self._cfg.batch_size
        return [by_length[start : start + size] for start in range(0, len(by_length), size)]

    def answer(self, batch: list[Request]) -> list[Reply]:
        """One reply a request; a prompt that the template refuses or that is too long gets an error."""
        replies: dict[str, Reply] = {}
        ready: list[tuple[Request, list[int]]] = []
        for request in batch:
            prompt = self._prompt_ids(request)
            if isinstance(prompt, str):
                replies[request.item_id] = Reply(item_id=request.item_id, error=prompt)
            else:
                ready.append((request, prompt))
        if ready:
            outputs = self._generate([ids for _, ids in ready], [request.seed for request, _ in ready])
            for (request, prompt), ids in zip(ready, outputs, strict=True):
                stopped = bool(ids) and ids[-1] in self._stop_ids
                text = self._tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
                replies[request.item_id] = Reply(
                    item_id=request.item_id,
                    prompt_ids=prompt,
                    output=text,
                    output_ids=ids,
                    finish_reason="stop" if stopped else "length",
                )
        return [replies[request.item_id] for request in batch]

    def _prompt_ids(self, request: Request) -> list[int] | str:
        """The prompt in the model's template, or why it cannot be had."""
        from jinja2.exceptions import TemplateError

        if not self._tokenizer.chat_template:
            ids: list[int] = self._tokenizer(request.messages[-1]["content"]).input_ids
        else:
            try:
                encoded = self._tokenizer.apply_chat_template(
                    request.messages, add_generation_prompt=True, return_dict=True
                )
            except TemplateError as error:
                return f"chat template: {error}"
            ids = list(encoded["input_ids"])
        if not ids:
            return "the prompt has no tokens"
        if self._longest is not None and len(ids) + self._cfg.max_new_tokens > self._longest:
            return f"prompt of {len(ids)} tokens leaves no room for {self._cfg.max_new_tokens} of {self._longest}"
        return ids

    def _generate(self, prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        """Ids generated for each prompt, up to and with a stop id."""
        torch, device = self._torch, self._device
        width = max(map(len, prompts))
        ids_BT = torch.zeros((len(prompts), width), dtype=torch.long)
        mask_BT = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, width - len(prompt) :] = 1
        ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        outputs: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        cache = None
        with torch.inference_mode():
            for _ in range(self._cfg.max_new_tokens):
                result = self._model(
                    input_ids=ids_BT,
                    attention_mask=mask_BT,
                    position_ids=positions_BT,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache = result.past_key_values
                chosen = self._choose(result.logits[:, -1].float().cpu(), generators)
                for row in sorted(running):
                    outputs[row].append(chosen[row])
                    if chosen[row] in self._stop_ids:
                        running.discard(row)
                if not running:
                    break
                ids_BT = torch.tensor(chosen, device=device)[:, None]
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones((len(prompts), 1))], dim=-1)
                positions_BT = positions_BT[:, -1:] + 1
        return outputs

    def _choose(self, logits_BV: Any, generators: list[Any]) -> list[int]:
        """The next token of each row."""
        torch, cfg = self._torch, self._cfg
        if cfg.temperature == 0:
            likeliest: list[int] = logits_BV.argmax(-1).tolist()
            return likeliest
        chosen = []
        for logits_V, generator in zip(logits_BV / cfg.temperature, generators, strict=True):
            values, order = logits_V.sort(descending=True, stable=True)
            if cfg.top_k:
                values, order = values[: cfg.top_k], order[: cfg.top_k]
            share = values.softmax(-1)
            # a token stays while those before it hold less than top_p, so the likeliest always does
            share = torch.where(share.cumsum(-1) - share < cfg.top_p, share, 0.0)
            chosen.append(int(order[torch.multinomial(share, 1, generator=generator)]))
        return chosen
