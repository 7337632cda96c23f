"""Pictures, sounds and videos that nobody can learn from, and references that nobody should follow. Made by code."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import media_models
import tiny_audio


class Bad(NamedTuple):
    """A file, and what must be said of it."""

    content: bytes
    reason: str
    """Of the ledger. `decode`: its header is a good one, and whoever decodes it finds the damage behind that."""


def chunk(name: bytes, data: bytes, length: int | None = None) -> bytes:
    """A chunk of a PNG, whose length may be a lie."""
    size = len(data) if length is None else length
    return struct.pack(">I", size) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int = 8,
    height: int = 8,
    depth: int = 8,
    colour: int = 0,
    *,
    more: bytes = b"",
    data: bytes | None = None,
    form: bytes = b"\0\0\0",
) -> bytes:
    """A PNG of grey zeros; with chunks `more` before its data."""
    header = struct.pack(">IIBB", width, height, depth, colour) + form
    data = zlib.compress(b"\0" * (width + 1) * height) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deflated_zeros(megabytes: int) -> bytes:
    """Many zeros in few bytes."""
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(megabytes)), packer.flush()])


def picture(form: str, mode: str = "RGB", **save: Any) -> bytes:
    """A good one of 90 by 70 pixels."""
    out = io.BytesIO()
    media_models.picture(90, 70).convert(mode).save(out, form, **save)
    return out.getvalue()


def animated(form: str) -> bytes:
    """Of two frames."""
    out = io.BytesIO()
    first, second = (media_models.picture(30, 30, seed) for seed in range(2))
    first.save(out, form, save_all=True, append_images=[second])
    return out.getvalue()


def patched(content: bytes, at: int, value: bytes) -> bytes:
    """`content` with other bytes at a place."""
    return content[:at] + value + content[at + len(value) :]


def jpeg(**fields: bytes) -> bytes:
    """A JPEG whose frame header says something else. fields: precision, height, width, parts."""
    content = picture("JPEG")
    at = content.index(b"\xff\xc0") + 4
    places = {"precision": 0, "height": 1, "width": 3, "parts": 5}
    for name, value in fields.items():
        content = patched(content, at + places[name], value)
    return content


def bmp(width: int, height: int, bits: int = 24, compression: int = 0, data: bytes = b"", start: int = 54) -> bytes:
    """A BMP of these fields."""
    about = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, start) + about + data


def webp(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """A WebP of these chunks, whose size may be a lie."""
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def gif(blocks: bytes, width: int = 8, height: int = 8) -> bytes:
    """A GIF of these blocks."""
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + blocks


PACKED = (b"fLaC", b"OggS", b"ID3")
"""How sounds begin that `tokenize` does not read, and others only with the package soundfile."""
DECODABLE = ("png cut at 596", "900 by 4", "a sample", "an hour of sound")
"""Files that are whole enough to be decoded, or bad for a model alone."""
GIF_FRAME = b"\x2c" + struct.pack("<HHHHB", 0, 0, 8, 8, 0)
VP8X_HUGE = b"\0\0\0\0" + b"\xff\x3f\0" * 2
"""16,384 by 16,384 pixels."""


def pictures() -> dict[str, Bad]:
    """Files that are given as pictures."""
    whole = {form: picture(form) for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP")}
    cuts = {
        f"{form.lower()} cut at {end}": Bad(content[:end], "media_truncated")
        for form, content in whole.items()
        for end in (20, len(content) // 2, len(content) - 9)
    }
    cuts["webp cut at 20"] = Bad(whole["WEBP"][:20], "media_truncated")
    bomb = deflated_zeros(300)
    other = {
        "text": b"this is no picture",
        "html": b"<!doctype html><title>404</title>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "pdf": b"%PDF-1.7\n1 0 obj\n",
        "zip": b"PK\x03\x04" + bytes(40),
        "gzip": b"\x1f\x8b\x08" + bytes(40),
        "program": b"\x7fELF" + bytes(60),
        "zeros": bytes(4096),
        "icon": b"\0\0\1\0\1\0" + bytes(40),
        "tiff": picture("TIFF"),
        "heic": b"\0\0\0\x18ftypheic" + bytes(60),
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(60),
        "wav": tiny_audio.wav_bytes(tiny_audio.samples(400)),
        "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        "png without a header": b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "jpeg of noise": b"\xff\xd8" + b"noise" * 9,
        "jpeg without a size": b"\xff\xd8\xff\xda\0\2\xff\xd9",
        "gif without a frame": gif(b"\x3b"),
        "gif of noise": gif(b"\x99\x99"),
        "webp without a picture": webp((b"ICCP", b"abcd")),
    }
    return (
        cuts
        | {name: Bad(content, "media_broken") for name, content in other.items()}
        | {
            "empty": Bad(b"", "media_empty"),
            "png 0 wide": Bad(png(0, 5), "media_empty"),
            "jpeg 0 high": Bad(jpeg(height=b"\0\0"), "media_empty"),
            "bmp 0 high": Bad(bmp(5, 0), "media_empty"),
            "gif 0 wide": Bad(gif(GIF_FRAME + b"\2\1\0\0\x3b", 0, 8), "media_empty"),
            "png of 30000 x 30000": Bad(png(30000, 30000, data=b""), "media_too_large"),
            "small png that fills a GiB": Bad(png(12000, 14000, colour=6, data=b""), "media_too_large"),
            "png of 2 billion squared": Bad(png(2**31 - 1, 2**31 - 1, data=b""), "media_too_large"),
            "jpeg of 65500 x 65500": Bad(jpeg(height=b"\xff\xdc", width=b"\xff\xdc"), "media_too_large"),
            "gif of 65535 x 65535": Bad(gif(GIF_FRAME + b"\2\1\0\0\x3b", 65535, 65535), "media_too_large"),
            "webp of 16384 x 16384": Bad(webp((b"VP8X", VP8X_HUGE), (b"VP8 ", bytes(20))), "media_too_large"),
            "bmp packed, of 20000 x 20000": Bad(bmp(20000, -20000, 8, 1, b"\0\1"), "media_too_large"),
            "png of 16 bits": Bad(picture("PNG", "I;16"), "media_format"),
            "png of 16 bits and colours": Bad(png(8, 8, 16, 2), "media_format"),
            "animated png": Bad(animated("PNG"), "media_format"),
            "animated gif": Bad(animated("GIF"), "media_format"),
            "animated webp": Bad(animated("WEBP"), "media_format"),
            "900 by 4": Bad(media_models.picture_bytes(900, 4), "media_size"),
            "png chunk of 4 GB": Bad(png(more=chunk(b"tEXt", b"a", 2**32 - 1)), "media_truncated"),
            "jpeg segment of 0 bytes": Bad(whole["JPEG"][:2] + b"\xff\xe0\0\0", "media_truncated"),
            "webp that lies about its size": Bad(webp((b"VP8 ", bytes(20)), size=2**32 - 1), "media_truncated"),
            # good headers
            "png of a depth that is none": Bad(png(8, 8, 3), "decode"),
            "png of a colour that is none": Bad(png(8, 8, 8, 5), "decode"),
            "png of noise": Bad(png(data=b"noise"), "decode"),
            "png without data": Bad(png(data=b""), "decode"),
            "png of half its data": Bad(png(64, 64, data=zlib.compress(bytes(65 * 64))[:-12]), "decode"),
            "png with a wrong checksum": Bad(patched(whole["PNG"], 29, b"\0\0\0\0"), "decode"),
            "png with a text of 300 MB": Bad(png(more=chunk(b"zTXt", b"a\0\0" + bomb)), "decode"),
            "png with a profile of 300 MB": Bad(png(more=chunk(b"iCCP", b"a\0\0" + bomb)), "decode"),
            "jpeg of 12 bits": Bad(jpeg(precision=b"\x0c"), "decode"),
            "jpeg of 9 colours": Bad(jpeg(parts=b"\x09"), "decode"),
            "jpeg without data": Bad(
                b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0\xff\xd9", "decode"
            ),
            "gif of noise in a frame": Bad(gif(GIF_FRAME + b"\x0d\4\xff\xff\xff\xff\0\x3b"), "decode"),
            "webp of zeros": Bad(webp((b"VP8 ", bytes(6) + b"\x08\0\x08\0" + bytes(20))), "decode"),
            "bmp of 7 bits": Bad(bmp(8, 8, 7, data=bytes(400)), "decode"),
            "bmp of an unknown packing": Bad(bmp(8, 8, 24, 77, bytes(400)), "decode"),
        }
    )


def sounds() -> dict[str, Bad]:
    """Files that are given as sounds to a model that hears two seconds."""
    whole = tiny_audio.wav_bytes(tiny_audio.samples(8000))
    cuts = {f"wav cut at {end}": Bad(whole[:end], "media_truncated") for end in (12, 30, 43, 44, len(whole) - 1)}
    forms = {"flac": b"fLaC", "ogg": b"OggS", "mp3": b"ID3\4", "mp4": b"\0\0\0\x18ftypM4A ", "rf64": b"RF64"}
    return (
        cuts
        | {f"{name} to tokenize": Bad(start + bytes(60), "media_format") for name, start in forms.items()}
        | {
            "empty sound": Bad(b"", "media_empty"),
            "wav without samples": Bad(tiny_audio.wav_bytes(tiny_audio.samples(0)), "media_empty"),
            "text as a sound": Bad(b"good morning", "media_broken"),
            "picture as a sound": Bad(media_models.picture_bytes(9, 9), "media_broken"),
            "wav of no channels": Bad(patched(whole, 22, b"\0\0"), "media_broken"),
            "wav of 4 billion samples a second": Bad(patched(whole, 24, b"\xff" * 4), "media_broken"),
            "wav of 0 samples a second": Bad(patched(whole, 24, bytes(4)), "media_broken"),
            "wav of blocks that do not fit": Bad(patched(whole, 32, b"\7\0"), "media_broken"),
            "wav with samples before their form": Bad(whole[:12] + whole[36:], "media_broken"),
            "wav of 12 bits": Bad(patched(whole, 34, b"\x0c\0"), "media_format"),
            "wav of a-law": Bad(patched(whole, 20, b"\6\0"), "media_format"),
            "wav of an unsaid length": Bad(patched(whole, 40, b"\xff" * 4), "media_format"),
            "wav of 4 GB, it says": Bad(patched(whole, 40, b"\xfe\xff\xff\xff"), "media_truncated"),
            "a sample": Bad(tiny_audio.wav_bytes(tiny_audio.samples(1)), "media_too_short"),
            "an hour of sound": Bad(tiny_audio.wav_bytes(tiny_audio.samples(40_000)), "media_too_long"),
        }
    )


def make_traps(folder: Path, outside: Path) -> None:
    """Links, a folder, a pipe, a socket and a large file below `folder`."""
    (folder / "to-outside.png").symlink_to(outside)
    (folder / "to-zero.png").symlink_to("/dev/zero")
    (folder / "loop-a.png").symlink_to(folder / "loop-b.png")
    (folder / "loop-b.png").symlink_to(folder / "loop-a.png")
    (folder / "to-nothing.png").symlink_to(folder / "nothing.png")
    (folder / "up").symlink_to(outside.parent, target_is_directory=True)
    (folder / "a-folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket has 107 bytes at most
        listener.bind("socket.png")
        os.chdir(here)
    (folder / "large.png").touch()
    os.truncate(folder / "large.png", 300 << 20)


def references(outside: Path, port: int) -> dict[str, tuple[Any, str]]:
    """What a row may say instead of a picture below the folder of `make_traps`, and the reason why it is refused.

    outside: a picture elsewhere. port: of a server here that nobody may ask.
    """
    server = f"127.0.0.1:{port}/a.png"
    refused = {
        "a file by its address": f"file://{outside}",
        "a file, in capitals": f"FILE://{outside}",
        "passwords": "/etc/passwd",
        "up and out": f"../{outside.parent.name}/{outside.name}",
        "down, up and out": f"a-folder.png/../../{outside.parent.name}/{outside.name}",
        "a link out": "to-outside.png",
        "a link to a folder out": f"up/{outside.name}",
        "a link to a device": "to-zero.png",
        "a device": "/dev/zero",
        "the environment": "/proc/self/environ",
        "an address here": f"http://{server}",
        "an address here by name": f"http://localhost:{port}/a.png",
        "an address here in version 6": f"http://[::1]:{port}/a.png",
        "an address here as a number": f"http://2130706433:{port}/a.png",
        "an address here in octal": f"http://0177.0.0.1:{port}/a.png",
        "an address here of another": f"http://good.example@{server}",
        "an address in capitals": f"HTTP://{server}",
        "an address that sends one here": f"http://127.0.0.1:{port}/redirect",
        "a cloud's secrets": "http://169.254.169.254/latest/meta-data/",
        "an address with a secret": f"https://user:secret@{server}",
        "ftp": f"ftp://{server}",
        "gopher": f"gopher://{server}",
        "a bucket": "s3://bucket/a.png",
        "a part with an address": {"url": f"http://{server}"},
        "a script": "javascript://alert(1)",
    }
    missing = {
        "a file of this host": f"file://localhost{outside}",
        "no such file": "nothing.png",
        "an address without a scheme": f"//{server}",
        "a share": rf"\\127.0.0.1\{port}\a.png",
        "a home": "~/a.png",
        "links in a circle": "loop-a.png",
        "a link to nothing": "to-nothing.png",
        "a folder": "a-folder.png",
        "a socket": "socket.png",
        "a pipe that nobody writes to": "pipe.png",
        "a name of 300 letters": "a" * 300 + ".png",
        "a name of 100,000 letters": "a/" * 50_000,
        "a name with a zero": "a\0.png",
        "a name that moves the cursor": "a\x1b[2J\n\rpostmill: done.png",
    }
    rest = {
        "a picture of 300 MB": ("large.png", "media_too_large"),
        "data that is no base64": ("data:image/png;base64,%%%", "media_broken"),
        "data without an encoding": ("data:image/png,abc", "media_broken"),
        "data without data": ("data:image/png;base64", "media_broken"),
        "data of nothing": ("data:image/png;base64,", "media_empty"),
        "a number": (7, "media"),
        "a part with nothing": ({"url": None}, "media"),
        "a part in a part": ({"image": {"image": {"image": "a.png"}}}, "media"),
    }
    return (
        {name: (reference, "media_refused") for name, reference in refused.items()}
        | {name: (reference, "media_missing") for name, reference in missing.items()}
        | rest
    )
