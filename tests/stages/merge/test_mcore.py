"""Models to Megatron-Core's checkpoints and back: equal bytes, equal logits, and what is refused."""

import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="conversion needs torch")
pytest.importorskip("transformers")

import parallel_models  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from postmill.cli.launch import free_port  # noqa: E402
from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.stages.merge.config import STAGE, Merge  # noqa: E402
from postmill.stages.merge.mcore import layout  # noqa: E402
from postmill.stages.merge.mcore.torch_dist import Checkpoint, Writer  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("mcore")
    for family in parallel_models.FAMILIES:
        parallel_models.write(folder / family, family)
        (folder / family / "tokenizer.json").unlink()
    return folder


def merge(given, target, **options):
    return run_stage(STAGE, Merge(**options), {"parts": [str(given)]}, target, Options(threads=1))


@pytest.mark.parametrize("family", list(parallel_models.FAMILIES))
def test_there_and_back_gives_equal_bytes(models, tmp_path, family):
    merge(models / family, tmp_path / "there", to="mcore")
    parity = load_artifact(tmp_path / "there").manifest.metrics["parity"]
    assert parity["max_difference"] <= 1e-4
    merge(tmp_path / "there", tmp_path / "back")
    a, b = (load_file(path / "model.safetensors") for path in (models / family, tmp_path / "back"))
    assert a.keys() == b.keys()
    assert all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def test_torch_reads_what_was_written(models, tmp_path):
    """Through torch's own reader: the fused matrices are those of Megatron's definition, whole and by layer."""
    merge(models / "qwen3-moe", tmp_path / "there", to="mcore", parity="off")
    reader = dcp.FileSystemReader(tmp_path / "there/release")
    stored = {k: v for k, v in reader.read_metadata().state_dict_metadata.items() if hasattr(v, "size")}
    state = {name: torch.zeros(v.size, dtype=v.properties.dtype) for name, v in stored.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    given = load_file(models / "qwen3-moe" / "model.safetensors")
    # four query heads, two key heads of size 6: two query heads, then their key head, then their value head
    fused = state["decoder.layers.self_attention.linear_qkv.weight"][1]
    q, k, v = (given[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv")
    torch.testing.assert_close(fused, torch.cat([q[:12], k[:6], v[:6], q[12:], k[6:], v[6:]]), rtol=0, atol=0)
    expert = state["decoder.layers.mlp.experts.experts.linear_fc1.weight"][3, 2]
    halves = [given[f"model.layers.3.mlp.experts.2.{x}_proj.weight"] for x in ("gate", "up")]
    torch.testing.assert_close(expert, torch.cat(halves), rtol=0, atol=0)


def rewrite(source, target, *, spelt_out=False, columns=1, padding=0):
    """The checkpoint as ranks save it: matrices in two blocks of rows or columns, embedding padded, layers apart."""
    target.mkdir()
    given = Checkpoint(source)
    state = {}
    for name, stored in given.tensors.items():
        tensor = given.read(name)
        if name.startswith(("embedding", "output")):
            tensor = torch.cat([tensor, torch.zeros(padding, tensor.shape[1])])
        if spelt_out and ".layers." in name:
            state |= {name.replace("layers.", f"layers.{n}."): t.contiguous() for n, t in enumerate(tensor)}
        else:
            state[name] = tensor
        assert stored.shape == given.tensors[name].shape
    with Writer(target) as writer:
        for name, tensor in state.items():
            writer.add(name, (), (), tensor)
    index = pickle.loads((target / ".metadata").read_bytes())
    place = next(target.glob("*.distcp"))
    with place.open("ab") as file:
        for key, info in list(index.storage_data.items()):
            entry = index.state_dict_metadata[key.fqn]
            if len(entry.size) < 2 or entry.size[-columns] % 2:
                continue
            with place.open("rb") as whole:
                whole.seek(info.offset)
                tensor = torch.load(io.BytesIO(whole.read(info.length)))
            del index.storage_data[key]
            entry.chunks.clear()
            for half, block in enumerate(tensor.chunk(2, -columns)):
                offsets = [0] * block.ndim
                offsets[-columns] = half * block.shape[-columns]
                start = file.tell()
                torch.save(block.clone(), file)
                offsets = torch.Size(offsets)
                entry.chunks.append(type_of_chunk(offsets, block.shape))
                index.storage_data[type(key)(key.fqn, offsets, half)] = type(info)(
                    place.name, start, file.tell() - start
                )
    (target / ".metadata").write_bytes(pickle.dumps(index))


def type_of_chunk(offsets, sizes):
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    return ChunkStorageMetadata(offsets, sizes)


@pytest.mark.parametrize("saved", [{"columns": 1}, {"columns": 2, "padding": 3}, {"columns": 2, "spelt_out": True}])
def test_any_split_over_ranks_is_read(models, tmp_path, saved):
    for family in ("qwen3-tied", "qwen3-moe"):
        merge(models / family, tmp_path / family, to="mcore", parity="off")
        rewrite(tmp_path / family / "release", tmp_path / f"{family}-saved", **saved)
        given = {"parts": [str(tmp_path / f"{family}-saved")], "model": [str(models / family)]}
        run_stage(STAGE, Merge(), given, tmp_path / f"{family}-back", Options(threads=1))
        a, b = (load_file(path / "model.safetensors") for path in (models / family, tmp_path / f"{family}-back"))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("how", ["qkv", "gate_up"])
def test_a_scrambled_tensor_is_refused(models, tmp_path, monkeypatch, how):
    """The right shape in the wrong order: queries, keys and values one after the other; up before gate."""

    def scrambled(piece, tensors, shape):
        return (
            torch.cat(tensors if how == "qkv" else tensors[::-1]) if piece.how == how else right(piece, tensors, shape)
        )

    right = layout.join
    monkeypatch.setattr("postmill.stages.merge.mcore.run.join", scrambled)
    with pytest.raises(StageError, match="parity: logits of the checkpoint differ"):
        merge(models / "qwen3", tmp_path / "there", to="mcore")
    assert not (tmp_path / "there").exists()


class Runs:
    def __reduce__(self):
        return print, ("this would have run",)


def test_what_is_hostile_or_damaged_is_refused(models, tmp_path, capsys):
    merge(models / "llama", tmp_path / "there", to="mcore", parity="off")

    def damaged(change):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "there/release", tmp_path / "bad")
        shutil.copyfile(models / "llama" / "config.json", tmp_path / "bad" / "config.json")
        change(tmp_path / "bad")
        with pytest.raises(ArtifactError) as error:
            merge(tmp_path / "bad", tmp_path / "back")
        assert not (tmp_path / "back").exists()
        return error.value.code, str(error.value)

    def index(change):
        def changed(folder):
            found = pickle.loads((folder / ".metadata").read_bytes())
            change(found)
            (folder / ".metadata").write_bytes(pickle.dumps(found))

        return changed

    code, says = damaged(lambda folder: (folder / ".metadata").write_bytes(pickle.dumps(Runs())))
    assert code == 77 and "names builtins.print" in says
    assert capsys.readouterr().out == ""
    code, says = damaged(index(lambda found: found.state_dict_metadata.pop("decoder.final_layernorm.weight")))
    assert code == 78 and "has no tensor decoder.final_layernorm.weight" in says
    code, says = damaged(lambda folder: next(folder.glob("*.distcp")).write_bytes(b"\0" * 100000))
    assert code == 65 and "is damaged" in says
    code, says = damaged(lambda folder: (folder / ".metadata").write_bytes(b"no pickle"))
    assert code == 65 and "cannot be read" in says

    def outside(found):
        next(iter(found.storage_data.values())).relative_path = "../secret"

    code, says = damaged(index(outside))
    assert code == 77 and "lies outside the folder" in says

    def wide(found):
        found.state_dict_metadata["decoder.layers.extra.weight"] = found.state_dict_metadata["output_layer.weight"]
        found.state_dict_metadata["decoder.layers.extra.weight"].chunks.clear()

    code, says = damaged(index(wide))
    assert code == 78 and "decoder.layers.extra.weight has no place" in says


def test_what_has_no_place_is_refused(models, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(models / "qwen3", model)
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"model.layers.0.mlp.extra.weight": torch.zeros(2)}, model / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"model\.layers\.0\.mlp\.extra\.weight has no place"):
        merge(model, tmp_path / "there", to="mcore")
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace('"qwen3"', '"gemma2"'))
    with pytest.raises(ConfigError, match="gemma2 models have no Megatron layout here"):
        merge(model, tmp_path / "there", to="mcore")
    with pytest.raises(ConfigError, match="weights are converted as they are"):
        merge(models / "qwen3", tmp_path / "there", to="mcore", dtype="bfloat16")


MEGATRON = Path(__file__).parents[3] / ".cache" / "rivals" / "mcore"


@pytest.mark.slow
@pytest.mark.skipif(not MEGATRON.is_dir(), reason="megatron-core is not there (make rivals)")
@pytest.mark.parametrize(
    ("family", "split"),
    [
        ("llama", (2, 1, 1)),
        ("qwen3-tied", (1, 2, 1)),
        ("qwen3-moe", (1, 1, 2)),
        ("qwen3", (2, 2, 1)),
    ],
)
def test_megatron_loads_it_computes_the_same_and_saves_what_we_read(models, tmp_path, family, split):
    """HF -> checkpoint, loaded by megatron-core under a split: logits to 1e-4; saved by it, and back: equal bytes."""
    merge(models / family, tmp_path / "there", to="mcore", parity="off")
    (tmp_path / "saved").mkdir()
    argv = [sys.executable, str(Path(__file__).with_name("megatron_peer.py")), str(tmp_path / "there" / "release")]
    argv += [str(models / family), str(tmp_path / "saved"), *map(str, split)]
    num_ranks = split[0] * split[1] * split[2]
    common = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"PYTHONPATH": str(MEGATRON), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            argv, env=os.environ | common | {"RANK": str(n)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for n in range(num_ranks)
    ]
    said = [rank.communicate(timeout=280) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * num_ranks, said[0][1][-2000:]
    found = [line.split() for out, _ in said for line in out.splitlines() if line.startswith("DIFFERENCE")]
    assert found and all(float(number) <= 1e-4 for _, number, *_ in found), found
    given = {"parts": [str(tmp_path / "saved")], "model": [str(models / family)]}
    run_stage(STAGE, Merge(), given, tmp_path / "back", Options(threads=1))
    a, b = (load_file(path / "model.safetensors") for path in (models / family, tmp_path / "back"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
