"""The models that requests can name, and adapters that come and go while the server runs.

The engine knows an adapter by a name that is never used again; what requests name is told to which of them it belongs.
So an adapter can be replaced under load: requests under way keep theirs, and it is removed after the last of them.
"""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from postmill.io.errors import ArtifactError, ConfigError
from postmill.stages.protocol import Input
from postmill.stages.runner import find_input
from postmill.stages.serve.config import STAGE
from postmill.stages.serve.errors import ApiError
from postmill.stages.serve.worker import Worker
from postmill.stages.shared.base_model import check_base


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A model that requests can name: the base, or an adapter over it."""

    name: str
    adapter: str | None
    """What the engine calls it."""
    digest: str
    parent: str | None = None


class Adapters:
    """What is served, by name. All methods are called from the server's loop."""

    def __init__(self, engine: Any, worker: Worker, models: list[Named], *, base: Input, folder: str) -> None:
        """base: what adapters have to fit; folder: what may be added lies in it."""
        self.models = {model.name: model for model in models}
        self._engine, self._worker, self._base = engine, worker, base
        self._folder = Path(folder).resolve() if folder else None
        self._held: Counter[str] = Counter()
        self._retired: set[str] = set()
        self._number = 0
        self._lock = asyncio.Lock()

    def find(self, name: str) -> Named:
        """Raises ApiError (404)."""
        if name in self.models:
            return self.models[name]
        known = ", ".join(self.models)
        raise ApiError(404, "model_not_found", f"The model {name!r} does not exist; there are {known}.", "model")

    def hold(self, model: Named) -> Named:
        """The model for a request that is about to be asked; `release` has to follow.

        It is another one where it was replaced since it was found. Raises ApiError (404) where it was removed.
        """
        current = self.find(model.name)
        if current.adapter is not None:
            self._held[current.adapter] += 1
        return current

    def release(self, model: Named) -> None:
        """A request that held the model is over."""
        if model.adapter is not None:
            self._held[model.adapter] -= 1
            self._remove_unused(model.adapter)

    async def load(self, name: str, path: str, *, replace: bool) -> Named:
        """Add an adapter, or put it in the place of one.

        Raises ApiError: 400 for a path where no adapter lies, 409 for one that does not fit or a name that is taken.
        """
        async with self._lock:
            taken = self.models.get(name)
            if taken is not None and (taken.adapter is None or not replace):
                how = "it is the model itself" if taken.adapter is None else "load_inplace replaces it"
                raise ApiError(409, "adapter_exists", f"The name {name!r} is taken; {how}.", "lora_name")
            loaded = await asyncio.to_thread(self._open, path)
            self._number += 1
            internal = f"{name}#{self._number}"
            folder = loaded.path
            assert folder is not None
            try:
                await self._worker.call(lambda: self._engine.add_adapter(internal, folder))
            except ArtifactError as error:
                raise ApiError(409, "adapter_mismatch", str(error), "lora_path") from None
            parent = next(model.name for model in self.models.values() if model.parent is None)
            self.models[name] = Named(name=name, adapter=internal, digest=loaded.digest, parent=parent)
            if taken is not None:
                self._retire(taken)
            return self.models[name]

    def unload(self, name: str) -> None:
        """Forget an adapter. Requests under way keep it. Raises ApiError: 404, 400 for the model itself."""
        model = self.find(name)
        if model.adapter is None:
            raise ApiError(400, "invalid_value", f"{name!r} is the model itself, no adapter.", "lora_name")
        del self.models[name]
        self._retire(model)

    def _retire(self, model: Named) -> None:
        assert model.adapter is not None
        self._retired.add(model.adapter)
        self._remove_unused(model.adapter)

    def _remove_unused(self, adapter: str) -> None:
        if not self._held[adapter]:
            del self._held[adapter]
            if adapter in self._retired:
                self._retired.remove(adapter)
                self._worker.do(lambda: self._engine.remove_adapter(adapter))

    def _open(self, path: str) -> Input:
        """The adapter in a folder beneath --adapter-dir. Raises ApiError (400, 409)."""
        assert self._folder is not None, "the route exists only with the folder"
        folder = (self._folder / path).resolve()
        if not folder.is_relative_to(self._folder) or not folder.is_dir():
            raise ApiError(400, "invalid_value", f"lora_path {path!r}: no folder beneath --adapter-dir.", "lora_path")
        try:
            (entry,) = find_input("adapter", STAGE.inputs["adapter"], f"adapter={folder}")
            check_base(entry, self._base)
        except (ArtifactError, ConfigError) as error:
            raise ApiError(409, "adapter_mismatch", str(error), "lora_path") from None
        return entry
