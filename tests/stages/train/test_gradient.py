"""The loss and its gradient, against a plain float64 computation on each row alone, whatever the batching."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")

import tiny_model  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from agreement import against  # noqa: E402
from tiny_families import COMMON, FAMILIES, build, forward_of  # noqa: E402
from varlen import varlen_attention  # noqa: E402

from postmill.io.packed import PackedReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.shared import attention  # noqa: E402
from postmill.stages.shared.asked import Ask, Linear  # noqa: E402
from postmill.stages.shared.batch import collate  # noqa: E402
from postmill.stages.shared.router import router_coefficient  # noqa: E402
from postmill.stages.train.columns import BatchSource  # noqa: E402
from postmill.stages.train.config import Train  # noqa: E402
from postmill.stages.train.objectives.needs import Needs  # noqa: E402
from postmill.stages.train.parallel.replicated import Replicated  # noqa: E402
from postmill.stages.train.plan import Steps  # noqa: E402
from postmill.stages.train.probe import check_forward  # noqa: E402
from postmill.stages.train.step import accumulate as accumulate_on  # noqa: E402
from postmill.stages.train.step import validate  # noqa: E402
from postmill.stages.train.survey import read_channels  # noqa: E402

pytest.importorskip("postmill._native", reason="native module not built")

LOGP = frozenset({"logp"})


def accumulate(cfg, forward, reader, step, *, accelerator, **options):
    """A step's gradient on one rank."""
    objective = cfg.objective.build()
    source = BatchSource(reader, objective.needs)
    layout = Replicated(accelerator)
    return accumulate_on(cfg, forward, objective, source, step, layout=layout, **options)


def load_batch(reader, bins):
    return BatchSource(reader, Needs()).load(bins)


def loss_of(forward, batch, normaliser, *, smoothing=0.0, want_logp=False, router_share=0.0):
    """The fused loss, and log-probs on request."""
    ask = Ask(LOGP if want_logp else frozenset(), Linear(batch.weights_T, normaliser, smoothing))
    return forward(batch, ask._replace(router_share=router_share))


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Eight bins of several rows."""
    folder = tmp_path_factory.mktemp("gradient")
    (folder / "base").mkdir()
    (folder / "base" / "tokenizer.json").write_text("{}")
    packed = tiny_model.write_packed(folder / "packed", folder / "base", tiny_model.make_rows(24, seed=3))
    found = PackedReader(packed)
    assert len(found) == 8, "the tests below want eight bins"
    return found


def plain_loss(model, reader, bins, normaliser):
    """Sum of weight * nll over the rows, each alone through the model's own logits, by the definition."""
    total = torch.zeros((), dtype=torch.float64)
    for index in bins:
        found = reader.bin(int(index))
        for start, end in zip(found.cu_seqlens, found.cu_seqlens[1:], strict=False):
            ids = torch.from_numpy(found.input_ids[start:end].astype(np.int64))
            logits = model(input_ids=ids[None], use_cache=False).logits[0].double()
            logp = logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
            total = total - (logp * torch.from_numpy(found.weights[start + 1 : end]).double()).sum()
    return total / normaliser


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def flash_stand_in():
    """The name of our flash attention around a varlen function in plain torch, in float64."""
    calls = []

    def varlen(*args, **kwargs):
        calls.append(kwargs)
        return varlen_attention(*args, **kwargs)

    name = "postmill_varlen_stand_in"
    transformers.AttentionInterface.register(name, attention.flash_attention(varlen, torch.float64, deterministic=True))
    yield name
    assert calls
    assert all(call["causal"] and call["deterministic"] for call in calls)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bin_through_flash_attention_is_a_bin_through_torchs(reader, family, flash_stand_in):
    model, rows = build(family, implementation=flash_stand_in), build(family, implementation=attention.ROWS)
    batch = load_batch(reader, np.arange(3))
    found = [loss_of(forward_of(m), batch, 7.0, want_logp=True) for m in (model, rows)]
    # Gemma 2's capped scores pass through float32 on the way of rows
    loose = 1e5 if family == "gemma2" else 1
    torch.testing.assert_close(found[0].logp_T, found[1].logp_T, rtol=1e-11 * loose, atol=1e-12 * loose)
    for output in found:
        output.loss.backward()
    want = gradients(rows)
    for name, gradient in gradients(model).items():
        peak = float(want[name].abs().max())
        torch.testing.assert_close(gradient, want[name], rtol=0, atol=1e-10 * loose * peak + 1e-12, msg=name)
    assert check_forward(forward_of(model, torch.float32), reader, torch.float32, torch.device("cpu")) < 1e-4


def test_flash_attention_pads_short_values(flash_stand_in):
    """Latent attention's values are shorter than its keys; flash-attn wants one size."""
    torch.manual_seed(0)
    attend = transformers.AttentionInterface()[flash_stand_in]
    q, k = (torch.randn(1, heads, 9, 6, dtype=torch.float64) for heads in (4, 2))
    v = torch.randn(1, 2, 9, 5, dtype=torch.float64)
    starts = torch.tensor([0, 4, 9], dtype=torch.int32)
    got, _ = attend(None, q, k, v, None, cu_seq_lens_q=starts, max_length_q=5)
    want, _ = attention.rows_attention(None, q, k, v, None, row_starts=(0, 4, 9))
    torch.testing.assert_close(got, want)


@pytest.mark.gpu
def test_flash_attn_takes_what_we_pass(reader):
    """The real kernel, where it is installed: one bin in bfloat16 beside torch's attention."""
    device = torch.device("cuda")
    pytest.importorskip("flash_attn")
    models = [
        build(dtype=torch.bfloat16, implementation=attention.choose(w, device, torch.bfloat16))
        for w in ("flash", "rows")
    ]
    batch = load_batch(reader, np.arange(3)).to(device)
    found = [
        loss_of(forward_of(m.to(device), torch.bfloat16), batch, 7.0, want_logp=True).logp_T.float() for m in models
    ]
    assert float((found[0] - found[1]).abs().mean()) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bin_gives_each_row_the_loss_it_has_alone(reader, family):
    model = build(family, implementation=attention.ROWS)
    # torch's kernel cannot cap scores; transformers' eager attention and these families' norms compute in float32
    own, loose = (
        (build(family, implementation="eager"), 1e4) if family in ("gemma2", "gemma3", "cohere") else (build(family), 1)
    )
    own.load_state_dict(model.state_dict())
    batch = load_batch(reader, np.arange(3))
    ours = loss_of(forward_of(model), batch, 7.0)
    ours.loss.backward()
    expected = plain_loss(own, reader, range(3), 7.0)
    expected.backward()
    torch.testing.assert_close(ours.loss, expected, rtol=1e-12 * loose, atol=1e-12)
    want = gradients(own)
    got = gradients(model)
    assert got.keys() == want.keys()
    if loose == 1:
        flat = [torch.cat([found[name].flatten() for name in want]) for found in (got, want)]
        against(
            "sft", "each row alone through the model's own logits, float64", (ours.loss, flat[0]), (expected, flat[1])
        )
    for name, gradient in got.items():
        peak = float(want[name].abs().max())
        # these families' norms round to float32: 5e-7 of the largest gradient was seen
        tolerance = (2e-6 if loose > 1 else 1e-10) * peak
        torch.testing.assert_close(gradient, want[name], rtol=0, atol=tolerance + 1e-12, msg=name)


def test_no_row_sees_another(reader):
    """Change one row's tokens: the log-probabilities of all other rows stay the same to the last bit."""
    model = build(implementation=attention.ROWS)
    found = reader.bin(0)
    start, end = found.cu_seqlens[1], found.cu_seqlens[2]
    ids = found.input_ids.copy()
    ids[start:end] = (ids[start:end] + 7) % tiny_model.VOCAB
    weights = np.ones_like(found.weights)
    with torch.no_grad():
        before, after = (
            forward_of(model)(collate([found._replace(input_ids=i, weights=weights)]), Ask(LOGP)).logp_T
            for i in (found.input_ids, ids)
        )
    others = np.ones(len(ids), bool)
    others[start - 1 : end] = False  # the target of the row's last-but-one token, and of the token before it
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[start:end], after[start:end])


@pytest.mark.parametrize("normalize", ["tokens", "weights", "rows"])
@pytest.mark.parametrize("micro_bins", [1, 2, 4, 8])
def test_gradient_does_not_depend_on_micro_batches(reader, normalize, micro_bins):
    accelerator = Accelerator(cpu=True)
    cfg = make(Train, bins_per_step=8, micro_bins=micro_bins, normalize=normalize)
    model = build(dtype=torch.float32, implementation=attention.ROWS)
    step = Steps(cfg, reader, 1)[0]
    result = accumulate(
        cfg,
        forward_of(model, torch.float32).train(),
        reader,
        step,
        accelerator=accelerator,
    )
    own = build()
    normaliser = {
        "tokens": sum((reader.bin(b).weights != 0).sum() for b in range(8)),
        "weights": sum(reader.bin(b).weights.sum(dtype=np.float64) for b in range(8)),
        "rows": sum(len(reader.bin(b).rows) for b in range(8)),
    }[normalize]
    expected = plain_loss(own, reader, range(8), float(normaliser))
    expected.backward()
    torch.testing.assert_close(result.loss, expected.detach(), rtol=1e-6, atol=1e-6)
    scale = max(float(g.abs().max()) for g in gradients(own).values())
    for name, gradient in gradients(model).items():
        want = gradients(own)[name]
        assert float((gradient.double() - want).abs().max()) <= 1e-6 * max(1.0, scale), name


def test_ranks_are_dealt_every_bin_once_and_padding_counts_nothing(reader):
    cfg = make(Train, bins_per_step=6, micro_bins=1, epochs=2)
    one, three = Steps(cfg, reader, 1), Steps(cfg, reader, 3)
    assert one.total == three.total == 4
    for number in range(4):
        a, b = one[number], three[number]
        assert (a.normaliser, a.tokens, a.trained_tokens) == (b.normaliser, b.tokens, b.trained_tokens)
        assert sorted(a.bins.ravel()) == sorted(b.bins.ravel())
        assert len({len(b.micro_batches(rank, 1)) for rank in range(3)}) == 1
    model = build(implementation=attention.ROWS)
    loss_of(forward_of(model), load_batch(reader, np.array([-1])), 5.0).loss.backward()
    assert all(not g.any() for g in gradients(model).values())


def test_steps_are_a_function_of_seed_and_epoch(reader):
    def bins(seed):
        steps = Steps(make(Train, bins_per_step=2, epochs=3, seed=seed), reader, 1)
        return [steps[number].bins.ravel().tolist() for number in range(steps.total)]

    assert bins(1) == bins(1)
    assert bins(1) != bins(2)
    one = bins(1)
    for epoch in range(3):
        assert sorted(b for step in one[4 * epoch : 4 * epoch + 4] for b in step) == list(range(8))
    assert one[:4] != one[4:8]


def test_neftune_is_noise_of_the_stated_width_and_reproducible(reader):
    model = build(implementation=attention.ROWS)
    clean = forward_of(model)
    noisy = forward_of(model, neftune_alpha=5.0)
    batch = load_batch(reader, np.array([0]))
    torch.manual_seed(3)
    added = noisy._noisy_embeddings(batch) - model.get_input_embeddings()(batch.input_ids_1T)
    for start, end in zip(batch.row_starts, batch.row_starts[1:], strict=False):
        width = 5.0 / np.sqrt((end - start) * 32)
        piece = added[0, start:end].abs().max().item()
        assert 0.8 * width < piece <= width
    assert torch.equal(loss_of(noisy.eval(), batch, 1.0).loss, loss_of(clean.eval(), batch, 1.0).loss)
    cfg = make(Train, bins_per_step=8, neftune_alpha=5.0)
    accelerator = Accelerator(cpu=True)
    step = Steps(cfg, reader, 1)[0]
    losses = {float(accumulate(cfg, noisy.train(), reader, step, accelerator=accelerator).loss) for _ in range(2)}
    assert len(losses) == 1
    assert float(accumulate(cfg, clean.train(), reader, step, accelerator=accelerator).loss) not in losses


def test_neftune_is_transformers_noise_on_one_row(reader):
    """The noise that transformers' hook adds to a row from the same seed, <https://arxiv.org/abs/2310.05914>."""
    from types import SimpleNamespace

    neftune = pytest.importorskip("transformers.integrations.neftune")
    found = reader.bin(0)
    end = found.cu_seqlens[1]
    row = found._replace(
        input_ids=found.input_ids[:end],
        position_ids=found.position_ids[:end],
        cu_seqlens=found.cu_seqlens[:2],
        weights=found.weights[:end],
        rows=found.rows[:1],
    )
    batch = collate([row])
    model = build(implementation=attention.ROWS)
    embedded = model.get_input_embeddings()(batch.input_ids_1T)
    torch.manual_seed(3)
    theirs = neftune.neftune_post_forward_hook(
        SimpleNamespace(training=True, neftune_noise_alpha=5.0), (batch.input_ids_1T,), embedded.clone()
    )
    torch.manual_seed(3)
    ours = forward_of(model, neftune_alpha=5.0)._noisy_embeddings(batch)
    width = 5.0 / np.sqrt(end * 32)
    assert float((theirs - embedded).abs().max()) <= width
    torch.testing.assert_close((ours - embedded).abs().mean(), (theirs - embedded).abs().mean(), rtol=1e-6, atol=0)


def test_gradient_checkpointing_changes_nothing(reader):
    model = build(implementation=attention.ROWS)
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    batch = load_batch(reader, np.array([1]))
    for m in (model, again):
        loss_of(forward_of(m).train(), batch, 3.0).loss.backward()
    for name, gradient in gradients(again).items():
        torch.testing.assert_close(gradient, gradients(model)[name], rtol=1e-12, atol=0)


def test_label_smoothing_is_torchs_and_only_in_training(reader):
    model = build(implementation=attention.ROWS)
    batch = load_batch(reader, np.array([0]))
    forward = forward_of(model).train()
    hidden, _ = forward._hidden(batch)
    logits = model.get_output_embeddings()(hidden)
    nll = torch.nn.functional.cross_entropy(
        logits, batch.targets_T, reduction="none", label_smoothing=0.2, ignore_index=-1
    )
    torch.testing.assert_close(loss_of(forward, batch, 2.0, smoothing=0.2).loss, (nll * batch.weights_T).sum() / 2)
    torch.testing.assert_close(
        loss_of(forward.eval(), batch, 2.0, smoothing=0.2).loss, loss_of(forward_of(model).eval(), batch, 2.0).loss
    )


MIXTURES = {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "head_dim": 8,
            "decoder_sparse_step": 1,
        },
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_router_loss_is_transformers_own(reader, name):
    """One row, plain weights: loss and gradients of the whole model are what transformers computes from labels."""
    family, extra = MIXTURES[name]
    torch.manual_seed(1)
    attention.choose("per-row", torch.device("cpu"), torch.float32)
    config = getattr(transformers, f"{family}Config")(
        **(COMMON | extra), output_router_logits=True, router_aux_loss_coef=0.7
    )
    kind = getattr(transformers, f"{family}ForCausalLM")
    model = kind._from_config(config, attn_implementation=attention.ROWS)
    own = kind._from_config(config, attn_implementation="sdpa")
    own.load_state_dict(model.state_dict())
    found = reader.bin(0)
    end = found.cu_seqlens[1]
    ids = torch.from_numpy(found.input_ids[:end].astype(np.int64))[None]
    batch = collate(
        [
            found._replace(
                input_ids=found.input_ids[:end],
                position_ids=found.position_ids[:end],
                cu_seqlens=found.cu_seqlens[:2],
                weights=np.ones(end, np.float32),
                rows=found.rows[:1],
            )
        ]
    )
    assert router_coefficient(config, None) == 0.7
    assert router_coefficient(config, 0.1) == 0.1
    ours = forward_of(model, torch.float32, router_aux=0.7).train()
    found = loss_of(ours, batch, float(end - 1), router_share=1.0)
    got = found.loss + found.router
    got.backward()
    expected = own.train()(input_ids=ids, labels=ids)
    expected.loss.backward()
    assert float(expected.aux_loss) > 1
    torch.testing.assert_close(got, expected.loss, rtol=1e-5, atol=1e-5)
    want = gradients(own)
    for tensor, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, want[tensor], rtol=1e-3, atol=2e-5, msg=tensor)
    without = loss_of(ours.eval(), batch, float(end - 1), router_share=1.0)
    assert without.router is None
    without = without.loss
    torch.testing.assert_close(without, expected.loss - 0.7 * expected.aux_loss, rtol=1e-5, atol=1e-5)


def test_router_loss_needs_routers():
    from postmill.io.errors import ConfigError

    config = transformers.LlamaConfig()
    assert router_coefficient(config, None) == 0
    with pytest.raises(ConfigError, match="no routers to balance"):
        router_coefficient(config, 0.1)


def test_channel_losses_add_up_to_the_loss(reader):
    cfg = make(Train, bins_per_step=8, channel_loss=True)
    channels = read_channels(reader)
    assert channels.names == ["c0", "c1"]
    accelerator = Accelerator(cpu=True)
    step = Steps(cfg, reader, 1)[0]
    got = accumulate(
        cfg,
        forward_of(build(implementation=attention.ROWS)).train(),
        reader,
        step,
        accelerator=accelerator,
        channels=channels,
    )
    sums, counts = got.channels
    assert int(counts.sum()) == step.trained_tokens
    torch.testing.assert_close(sums.sum() / step.normaliser, got.loss, rtol=1e-10, atol=0)


def test_validation_is_the_mean_over_all_bins(reader):
    model = build(implementation=attention.ROWS)
    objective = Train().objective.build()
    source = BatchSource(reader, objective.needs)
    got = validate(make(Train, micro_bins=2), forward_of(model), objective, source, Replicated(Accelerator(cpu=True)))[
        "loss"
    ]
    with torch.no_grad():
        want = float(plain_loss(build(), reader, range(8), float(reader.plan.trained_tokens.sum())))
    assert got == pytest.approx(want, rel=1e-10)


def test_probe_passes_what_fits_and_catches_a_leak(reader):
    from postmill.io.errors import StageError

    cpu = torch.device("cpu")
    assert (
        check_forward(
            forward_of(build(implementation=attention.ROWS), torch.float32).float(), reader, torch.float32, cpu
        )
        < 1e-4
    )

    leaky = build("lfm2", dtype=torch.float32, implementation=attention.ROWS)  # its convolutions reach over borders
    with pytest.raises(StageError, match="other log-probabilities than alone"):
        check_forward(forward_of(leaky, torch.float32), reader, torch.float32, cpu)

    scaled = build("cohere", dtype=torch.float32, implementation=attention.ROWS)
    scaled_ = forward_of(scaled, torch.float32)
    scaled_.lm_head.scale = scaled_.lm_head.scale._replace(logit_scale=1.0)
    with pytest.raises(StageError, match="other log-probabilities than alone"):
        check_forward(scaled_, reader, torch.float32, cpu)
