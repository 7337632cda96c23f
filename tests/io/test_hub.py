"""Models and data sets of both hubs, through the hubs' real clients, from a hub on loopback that can fail."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import commands
import fake_hub
import numpy as np
import pytest
from fake_hub import COMMIT, Hub
from safetensors.numpy import save_file

pytest.importorskip("huggingface_hub")
pytest.importorskip("modelscope_hub")

MODEL = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "merges.txt"}
TOKENIZER = {"tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"}


def write_repository(folder: Path) -> None:
    """A model as they lie on hubs: with code, pickles, other formats and a copy of its weights in another layout."""
    folder.mkdir(parents=True)
    for name, text in {
        "config.json": '{"architectures": ["LlamaForCausalLM"], "vocab_size": 4}',
        "tokenizer.json": '{"added_tokens": []}',
        "chat_template.jinja": "{{ messages }}",
        "merges.txt": "a b",
        "README.md": "# a model",
        "modeling_evil.py": "raise SystemExit(1)",
        "pytorch_model.bin": "a pickle",
        "additional_chat_templates/tool_use.jinja": "{{ tools }}",
        "onnx/model.onnx": "onnx",
        "onnx/config.json": "{}",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    weights = {"w": np.arange(4096, dtype=np.float32)}
    save_file(weights, folder / "model.safetensors")
    save_file(weights, folder / "consolidated.safetensors")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    write_repository(root / "owner" / "tiny")
    (root / "owner" / "pickled").mkdir()
    (root / "owner" / "pickled" / "config.json").write_text("{}")
    (root / "owner" / "pickled" / "pytorch_model.bin").write_text("a pickle")
    return root


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with fake_hub.fake_hub(root) as hub:
        yield hub


def postmill(hub: Hub, home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """A fresh process, since the clients read their endpoints when they are imported."""
    return commands.postmill(*argv, env=hub.environment(home), cwd=home)


def get(hub: Hub, home: Path, *argv: str) -> Path:
    done = postmill(hub, home, "get", *argv)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.removesuffix("\n"))


def fails(hub: Hub, home: Path, code: int, words: str, *argv: str) -> None:
    """The command leaves with the code, and says the words in its one line."""
    done = postmill(hub, home, *argv)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("reference", "commit"),
    [("owner/tiny", COMMIT), ("hf:owner/tiny@v1", COMMIT), ("ms:owner/tiny", "master"), ("ms::owner/tiny@v1", "v1")],
)
def test_only_the_model_is_fetched_and_once(reference: str, commit: str, hub: Hub, root: Path, tmp_path: Path) -> None:
    folder = get(hub, tmp_path, reference)
    assert names(folder) == MODEL | TOKENIZER
    for name in MODEL:
        assert (folder / name).read_bytes() == (root / "owner" / "tiny" / name).read_bytes()
    assert not any(word in request for request in hub.requests for word in (".py", ".bin", "onnx", "consolidated"))
    again = postmill(hub, tmp_path, "get", reference)
    assert again.stdout == f"{folder}\n"
    assert again.stderr == f"get: {'ms' if reference.startswith('ms') else 'hf'}:owner/tiny@{commit}\n"
    large = hub.asked("GET", "model.safetensors")
    assert len([request for request in large if "/cdn/" in request or "FilePath" in request]) == 1


def test_a_copy_is_a_plain_folder_and_whole(hub: Hub, root: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time it is there
        assert get(hub, tmp_path, "owner/tiny", "-o", "base") == Path("base")
    assert names(tmp_path / "base") == MODEL | TOKENIZER
    assert not any(path.is_symlink() for path in (tmp_path / "base").rglob("*"))
    (tmp_path / "base" / "merges.txt").write_text("other")
    fails(hub, tmp_path, 73, "base: exists and is another model; choose another -o", "get", "owner/tiny", "-o", "base")


def test_a_commit_that_is_cached_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    folder = get(hub, tmp_path, f"owner/tiny@{COMMIT}")
    hub.requests.clear()
    assert get(hub, tmp_path, f"owner/tiny@{COMMIT}") == folder
    assert hub.requests == []


@pytest.mark.parametrize("reference", ["owner/tiny", "owner/tiny@v1", "ms:owner/tiny"])
def test_offline(reference: str, hub: Hub, tmp_path: Path) -> None:
    shown = reference if reference.startswith("ms:") else f"hf:{reference}"
    remedy = f"{shown}: not in the cache, and this run is offline; fetch it first: postmill get {shown}"
    fails(hub, tmp_path, 66, remedy, "get", reference, "--offline")
    folder = get(hub, tmp_path, reference)
    hub.requests.clear()
    assert get(hub, tmp_path, reference, "--offline") == folder
    assert hub.requests == []
    weights = folder / "model.safetensors"
    weights.unlink()
    fails(hub, tmp_path, 66, "", "get", reference, "--offline")


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("owner/none", 66, "hf:owner/none: no such model on Hugging Face, or it is private; check the name, or log in"),
        (
            "ms:owner/none",
            66,
            "ms:owner/none: no such model on ModelScope, or it is private; check the name, or log in",
        ),
        ("owner/tiny@v9", 66, "hf:owner/tiny@v9: no such revision"),
        ("owner/pickled", 77, "pytorch_model.bin: pickled weights can run code, so they are refused"),
        ("ms:owner/pickled", 77, "pytorch_model.bin: pickled weights can run code, so they are refused"),
        ("hf:../../etc", 2, "hf:../../etc: expected an id like hf:owner/name"),
        ("hf:owner/tiny@../v1", 2, "expected an id like hf:owner/name or hf:owner/name@revision"),
        ("hf:owner/tiny@", 2, "expected an id like"),
        ("ms:owner/..", 2, "expected an id like ms:owner/name"),
    ],
)
def test_what_cannot_be_had_is_one_line(reference: str, code: int, words: str, hub: Hub, tmp_path: Path) -> None:
    fails(hub, tmp_path, code, words, "get", reference)


def test_gated(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("owner/tiny")
    fails(
        hub, tmp_path, 66, "gated; accept its terms at huggingface.co/owner/tiny, then run hf auth", "get", "owner/tiny"
    )
    fails(hub, tmp_path, 66, "private; check the name, or log in with modelscope login", "get", "ms:owner/tiny")


def test_nobody_there(root: Path, tmp_path: Path) -> None:
    with fake_hub.fake_hub(root) as hub:
        pass
    fails(hub, tmp_path, 69, "could not be fetched from Hugging Face", "get", "owner/tiny")
    fails(hub, tmp_path, 69, "or use what was fetched before with --offline", "get", "owner/tiny")


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json"])
@pytest.mark.parametrize("reference", ["owner/tiny", "ms:owner/tiny"])
def test_a_listing_cannot_lead_out(reference: str, name: str, hub: Hub, tmp_path: Path) -> None:
    hub.extra_names = [name]
    fails(hub, tmp_path, 77, "outside the repository; refuse it", "get", reference)
    assert not list(tmp_path.parent.glob("**/evil.json"))


def test_a_commit_cannot_lead_out(hub: Hub, tmp_path: Path) -> None:
    hub.commit = "../../../evil"
    fails(hub, tmp_path, 77, "the hub names the commit '../../../evil', which is none", "get", "owner/tiny")


@pytest.mark.parametrize("reference", ["owner/tiny", "ms:owner/tiny"])
def test_a_broken_transfer_is_made_good(reference: str, hub: Hub, root: Path, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = ["cut"]
    folder = get(hub, tmp_path, reference)
    assert (folder / "model.safetensors").read_bytes() == (root / "owner" / "tiny" / "model.safetensors").read_bytes()
    tries = [request for request in hub.asked("GET", "model.safetensors") if "/resolve/" not in request]
    assert len(tries) == 2
    # Hugging Face's client keeps what it has in pieces of 10 MB, so it begins this small file again
    assert reference == "owner/tiny" or "bytes=82" in tries[1]


@pytest.mark.parametrize("fault", ["short", "500"])
def test_what_does_not_arrive_is_no_model(fault: str, hub: Hub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = [fault] * 9
    fails(hub, tmp_path, 69, "could not be fetched from Hugging Face", "get", "owner/tiny")
    hub.faults.clear()
    get(hub, tmp_path, "owner/tiny")


def test_changed_bytes_are_found(hub: Hub, tmp_path: Path) -> None:
    """By its header where the weights begin, and on ModelScope by the listing's SHA-256, after which it tries again."""
    hub.faults["model.safetensors"] = ["flip"]
    fails(hub, tmp_path, 65, "model.safetensors", "get", "owner/tiny")
    hub.faults["model.safetensors"] = ["flip"]
    get(hub, tmp_path, "ms:owner/tiny")


def test_a_folder_of_the_same_name_wins_and_it_is_said(hub: Hub, root: Path, tmp_path: Path) -> None:
    (tmp_path / "owner").mkdir()
    words = "owner/tiny: no such folder in owner; for the model on Hugging Face write hf:owner/tiny"
    fails(hub, tmp_path, 66, words, "get", "owner/tiny")
    (tmp_path / "owner" / "tiny").symlink_to(root / "owner" / "tiny")
    done = postmill(hub, tmp_path, "get", "owner/tiny")
    assert done.stdout == "owner/tiny\n"
    assert "owner/tiny: the folder here; for the model on Hugging Face write hf:owner/tiny" in done.stderr
    assert hub.requests == []


def test_what_a_cache_holds_beside_the_model_is_not_taken_for_it(hub: Hub, tmp_path: Path) -> None:
    folder = get(hub, tmp_path, "ms:owner/tiny")
    (folder / "model-00002-of-00002.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    fails(hub, tmp_path, 65, "not of ms:owner/tiny; remove this file, then run again", "get", "ms:owner/tiny")


def test_a_stage_names_the_commit_and_a_folder_gives_the_same_work(hub: Hub, root: Path, tmp_path: Path) -> None:
    """Content key, manifest digest and bytes are those of the same model in a folder."""
    import tiny_tokenizer

    base = root / "owner" / "chat"
    tiny_tokenizer.write_tokenizer(base)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"query": "q", "response": "a"}) + "\n")
    found = {}
    for name, model in {"hub": "owner/chat", "folder": str(base)}.items():
        done = postmill(hub, tmp_path, "tokenize", "chats.jsonl", "-m", model, "-o", name, "--json")
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / name / "manifest.json").read_bytes()), json.loads(done.stdout)["digest"]
    (theirs, their_digest), (ours, our_digest) = found["hub"], found["folder"]
    assert theirs["key"] == ours["key"] and their_digest == our_digest
    source = [entry.pop("source", "") for entry in theirs["inputs"]]
    assert source == ["", f"hf:owner/chat@{COMMIT}"]
    assert theirs == ours
    again = postmill(hub, tmp_path, "tokenize", "chats.jsonl", "-m", "owner/chat", "-o", "folder")
    assert "up to date" in again.stderr
    packed = {}
    for name in found:
        done = postmill(hub, tmp_path, "pack", name, "-o", f"{name}-packed", "--row-tokens", "64", "--json")
        packed[name] = json.loads(done.stdout)["digest"]
    assert packed["hub"] == packed["folder"], "what is made from them is the same work, too"
    verified = postmill(hub, tmp_path, "verify", "hub")
    assert verified.returncode == 0, verified.stderr
