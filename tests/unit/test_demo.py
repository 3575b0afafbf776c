import httpx
import pytest

from sparsight import demo
from sparsight.errors import TrainingError


def learned(monkeypatch, *states):
    """What _learn makes of a server that tells these states one after the other."""
    told = iter(states)
    transport = httpx.MockTransport(
        lambda request: httpx.Response(200, json={} if request.method == "POST" else next(told))
    )
    monkeypatch.setattr(demo, "_HTTP", httpx.Client(transport=transport))
    monkeypatch.setattr(demo.time, "sleep", lambda _: None)
    return demo._learn("http://127.0.0.1:1")


def test_learning_is_waited_for(monkeypatch):
    done = {"state": "done", "stats": {"promoted": False}}
    assert learned(monkeypatch, {"state": "running", "stats": {}}, done) == done


@pytest.mark.parametrize("state", ["failed", "stopped", "idle"])
def test_learning_that_did_not_end_well_fails_the_demo(monkeypatch, state):
    stats = {
        "error": {"code": "training_stopped", "given": "a loss of NaN", "expected": "a number", "todo": "lower lr"}
    }
    with pytest.raises(TrainingError, match=f"{state}: a loss of NaN.*lower lr"):
        learned(monkeypatch, {"state": state, "stats": stats})
    with pytest.raises(TrainingError, match=r"server\.log"):
        learned(monkeypatch, {"state": state, "stats": {}})
