"""The server's description of itself: it names every route, and its schemas take the bodies that the server takes."""

import pytest

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("torch")

from postmill.stages.serve.fields import parse  # noqa: E402
from postmill.stages.serve.openapi import BODIES, document  # noqa: E402
from postmill.stages.serve.routes import ROUTES  # noqa: E402

DOCUMENT = document(ROUTES, version="1", has_keys=True)
GOOD = {
    "/v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "temperature": 2,
        "stop": "a",
    },
    "/v1/completions": {"model": "m", "prompt": [1, 2], "stop": ["a", "b"], "logit_bias": {"1": -100}},
    "/v1/messages": {"model": "m", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]},
    "/detokenize": {"tokens": [1, 2]},
    "/v1/embeddings": {"model": "m", "input": ["a"]},
}
BAD = {
    "/v1/chat/completions": {"model": "m", "messages": [], "temperature": 3},
    "/v1/completions": {"model": "m", "prompt": "x", "no_such_field": 1},
    "/v1/messages": {"model": "m", "max_tokens": "3", "messages": []},
    "/detokenize": {"tokens": [-1]},
    "/v1/embeddings": {"input": ["a"]},
}


def test_every_route_is_in_it():
    assert set(DOCUMENT["paths"]) == set(ROUTES)
    for path, methods in ROUTES.items():
        operations = DOCUMENT["paths"][path]
        assert set(operations) == {method.lower() for method in methods}
        assert ("requestBody" in operations.get("post", {})) == ("POST" in methods) == (path in BODIES)
        asks_for_key = all("security" in operation for operation in operations.values())
        assert asks_for_key == (path not in {"/health", "/healthz"})
    names = [operation["operationId"] for each in DOCUMENT["paths"].values() for operation in each.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", GOOD)
def test_schemas_take_what_the_server_takes(path):
    import json

    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(schema | {"components": DOCUMENT["components"]})
    parse(json.dumps(GOOD[path]).encode(), BODIES[path])
    validator.validate(GOOD[path])
    assert not validator.is_valid(BAD[path])
    with pytest.raises(Exception, match=r"Invalid|Unknown|Missing"):
        parse(json.dumps(BAD[path]).encode(), BODIES[path])
