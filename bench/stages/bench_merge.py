"""How fast, and in how much memory, does an adapter go into a model of 1.2 GB: against PEFT, and against plain copying?

Each rival is a process of its own, from its start to files on disk. Ours also digests its inputs and outputs and
flushes them to the disk, which the others do not. Equality is checked first, against PEFT's merge in float32, rounded
once: its merge in bfloat16, which is what people run, rounds the change itself before it is added.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Rival
from qwen3_shaped import FULL, TOY, linears, make_base

from postmill.io.safetensors_file import SafetensorsWriter, open_weights

RANK, ALPHA = 16, 32
PEFT = """
import sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out, dtype = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
model.to(torch.bfloat16).save_pretrained(out, max_shard_size="330MB")
"""


def make_adapter(path: Path, base: Path, size: dict[str, int]) -> None:
    """Random factors on every linear layer."""
    path.mkdir()
    rng = np.random.default_rng(1)
    arrays = {}
    for name, (rows, columns) in linears(size).items():
        arrays[f"base_model.model.{name}.lora_A.weight"] = rng.standard_normal((RANK, columns), np.float32) * 0.02
        arrays[f"base_model.model.{name}.lora_B.weight"] = rng.standard_normal((rows, RANK), np.float32) * 0.02
    layout = {name: ("F32", array.shape) for name, array in arrays.items()}
    with SafetensorsWriter(path / "adapter_model.safetensors", layout, {"format": "pt"}) as writer:
        for name, array in arrays.items():
            writer.write(name, memoryview(array).cast("B"))
    targets = sorted({name.rpartition(".")[2] for name in linears(size)})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets}
    (path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))


def differing(one: Path, other: Path) -> int:
    """How many tensors differ in a byte, tied head aside."""
    with open_weights(one) as left, open_weights(other) as right:
        names = left.where.keys() | (right.where.keys() - {"lm_head.weight"})
        return sum(
            name not in left.where
            or name not in right.where
            or left.file_of(name).read(name) != right.file_of(name).read(name)
            for name in names
        )


def cases(smoke: bool) -> Iterator[Case]:
    size = TOY if smoke else FULL
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base, adapter = work / "base", work / "adapter"
        make_base(base, size)
        make_adapter(adapter, base, size)
        amount = sum(file.stat().st_size for file in base.glob("*.safetensors")) / 1e9

        def rival(name: str, argv: list[str], note: str) -> Rival:
            out = work / name.replace(" ", "-")
            argv = [str(out) if word == "{out}" else word for word in argv]
            return Rival(name, argv, amount, note, prepare=lambda: shutil.rmtree(out, ignore_errors=True))

        python = [sys.executable, "-c", PEFT]
        rivals = [
            rival(
                "postmill",
                [sys.executable, "-m", "postmill.cli.main", "merge", str(adapter), "-m", str(base), "-o", "{out}",
                 "--parity", "off", "--quiet"],
                "digests and flushes to disk too",
            ),
            rival("peft bfloat16", [*python, str(base), str(adapter), "{out}", "bfloat16"], "rounds twice"),
            rival("peft float32", [*python, str(base), str(adapter), "{out}", "float32"], "the same bits as ours"),
            rival("cp", ["cp", "-r", str(base), "{out}"], "the bound: no work, no flush"),
        ]  # fmt: skip

        def check() -> dict[str, Any]:
            import subprocess

            for one in (rivals[0], rivals[2]):
                subprocess.run(one.run, check=True, capture_output=True)  # type: ignore[arg-type]
            wrong = differing(work / "postmill", work / "peft-float32")
            assert wrong == 0, f"{wrong} tensors differ from PEFT's float32 merge, rounded"
            with open_weights(work / "postmill") as weights:
                return {"tensors equal in every bit to peft float32": len(weights.where)}

        yield Case(
            name="lora into 1.2 GB" if not smoke else "lora into a toy",
            question="LoRA r16 on all linear layers of a Qwen3-0.6B-shaped bfloat16 model in 4 shards, to files",
            unit="GB/s",
            rivals=rivals,
            check=check,
            repeats=3,
            packages=("numpy", "peft", "torch", "transformers", "safetensors"),
        )
