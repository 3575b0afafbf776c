"""Where people log in, corrections, changes and signatures are recorded under the login, whatever a request says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from issuer import Issuer
from routes import stack_served
from sparsight.config import SiteConfig
from sparsight.server import examples
from sparsight.server.access import Access
from sparsight.server.entrance import Entrance
from sparsight.server.watch import Watch


@pytest.fixture
def app(tmp_path: Path, reader_folder: Path) -> Iterator[FastAPI]:
    with stack_served(tmp_path, reader_folder) as app:
        yield app


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.close()


class Person:
    """Somebody at a client. token: of their login; None where nobody has to log in."""

    def __init__(self, app: FastAPI, access: Access | None, token: str | None = None) -> None:
        guarded = Watch(Entrance(app, allowed=frozenset(), max_bytes=2**20, access=access))
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self.client = TestClient(guarded, base_url="http://localhost", headers=headers)

    def sends(self, path: str, **body: Any) -> Any:
        return self.client.post(f"/sparsight/{path}", json=body)

    def asks(self) -> str:
        return str(self.sends("ask", study="stack", question="Is there a ring?").json()["episode"])

    def me(self) -> dict[str, Any]:
        return dict(self.client.get("/sparsight/me").json())

    def reviewers(self, episode: str) -> list[tuple[str, str]]:
        """Who corrected, and who made the last change."""
        given = self.client.get(f"/sparsight/episodes/{episode}/feedback").json()
        return [(one["reviewer"], one["changes"][-1]["by"] if one["changes"] else "") for one in given]


@pytest.fixture
def people(app: FastAPI, issuer: Issuer) -> tuple[Person, Person]:
    access = Access(SiteConfig(issuer=issuer.url))
    return tuple(Person(app, access, issuer.token(sub=sub, roles=["trainer"])) for sub in ("jane", "joe"))


def refused(reply: Any) -> None:
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden"), reply.text


def test_a_login_is_the_reviewer(people: tuple[Person, Person]) -> None:
    jane, joe = people
    who, other = jane.me(), joe.me()
    assert set(who) == set(examples.ME)
    assert who["role"] == "trainer"
    assert who["reviewer"] != other["reviewer"]
    assert "jane" not in who["reviewer"]
    episode = jane.asks()
    for named in ({}, {"reviewer": "anonymous"}, {"reviewer": who["reviewer"]}):
        assert jane.sends("feedback", episode=episode, verdict="accept", **named).status_code == 200
    changed = joe.sends("feedback", episode=episode, verdict="reject", draft=True, key="d")
    assert changed.status_code == 200
    assert joe.sends("feedback/d/change", change="withdraw").status_code == 200
    assert joe.reviewers(episode) == [(who["reviewer"], "")] * 3 + [(other["reviewer"], other["reviewer"])]


def test_nobody_speaks_for_another(people: tuple[Person, Person]) -> None:
    jane, joe = people
    episode, other = jane.asks(), joe.me()["reviewer"]
    refused(jane.sends("feedback", episode=episode, verdict="accept", reviewer=other))
    refused(jane.sends("feedback", episode=episode, verdict="accept", reviewer="page"))
    form = {"feedback": f'{{"episode": "{episode}", "verdict": "amend", "reviewer": "{other}"}}'}
    mask = nibabel.Nifti1Image(np.ones((40, 32, 5), np.uint8), np.diag([-1.0, -1.0, 3.0, 1.0])).to_bytes()
    files = {"mask": ("m.nii", mask)}
    refused(jane.client.post("/sparsight/feedback/mask", data=form, files=files))
    assert jane.reviewers(episode) == []
    assert jane.sends("feedback", episode=episode, verdict="accept", key="k").status_code == 200
    refused(jane.sends("feedback/k/change", change="withdraw", reviewer=other))
    policy = jane.client.get("/sparsight/policies").json()[0]["id"]
    refused(jane.sends(f"policies/{policy}/promote", sign_off=other))
    assert jane.sends(f"policies/{policy}/promote", sign_off=jane.me()["reviewer"]).status_code == 200
    assert jane.reviewers(episode) == [(jane.me()["reviewer"], "")]


def test_where_nobody_logs_in_the_client_says_who(app: FastAPI) -> None:
    anybody = Person(app, None)
    assert anybody.me() == {"reviewer": None, "role": None}
    episode = anybody.asks()
    for named in ({}, {"reviewer": "reader-1"}):
        assert anybody.sends("feedback", episode=episode, verdict="accept", **named).status_code == 200
    assert anybody.reviewers(episode) == [("anonymous", ""), ("reader-1", "")]
