"""Batches for models and devices that pages do not serve: hybrids, attention of their own kind, a GPU.

Requests that wait together are one group, padded on the left so that all of its rows go on at the same place; positions
count from each row's first token. Equal prompts of a group are read once, and their cache is copied to each. Rows that
are done leave; groups take turns. Letters: B rows, T tokens, V vocabulary.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.engine.answers import AnswerGroup
from postmill.stages.shared.engine.choose import likeliest
from postmill.stages.shared.engine.live import Live
from postmill.stages.shared.engine.paged import Ready
from postmill.stages.shared.engine.protocol import Request, Token


class Group:
    """Requests whose prompts were read together."""

    def __init__(self, model: Any, device: str, lives: list[Live]) -> None:
        self._model, self._device = model, device
        self.lives = lives
        """Of the rows; a request that is over stays until the next pass."""
        self.over: set[str] = set()
        self._cache: Any
        self._mask_BT: Tensor
        self._next_B1: Tensor
        if lives[0].request.inputs is not None:
            self.logits_BV = self._read_pictures(lives[0].request.prompt_ids, lives[0].request.inputs(), len(lives))
            return
        # each distinct prompt once, in the order of the requests
        prompts = list(dict.fromkeys(tuple(live.request.prompt_ids) for live in lives))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        logits_BV = self._read([list(prompt) for prompt in prompts])
        at_B = torch.tensor([place[tuple(live.request.prompt_ids)] for live in lives], device=device)
        if len(prompts) < len(lives):
            self._cache.batch_select_indices(at_B)
        self.logits_BV = logits_BV[at_B]
        self._mask_BT, self._next_B1 = self._mask_BT[at_B], self._next_B1[at_B]

    def _read(self, prompts: list[list[int]]) -> Tensor:
        """Logits after each prompt."""
        width = max(map(len, prompts))
        ids_BT = torch.zeros((len(prompts), width), dtype=torch.long)
        mask_BT = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, width - len(prompt) :] = 1
        ids_BT, self._mask_BT = ids_BT.to(self._device), mask_BT.to(self._device)
        positions_BT = (self._mask_BT.cumsum(-1) - 1).clamp(min=0)
        self._next_B1 = positions_BT[:, -1:] + 1
        result = self._model(
            input_ids=ids_BT, attention_mask=self._mask_BT, position_ids=positions_BT, use_cache=True, logits_to_keep=1
        )
        self._cache = result.past_key_values
        logits_BV: Tensor = result.logits[:, -1]
        return logits_BV

    def _read_pictures(self, prompt_ids: list[int], made: dict[str, Tensor], count: int) -> Tensor:
        """Logits after one prompt with pictures, read once for `count` rows.

        Models with m-rope say how far its positions are behind its length.
        """
        ids_1T = torch.tensor([prompt_ids], device=self._device)
        mask_1T = torch.ones_like(ids_1T)
        dtype = self._model.dtype  # Llama 4's processor gives bfloat16, whatever the model is
        inputs = {n: t.to(self._device, dtype if t.is_floating_point() else t.dtype) for n, t in made.items()}
        knowing = [module for module in self._model.modules() if hasattr(module, "rope_deltas")]
        if not knowing:  # PaliGemma would count from 1 here, and from 0 in later passes
            inputs["position_ids"] = torch.arange(len(prompt_ids), device=self._device)[None]
        result = self._model(input_ids=ids_1T, attention_mask=mask_1T, use_cache=True, logits_to_keep=1, **inputs)
        # an adapter wraps the model that knows
        decoder = next((module for module in knowing if module.rope_deltas is not None), None)
        next_11 = mask_1T.sum(-1, keepdim=True) + (0 if decoder is None else decoder.rope_deltas.reshape(1, 1))
        self._cache = result.past_key_values
        if count > 1:
            self._cache.batch_select_indices(torch.zeros(count, dtype=torch.long, device=self._device))
        self._mask_BT, self._next_B1 = mask_1T.repeat(count, 1), next_11.repeat(count, 1)
        logits_BV: Tensor = result.logits[:, -1].repeat(count, 1)
        return logits_BV

    def advance(self) -> Tensor:
        """Logits after the last token of each row that is left."""
        going = [at for at, live in enumerate(self.lives) if live.request.key not in self.over]
        if len(going) < len(self.lives):
            keep_B = torch.tensor(going, device=self._device)
            self._cache.batch_select_indices(keep_B)
            self._mask_BT, self._next_B1 = self._mask_BT[keep_B], self._next_B1[keep_B]
            self.lives = [self.lives[at] for at in going]
        last_B1 = torch.tensor([live.answer[-1] for live in self.lives], device=self._device)[:, None]
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones((len(self.lives), 1))], dim=-1)
        result = self._model(
            input_ids=last_B1,
            attention_mask=self._mask_BT,
            position_ids=self._next_B1,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache, self._next_B1 = result.past_key_values, self._next_B1 + 1
        logits_BV: Tensor = result.logits[:, -1]
        return logits_BV


def _goes_with(one: Request, first: Request) -> bool:
    """Whether two requests can be read in one pass: prompts of text, or one prompt with the same pictures."""
    if one.inputs is None and first.inputs is None:
        return True
    return one.inputs is first.inputs and one.prompt_ids == first.prompt_ids


class PaddedRows:
    """The requests under way."""

    def __init__(self, model: Any, device: str, *, max_running: int) -> None:
        self._model, self._device, self._max_running = model, device, max_running
        self._waiting: deque[Live] = deque()
        self._kind = AnswerGroup if getattr(model.config, "is_encoder_decoder", False) else Group
        self._groups: deque[Group | AnswerGroup] = deque()

    def add(self, live: Live) -> None:
        """Take a request."""
        self._waiting.append(live)

    def remove(self, live: Live) -> None:
        """A request is over."""
        if live in self._waiting:
            self._waiting.remove(live)
            return
        for group in self._groups:
            if live in group.lives:
                group.over.add(live.request.key)
        self._groups = deque(g for g in self._groups if any(each.request.key not in g.over for each in g.lives))

    def step(self) -> Ready:
        """One pass: a new group where there is room for one, else the next group goes on."""
        room = self._max_running - sum(len(group.lives) - len(group.over) for group in self._groups)
        if self._waiting and room > 0:
            taken = [self._waiting.popleft()]
            while len(taken) < room and self._waiting and _goes_with(self._waiting[0].request, taken[0].request):
                taken.append(self._waiting.popleft())
            for live in taken:
                self._score_prompt(live)
            lives = [live for live in taken if not live.is_scored_only]
            scored = [live for live in taken if live.is_scored_only]
            if not lives:
                return Ready([], None, scored)
            group = self._kind(self._model, self._device, lives)
            self._groups.append(group)
            return Ready(lives, group.logits_BV, scored)
        if not self._groups:
            return Ready([], None, [])
        group = self._groups.popleft()
        self._groups.append(group)
        logits_BV = group.advance()
        return Ready(list(group.lives), logits_BV, [])

    def _score_prompt(self, live: Live) -> None:
        """Log-probs of the prompt's tokens, in a pass of their own."""
        top, prompt = live.request.prompt_logprobs, live.request.prompt_ids
        if top is None:
            return
        inserts = getattr(self._model, "inserts", None)
        if inserts is not None and inserts.reads_prompts:
            raise ConfigError(
                "log-probs of a prompt: this adapter edits prompts, and nobody says where one ends; use postmill score",
                USAGE,
            )
        live.prompt.append(Token(id=prompt[0]))
        result = self._model(input_ids=torch.tensor([prompt], device=self._device), use_cache=False)
        raw_TV = result.logits[0, :-1].float().cpu().log_softmax(-1)
        for following, raw_V in zip(prompt[1:], raw_TV, strict=True):
            live.prompt.append(Token(id=following, raw_logp=float(raw_V[following]), top=likeliest(raw_V, top)))
