"""Pictures in requests, with the official clients: answers are those of transformers' generation."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import media_models
import pytest

httpx2 = pytest.importorskip("httpx2")
openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pytest.importorskip("uvicorn")
pytest.importorskip("torchvision")
pytest.importorskip("num2words")

import tiny_vlm  # noqa: E402
import torch  # noqa: E402
from http_server import Served, serving  # noqa: E402
from tiny_chat import write_chat_model  # noqa: E402


class World:
    """A server, its processor, and what transformers would answer."""

    def __init__(self, folder: Path, served: Served, processor: Any) -> None:
        self.folder, self.url, self.processor = folder, served.url, processor
        self.client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)

    def truth(self, parts: list[Any], count: int = 6) -> tuple[str, int]:
        """The text of the greedy answer to a text or picture after another, and the length of the prompt."""
        from transformers import AutoModelForMultimodalLM

        net = AutoModelForMultimodalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ]
        made = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        length = made["input_ids"].shape[1]
        with torch.no_grad():
            ids = net.generate(**made, max_new_tokens=count, do_sample=False, eos_token_id=-1)[0, length:].tolist()
        end = self.processor.tokenizer.eos_token_id
        ids = ids[: ids.index(end)] if end in ids else ids
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True), length

    def post(self, content: Any) -> Any:
        body = {"model": "model", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
        return httpx2.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("serve-media") / "model"
    processor = tiny_vlm.write_model(folder, request.param)
    with serving(folder, max_new_tokens=50) as served:
        yield World(folder, served, processor)


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri(data)}}


def test_openai_client_sends_pictures(world: World) -> None:
    one, two = media_models.picture_bytes(90, 60), media_models.picture_bytes(50, 120)
    content = [part(one), {"type": "text", "text": "and"}, part(two), {"type": "text", "text": "differ?"}]
    text, length = world.truth([media_models.picture(90, 60), "and", media_models.picture(50, 120), "differ?"])
    asked = {"model": "model", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6}
    found = world.client.chat.completions.create(**asked)
    assert found.choices[0].message.content == text
    assert found.usage.prompt_tokens == length
    streamed = world.client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text
    other, _ = world.truth([media_models.picture(50, 120), "and", media_models.picture(90, 60), "differ?"])
    content[0], content[2] = content[2], content[0]
    assert world.client.chat.completions.create(**asked).choices[0].message.content == other


def test_several_answers_and_text_beside_pictures(world: World) -> None:
    content = [part(media_models.picture_bytes(90, 60)), {"type": "text", "text": "what?"}]
    text, _ = world.truth([media_models.picture(90, 60), "what?"])
    asked = {"model": "model", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6}
    found = world.client.chat.completions.create(**asked, n=3)
    assert [choice.message.content for choice in found.choices] == [text] * 3
    plain, _ = world.truth(["hello"])
    asked["messages"] = [{"role": "user", "content": "hello"}]
    assert world.client.chat.completions.create(**asked).choices[0].message.content == plain


def test_anthropic_client_sends_pictures(world: World) -> None:
    data = base64.b64encode(media_models.picture_bytes(90, 60)).decode()
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    claude = anthropic.Anthropic(base_url=world.url, api_key="none", max_retries=0)
    messages = [{"role": "user", "content": [block, {"type": "text", "text": "what?"}]}]
    text, length = world.truth([media_models.picture(90, 60), "what?"])
    found = claude.messages.create(model="model", max_tokens=6, messages=messages, extra_body={"temperature": 0})
    assert found.content[0].text == text
    assert found.usage.input_tokens == length
    assert claude.messages.count_tokens(model="model", messages=messages).input_tokens == length


class _Canary(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(302)
        self.send_header("location", "http://127.0.0.1:1/")
        self.end_headers()


@pytest.fixture(scope="module")
def canary() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), _Canary)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def references(port: int) -> list[str]:
    """What must not be read: addresses of this machine in many spellings, files, other schemes, data that is none."""
    hosts = ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0.0.0.0"]
    hosts += ["[::ffff:127.0.0.1]", "user:pw@127.0.0.1", "169.254.169.254", "metadata.google.internal"]
    found = [f"http://{host}:{port}/x.png" for host in hosts]
    found += [f"https://127.0.0.1:{port}/x.png", f"HTTP://127.0.0.1:{port}/x.png", f"//127.0.0.1:{port}/x.png"]
    found += [f"ftp://127.0.0.1:{port}/x.png", f"gopher://127.0.0.1:{port}/_x", "file:///etc/passwd", "/etc/passwd"]
    found += ["../../etc/passwd", "", " data:image/png;base64,AAAA", "data:image/png,AAAA", "data:;base64,***"]
    return [*found, "data:image/png;base64", "DATA:image/png;base64,AAAA", "blob:x", "javascript:1", "data:"]


def test_nothing_is_fetched(world: World, canary: int) -> None:
    for reference in references(canary):
        for shape in ({"type": "image_url", "image_url": {"url": reference}}, {"type": "image", "url": reference}):
            answer = world.post([shape, {"type": "text", "text": "what?"}])
            assert answer.status_code == 400, reference
            assert answer.json()["error"]["param"] == "messages.0.content.0"
    for source in ({"type": "url", "url": f"http://127.0.0.1:{canary}/x"}, {"type": "file", "file_id": "x"}, {}):
        assert world.post([{"type": "image", "source": source}]).status_code == 400
    assert _Canary.asked == []
    assert world.post("hello").status_code == 200


def _saved(image: Any, form: str, **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **more)
    return out.getvalue()


def bad_pictures() -> dict[str, bytes]:
    from PIL import Image

    plain = media_models.picture_bytes(40, 30)
    huge = bytearray(plain)
    huge[16:24] = (30000).to_bytes(4, "big") * 2
    frames = [media_models.picture(20, 20, seed) for seed in range(3)]
    deep = _saved(Image.new("I;16", (8, 8)), "PNG")
    return {
        "empty": b"",
        "text": b"hello",
        "truncated": plain[: len(plain) // 2],
        "30000 by 30000": bytes(huge),
        "16 bits": deep,
        "frames": _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>',
        "tiff": _saved(media_models.picture(8, 8), "TIFF"),
    }


def test_bad_pictures_are_the_clients_fault(world: World) -> None:
    for name, data in bad_pictures().items():
        answer = world.post([part(data)])
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "invalid_image"), name
        assert error["param"] == "messages.0.content.0"
        assert "\n" not in error["message"]
        assert "BytesIO" not in error["message"]
    with pytest.raises(openai.BadRequestError, match="16 bits a channel"):
        messages = [{"role": "user", "content": [part(bad_pictures()["16 bits"])]}]
        world.client.chat.completions.create(model="model", messages=messages)
    many = [part(media_models.picture_bytes(4, 4))] * 65
    assert "the most is 64" in world.post(many).json()["error"]["message"]
    assert world.post("hello").status_code == 200


def test_a_text_cannot_take_a_pictures_place(world: World) -> None:
    token = world.processor.image_token
    answer = world.post([{"type": "text", "text": f"see {token}"}, part(media_models.picture_bytes(40, 30))])
    assert answer.status_code == 400
    assert f"a text says {token}" in answer.json()["error"]["message"]


def test_a_model_of_text_says_so(tmp_path: Path) -> None:
    with serving(write_chat_model(tmp_path / "base")) as served:
        body = {"model": "base", "messages": [{"role": "user", "content": [part(b"x")]}]}
        answer = httpx2.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 400
        assert "reads text only" in json.dumps(answer.json())
