"""The model an adapter belongs to: where it lies, and whether it is still the one the adapter was trained on."""

from pathlib import Path

import msgspec

from postmill.io.errors import MISMATCH, NO_INPUT, USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.manifest import SIDE_FILE
from postmill.io.model_folder import ADAPTER_CONFIG, TRAINING, model_digest
from postmill.stages.protocol import Input, Inputs
from postmill.stages.shared.model_reference import Model, find_model


def imply_base(inputs: Inputs) -> Inputs:
    """Adds the base of the adapters among `inputs` at port `model`, if none was given; checks that it fits them all.

    Raises ArtifactError: 66 if an adapter's base cannot be found, 78 if an adapter was trained on another one.
    """
    adapters = [item for items in inputs.values() for item in items if item.kind == "adapter"]
    bases = inputs.get("model", [])
    if not adapters:
        return inputs
    if not bases:
        base = _find_base(adapters[0])
        bases = [Input("model", "model", model_digest(base.path), base.name, base.path, source=base.source)]
    for adapter in adapters:
        check_base(adapter, bases[0])
    return inputs | {"model": bases}


def imply_merged(inputs: Inputs) -> Inputs:
    """As `imply_base`, but for a model that was given to merge onto whatever an adapter was trained on.

    Raises ConfigError (2) for both, or without an adapter; ArtifactError: 66, 78 as `imply_base`.
    """
    onto = inputs.get("onto", [])
    if not onto:
        return imply_base(inputs)
    adapters = [item for item in inputs["parts"] if item.kind == "adapter"]
    if inputs.get("model") or not adapters:
        raise ConfigError("--onto: is for adapters, instead of -m; leave one of them out", USAGE)
    return inputs | {"model": [msgspec.structs.replace(onto[0], port="model")]}


def imply_served(inputs: Inputs) -> Inputs:
    """Adapters by name belong to the model that is served, or to the base of the adapter that is.

    Raises ConfigError (2) for a base beside a model; ArtifactError: 66, 78 as `imply_base`.
    """
    served = inputs["served"][0]
    if served.kind == "adapter":
        return imply_base(inputs)
    if inputs.get("model"):
        raise ConfigError(f"-m: {served.name} is a model, not an adapter, and has no base; leave -m out", USAGE)
    for adapter in inputs.get("adapter", []):
        check_base(adapter, served)
    return inputs


def imply_searched(inputs: Inputs) -> Inputs:
    """As `imply_base`; an adapter that judges steps has a base of its own, which goes before it at its port.

    Raises ArtifactError: 66, 78 as `imply_base`.
    """
    found = imply_base({port: items for port, items in inputs.items() if port != "prm"})
    judges = inputs.get("prm", [])
    if judges and judges[0].kind == "adapter":
        alone = imply_base({"prm": judges})
        judges = [msgspec.structs.replace(alone["model"][0], port="prm"), *judges]
    return inputs | found | {"prm": judges}


def trained_stop_ids(path: Path) -> list[int]:
    """The stop ids that training gave the adapter or model in `path`; none if it does not say."""
    if not (path / TRAINING).is_file():
        return []
    ids = load_json(path / TRAINING).get("stop_ids", [])
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise ArtifactError(f"{path / TRAINING}: stop_ids {ids!r}, expected a list of token ids")
    return ids


def configured_stop_ids(path: Path) -> list[int]:
    """The stop ids that generation_config.json names, or else config.json; none if neither does."""
    for name in ("generation_config.json", "config.json"):
        if (path / name).is_file():
            ids = load_json(path / name).get("eos_token_id")
            if ids is not None:
                return ids if isinstance(ids, list) else [ids]
    return []


def all_stop_ids(folders: list[Path]) -> set[int]:
    """Every token that ends an answer of the model made of `folders`, base first."""
    return {i for path in folders for i in (*configured_stop_ids(path), *trained_stop_ids(path))}


def _find_base(adapter: Input) -> Model:
    """Where the adapter says its base lies: its own record of inputs, what PEFT wrote, the hub it was fetched from."""
    assert adapter.path is not None
    entries = adapter.artifact.manifest.inputs if adapter.artifact else []
    source = next((entry.source for entry in entries if entry.port == "model"), "")
    said = []
    record = adapter.path / SIDE_FILE
    if adapter.artifact is not None and record.is_file():
        paths = load_json(record).get("inputs", {})
        said += [str(path) for path in paths.get("model", [])]
    named = load_json(adapter.path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if isinstance(named, str) and named:
        said.append(named)
    for path in said:
        if (Path(path) / "config.json").is_file():
            return Model(Path(path), Path(path).name, source)
    if source:
        return find_model(source)
    where = f"its base {said[0]!r} is not a model folder here" if said else "it does not say what its base is"
    raise ArtifactError(f"{adapter.path}: {where}; pass the base with -m", NO_INPUT)


def source_of(base: Input) -> str:
    """Digest of the model that `base` was quantized from, "" if it is as it was trained."""
    if base.artifact is None or base.artifact.manifest.stage != "quantize":
        return ""
    return next((entry.digest for entry in base.artifact.manifest.inputs if entry.port == "model"), "")


def check_base(adapter: Input, base: Input) -> None:
    """Raises ArtifactError (78) if the adapter's manifest names another base. Foreign adapters name none by digest.

    An adapter on a quantized model fits the model that was quantized, too.
    """
    if adapter.artifact is None:
        return
    recorded = [entry.digest for entry in adapter.artifact.manifest.inputs if entry.port == "model"]
    assert adapter.path is not None
    if (adapter.path / TRAINING).is_file():
        recorded += [load_json(adapter.path / TRAINING).get("base_source", "")]
    if recorded and base.digest not in recorded:
        raise ArtifactError(
            f"{adapter.path}: trained on the model {recorded[0][:23]}, but {base.path} is {base.digest[:23]};"
            " pass the model it was trained on with -m, or merge --onto the one that was quantized",
            MISMATCH,
        )
