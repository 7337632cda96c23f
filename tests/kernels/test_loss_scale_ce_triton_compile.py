"""The Triton kernels compile for GPUs that are not here, within their registers and shared memory.

Reads the resources of the finished machine code (cuobjdump) and the instructions in the PTX. Nothing runs.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from postmill.kernels.loss_scale_ce import triton_gradients, triton_logits, triton_tuning  # noqa: E402

pytestmark = pytest.mark.timeout(1200)  # seconds a kernel on a free core

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
POINTERS = {"targets_ptr": "*i64", "rows_ptr": "*i64", "count_ptr": "*i32"} | dict.fromkeys(
    ("partials_ptr", "target_ptr", "factors_ptr", "unit_ptr", "parts_ptr", "sums_ptr"), "*fp32"
)
PLAIN = {"bias": False, "cap": False, "sums": False, "hidden_size": 4096, "add": False}
FULL = {"bias": True, "cap": True, "sums": True, "hidden_size": 1000, "add": True}
VARIANTS = {"plain": PLAIN, "chunked": PLAIN | {"add": True}, "full": FULL, "sums": FULL | {"cap": False}}


def launches(dtype, capability, *, bias, cap, sums, hidden_size, add):
    """(kernel, constants, tiles of the descriptors, warps and stages) of the products of one gradient."""
    tuning = triton_tuning.tuning_for(DTYPES[dtype], capability)
    common = {"H": hidden_size, "UPCAST": False, "PRECISION": "tf32x3"}
    flags = {"GROUP_M": triton_tuning.GROUP_M, "FLATTEN": tuning.flatten}
    flags |= ({} if bias else {"bias_ptr": None}) | ({} if cap else {"softcap": None})
    forward, wide, hidden, weight = (
        tuning.wide_logits if sums or cap else tuning.logits,
        tuning.wide_logits,
        tuning.hidden,
        tuning.weight,
    )

    def logits(b):
        return common | flags | {"BLOCK_M": b.m, "BLOCK_N": b.n, "BLOCK_K": b.k}

    def gradient(b):
        return common | {"BLOCK_M": b.m, "BLOCK_N": b.n, "BLOCK_H": b.k}

    def reads(b):
        return {"x": (b.m, b.k), "w": (b.n, b.k)}

    store = {} if not cap else {"stored": None}
    yield (
        triton_logits.logits_kernel,
        logits(forward) | store | {"WANT_SUMS": sums},
        reads(forward) | {"stored": (forward.m, forward.n)},
        forward,
    )
    yield triton_logits.dz_kernel, logits(wide), reads(wide) | {"dz_out": (wide.m, wide.n)}, wide
    tiles = {"dz": (hidden.m, hidden.n), "w": (hidden.n, hidden.k)}
    split = {
        "IS_FIRST": not add,
        "IS_LAST": True,
        "PROGRAMS": 132,
        "MAX_PARTS": triton_tuning.MAX_PARTS,
        "MAX_ITEMS": 132 * triton_tuning.MAX_ROUNDS,
    }
    yield triton_gradients.grad_hidden_kernel, gradient(hidden) | split, tiles, hidden
    tiles = {"dz": (weight.m, weight.n), "x": (weight.m, weight.k)}
    wants = {"FLATTEN": tuning.flatten and not add} | ({} if add else {"sums_ptr": None})
    yield triton_gradients.grad_weight_kernel, gradient(weight) | wants, tiles, weight


def compile_for(kernel, constants, tiles, blocks, dtype, capability):
    signature, attributes = {}, {}
    has_descriptors = triton_tuning.tuning_for(DTYPES[dtype], capability).has_descriptors
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in tiles and has_descriptors:
            signature[name] = f"tensordesc<{dtype}{list(tiles[name])}>"
        elif name.endswith("_ptr") or name in tiles:
            signature[name] = POINTERS.get(name, f"*{dtype}")
            attributes[i,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in ("scale", "softcap") else "i32"
            if name in ("num_rows", "vocab_size") or name.endswith("_stride"):
                attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}


def check(dtype, capability, variant):
    for kernel, constants, tiles, blocks in launches(dtype, capability, **variant):
        compiled = compile_for(kernel, constants, tiles, blocks, dtype, capability)
        used = resources(compiled.asm["cubin"])
        place = (kernel.__name__, dtype, capability, constants, used, compiled.metadata.shared)
        assert used["STACK"] == 0, place  # a spilled register lives there
        assert used["LOCAL"] == 0, place
        assert used["REG"] <= 255, place
        assert compiled.metadata.shared <= SHARED_LIMIT[capability], place
        assert MATRIX[capability] in compiled.asm["ptx"], place
        assert "cp.async" in compiled.asm["ptx"], place  # loads run ahead of the products
        print(f"sm_{capability} {dtype} {kernel.__name__:18} regs {used['REG']} shared {compiled.metadata.shared}")


@pytest.mark.parametrize(("dtype", "capability"), [("bf16", 90), ("fp32", 80)])
def test_kernels_fit_the_chip(dtype, capability):
    check(dtype, capability, PLAIN)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("capability", SHARED_LIMIT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_fit_every_chip(dtype, capability, variant):
    check(dtype, capability, VARIANTS[variant])
