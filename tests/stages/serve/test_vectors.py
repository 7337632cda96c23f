"""Embeddings, scores and classes over HTTP: the numbers that transformers' own classes give."""

import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
httpx2 = pytest.importorskip("httpx2")
openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from http_server import serving  # noqa: E402
from tiny_chat import write_chat_model  # noqa: E402

TEXTS = ["hello", "a longer text than that", "hello"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("vectors") / "base")


def classifier(folder, path, outputs):
    """The base with a random classifier on it."""
    torch.manual_seed(5)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=outputs)
    model.config.pad_token_id = None
    model.save_pretrained(path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def vectors(folder):
    with serving(folder, head="pool") as found:
        yield found


def expected(folder, text, pooling="mean"):
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden_TH = model(ids).last_hidden_state[0]
    vector_H = hidden_TH.mean(0) if pooling == "mean" else hidden_TH[-1]
    return (vector_H / vector_H.norm()).tolist()


def test_embeddings_are_the_models_mean_hidden_states(vectors, folder):
    client = openai.OpenAI(base_url=f"{vectors.url}/v1", api_key="none", max_retries=0)
    found = client.embeddings.create(model="base", input=TEXTS)  # base64, as the client asks by itself
    truth = [expected(folder, text) for text in TEXTS]
    for item, vector in zip(found.data, truth, strict=True):
        assert item.embedding == pytest.approx(vector, abs=1e-5)
    assert found.usage.prompt_tokens == sum(map(len, TEXTS))
    ids = httpx2.post(f"{vectors.url}/tokenize", json={"prompt": TEXTS[1]}).json()["tokens"]
    plain = client.embeddings.create(model="base", input=ids, encoding_format="float").data[0].embedding
    assert plain == pytest.approx(truth[1], abs=1e-5)
    short = client.embeddings.create(model="base", input=TEXTS[1], dimensions=8).data[0].embedding
    cut = torch.tensor(truth[1][:8])
    assert short == pytest.approx((cut / cut.norm()).tolist(), abs=1e-5)
    with serving(folder, head="pool", pooling="last") as last:
        body = {"model": "base", "input": TEXTS[1]}
        found = httpx2.post(f"{last.url}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert found == pytest.approx(expected(folder, TEXTS[1], "last"), abs=1e-5)


def test_embedding_models_rank_by_cosine(vectors, folder):
    body = {"model": "base", "query": "hello", "documents": ["hello", {"text": "other things"}], "top_n": 1}
    (found,) = httpx2.post(f"{vectors.url}/v1/rerank", json=body).json()["results"]
    assert found["index"] == 0 and found["document"]["text"] == "hello"
    assert found["relevance_score"] == pytest.approx(1, abs=1e-5)
    body = {"model": "base", "text_1": "hello", "text_2": ["hello", "other things"]}
    data = httpx2.post(f"{vectors.url}/v1/score", json=body).json()["data"]
    a, b = (torch.tensor(expected(folder, text)) for text in ("hello", "other things"))
    assert [item["score"] for item in data] == pytest.approx([1.0, float(a @ b)], abs=1e-5)


def test_rerankers_read_both_texts_together(folder):
    path = classifier(folder, folder.parent / "reranker", 1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def logit(query, document):
        with torch.no_grad():
            return float(model(tokenizer(f"{query}\n{document}", return_tensors="pt").input_ids).logits[0, 0])

    documents = ["one", "another one", "x"]
    logits = [logit("which", document) for document in documents]
    with serving(path) as server:
        asked = {"model": "reranker", "query": "which", "documents": documents}
        results = httpx2.post(f"{server.url}/v1/rerank", json=asked).json()["results"]
        plain = httpx2.post(f"{server.url}/v1/rerank", json=asked | {"use_activation": False}).json()["results"]
        pairs = {"model": "reranker", "text_1": ["which"] * 3, "text_2": documents, "use_activation": False}
        scores = httpx2.post(f"{server.url}/v1/score", json=pairs).json()["data"]
        refused = httpx2.post(f"{server.url}/v1/embeddings", json={"model": "reranker", "input": "a"})
        chat = httpx2.post(
            f"{server.url}/v1/chat/completions",
            json={"model": "reranker", "messages": [{"role": "user", "content": "a"}]},
        )
    assert [item["index"] for item in results] == sorted(range(3), key=lambda at: -logits[at])
    assert [item["relevance_score"] for item in plain] == pytest.approx(sorted(logits, reverse=True), abs=1e-4)
    shares = [1 / (1 + pow(2.718281828459045, -value)) for value in sorted(logits, reverse=True)]
    assert [item["relevance_score"] for item in results] == pytest.approx(shares, abs=1e-4)
    assert [item["score"] for item in scores] == pytest.approx(logits, abs=1e-4)
    for answer in (refused, chat):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", "model")


def test_a_language_model_ranks_by_how_likely_one_of_two_answers_is(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids(["y", "n"])

    def chance(query, document):
        with torch.no_grad():
            logits = model(tokenizer(f"{query}\n{document}", return_tensors="pt").input_ids).logits[0, -1]
        return float(torch.stack([logits[no], logits[yes]]).log_softmax(0)[1].exp())

    documents = ["one", "another one", "x"]
    chances = [chance("which", document) for document in documents]
    with serving(folder, answers=["y", "n"]) as server:
        asked = {"model": "base", "query": "which", "documents": documents}
        results = httpx2.post(f"{server.url}/v1/rerank", json=asked).json()["results"]
        pairs = {"model": "base", "text_1": "which", "text_2": documents}
        scores = httpx2.post(f"{server.url}/v1/score", json=pairs).json()["data"]
        refused = httpx2.post(f"{server.url}/v1/classify", json={"model": "base", "input": "a"})
    assert [item["index"] for item in results] == sorted(range(3), key=lambda at: -chances[at])
    assert [item["score"] for item in scores] == pytest.approx(chances, abs=1e-5)
    assert refused.status_code == 400


def test_classes_have_shares(folder):
    path = classifier(folder, folder.parent / "classes", 3)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    ids = transformers.AutoTokenizer.from_pretrained(path)("hello", return_tensors="pt").input_ids
    with torch.no_grad():
        shares = model(ids).logits[0].softmax(-1)
    with serving(path) as server:
        body = {"model": "classes", "input": ["hello", "x"]}
        data = httpx2.post(f"{server.url}/v1/classify", json=body).json()["data"]
        refused = httpx2.post(f"{server.url}/v1/score", json={"model": "classes", "text_1": "a", "text_2": "b"})
    assert data[0]["probs"] == pytest.approx(shares.tolist(), abs=1e-5)
    assert (data[0]["label"], data[0]["num_classes"], len(data)) == (f"LABEL_{int(shares.argmax())}", 3, 2)
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": [1.5]}, "input.0"),
        ("embeddings", {"input": [[1, 999]]}, "input.0"),
        ("embeddings", {"input": "a", "dimensions": 999}, "dimensions"),
        ("embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ("embeddings", {"input": ""}, None),
        ("embeddings", {"input": "long " * 100}, None),
        ("rerank", {"query": "a", "documents": []}, "documents"),
        ("score", {"text_1": ["a", "b"], "text_2": ["a"]}, "text_2"),
        ("classify", {"input": "a"}, "model"),
    ],
)
def test_what_cannot_be_is_400(vectors, route, fields, param):
    refused = httpx2.post(f"{vectors.url}/v1/{route}", json={"model": "base"} | fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def test_a_folder_of_sentence_transformers_makes_embeddings(folder):
    from postmill.stages.serve.config import Serve
    from postmill.stages.serve.run import find_served_head

    assert find_served_head(Serve(), [folder]).kind == "lm"
    path = folder.parent / "sentences"
    shutil.copytree(folder, path)
    (path / "modules.json").write_text("[]")
    head = find_served_head(Serve(), [path])
    assert (head.kind, head.pooling) == ("pool", "mean")
