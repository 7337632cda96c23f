"""Grids, codes and bits: against plain loops, against compressed-tensors, and against what they promise."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from postmill.kernels.quantize.clip import fit_clipped  # noqa: E402
from postmill.kernels.quantize.folding import (  # noqa: E402
    POWERS,
    awq_scales,
    fit_to_inputs,
    nearest,
    smooth_scales,
)
from postmill.kernels.quantize.gptq import solve  # noqa: E402
from postmill.kernels.quantize.grid import (  # noqa: E402
    Encoded,
    Form,
    count_clipped,
    decode,
    encode,
    fit,
    round_activations,
)
from postmill.kernels.quantize.hqq import fit_half_quadratic  # noqa: E402
from postmill.kernels.quantize.packing import AWQ_ORDER, pack_rows, unpack_rows  # noqa: E402
from postmill.stages.quantize.config import Quantize  # noqa: E402

INTEGERS = [Form(b, g, s) for b, g, s in itertools.product((2, 4, 8), (32, 0), (True, False))]


def weight(seed: int = 0, rows: int = 7, columns: int = 96) -> "torch.Tensor":
    """Heavy-tailed, with one group that is zero all over."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) ** 3 * 0.02
    values[2, 32:64] = 0
    return values


@pytest.mark.parametrize("form", INTEGERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_weight_is_further_than_half_a_step_from_where_it_was(form: Form, dtype: "torch.dtype") -> None:
    values = weight()
    encoded = encode(values, form, *fit(values, form, dtype))
    assert encoded.scale.dtype == dtype
    assert (int(encoded.codes.min()), int(encoded.codes.max())) >= (form.lowest, form.highest - 2)
    step = encoded.scale.float().repeat_interleave(form.columns(96), 1)
    # a scale rounded down by 2^-9 leaves the largest weight that far outside; a symmetric grid ends half a step early
    slack = 2**form.bits * 2.0**-9 if dtype == torch.bfloat16 else 1e-4
    allowed = 0.5 + slack + (0.5 if not form.symmetric else 0)
    assert float(((decode(encoded) - values).abs() / step).max()) <= allowed
    assert bool((decode(encoded)[2, 32:64] == 0).all()) or form.group == 0


def test_codes_are_what_a_plain_loop_finds() -> None:
    form, values = Form(4, 32, False), weight(1)
    encoded = encode(values, form, *fit(values, form, torch.bfloat16))
    for row, group in itertools.product(range(7), range(3)):
        part = values[row, group * 32 : group * 32 + 32].tolist()
        low, high = min(0.0, *part), max(0.0, *part)
        scale = float(torch.tensor((high - low) / 15).bfloat16()) or 1.0
        zero = min(7, max(-8, round(-8 - float(torch.tensor(low) / scale))))
        codes = [min(7, max(-8, round(float(torch.tensor(w) / scale)) + zero)) for w in part]
        assert encoded.codes[row, group * 32 : group * 32 + 32].tolist() == codes
        assert encoded.zero is not None
        assert int(encoded.zero[row, group]) == zero


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [64, 61])
def test_packing_keeps_every_code_where_compressed_tensors_looks_for_it(bits: int, columns: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, columns), dtype=torch.int8)
    packed = pack_rows(codes, bits)
    assert torch.equal(packed, helpers.pack_to_int32(codes, bits))
    assert torch.equal(unpack_rows(packed, bits, columns), codes)


def test_a_word_of_awq_holds_its_codes_in_its_own_order() -> None:
    codes = torch.arange(8, dtype=torch.int8)[None] - 8
    (word,) = pack_rows(codes, 4, AWQ_ORDER)[0].tolist()
    assert [(word >> (4 * place)) & 15 for place in range(8)] == [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.equal(unpack_rows(pack_rows(codes, 4, AWQ_ORDER), 4, 8, AWQ_ORDER), codes)


def test_fp8_rounds_half_to_even_and_never_to_infinity() -> None:
    form = Form(8, 0, True, True)
    values = weight()
    encoded = encode(values, form, *fit(values, form, torch.bfloat16))
    assert encoded.codes.dtype == torch.float8_e4m3fn
    assert bool(decode(encoded).isfinite().all())
    relative = (decode(encoded) - values).abs() / values.abs().clamp(min=float(encoded.scale.float().max()) * 2**-6)
    assert float(relative.max()) <= 2**-4 + 2**-9


def test_a_clipped_grid_has_less_error_and_says_what_it_cut() -> None:
    form, values = Form(4, 32, True), weight(3)
    plain = encode(values, form, *fit(values, form, torch.float32))
    clipped = encode(values, form, *fit_clipped(values, form, torch.float32))

    def error(one: "torch.Tensor") -> float:
        return float((decode(one) - values).abs().pow(2.4).sum())

    assert error(clipped) < 0.98 * error(plain)
    assert count_clipped(plain, values, form) == 0
    assert count_clipped(clipped, values, form) > 0


def test_half_quadratic_lowers_what_it_minimises() -> None:
    form = Form(4, 32, False)
    values = weight(4, rows=64)
    plain = encode(values, form, *fit(values, form, torch.float32))
    moved = encode(values, form, *fit_half_quadratic(values, form, torch.float32))
    assert float((decode(moved) - values).abs().mean()) <= float((decode(plain) - values).abs().mean())


def test_activations_keep_their_largest_and_are_off_by_half_a_step() -> None:
    values = weight(5)
    for floating, limit in ((False, 0.5 / 127.5 + 1e-6), (True, 2**-4)):
        again = round_activations(values, floating)
        worst = (again - values).abs().amax(-1) / values.abs().amax(-1)
        assert float(worst.max()) <= limit * (1 if floating else 1.01) + 1e-6


def _moment(rows: int, columns: int, seed: int = 5) -> "torch.Tensor":
    """Of correlated inputs, one of which is never there."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(rows, columns, generator=generator) @ mixed
    inputs[:, 3] = 0
    return inputs.T @ inputs


def _plain_gptq(values: "torch.Tensor", moment: "torch.Tensor", form: Form, order: "torch.Tensor") -> "torch.Tensor":
    """The paper's first formula, without factors or blocks: after each column, the inverse of what is left, float64."""
    moment = moment.double().clone()
    moment.diagonal()[moment.diagonal() == 0] = 1
    moment.diagonal().add_(0.01 * moment.diagonal().mean())
    left, codes = values.double().clone(), torch.empty_like(values, dtype=torch.int8)
    scale, zero = fit(values, form, torch.float32)
    for at, column in enumerate(order.tolist()):
        rest = order[at:]
        inverse = torch.linalg.inv(moment[rest][:, rest])
        group = column // form.columns(values.shape[1])
        if torch.equal(order, torch.arange(len(order))) and column % form.columns(values.shape[1]) == 0:
            ahead = left[:, column : column + form.columns(values.shape[1])].float()
            scale[:, group : group + 1], fresh = fit(ahead, form._replace(group=0), torch.float32)
            if zero is not None and fresh is not None:
                zero[:, group : group + 1] = fresh
        here = None if zero is None else zero[:, group : group + 1]
        one = encode(left[:, column : column + 1].float(), form._replace(group=0), scale[:, group : group + 1], here)
        codes[:, column] = one.codes[:, 0]
        error = (left[:, column] - decode(one)[:, 0].double()) / inverse[0, 0]
        left[:, rest] -= error[:, None] * inverse[0][None]
    return codes


@pytest.mark.parametrize("form", [Form(4, 32, False), Form(4, 0, True), Form(8, 64, True), Form(2, 32, False)], ids=str)
@pytest.mark.parametrize("sort", [True, False])
def test_gptq_is_the_formula_of_its_paper(form: Form, sort: bool) -> None:
    values, moment = weight(3, 5, 192), _moment(400, 192)
    found = solve(values, moment, form, torch.float32, damp=0.01, sort=sort)
    order = torch.argsort(moment.diagonal(), descending=True, stable=True) if sort else torch.arange(192)
    expected = _plain_gptq(values, moment, form, order)
    # a step that lies between two codes may fall to either side, and then moves what follows
    assert float((found.codes == expected).float().mean()) > 0.97


@pytest.mark.parametrize("form", [Form(4, 64, True), Form(4, 64, False), Form(8, 0, True, True)], ids=str)
def test_gptq_leaves_less_of_the_outputs_error_than_rounding(form: Form) -> None:
    values, moment = weight(4, 12, 192), _moment(400, 192)

    def error(encoded: Encoded) -> float:
        off = (decode(encoded) - values).double()
        return float(((off @ moment.double()) * off).sum())

    found = solve(values, moment, form, torch.bfloat16, damp=0.01, sort=True)
    rounded = encode(values, form, *fit(values, form, torch.bfloat16))
    assert error(found) < 0.8 * error(rounded)
    # inputs that are no guide: without correlation every column is rounded by itself
    alone = solve(values, torch.eye(192), form, torch.bfloat16, damp=0.01, sort=True)
    assert torch.equal(alone.codes.float(), rounded.codes.float())


def test_gptq_damps_until_there_is_an_inverse() -> None:
    """Two inputs that are always equal, and fewer rows than columns."""
    inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    inputs[:, 1] = inputs[:, 0]
    found = solve(weight(5, 3, 64), inputs.T @ inputs, Form(4, 32, False), torch.float32, damp=1e-9, sort=True)
    assert bool(torch.isfinite(decode(found)).all())


@pytest.mark.parametrize("shrunk", [False, True])
def test_fp4_is_what_compressed_tensors_unpacks(shrunk: bool) -> None:
    """Codes, scales and their exponents, through its own compressor and back; groups of very different sizes."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.mxfp4 import MXFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.quant_scheme import MXFP4A16, NVFP4A16
    from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales

    from postmill.stages.quantize.formats.compressed_tensors import tensors
    from postmill.stages.quantize.plan import make_target

    x = torch.randn(7, 96, generator=torch.manual_seed(0)) * torch.logspace(-3, 1, 7)[:, None]
    x[2, 32:64] = 0
    for scheme, theirs, arguments in (
        ("nvfp4a16", NVFP4PackedCompressor, NVFP4A16),
        ("mxfp4a16", MXFP4PackedCompressor, MXFP4A16),
    ):
        target = make_target(scheme, Quantize())
        fitted, _ = (fit_clipped if shrunk else fit)(x, target.form, torch.float32)
        encoded = encode(x, target.form, fitted, None)
        parts = {name.removeprefix("m."): t for name, t in tensors("m", target, encoded).items()}
        how = QuantizationScheme(targets=["Linear"], **arguments)
        back = theirs.decompress({name: t.clone() for name, t in parts.items()}, how)["weight"]
        torch.testing.assert_close(back.float(), decode(encoded), rtol=2**-8, atol=0)
        whole = parts.get("weight_global_scale")
        scale = fitted * (1 if whole is None else whole)
        again = theirs.compress({"weight": x, "weight_scale": scale, "weight_global_scale": whole}, how)
        assert torch.equal(again["weight_packed"] & 0x77, parts["weight_packed"] & 0x77)
        if scheme == "mxfp4a16" and not shrunk:
            largest = x.view(7, 3, 32).abs().amax(-1)
            sizes = generate_mx_scales(largest)[largest > 0]
            assert torch.equal(sizes.to(torch.uint8), parts["weight_scale"][largest > 0])


def test_awq_takes_the_power_that_changes_outputs_least() -> None:
    """Against AWQ's formula on the inputs themselves, in float64, for two weights that share them."""
    generator = torch.manual_seed(3)
    inputs = torch.randn(40, 64, generator=generator) * torch.logspace(-1, 1, 64)
    weights = [torch.randn(n, 64, generator=generator) for n in (5, 9)]
    form = Form(4, 32, False)

    def rounded(values: "torch.Tensor") -> "torch.Tensor":
        return nearest(values, form, torch.float32)

    found = awq_scales(weights, inputs.T @ inputs, rounded)
    size = inputs.double().square().mean(0).sqrt()
    errors = []
    for power in POWERS:
        scale = size**power
        scale = (scale / (scale.max() * scale.min()).sqrt()).float()
        off = [(rounded(w * scale) / scale - w).double() @ inputs.double().T for w in weights]
        errors.append(sum(float(o.square().sum()) for o in off))
    best = size ** POWERS[errors.index(min(errors))]
    assert min(errors) < 0.8 * errors[0]
    torch.testing.assert_close(found, (best / (best.max() * best.min()).sqrt()).float())
    assert awq_scales(weights, torch.eye(64), lambda values: values) is None  # nothing to gain


def test_ranges_for_outputs_are_no_worse_than_any_single_one() -> None:
    values = weight(seed=4)
    inputs = torch.randn(50, 96, generator=torch.manual_seed(5)) * torch.logspace(-1, 1, 96)
    moment = inputs.T @ inputs
    form = Form(4, 32, True)
    groups = torch.block_diag(*[moment[n : n + 32, n : n + 32] for n in (0, 32, 64)])

    def error(kept: "torch.Tensor") -> "torch.Tensor":
        off = kept - values
        return ((off @ groups) * off).sum(1)

    found = error(decode(fit_to_inputs(values, form, torch.float32, moment)))
    for shrink in (1.0, 0.9, 0.8):
        scale, zero = fit(values, form, torch.float32, shrink)
        assert (found <= error(decode(encode(values, form, scale, zero))) * 1.001 + 1e-9).all()


def test_smoothing_shares_size_between_inputs_and_weights() -> None:
    """s = max|x|^a / max|w|^(1 - a): with a = 1/2 both are as large afterwards."""
    largest = torch.tensor([4.0, 0.25, 0.0, 9.0])
    weights = [torch.tensor([[1.0, -2.0, 3.0, 1.0]]), torch.tensor([[-4.0, 1.0, 1.0, 0.5]])]
    scale = smooth_scales(weights, largest, 0.5)
    torch.testing.assert_close(scale, torch.tensor([1.0, (0.25 / 2) ** 0.5, 1.0, 3.0]))
    assert torch.equal(smooth_scales(weights, largest, 1.0), torch.tensor([4.0, 0.25, 1.0, 9.0]))
