"""Adapters that come and go while the server runs: no request is lost, and none is answered by two of them."""

import shutil
import threading

import pytest

pytest.importorskip("torch")
httpx2 = pytest.importorskip("httpx2")
pytest.importorskip("uvicorn")

import peft  # noqa: E402
import torch  # noqa: E402
from adapters import save_adapter  # noqa: E402
from http_server import serving  # noqa: E402
from tiny_chat import write_chat_model  # noqa: E402

KEYS = {"user": "a-users-key"}
ADMINS = {"admin": "an-admins-key"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("swap") / "base")


@pytest.fixture(scope="module")
def loras(folder):
    """Two adapters that answer otherwise than each other."""
    for number, name in enumerate(("one", "two")):
        torch.manual_seed(number)
        config = peft.LoraConfig(r=4, lora_alpha=64 * (number + 1), target_modules=["q_proj", "up_proj"])
        save_adapter(folder.parent / "loras" / name, folder, config)
    return folder.parent / "loras"


@pytest.fixture(scope="module")
def server(folder, loras):
    options = {"admin_key_file": "given", "adapter_dir": str(loras)}
    with serving(folder, keys=KEYS, admin_keys=ADMINS, **options) as found:
        yield found


def post(server, route, body, key="an-admins-key"):
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(server.url + route, json=body, headers=headers, timeout=60)


def load(server, name, path, **options):
    return post(server, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)} | options)


def answer(server, model):
    body = {"model": model, "prompt": "hello", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    return post(server, "/v1/completions", body, "a-users-key")


def text(found):
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]["text"]


def test_an_adapter_swapped_under_load_loses_no_request(server):
    assert load(server, "one", "one").status_code == 200 and load(server, "two", "two").status_code == 200
    truth = {text(answer(server, "one")), text(answer(server, "two"))}
    assert len(truth) == 2 and text(answer(server, "base")) not in truth
    assert load(server, "moss", "one").status_code == 200
    found, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            found.append(answer(server, "moss"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    swaps = [load(server, "moss", name, load_inplace=True) for name in ("two", "one") * 6]
    stop.set()
    for thread in threads:
        thread.join()
    assert [swap.status_code for swap in swaps] == [200] * 12
    assert found and {text(each) for each in found} <= truth
    engine = server.service.worker._engine
    text(answer(server, "base"))  # the engine has taken all that came before
    assert len(engine._adapters) == 3, "those that nobody names any more are gone"


def test_who_has_begun_keeps_an_adapter_that_is_removed(server):
    assert load(server, "leaving", "one").status_code == 200
    adapters, engine = server.service.adapters, server.service.worker._engine
    held = adapters.hold(adapters.find("leaving"))
    assert post(server, "/v1/unload_lora_adapter", {"lora_name": "leaving"}).json()["deleted"]
    assert answer(server, "leaving").status_code == 404
    assert held.adapter in engine._adapters
    adapters.release(held)
    text(answer(server, "base"))
    assert held.adapter not in engine._adapters


def test_only_admins_may_and_only_from_the_folder(server, folder, loras, tmp_path):
    body = {"lora_name": "x", "lora_path": "one"}
    for key, status, code in (("a-users-key", 403, "not_allowed"), ("nobodys-key", 401, "invalid_api_key")):
        for route in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            refused = post(server, route, body, key)
            assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    shutil.copytree(loras / "one", tmp_path / "outside")
    (loras / "link").symlink_to(tmp_path / "outside")
    for path in ("../base", str(tmp_path / "outside"), "link", "none", "one/adapter_config.json"):
        refused = load(server, "x", path)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "lora_path"), path
    assert load(server, "x", loras / "one").status_code == 200, "its whole path is as good"
    again = load(server, "x", "two")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "adapter_exists")
    assert load(server, "base", "one", load_inplace=True).status_code == 409
    assert post(server, "/v1/unload_lora_adapter", {"lora_name": "base"}).status_code == 400
    assert post(server, "/v1/unload_lora_adapter", {"lora_name": "none"}).status_code == 404


def test_an_adapter_that_does_not_fit_is_409_and_harms_nobody(server, loras):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    save_adapter(loras / "dora", loras.parent / "base", config)
    (loras / "empty").mkdir()
    shutil.copytree(loras / "one", loras / "cut")
    tensors = loras / "cut" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    for name in ("dora", "empty", "cut"):
        refused = load(server, "y", name)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_mismatch"), name
    text(answer(server, "base"))


def test_without_admins_the_routes_do_not_exist(folder):
    with serving(folder) as plain:
        refused = httpx2.post(f"{plain.url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "one"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "route_not_found")
    with pytest.raises(ValueError, match="belong together"):
        serving(folder, adapter_dir="x").__enter__()
