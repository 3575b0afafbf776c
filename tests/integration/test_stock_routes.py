import pytest

pytestmark = pytest.mark.server


def test_info_lists_our_tasks(client):
    info = client.get("/info/").json()
    assert set(info["models"]) == set(info["trainers"]) == set(info["scoring"]) == {"sparsight"}
    assert info["models"]["sparsight"]["type"] == "segmentation"
    assert info["datastore"]["total"] == 3


def test_ask(client):
    reply = client.post("/sparsight/ask", json={"study": "chest", "question": "Is there a nodule?"})
    assert reply.status_code == 200, reply.text
    print(reply.json())
    reply = client.post(
        "/infer/sparsight", params={"image": "head"}, data={"params": '{"question": "How many rings?"}'}
    )
    assert reply.status_code == 200, reply.text
    print(reply.headers, reply.content[:1500])
