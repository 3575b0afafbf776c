"""Tokens against a real issuer on the loopback: real keys, a real JWKS, rotation, and everything that is refused."""

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from issuer import Issuer
from sparsight.config import SiteConfig
from sparsight.errors import BusyError
from sparsight.server import access
from sparsight.server.access import Access, Limit, RefusedError
from sparsight.server.rules import Role


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture
def door(issuer: Issuer) -> Access:
    return Access(SiteConfig(issuer=issuer.url))


def refusal(door: Access, authorization: str | None) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        door.caller(authorization)
    assert refused.value.status == 401
    return refused.value


def test_a_good_token_says_who_and_what(issuer: Issuer, door: Access) -> None:
    caller = door.caller(f"Bearer {issuer.token()}")
    assert caller.role is Role.REVIEWER
    assert "jane" not in caller.name
    assert door.caller(f"bearer {issuer.token()}") == caller
    assert door.caller(f"Bearer {issuer.token(sub='joe')}").name != caller.name
    assert issuer.asked == 1  # not for every token


def test_every_algorithm_of_the_settings_and_no_other(issuer: Issuer) -> None:
    issuer.private["two"] = ec.generate_private_key(ec.SECP256R1())
    issuer.published = {"one", "two"}
    door = Access(SiteConfig(issuer=issuer.url, algorithms=("ES256",)))
    assert door.caller(f"Bearer {issuer.token('two', 'ES256')}").role is Role.REVIEWER
    assert "Algorithm" in refusal(door, f"Bearer {issuer.token()}").given


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": time.time() - 3600},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": time.time() + 3600},
        {"aud": "other"},
        {"aud": None},
        {"aud": []},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"sub": None},
        {"sub": 3},
    ],
)
def test_claims_that_are_refused(issuer: Issuer, door: Access, claims: dict[str, Any]) -> None:
    refusal(door, f"Bearer {issuer.token(**claims)}")


def test_clocks_may_differ_a_little(issuer: Issuer, door: Access) -> None:
    assert door.caller(f"Bearer {issuer.token(exp=time.time() - 5)}").role is Role.REVIEWER


def forged(issuer: Issuer, how: str) -> str:
    body = {"iss": issuer.url, "aud": "sparsight", "sub": "eve", "exp": time.time() + 60, "roles": ["admin"]}
    public = (
        issuer.private["one"]
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    if how == "none":
        return jwt.encode(body, "", "none", headers={"kid": "one"})
    if how == "public key as a secret":
        return jwt.encode(body, base64.b64encode(public), "HS256", headers={"kid": "one"})
    if how == "another key":
        return jwt.encode(body, rsa.generate_private_key(65537, 2048), "RS256", headers={"kid": "one"})
    if how == "no key id":
        return jwt.encode(body, issuer.private["one"], "RS256")
    head, _, tail = issuer.token().split(".")
    return f"{head}.{base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip('=')}.{tail}"


@pytest.mark.parametrize("how", ["none", "public key as a secret", "another key", "no key id", "other claims"])
def test_forged_tokens(issuer: Issuer, door: Access, how: str) -> None:
    refusal(door, f"Bearer {forged(issuer, how)}")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic amFuZTpqYW5l", "Bearer a.b.c", "Bearer é"])
def test_what_is_no_token(door: Access, header: str | None) -> None:
    assert "jane" not in refusal(door, header).given
    refusal(door, f"Bearer {'x' * 20_000}")


def test_keys_are_rotated(issuer: Issuer, door: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    old = issuer.token()
    door.caller(f"Bearer {old}")
    issuer.private["two"] = rsa.generate_private_key(65537, 2048)
    issuer.published = {"two"}
    refusal(
        door, f"Bearer {issuer.token('two')}"
    )  # asked for a moment ago: whoever invents ids cannot flood the issuer
    for _ in range(5):
        refusal(door, f"Bearer {issuer.token('two')}")
    assert issuer.asked == 1
    now += access._AGAIN_S + 1
    assert door.caller(f"Bearer {issuer.token('two')}").role is Role.REVIEWER
    refusal(door, f"Bearer {old}")
    assert issuer.asked == 2


def test_a_withdrawn_key_is_refused_when_keys_are_old(
    issuer: Issuer, door: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    token = issuer.token()
    door.caller(f"Bearer {token}")
    issuer.published = set()
    now += access._FRESH_S + 1
    refusal(door, f"Bearer {token}")


def test_an_issuer_that_is_down(issuer: Issuer, door: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    issuer.up = False
    with pytest.raises(BusyError, match="issuer"):
        door.caller(f"Bearer {issuer.token()}")
    issuer.up = True
    now += access._AGAIN_S + 1
    door.caller(f"Bearer {issuer.token()}")
    issuer.up = False
    now += access._FRESH_S + 1
    assert door.caller(f"Bearer {issuer.token()}").role is Role.REVIEWER  # a short outage stops nobody
    now += access._STALE_S
    with pytest.raises(BusyError, match="issuer"):
        door.caller(f"Bearer {issuer.token()}")


def test_a_discovery_that_speaks_for_another_issuer(issuer: Issuer, door: Access) -> None:
    issuer.named = "https://evil.example"
    with pytest.raises(BusyError, match="issuer"):
        door.caller(f"Bearer {issuer.token()}")


@pytest.mark.parametrize(
    ("claims", "where", "role"),
    [
        ({"roles": ["reader", "trainer"]}, "roles", Role.TRAINER),
        ({"roles": "openid admin"}, "roles", Role.ADMIN),
        ({"roles": ["nobody", "ADMIN", 3, None, ["admin"]]}, "roles", Role.NOBODY),
        ({"roles": {"admin": True}}, "roles", Role.NOBODY),
        ({"roles": None}, "roles", Role.NOBODY),
        ({"realm_access": {"roles": ["reader"]}}, "realm_access.roles", Role.READER),
        ({"realm_access": "admin"}, "realm_access.roles", Role.NOBODY),
        ({"https://x.example/roles": ["admin"]}, "https://x.example/roles", Role.ADMIN),
    ],
)
def test_where_roles_are(issuer: Issuer, claims: dict[str, Any], where: str, role: Role) -> None:
    door = Access(SiteConfig(issuer=issuer.url, roles_claim=where))
    assert door.caller(f"Bearer {issuer.token(**claims)}").role is role


def test_a_role_may_do_what_those_below_it_may(issuer: Issuer, door: Access) -> None:
    for has in Role:
        for needs in Role:
            caller = access.Caller("x", has)
            if has >= needs:
                door.admit(caller, needs, changes=False)
            else:
                with pytest.raises(RefusedError) as refused:
                    door.admit(caller, needs, changes=False)
                assert refused.value.status == 403


def test_changes_are_counted_by_person(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    limit = Limit(3)
    assert [limit.take("a") for _ in range(4)] == [True, True, True, False]
    assert limit.take("b")
    now += 20  # one of three in a minute
    assert [limit.take("a") for _ in range(2)] == [True, False]
    monkeypatch.setattr(access, "_CALLERS", 2)
    for name in ("c", "d", "e"):
        limit.take(name)
    assert len(limit._left) <= 2
