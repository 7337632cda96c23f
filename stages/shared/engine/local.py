"""Generation with transformers' own model classes, in this process.

Requests join and leave between steps. On a CPU in float32, steps are packed rows over pages with packed weights
(`paged.py`): a request's numbers do not depend on what is answered beside it, bit for bit. Everything else is answered
in padded batches (`padded.py`), where that holds up to rounding.
"""

import importlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.stages.shared.base_model import all_stop_ids
from postmill.stages.shared.engine.protocol import About, Constraint, Delta, Event, Loaded, Reply, Request, Sampling
from postmill.stages.shared.engine.weights import tensors_digest
from postmill.stages.shared.hf import add_adapters, load_model, need
from postmill.stages.shared.media.groups import reads_pictures

_REMEDY = "pip install 'postmill[train]'"
_MEMORY_SHARE = 0.25
"""Of free memory, for keys and values; pages that are never written are never had."""
_OWN = " own"
"""Name of the adapter that was loaded with the weights; names of callers do not begin with a space."""


class LocalEngine:
    """A model (its folder) or an adapter over its base (base, adapter), loaded."""

    def __init__(
        self,
        folders: list[Path],
        *,
        dtype: str = "auto",
        batch_size: int = 16,
        threads: int = 1,
        max_running: int = 64,
        cache_tokens: int | None = None,
    ) -> None:
        """batch_size: of `batches`; max_running: requests that take part in a step; cache_tokens: room for keys and
        values, by default what a quarter of free memory holds."""
        from postmill.stages.shared.engine.constrain import can_constrain

        versions = need("torch", "transformers", remedy=_REMEDY)
        if len(folders) > 1:
            versions |= need("peft", remedy=_REMEDY)
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(threads)
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        self._dtype = dtype if dtype != "auto" else "float32" if self._device == "cpu" else "bfloat16"
        self._batch_size = batch_size
        self._max_running = max(max_running, batch_size)
        self._cache_tokens = cache_tokens
        self.loaded = self.load(folders)
        can = {"logp", "raw_logp", "prompt_logp", "seed", "load", "shared_prefix", "repeatable", "steps"}
        if getattr(self._model.config, "is_encoder_decoder", False):
            can -= {"prompt_logp", "shared_prefix"}
        if can_constrain():
            can.add("constrain")
        if reads_pictures(self._model) or self._model.main_input_name == "input_features":  # Whisper's encoder hears
            can.add("pictures")
        if self._is_paged:
            can |= {"adapters"} | ({"batch_invariant"} if self._is_invariant else set())
        self.about = About(
            kind="transformers",
            versions=versions,
            can=frozenset(can),
            max_tokens=getattr(self._model.config.get_text_config(), "max_position_embeddings", None),
            vocab_size=self._vocab,
            stop_ids=frozenset(all_stop_ids(folders)),
        )

    # weights

    def load(self, folders: list[Path]) -> Loaded:
        """Replace the weights by those of a model, or of a base and adapters. Adapters that were added are gone."""
        from postmill.stages.shared.engine.language import Language

        base, *adapters = folders
        self._lives: dict[str, Any] = {}
        self._done: list[Event] = []
        self._aborted: set[str] = set()
        self._adapters: dict[str, str] = {}
        self._own: str | None = None
        model = load_model(base, self._dtype)
        if adapters and not self._takes_plainly(model, adapters):
            model = add_adapters(model, dict.fromkeys(adapters, 1.0))
            adapters = []
        self._model = model.to(self._device)
        self._vocab = int(self._model.get_input_embeddings().num_embeddings)
        self._language: Any = Language(folders, self._vocab)
        digest = self._base_digest = self._digest()
        self._prepare()
        for folder in adapters:
            self._own = _OWN
            digest = _joined(digest, self._attach(self._own, folder))
        self.loaded = Loaded(digest=digest, proof="memory")
        return self.loaded

    def swap(self, folders: list[Path]) -> bool:
        """Answer with another adapter on the same base (base, adapter) from now on. Whether it can be done without
        loading the base again; if not, all is as it was."""
        from postmill.stages.shared.engine.language import Language
        from postmill.stages.shared.engine.linear import AdapterNotPlain

        if len(folders) != 2 or self._own is None:
            return False
        try:
            digest = self._attach(self._own, folders[1])
        except AdapterNotPlain:
            return False
        self.loaded = Loaded(digest=_joined(self._base_digest, digest), proof="memory")
        self._language = Language(folders, self._vocab)
        self.about = msgspec.structs.replace(self.about, stop_ids=frozenset(all_stop_ids(folders)))
        return True

    def _takes_plainly(self, model: Any, adapters: list[Path]) -> bool:
        """Whether the adapters are one LoRA of linear layers, and steps can add it to packed layers."""
        from postmill.stages.shared.engine.linear import AdapterNotPlain, check_plain

        if len(adapters) > 1 or not self._can_page(model):
            return False
        try:
            check_plain(adapters[0], model)
        except AdapterNotPlain:
            return False
        return True

    def _digest(self) -> str:
        """Of names, dtypes, shapes and bytes of all parameters in memory."""
        return tensors_digest(sorted(self._model.state_dict().items()))

    def _can_page(self, model: Any) -> bool:
        from postmill.kernels.packed_linear import native
        from postmill.stages.shared.engine.probe import attends_plainly

        if reads_pictures(model):
            return False  # pages know nothing of pictures
        is_bare = not hasattr(model, "peft_config") and not hasattr(model, "inserts")
        is_plain = self._device == "cpu" and self._dtype == "float32" and is_bare
        return is_plain and native() is not None and attends_plainly(model)

    def _prepare(self) -> None:
        """Pack the weights, and decide how requests are batched."""
        from postmill.stages.shared.engine.linear import Segments, is_row_by_row, replace_linears, tail_rows
        from postmill.stages.shared.engine.padded import PaddedRows
        from postmill.stages.shared.engine.paged import PagedRows, use_pages
        from postmill.stages.shared.engine.probe import Probe

        self._is_paged, self._is_invariant = False, False
        self._segments = Segments()
        self._rows: PagedRows | PaddedRows
        if self._can_page(self._model):
            with self._torch.inference_mode():
                probe = Probe(self._model)
                implementation = self._model.config._attn_implementation
                replace_linears(self._model, self._segments)
                use_pages(self._model)
                tail = tail_rows(self._model)
                trial = PagedRows(self._model, self._segments, num_pages=16, max_running=8, tail_rows=tail)
                fault = probe.compare(trial)
            if not fault:
                self._is_paged, self._is_invariant = True, is_row_by_row(self._model)
                self._rows = PagedRows(
                    self._model,
                    self._segments,
                    num_pages=self._num_pages(trial.bytes_per_token),
                    max_running=self._max_running,
                    tail_rows=tail,
                )
                return
            self._model.set_attn_implementation(implementation)
        self._rows = PaddedRows(self._model, self._device, max_running=self._max_running)

    def _num_pages(self, bytes_per_token: int) -> int:
        from postmill.kernels.paged_attention import PAGE

        tokens = self._cache_tokens
        if tokens is None:
            most = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or 1 << 20
            tokens = min(int(_free_bytes() * _MEMORY_SHARE / bytes_per_token), most * self._max_running)
        return max(tokens // PAGE, 2) + 1

    # adapters

    def add_adapter(self, name: str, folder: Path) -> str:
        """Make an adapter available to requests by name, in place of one that has it; the digest of its tensors.

        Raises ArtifactError (78) for an adapter that cannot be one of many.
        """
        from postmill.stages.shared.engine.linear import AdapterNotPlain

        try:
            return self._attach(name, folder)
        except AdapterNotPlain as error:
            raise ArtifactError(f"{folder}: {error}; merge it and serve the result: postmill merge", MISMATCH) from None

    def _attach(self, name: str, folder: Path) -> str:
        from postmill.stages.shared.engine.linear import AdapterNotPlain, read_factors
        from postmill.stages.shared.engine.paged import PagedRows

        if not isinstance(self._rows, PagedRows):
            raise AdapterNotPlain("this model is answered in padded batches, which hold one set of weights")
        factors, tensors = read_factors(folder, self._model)
        self.remove_adapter(name)
        for layer, pair in factors.items():
            self._model.get_submodule(layer).adapters[name] = pair
        self._rows.forget(name)
        self._adapters[name] = tensors_digest(tensors)
        return self._adapters[name]

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter. Requests that are under way with it get an error."""
        if self._adapters.pop(name, None) is None:
            return
        for live in [live for live in self._lives.values() if live.request.adapter == name]:
            self._end(live, Reply(key=live.request.key, error=f"adapter {name!r} was removed"))
        for module in self._model.modules():
            getattr(module, "adapters", {}).pop(name, None)

    # requests

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """Rows of like length together, since a batch costs as much as its longest row; equal prompts side by side."""
        ordered = sorted(requests, key=lambda r: (-len(r.prompt_ids), r.prompt_ids, r.key))
        size = self._batch_size
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def answer(self, batch: list[Request], sampling: Sampling) -> list[Reply]:
        """One reply a request; a prompt that is empty or leaves no room for the answer gets an error."""
        for request in batch:
            self.submit(request, sampling)
        replies: dict[str, Reply] = {}
        while len(replies) < len(batch):
            replies |= {event.key: event for event in self.step() if isinstance(event, Reply)}
        return [replies[request.key] for request in batch]

    def submit(self, request: Request, sampling: Sampling) -> None:
        """Take a request. What cannot be answered gets a Reply with an error from the next step."""
        from postmill.stages.shared.engine.live import Live

        assert request.key not in self._lives, f"{request.key} is under way"
        fault = self._fault(request, sampling)
        if fault:
            self._done.append(Reply(key=request.key, error=fault))
            return
        if request.adapter is None and self._own is not None:
            request = _with_adapter(request, self._own)
        live = Live(request, sampling, self._language.decoder(sampling), self._language.guide(sampling))
        self._lives[request.key] = live
        self._rows.add(live)

    def step(self) -> list[Event]:
        """Read or choose some tokens for the requests there are. Each ends in exactly one Reply."""
        from postmill.stages.shared.engine.choose import choose

        for live in [self._lives[key] for key in self._aborted if key in self._lives]:
            self._end(live, live.reply("abort"))
        self._aborted.clear()
        events, self._done = self._done, []
        if not self._lives:
            return events
        with self._torch.inference_mode():
            ready = self._rows.step()
            tokens = [] if ready.logits_BV is None else choose(ready.logits_BV, [live.row() for live in ready.lives])
        for live, token in zip(ready.lives, tokens, strict=True):
            reply = live.take(token)
            events.append(Delta(key=live.request.key, token=token))
            if reply is not None:
                self._end(live, reply)
        for live in ready.scored:
            self._end(live, live.reply("length"))
        events += self._done
        self._done = []
        return events

    def abort(self, keys: Collection[str]) -> None:
        """End requests: each gets a Reply with what it has so far from the next step. Others are ignored."""
        self._aborted.update(keys)

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._lives and not self._done

    def _end(self, live: Any, reply: Reply) -> None:
        self._rows.remove(live)
        del self._lives[live.request.key]
        self._done.append(reply)

    def constraint_fault(self, constraint: Constraint) -> str:
        """Why no answer can be held to it; empty if one can. Any thread may ask: it takes time."""
        fault: str = self._language.fault(constraint)
        return fault

    def _fault(self, request: Request, sampling: Sampling) -> str:
        from postmill.stages.shared.engine.paged import PagedRows

        if not request.prompt_ids:
            return "the prompt has no tokens"
        if request.adapter is not None and request.adapter not in self._adapters:
            return f"there is no adapter {request.adapter!r}"
        named = {*sampling.bias, *(sampling.stop_ids if sampling.min_new_tokens else ())}
        outside = [token for token in (max(request.prompt_ids), *named) if token >= self._vocab]
        if outside or min(request.prompt_ids) < 0:
            return f"token {(outside or [min(request.prompt_ids)])[0]} is outside the vocabulary of {self._vocab}"
        most, length = self.about.max_tokens, len(request.prompt_ids)
        if isinstance(self._rows, PagedRows):
            most = self._rows.num_tokens if most is None else min(most, self._rows.num_tokens)
        if most is not None and length + sampling.max_new_tokens > most:
            return f"prompt of {length} tokens leaves no room for {sampling.max_new_tokens} of {most}"
        fault: str = self._language.fault(sampling.constraint)
        return fault


def _with_adapter(request: Request, adapter: str) -> Request:
    return msgspec.structs.replace(request, adapter=adapter)


def _joined(*digests: str) -> str:
    from postmill.io.digest import digest_bytes

    return digest_bytes("\n".join(digests).encode())


def _free_bytes() -> int:
    """Memory that can be had without swapping."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
