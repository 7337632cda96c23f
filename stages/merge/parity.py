"""Does the merged model compute what the base with its adapters computes? Asked of both in float32, on the same tokens.

The two differ by the rounding of the merged weights, and by nothing else if the merge is right. What rounding does to
logits varies tenfold between adapters (0.014 to 0.08 of their deviation in bfloat16 for one model of 135M: a change
smaller than the last digit of its weight is swallowed), so it is measured: PEFT merges too, and its weights are rounded
alike. Loads one model after the other through transformers and PEFT: memory of one model in float32, and logits of
the compared tokens.
"""

import contextlib
import importlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from postmill.io.errors import FAILED, StageError
from postmill.io.json_file import load_json
from postmill.io.model_folder import ADAPTER_CONFIG, vocab_size
from postmill.stages.merge.config import Merge
from postmill.stages.merge.stacked import for_peft
from postmill.stages.progress import Progress
from postmill.stages.protocol import Input, Out
from postmill.stages.shared.hf import add_adapters, load_model, need
from postmill.stages.shared.parity import REPORT, first_tokens, prompt_ids, rounded, stored_rows

_TOO_MUCH = 0.25
_FLOOR = 1e-4
"""Float32 sums taken in another order differ by 3e-6 (SmolLM2-135M, CPU, 2026-11-22); deep models by more."""


def check_parity(
    cfg: Merge, base: Path, adapters: list[tuple[Path, float]], rows: list[Input], out: Out, *, merged_dtype: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Compare, write the report into the artifact, and return it with the versions that made it.

    adapters: path and scale, in order. merged_dtype: of most weights that were changed, as safetensors names it.
    Raises ConfigError (2) without torch, transformers or PEFT; StageError (1) over the tolerance.
    """
    versions = need("torch", "transformers", "peft", remedy="pip install 'postmill[train]', or pass --parity off")
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(out.threads)
    ids, source = (stored_rows(rows[0]), "rows") if rows else (prompt_ids(out.dir), "prompts")
    ids = first_tokens(ids, cfg.parity_tokens)
    model = load_model(base, "float32")
    vocab = vocab_size(out.dir)
    if vocab is not None and vocab != vocab_size(base):
        model.resize_token_embeddings(vocab, mean_resizing=False)
    with _peft_in_few_words(), tempfile.TemporaryDirectory() as folder:
        adapted = _adapted(model, adapters, Path(folder))
        expected = _logits(adapted, ids)
        _merge_and_round(adapted, merged_dtype, everything=cfg.dtype != "auto")
        rounding = _compare(expected, _logits(adapted, ids))["relative_difference"]
    del model, adapted
    merged_logits = _logits(load_model(out.dir, "float32"), ids)
    limit = max(_FLOOR, rounded(cfg.tolerance * rounding))
    report = _compare(expected, merged_logits) | {"source": source, "rounding": rounding, "limit": limit}
    (out.dir / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if not report["relative_difference"] <= limit:
        raise StageError(
            f"parity: logits differ by {report['relative_difference']} of their deviation on {report['num_tokens']}"
            f" tokens, where rounding explains {rounding}; more than {limit}, so nothing was committed; report this, or"
            " raise --tolerance",
            FAILED,
        )
    if rounding > _TOO_MUCH:
        raise StageError(
            f"parity: rounding alone changes logits by {rounding} of their deviation, more than {_TOO_MUCH}, so nothing"
            " was committed; save more digits with --dtype float32",
            FAILED,
        )
    return report, versions


def _adapted(model: Any, adapters: list[tuple[Path, float]], folder: Path) -> Any:
    """The model with all adapters: at once if PEFT can (LoRA only), else all but the last merged by PEFT."""
    stacks = {name: tuple(weight.shape) for name, weight in model.named_parameters() if weight.ndim == 3}
    views = []
    for number, (path, scale) in enumerate(adapters):
        (folder / str(number)).mkdir()
        views.append((for_peft(path, stacks, folder / str(number)), scale))
    kinds = [load_json(path / ADAPTER_CONFIG).get("peft_type") for path, _ in views]
    if {*kinds} == {"LORA"} and len(dict(views)) == len(views):
        return add_adapters(model, dict(views))
    for path, scale in views[:-1]:
        model = add_adapters(model, {path: scale})
        _untie_head(model.get_base_model())
        model = model.merge_and_unload()
    return add_adapters(model, dict(views[-1:]))


@contextlib.contextmanager
def _peft_in_few_words() -> Iterator[None]:
    """What PEFT warns of, once each and in one line, unless quiet."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    for line in dict.fromkeys(str(warning.message).strip().partition("\n")[0] for warning in said):
        if "is_gradient_checkpointing" not in line:
            Progress.show(f"merge: peft says: {line}")


def _untie_head(model: Any) -> None:
    """PEFT would merge a change of the embedding into a head that shares its memory, and one of both twice."""
    torch: Any = importlib.import_module("torch")
    head = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    if isinstance(head, torch.nn.Linear):
        head.weight = torch.nn.Parameter(head.weight.detach().clone())


def _merge_and_round(model: Any, dtype: str, *, everything: bool) -> None:
    """Merge in place as PEFT does, and round to `dtype` what changed, or `everything` of more than one dimension."""
    torch: Any = importlib.import_module("torch")
    rounded = {"BF16": torch.bfloat16, "F16": torch.float16}.get(dtype, torch.float32)
    _untie_head(model.get_base_model())
    model.merge_adapter()
    for name, parameter in model.named_parameters():
        changed = ".base_layer." in name or ".modules_to_save." in name
        if parameter.ndim > 1 and "lora_" not in name and (everything or changed):
            parameter.data = parameter.data.to(rounded).float()


def _logits(model: Any, rows: list[list[int]]) -> list[np.ndarray[Any, Any]]:
    """Logits of every position, float32, one array a row."""
    torch: Any = importlib.import_module("torch")
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row])).logits[0].float().numpy() for row in rows]


def _compare(expected: list[np.ndarray[Any, Any]], merged: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Differences, to three digits: more would only repeat the rounding of one machine."""
    left, right = (np.concatenate([np.atleast_2d(a) for a in side]) for side in (expected, merged))
    difference = np.abs(left - right)
    return {
        "num_tokens": len(left),
        "max_difference": rounded(difference.max()),
        "mean_difference": rounded(difference.mean(dtype=np.float64)),
        "relative_difference": rounded(difference.mean(dtype=np.float64) / max(left.std(axis=-1).mean(), 1e-9)),
        "top1_agreement": rounded((left.argmax(-1) == right.argmax(-1)).mean()),
    }
