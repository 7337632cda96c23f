"""Packed products against float64, and that a row's bits depend on nothing beside it."""

import time

import pytest

torch = pytest.importorskip("torch")

from postmill.kernels.packed_linear import PackedWeight, native, packed_linear  # noqa: E402
from postmill.kernels.paged_attention import (  # noqa: E402
    PAGE,
    Places,
    padded_dim,
    paged_attention,
    paged_attention_reference,
)

pytestmark = pytest.mark.skipif(native() is None, reason="the C++ kernels are not built")
ROWS = (1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 25, 40)


def problem(num_outputs, depth, dtype):
    make = torch.Generator().manual_seed(num_outputs)
    weight = torch.randn(num_outputs, depth, generator=make).to(dtype)
    return torch.randn(max(ROWS), depth, generator=make), weight


@pytest.mark.parametrize(("num_outputs", "depth"), [(1, 1), (31, 7), (32, 24), (123, 65), (256, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_exact_to_rounding_and_rows_stand_alone(num_outputs, depth, dtype):
    x, weight = problem(num_outputs, depth, dtype)
    packed = PackedWeight(weight.float())
    assert packed.panels.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    whole = packed_linear(x, packed)
    torch.testing.assert_close(whole.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-5)
    for rows in ROWS:
        assert torch.equal(packed_linear(x[:rows], packed), whole[:rows])
        assert torch.equal(packed_linear(x[-rows:], packed), whole[-rows:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_vectors_and_more_threads_give_the_same_bits(dtype):
    if native().cpu_level(4) < 3:
        pytest.skip("this CPU has no fused multiply-add")
    x, weight = problem(301, 77, dtype)
    packed = PackedWeight(weight)
    expected = packed_linear(x, packed)
    assert torch.equal(packed_linear(x, packed, most_level=3), expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(packed_linear(x, packed), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("level", [3, 4])
def test_every_level_of_cpu_uses_its_vectors(level):
    """Within eight times torch's CPU time. Code for vectors that a level does not have took 23 times as long."""
    if native().cpu_level(level) < 3:
        pytest.skip("this CPU has no fused multiply-add")
    x, weight = torch.randn(96, 384), torch.randn(768, 384)
    packed = PackedWeight(weight)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = _least_seconds(lambda: packed_linear(x, packed, most_level=level))
        theirs = _least_seconds(lambda: torch.nn.functional.linear(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert ours < 8 * theirs


def _least_seconds(run):
    """Least CPU time of several runs."""
    found = []
    for _ in range(7):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return min(found)


def test_what_does_not_fit_is_refused():
    packed = PackedWeight(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"x_MK \(2, 4\), torch.float32: expected \(M, 5\)"):
        packed_linear(torch.zeros(2, 4), packed)


LENGTHS = [1, 16, 17, 40, 3]


def attention(dim, heads, groups, window):
    """Five requests: each of their last two tokens asks."""
    make = torch.Generator().manual_seed(dim)
    width = -(-max(LENGTHS) // PAGE)
    table = torch.randperm(len(LENGTHS) * width, generator=make).view(len(LENGTHS), width).int()
    shape = (len(LENGTHS) * width, PAGE, groups, padded_dim(dim))
    keys, values = torch.randn(shape, generator=make), torch.randn(shape, generator=make)
    owner = [n for n, length in enumerate(LENGTHS) for _ in range(min(2, length))]
    length = [length - back for length in LENGTHS for back in reversed(range(min(2, length)))]
    length = torch.tensor(length, dtype=torch.int32)
    first = (length - window).clamp(min=0) if window else torch.zeros_like(length)
    q = torch.randn(len(owner), heads, padded_dim(dim), generator=make)
    return q, keys, values, Places(table, torch.tensor(owner, dtype=torch.int32), first, length)


@pytest.mark.parametrize(
    ("dim", "heads", "groups", "window", "softcap"), [(16, 4, 2, 0, 0.0), (6, 3, 3, 0, 5.0), (64, 9, 3, 7, 0.0)]
)
def test_attention_is_the_references_and_tokens_stand_alone(dim, heads, groups, window, softcap):
    q, keys, values, places = attention(dim, heads, groups, window)
    found = paged_attention(q, keys, values, places, scale=dim**-0.5, softcap=softcap)
    exact = paged_attention_reference(
        q.double(), keys.double(), values.double(), places, scale=dim**-0.5, softcap=softcap
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    for t in range(len(q)):
        alone = Places(places.table_RW, *(part[t : t + 1] for part in places[1:]))
        one = paged_attention(q[t : t + 1], keys, values, alone, scale=dim**-0.5, softcap=softcap)
        assert torch.equal(one[0], found[t])
