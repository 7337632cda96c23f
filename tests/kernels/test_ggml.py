"""Blocks of GGUF against the `gguf` package (bytes of the plain types, numbers of all) and against ggml's own bytes."""

import hashlib

import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

from postmill.kernels.quantize.ggml import BLOCKS, decode_rows, encode_rows  # noqa: E402

GGML = {
    "q2_k": ["5ece1306047b", "49787fe57364", "4fea5e6a3ec5", "d1dd52533cb4"],
    "q3_k": ["639d66d0878c", "4e836ed3f661", "f23391587f1c", "0d4452fa2c78"],
    "q4_k": ["f91bd8adb981", "afab1ec883a8", "81c611f35bff", "7dfe569f483a"],
    "q5_k": ["871dfe010333", "5592604490ff", "86d2cf5b090f", "f3d1792f864d"],
    "q6_k": ["7500851f7169", "808ebb7d856b", "9e33403d6e41", "8fed10f935ed"],
    "iq4_nl": ["e5b648bb5c23", "0bde51c4164f", "1748f91eae21", "0257ef477810"],
    "iq4_xs": ["37bf1dd28030", "210a261ff6d2", "d859cb8aab1a", "0ecebbd92c42"],
}
"""SHA-256 of each 256 weights that `ggml_quantize_chunk` of llama.cpp (xllamacpp 2026.10.11549) makes of `given()`."""


def given() -> "torch.Tensor":
    """Two rows of 512 numbers that every machine computes alike; with a block of zeros and a flat group."""
    n = torch.arange(1024)
    x = (((n * n * 7919 + n * 104729) % 2003 - 1001).float() / 2048 * (1 + (n // 16) % 5)).view(2, 512)
    x[1, :256] = 0.0
    x[1, 256:272] = 0.5
    return x


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if kind not in GGML])
def test_plain_types_are_the_bytes_of_gguf(kind: str) -> None:
    theirs = gguf.quants.quantize(given().numpy(), gguf.GGMLQuantizationType[kind.upper()])
    assert encode_rows(given(), kind).numpy().tobytes() == theirs.tobytes()


@pytest.mark.parametrize("kind", GGML)
def test_types_with_a_search_are_the_bytes_of_ggml(kind: str) -> None:
    blocks = encode_rows(given(), kind).view(4, -1).numpy()
    found = [hashlib.sha256(block.tobytes()).hexdigest()[:12] for block in blocks]
    assert found == GGML[kind]


@pytest.mark.parametrize("kind", BLOCKS)
def test_numbers_are_those_of_gguf(kind: str) -> None:
    """Of bytes that no encoder chose, so that every bit counts."""
    block = BLOCKS[kind]
    raw = torch.randint(0, 256, (7, 2 * block.num_bytes), generator=torch.manual_seed(0), dtype=torch.uint8)
    theirs = torch.from_numpy(gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind.upper()]))
    found = decode_rows(raw, kind)
    sane = theirs.isfinite()
    assert sane.float().mean() > 0.8
    assert torch.equal(found[sane], theirs[sane])


@pytest.mark.parametrize(
    ("kind", "bound"), [("q2_k", 0.15), ("q3_k", 0.03), ("q4_k", 0.006), ("q5_k", 0.0015), ("q6_k", 4e-4)]
)
def test_k_quants_of_noise_are_as_near_as_their_bits_allow(kind: str, bound: float) -> None:
    x = torch.randn(9, 768, generator=torch.manual_seed(1)) * 0.03
    off = decode_rows(encode_rows(x, kind), kind) - x
    assert float(off.square().sum() / x.square().sum()) < bound
