"""Continuous batching: in each step, all new tokens of all requests are one row through transformers' own model class.

Attention is the only layer that has to know which tokens belong together; it is registered through transformers'
attention interface and reads keys and values from pages. Prompts are read in pieces, after the tokens that answers wait
for. Equal prompts that wait together are read once, and what was read of a prompt before is taken over. If pages run
out, the request that came last gives its own back and is read again later. Letters: T tokens of a step, H heads, G key
heads, D head size, P pages, S = 16 positions, V vocabulary, K rows kept.
"""

import importlib
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from postmill.kernels.paged_attention import PAGE, Places, padded_dim, paged_attention
from postmill.stages.shared.engine.choose import likeliest
from postmill.stages.shared.engine.linear import Segments
from postmill.stages.shared.engine.live import Live
from postmill.stages.shared.engine.pages import Pages, page_name
from postmill.stages.shared.engine.protocol import Token

ATTENTION = "postmill_paged"


class Ready(NamedTuple):
    """What a step brings: requests that wait for a token, its logits [B, V], and those whose prompt is all they
    want."""

    lives: list[Live]
    logits_BV: Tensor | None
    scored: list[Live]


class Place:
    """Where a request stands in the cache."""

    def __init__(self, live: Live, root: bytes) -> None:
        self.live, self.root = live, root
        self.pages: list[int] = []
        self.names: list[bytes] = []
        """Of its full pages, as far as they are known."""
        self.num_read = 0
        self.followers: list[Place] = []
        """Requests with the same prompt, which go on from what this one read."""

    @property
    def ids(self) -> list[int]:
        return self.live.request.prompt_ids + self.live.answer

    @property
    def length(self) -> int:
        return len(self.live.request.prompt_ids) + len(self.live.answer)

    @property
    def is_shared(self) -> bool:
        """Whether it can go on from what others read, and others from it: not where its own prompt is scored."""
        return self.live.request.prompt_logprobs is None


class Piece(NamedTuple):
    """Tokens of one request in this step: `num_tokens` from `start`."""

    place: Place
    start: int
    num_tokens: int


class Step:
    """What attention is told of a step; `cache` holds keys and values of each layer [P, S, G, D]."""

    def __init__(self, cache: dict[int, tuple[Tensor, Tensor]], num_pages: int, slot_T: Tensor, places: Places) -> None:
        self.cache, self.num_pages, self.slot_T, self.places = cache, num_pages, slot_T, places

    def attend(
        self, layer: int, qkv: tuple[Tensor, Tensor, Tensor], *, scale: float, window: int, cap: float
    ) -> Tensor:
        """[T, H, D] of values; q, k and v are [T, H or G, D]."""
        q, k, v = qkv
        dim = padded_dim(max(k.shape[-1], v.shape[-1]))
        if layer not in self.cache:
            shape = (self.num_pages, PAGE, k.shape[1], dim)
            # zeros of NumPy cost no memory until they are written; torch writes its own
            keys, values = (torch.from_numpy(np.zeros(shape, dtype=np.float32)) for _ in range(2))
            self.cache[layer] = (keys, values)
        keys, values = self.cache[layer]
        keys.view(-1, k.shape[1], dim)[self.slot_T, :, : k.shape[-1]] = k
        values.view(-1, v.shape[1], dim)[self.slot_T, :, : v.shape[-1]] = v
        places = self.places
        if window:
            places = places._replace(first_T=(places.length_T - window).clamp(min=0))
        if q.shape[-1] < dim:
            q = torch.nn.functional.pad(q, (0, dim - q.shape[-1]))
        return paged_attention(q, keys, values, places, scale=scale, softcap=cap)[..., : v.shape[-1]]


def _attention(  # noqa: PLR0917  transformers' signature
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    paged: Step | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, H, T, D], result [1, T, H, D]."""
    if paged is None or others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise NotImplementedError(f"{type(module).__name__} attends in a way that pages do not know")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    qkv = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    out = paged.attend(module.layer_idx, qkv, scale=scale, window=sliding_window or 0, cap=softcap or 0.0)
    return out[None], None


def use_pages(model: Any) -> None:
    """Have every attention layer of a model read pages."""
    transformers: Any = importlib.import_module("transformers")
    transformers.AttentionInterface.register(ATTENTION, _attention)
    model.set_attn_implementation(ATTENTION)


class PagedRows:
    """The requests under way, and the cache of what was read. `step_tokens` bounds the new tokens of a step."""

    def __init__(self, model: Any, segments: Segments, *, num_pages: int, max_running: int, tail_rows: int) -> None:
        self._model, self._segments = model, segments
        self._max_running, self._tail_rows = max_running, tail_rows
        self._step_tokens = 256
        self._pages = Pages(num_pages)
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._waiting: deque[Place] = deque()
        self._running: list[Place] = []
        self._place_of: dict[str, Place] = {}
        self._leaders: dict[tuple[bytes, tuple[int, ...]], Place] = {}
        """Of prompts that are being read."""
        self._roots: dict[str, int] = {}

    @property
    def num_tokens(self) -> int:
        """Positions that the cache has room for."""
        return (self._pages.count - 1) * PAGE

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values, in the layers used so far."""
        return sum(2 * keys.shape[2] * keys.shape[3] * keys.element_size() for keys, _ in self._cache.values())

    def forget(self, adapter: str) -> None:
        """What was read with this adapter is not to be used for it again: it is another one now."""
        self._roots[adapter] = self._roots.get(adapter, 0) + 1

    def add(self, live: Live) -> None:
        """Take a request. The caller has checked that it fits into the cache."""
        name = live.request.adapter or ""
        place = Place(live, f"{self._roots.get(name, 0)}:{name}".encode())
        self._place_of[live.request.key] = place
        self._waiting.append(place)

    def remove(self, live: Live) -> None:
        """A request is over; its pages are free at once."""
        place = self._place_of.pop(live.request.key)
        if place in self._running:
            self._running.remove(place)
            self._give_back(place)
        elif place in self._waiting:
            self._waiting.remove(place)
        else:
            next(leader for leader in self._leaders.values() if place in leader.followers).followers.remove(place)

    def step(self) -> Ready:
        """One pass through the model for what there is to do."""
        self._admit()
        pieces = self._plan()
        if not pieces:
            return Ready([], None, [])
        kept_K, logits_KV = self._forward(pieces)
        row_of = {row: number for number, row in enumerate(kept_K)}
        lives: list[Live] = []
        rows: list[int] = []
        scored: list[Live] = []
        at = 0
        for piece in pieces:
            place = piece.place
            self._score_prompt(piece, at, row_of, logits_KV)
            place.num_read += piece.num_tokens
            self._know_full_pages(place)
            at += piece.num_tokens
            if place.num_read < place.length:
                continue
            if place.live.is_scored_only:
                scored.append(place.live)
                continue
            ready = [place, *self._let_follow(place)]
            lives += [each.live for each in ready]
            rows += [row_of[at - 1]] * len(ready)
        return Ready(lives, logits_KV[rows] if rows else None, scored)

    def _leader_key(self, place: Place) -> tuple[bytes, tuple[int, ...]] | None:
        """What requests share whose prompts can be read as one; None once an answer has begun."""
        if not place.is_shared or place.live.answer or place.live.is_scored_only:
            return None
        return place.root, tuple(place.live.request.prompt_ids)

    def _admit(self) -> None:
        num_running = len(self._running) + sum(len(leader.followers) for leader in self._leaders.values())
        while self._waiting and num_running < self._max_running:
            place = self._waiting[0]
            key = self._leader_key(place)
            if key is not None and key in self._leaders:
                self._leaders[key].followers.append(place)
            else:
                if self._running and self._pages.num_available < place.length // PAGE + 1:
                    return
                self._take_over(place)
                self._running.append(place)
                if key is not None:
                    self._leaders[key] = place
            self._waiting.popleft()
            num_running += 1

    def _take_over(self, place: Place) -> None:
        """Hold the pages that are known of its beginning; at least one token is left to read."""
        place.pages, place.names, place.num_read = [], [], 0
        if not place.is_shared:
            return
        name, ids = place.root, place.ids
        while place.num_read + PAGE < len(ids):
            name = page_name(name, ids[place.num_read : place.num_read + PAGE])
            page = self._pages.find(name)
            if page is None:
                break
            self._pages.share(page)
            place.pages.append(page)
            place.names.append(name)
            place.num_read += PAGE
        if not place.live.answer:
            place.live.cached_tokens = place.num_read

    def _know_full_pages(self, place: Place) -> None:
        full = place.num_read // PAGE
        if len(place.names) == full:
            return
        ids = place.ids
        while len(place.names) < full:
            at = len(place.names)
            name = page_name(place.names[-1] if at else place.root, ids[at * PAGE : (at + 1) * PAGE])
            self._pages.know(place.pages[at], name)
            place.names.append(name)

    def _let_follow(self, leader: Place) -> list[Place]:
        """Requests with the same prompt go on from here: full pages are shared, the last one is copied."""
        key = self._leader_key(leader)
        if key is None or self._leaders.get(key) is not leader:
            return []
        del self._leaders[key]
        followed: list[Place] = []
        full, rest = divmod(leader.num_read, PAGE)
        for place in leader.followers:
            if rest and not self._pages.num_available:
                self._waiting.appendleft(place)
                continue
            place.pages, place.names = leader.pages[:full], leader.names[:full]
            for page in place.pages:
                self._pages.share(page)
            if rest:
                page = self._pages.take()
                for keys, values in self._cache.values():
                    keys[page] = keys[leader.pages[full]]
                    values[page] = values[leader.pages[full]]
                place.pages.append(page)
            place.num_read = place.live.cached_tokens = leader.num_read
            self._running.append(place)
            followed.append(place)
        leader.followers = []
        return followed

    def _give_back(self, place: Place) -> None:
        """Free the pages of a request; who waited for it to read their prompt waits in the queue again."""
        self._pages.release(place.pages)
        place.pages, place.names, place.num_read = [], [], 0
        key = self._leader_key(place)
        if key is not None and self._leaders.get(key) is place:
            del self._leaders[key]
            self._waiting.extendleft(reversed(place.followers))
            place.followers = []

    def _plan(self) -> list[Piece]:
        """Tokens of this step: first those that answers wait for, then prompts, oldest first."""
        budget = max(self._step_tokens, len(self._running))
        pieces: list[Piece] = []
        for place in sorted(self._running, key=lambda place: place.length - place.num_read > 1):
            if place not in self._running:  # it gave its pages to one before it
                continue
            count = min(place.length - place.num_read, budget)
            planned = {id(piece.place) for piece in pieces}
            if count and self._make_room(place, place.num_read + count, planned):
                pieces.append(Piece(place, place.num_read, count))
                budget -= count
        return pieces

    def _make_room(self, place: Place, length: int, planned: set[int]) -> bool:
        """Whether it has pages up to `length` now; requests that came later may have to give theirs."""
        needed = -(-length // PAGE)
        while len(place.pages) < needed:
            if self._pages.num_available:
                place.pages.append(self._pages.take())
                continue
            victim = next(each for each in reversed(self._running) if id(each) not in planned or each is place)
            self._running.remove(victim)
            self._give_back(victim)
            self._waiting.appendleft(victim)
            if victim is place:
                return False
        return True

    def _forward(self, pieces: list[Piece]) -> tuple[list[int], Tensor]:
        """Rows whose logits are wanted, and those logits [K, V]."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        owners: list[int] = []
        kept: list[int] = []
        by_adapter: dict[str, list[int]] = {}
        for number, (place, start, count) in enumerate(pieces):
            known, at = place.ids if count > 1 or not place.live.answer else [], len(ids)
            ids += known[start : start + count] if known else [place.live.answer[-1]]
            positions += range(start, start + count)
            slots += [place.pages[p // PAGE] * PAGE + p % PAGE for p in range(start, start + count)]
            owners += [number] * count
            if place.live.request.adapter is not None:
                by_adapter.setdefault(place.live.request.adapter, []).extend(range(at, at + count))
            if not place.is_shared:
                last = len(place.live.request.prompt_ids) - 1
                kept += range(at, at + max(0, min(count, last - start)))
            if start + count == place.length and (not kept or kept[-1] != at + count - 1):
                kept.append(at + count - 1)
        filling = -len(ids) % self._tail_rows
        width = max(len(piece.place.pages) for piece in pieces)
        table = [piece.place.pages + [0] * (width - len(piece.place.pages)) for piece in pieces]
        length_T = torch.tensor([position + 1 for position in positions] + [1] * filling, dtype=torch.int32)
        places = Places(
            table_RW=torch.tensor([*table, [0] * width], dtype=torch.int32),
            owner_T=torch.tensor(owners + [len(pieces)] * filling, dtype=torch.int32),
            first_T=torch.zeros_like(length_T),
            length_T=length_T,
        )
        step = Step(self._cache, self._pages.count, torch.tensor(slots + [0] * filling), places)
        self._segments.rows = [(name, torch.tensor(rows)) for name, rows in by_adapter.items()]
        wanted = kept or [0]
        result = self._model(
            input_ids=torch.tensor([ids + [0] * filling]),
            position_ids=torch.tensor([positions + [0] * filling]),
            attention_mask=None,
            use_cache=False,
            logits_to_keep=torch.tensor(wanted),
            paged=step,
        )
        self._segments.rows = []
        return wanted, result.logits[0]

    @staticmethod
    def _score_prompt(piece: Piece, at: int, row_of: dict[int, int], logits_KV: Tensor) -> None:
        """Add log-probs of the prompt's tokens that follow those of this piece."""
        live = piece.place.live
        top, prompt = live.request.prompt_logprobs, live.request.prompt_ids
        if top is None or piece.start >= len(prompt):
            return
        if not live.prompt:
            live.prompt.append(Token(id=prompt[0]))
        # a request that gave its pages back reads again what was scored before
        ends = range(max(piece.start, len(live.prompt) - 1), min(piece.start + piece.num_tokens, len(prompt) - 1))
        if not ends:
            return
        raw_TV = logits_KV[[row_of[at + end - piece.start] for end in ends]].float().log_softmax(-1)
        for raw_V, end in zip(raw_TV, ends, strict=True):
            following = prompt[end + 1]
            live.prompt.append(Token(id=following, raw_logp=float(raw_V[following]), top=likeliest(raw_V, top)))
