"""Rows with pictures: the ids of each family's own processor, where a picture's tokens lie, and what is refused."""

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import media_models
import pytest

from postmill.io.errors import ArtifactError
from postmill.io.ledger import read_ledger
from postmill.io.manifest import load_artifact
from postmill.io.media import Medium
from postmill.io.schemas import TOKENS_V1, with_media
from postmill.io.table import TableReader
from postmill.stages.runner import Options, run_stage
from postmill.stages.tokenize.config import STAGE, Tokenize

pytest.importorskip("torchvision")
pytest.importorskip("num2words")


def tokenize(out: Path, data: Path, model: Path, **config: Any) -> list[dict[str, Any]]:
    """Rows of the tokens that `data` becomes."""
    run_stage(STAGE, Tokenize(**config), {"data": [str(data)], "model": [str(model)]}, out, Options())
    table = TableReader(out / "tokens.arrow", with_media(TOKENS_V1))
    return [row for batch in table for row in batch.to_pylist()]


SIZES = [(640, 427), (1, 1), (30, 30), (1000, 60), (57, 900), (336, 336), (448, 448), (1921, 1080), (13, 15)]


def conversations(folder: Path, one_turn: bool) -> list[tuple[list[dict[str, Any]], list[str]]]:
    """Rows in Hugging Face's form, with one to three pictures and awkward texts beside them."""
    texts = ["What is this?", "he saw\n\n", " in.\n", "\n", "Ünïcode: 图", "a.\n\n\nhe"]
    rows = []
    for number, (width, height) in enumerate(SIZES):
        file = media_models.save_picture(folder / f"{width}x{height}.png", width, height)
        user = [{"type": "image"}, {"type": "text", "text": texts[number % len(texts)]}]
        messages = [
            {"role": "user", "content": user},
            {"role": "assistant", "content": [{"type": "text", "text": f"{texts[-1 - number % 6]}A"}]},
        ]
        files = [str(file)]
        if not one_turn and number % 2:
            more = media_models.save_picture(folder / f"more{number}.jpg", 50 + 40 * number, 61)
            user = [{"type": "text", "text": "Compare:"}, {"type": "image"}, {"type": "image"}]
            messages += [
                {"role": "user", "content": user},
                {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            ]
            files += [str(more), str(file)]
        rows.append((messages, files))
    return rows


def processor_ids(processor: Any, name: str, messages: list[dict[str, Any]], files: list[str]) -> list[int]:
    from PIL import Image

    pictures = [Image.open(file).convert("RGB") for file in files]
    if name == "paligemma":
        question, answer = (message["content"][-1]["text"] for message in messages)
        made = processor(images=pictures, text=f"<image>{question}", suffix=answer)
        return list(made["input_ids"][0])
    pairs = iter(pictures)
    filled = [
        message
        | {
            "content": [
                part | {"image": next(pairs)} if part["type"] == "image" else part for part in message["content"]
            ]
        }
        for message in messages
    ]
    options = {"images_kwargs": {"do_convert_rgb": True}}
    made = processor.apply_chat_template(filled, tokenize=True, return_dict=True, processor_kwargs=options)
    return list(made["input_ids"][0])


@pytest.mark.parametrize("name", media_models.FAMILIES)
def test_ids_are_those_of_the_processor(name: str, tmp_path: Path) -> None:
    processor = media_models.save_processor(tmp_path / "model", name)
    chats = conversations(tmp_path / "data", name == "paligemma")
    if name in ("internvl", "llava_next", "llava_onevision", "idefics3", "smolvlm"):
        chats = [chat for chat in chats if "1x1" not in chat[1][0]]  # their own resizing fails on it
    rows = [{"messages": messages, "images": [Path(file).name for file in files]} for messages, files in chats]
    data = media_models.write_lines(tmp_path / "data" / "rows.jsonl", rows)
    found = tokenize(tmp_path / "tokens", data, tmp_path / "model")
    assert len(found) == len(chats)
    for row, (messages, files) in zip(found, chats, strict=True):
        assert row["input_ids"] == processor_ids(processor, name, messages, files), files
        assert [media["reference"] for media in row["media"]] == [Path(file).name for file in files]
        feature = max(set(row["input_ids"]), key=row["input_ids"].count)
        if name == "pixtral":  # of a picture of one pixel it has one
            feature = processor.image_token_id
        for media in row["media"]:
            inside = row["input_ids"][media["start"] : media["end"]]
            assert inside.count(feature) == media["features"] > 0
        outside = sum(media["features"] for media in row["media"])
        assert row["input_ids"].count(feature) == outside
        covered = {at for media in row["media"] for at in range(media["start"], media["end"])}
        assert not covered & {at for span in row["spans"] for at in range(span["start"], span["end"])}
        assert row["trained_tokens"] > 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    media_models.save_processor(folder, "qwen2_5_vl")
    return folder


def asks(*pictures: Any, text: str = "<image>what is it?", **columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "a cat"}]
    return {"messages": messages, "images": list(pictures)} | columns


def test_a_picture_may_be_a_path_bytes_or_a_data_uri(model: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = media_models.picture_bytes(100, 60)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(content)
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    part = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "what is it?"}],
    }
    anthropic = {
        "role": "user",
        "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": uri.partition(",")[2]}},
            {"type": "text", "text": "what is it?"},
        ],
    }
    named = {
        "role": "user",
        "content": [{"type": "image", "image": "sub/a.png"}, {"type": "text", "text": "what is it?"}],
    }
    answer = {"role": "assistant", "content": "a cat"}
    rows = [
        asks("sub/a.png"),
        asks(str(tmp_path / "sub" / "a.png")),
        asks(uri),
        {"query": "<image>what is it?", "response": "a cat", "image": "sub/a.png"},
        {"messages": [part, answer]},
        {"messages": [anthropic, answer]},
        {"messages": [named, answer]},
    ]
    found = tokenize(tmp_path / "t", media_models.write_lines(tmp_path / "rows.jsonl", rows), model)
    table = pa.table(
        {"query": ["<image>what is it?"], "response": ["a cat"], "images": [[{"bytes": content, "path": "x.png"}]]}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    found += tokenize(tmp_path / "p", tmp_path / "rows.parquet", model)
    assert len(found) == 8
    for row in found:
        assert row["input_ids"] == found[0]["input_ids"]
        [media] = row["media"]
        same = ("start", "end", "features", "width", "height", "digest", "patches", "format")
        assert {name: media[name] for name in same} == {name: found[0]["media"][0][name] for name in same}
    kept = [row["media"][0] for row in found]
    assert [item["content"] == content for item in kept] == [item["reference"] is None for item in kept]
    assert [item["reference"] for item in kept[:2]] == ["sub/a.png", str(tmp_path / "sub" / "a.png")]


def bad_pictures(folder: Path) -> dict[str, str]:
    """Files that cannot be used, with the reason in the ledger."""
    from PIL import Image

    png, jpeg = media_models.picture_bytes(90, 70), media_models.picture_bytes(90, 70, "JPEG")
    animated = io.BytesIO()
    frames = [media_models.picture(30, 30, seed) for seed in range(2)]
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    deep = io.BytesIO()
    Image.new("I;16", (20, 20)).save(deep, "PNG")
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb += b"\0\0\0\0" + struct.pack(">I", 0) + b"IEND\0\0\0\0"
    nothing = bomb[:16] + struct.pack(">II", 0, 5) + bomb[24:]
    files = {
        "cut.png": (png[: len(png) // 2], "media_truncated"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "media_truncated"),
        "head.jpg": (jpeg[:11], "media_truncated"),
        "cut.bmp": (media_models.picture_bytes(90, 70, "BMP")[:500], "media_truncated"),
        "cut.webp": (media_models.picture_bytes(90, 70, "WEBP")[:-20], "media_truncated"),
        "cut.gif": (media_models.picture_bytes(90, 70, "GIF")[:-3], "media_truncated"),
        "text.png": (b"this is no picture", "media_broken"),
        "empty.png": (b"", "media_empty"),
        "nothing.png": (nothing, "media_empty"),
        "bomb.png": (bomb, "media_too_large"),
        "animated.gif": (animated.getvalue(), "media_format"),
        "deep.png": (deep.getvalue(), "media_format"),
        "long.png": (media_models.picture_bytes(900, 4), "media_size"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    return {name: reason for name, (_, reason) in files.items()}


def test_each_bad_picture_is_one_line_of_the_ledger(model: Path, tmp_path: Path) -> None:
    reasons = bad_pictures(tmp_path) | {
        "absent.png": "media_missing",
        "/etc/passwd": "media_refused",
        "https://example.com/a.png": "media_refused",
        "data:image/png;base64,%%%": "media_broken",
    }
    media_models.save_picture(tmp_path / "good.png", 64, 64)
    outside = tmp_path.parent / "outside.png"
    media_models.save_picture(outside, 64, 64)
    (tmp_path / "link.png").symlink_to(outside)
    reasons["link.png"] = "media_refused"
    special = {
        "media_tags": [
            asks("good.png", "good.png"),
            asks("good.png", text="no tag"),
            asks(text="<image>", images=["good.png"] * 2),
        ],
        "media_token_in_text": [asks("good.png", text="<image><|image_pad|>")],
        "media_format": [asks("good.png", text="<image><video>", videos=["a.mp4"])],
        "media": [asks("good.png", audios=["a.wav"])],
    }
    rows = [asks(name) for name in reasons] + [asks("good.png")]
    expected = [*reasons.values()]
    for reason, more in special.items():
        rows += more
        expected += [reason] * len(more)
    data = media_models.write_lines(tmp_path / "rows.jsonl", rows)
    [kept] = tokenize(tmp_path / "out", data, model, on_bad_row="skip")
    assert kept["media"][0]["reference"] == "good.png"
    ledger = read_ledger(tmp_path / "out")
    assert [line["reason"] for line in ledger.to_pylist()] == expected
    counts = load_artifact(tmp_path / "out").manifest.counts
    assert counts is not None and counts.is_balanced() and counts.rows_in == len(rows)
    for name, reason in reasons.items():
        one = media_models.write_lines(tmp_path / "one.jsonl", [asks(name)])
        with pytest.raises(ArtifactError, match=r"one.jsonl:1: \$.messages\[0\].content\[0\]: ") as refused:
            tokenize(tmp_path / "one", one, model)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 300, reason


def test_a_folder_may_be_allowed(model: Path, tmp_path: Path) -> None:
    media_models.save_picture(tmp_path / "elsewhere" / "a.png", 64, 64)
    (tmp_path / "data").mkdir()
    data = media_models.write_lines(
        tmp_path / "data" / "rows.jsonl", [asks("a.png"), asks(str(tmp_path / "elsewhere" / "a.png"))]
    )
    with pytest.raises(ArtifactError, match="no such file"):
        tokenize(tmp_path / "out", data, model)
    rows = tokenize(tmp_path / "out", data, model, media_root=[str(tmp_path / "elsewhere")])
    assert rows[0]["input_ids"] == rows[1]["input_ids"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_counted_upright(orientation: int, model: Path, tmp_path: Path) -> None:
    from PIL import Image

    for ending in ("jpg", "png", "webp"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        media_models.picture(200, 60).save(tmp_path / f"a.{ending}", exif=exif)
    data = media_models.write_lines(tmp_path / "rows.jsonl", [asks(f"a.{ending}") for ending in ("jpg", "png", "webp")])
    for row in tokenize(tmp_path / "out", data, model):
        [media] = row["media"]
        size = (media["width"], media["height"])
        assert size == ((60, 200) if orientation > 4 else (200, 60)) and media["orientation"] == orientation


def test_a_cut_never_goes_through_a_picture(model: Path, tmp_path: Path) -> None:
    media_models.save_picture(tmp_path / "a.png", 300, 200)
    rows = [
        asks("a.png"),
        asks("a.png", text="<image>" + "x" * 400),
        asks("a.png", text="y" * 400 + "<image>"),
        {"messages": asks(text="z" * 500)["messages"]},
    ]
    data = media_models.write_lines(tmp_path / "rows.jsonl", rows)
    whole = tokenize(tmp_path / "whole", data, model)
    features = whole[0]["media"][0]["features"]
    assert features == 77
    for truncation in ("left", "right"):
        for limit in range(70, 300, 23):
            kept = tokenize(
                tmp_path / f"{truncation}{limit}",
                data,
                model,
                max_length=limit,
                truncation=truncation,
                loss_scale="all",
            )
            for row in kept:
                pad = row["input_ids"].count(whole[0]["input_ids"][whole[0]["media"][0]["start"]])
                assert pad == sum(media["features"] for media in row["media"])
                for media in row["media"]:
                    assert set(row["input_ids"][media["start"] : media["end"]]) == {row["input_ids"][media["start"]]}
            counts = load_artifact(tmp_path / f"{truncation}{limit}").manifest.counts
            assert counts is not None and counts.is_balanced()


def test_a_picture_that_the_template_does_not_write_is_refused(model: Path, tmp_path: Path) -> None:
    media_models.save_picture(tmp_path / "a.png", 30, 30)
    data = media_models.write_lines(tmp_path / "rows.jsonl", [asks("a.png")])
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}<|im_end|>{% endfor %}")
    inputs = {"data": [str(data)], "model": [str(model)], "template": [str(template)]}
    with pytest.raises(ArtifactError, match="writes 0 times"):
        run_stage(STAGE, Tokenize(), inputs, tmp_path / "out", Options())


def test_models_of_text_write_what_they_wrote(tmp_path: Path) -> None:
    """No column more, and pictures are refused with a remedy."""
    import tiny_tokenizer

    folder = tiny_tokenizer.write_tokenizer(tmp_path / "model")
    data = media_models.write_lines(tmp_path / "rows.jsonl", [{"query": "<image> is text", "response": "b"}])
    run_stage(STAGE, Tokenize(), {"data": [str(data)], "model": [str(folder)]}, tmp_path / "out", Options())
    assert TableReader(tmp_path / "out" / "tokens.arrow").schema == TOKENS_V1
    media_models.write_lines(data, [asks("a.png")])
    with pytest.raises(ArtifactError, match="the model reads none; give one that does with -m"):
        run_stage(STAGE, Tokenize(), {"data": [str(data)], "model": [str(folder)]}, tmp_path / "out2", Options())


def test_a_file_that_changed_makes_rows_stale(model: Path, tmp_path: Path) -> None:
    """The content key is that of the rows, which name files; what these hold is looked at as well."""
    folder = tmp_path / "pictures"
    media_models.save_picture(folder / "a.png", 120, 80)
    data = media_models.write_lines(folder / "rows.jsonl", [asks("a.png"), asks("a.png")])
    inputs = {"data": [str(data)], "model": [str(model)]}
    out = tmp_path / "out"
    first = run_stage(STAGE, Tokenize(), inputs, out, Options())
    assert run_stage(STAGE, Tokenize(), inputs, out, Options()).status == "up-to-date"
    media_models.save_picture(folder / "a.png", 300, 200)
    with pytest.raises(
        ArtifactError, match=r"a\.png: is another picture than when the rows were made\); .*--replace"
    ) as e:
        run_stage(STAGE, Tokenize(), inputs, out, Options())
    assert e.value.code == 73
    again = run_stage(STAGE, Tokenize(), inputs, out, Options(replace=True))
    assert again.status == "done" and again.manifest.key == first.manifest.key
    assert again.manifest.digest() != first.manifest.digest()
    assert run_stage(STAGE, Tokenize(), inputs, out, Options(replace=True)).status == "up-to-date"
    (folder / "a.png").unlink()
    with pytest.raises(ArtifactError, match=r"a\.png: a picture of the rows cannot be read"):
        run_stage(STAGE, Tokenize(), inputs, out, Options())


def test_files_older_than_the_rows_are_not_read_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media_models.save_picture(tmp_path / "a.png", 120, 80)
    data = media_models.write_lines(tmp_path / "rows.jsonl", [asks("a.png")])
    tokenize(tmp_path / "out", data, model)
    side = tmp_path / "out" / "run.json"
    monkeypatch.setattr(Medium, "load", lambda medium: pytest.fail("was read"))
    side.write_text(json.dumps(json.loads(side.read_text()) | {"finished": "2999-01-01T00:00:00Z"}))
    tokenize(tmp_path / "out", data, model)


def test_weighing_again_keeps_pictures_and_gives_them_no_weight(model: Path, tmp_path: Path) -> None:
    media_models.save_picture(tmp_path / "a.png", 120, 80)
    data = media_models.write_lines(tmp_path / "rows.jsonl", [asks("a.png"), {"query": "q", "response": "r"}])
    tokenize(tmp_path / "default", data, model)
    again = tokenize(tmp_path / "again", tmp_path / "default", model, loss_scale="all")
    assert again == tokenize(tmp_path / "all", data, model, loss_scale="all")
    [media] = again[0]["media"]
    weighed = {at for span in again[0]["spans"] for at in range(span["start"], span["end"])}
    assert weighed == set(range(again[0]["length"])) - set(range(media["start"], media["end"]))
