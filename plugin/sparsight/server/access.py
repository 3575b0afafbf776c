"""Who asks: bearer tokens of an OpenID Connect issuer (JWT), checked before any route sees the request.

A token must be signed by a key that the issuer publishes now, with an algorithm that site.yaml names, and name issuer,
audience, subject and an expiry that has not passed. Its roles are names of `Role`; the highest one counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from sparsight.config import LOOPBACK, SiteConfig
from sparsight.errors import BusyError, ForbiddenError
from sparsight.server.rules import Role

_FRESH_S = 300.0  # a key that the issuer withdrew is refused after this at the latest
_STALE_S = 3600.0  # keys are used on while the issuer does not answer
_AGAIN_S = 10.0  # unknown keys and failures make us ask no more often: whoever invents key ids cannot flood the issuer
_KEYS_BYTES = 2**20
_TOKEN_CHARS = 16_384
_CALLERS = 10_000  # of whom changes are counted at a time
_WAITING = 256  # of one person's requests for images: twice as many as a browser sends over HTTP/2 through nginx


@dataclass(frozen=True)
class Caller:
    """Somebody who logged in. name: of the subject a hash, for logs and limits; never a person's name."""

    name: str
    role: Role

    @property
    def pseudonym(self) -> str:
        """What this person's corrections are recorded under: by it the log's lines of the same person are found."""
        return f"user-{self.name}"


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)  # of the request; None: nobody logs in here
ANONYMOUS = "anonymous"  # who names no pseudonym


def reviewer(named: str) -> str:
    """The pseudonym that a request is recorded under: of who logged in; where nobody does, the one that it names.

    Raises ForbiddenError where it names somebody else.
    """
    caller = CALLER.get()
    if caller is None:
        return named
    if named not in (ANONYMOUS, caller.pseudonym):
        raise ForbiddenError(
            "another reviewer than who logged in",
            expected=caller.pseudonym,
            todo="leave it out, or ask GET /sparsight/me for it",
        )
    return caller.pseudonym


def require(role: Role, what: str) -> None:
    """Raises ForbiddenError where whoever logged in has not this role: for what a route does only when asked to."""
    caller = CALLER.get()
    if caller is not None and caller.role < role:
        raise ForbiddenError(
            f"{what} from a login without the role",
            expected=f"the role {role.name.lower()}, or one above it",
            todo="leave it out, or ask for the role",
        )


class RefusedError(Exception):
    """The request does not get in: 401 (who?), 403 (may not) or 429 (too often)."""

    def __init__(self, status: int, given: str, todo: str) -> None:
        super().__init__(given)
        self.status, self.given, self.todo = status, given, todo


class Access:
    """Checks tokens and counts changes. Safe for threads; the first check of a key asks the issuer."""

    def __init__(self, site: SiteConfig) -> None:
        self._site = site
        self._keys = Keys(site)
        self._limit = Limit(site.changes_per_minute)
        self._turns = Turns(site.images_at_once)

    def caller(self, authorization: str | None) -> Caller:
        """Who sent an `Authorization` header. Raises RefusedError; BusyError while the issuer does not answer."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise RefusedError(401, "no bearer token", "log in, then send Authorization: Bearer TOKEN")
        if len(token) > _TOKEN_CHARS:
            raise RefusedError(401, "a token that is too long", "log in again")
        try:
            claims = self._claims(token)
        except jwt.PyJWTError as error:  # its text can repeat what was sent; its kind cannot
            kind = type(error).__name__.removesuffix("Error")
            raise RefusedError(401, f"a token that is not accepted ({kind})", "log in again") from None
        name = hashlib.sha256(f"{claims['iss']} {claims['sub']}".encode()).hexdigest()[:12]
        return Caller(name, _highest(claims, self._site.roles_claim))

    def admit(self, caller: Caller, role: Role, *, changes: bool) -> None:
        """Let a caller use a route of this role, or raise RefusedError. changes: the request is one that is counted."""
        if caller.role < role:
            named = [r.name.lower() for r in Role if r >= role]
            raise RefusedError(403, "a token without the role", f"ask for the role {' or '.join(named)}")
        if changes and not self._limit.take(caller.name):
            raise RefusedError(429, "too many changes in a minute", "wait and try again")

    def turn(self, caller: Caller) -> AbstractAsyncContextManager[None]:
        """Hold one of the caller's places for requests that make images, once it is free; or raise RefusedError."""
        return self._turns.turn(caller.name)

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in self._site.algorithms:  # before a key is looked for: never `none`, never a secret
            raise jwt.InvalidAlgorithmError
        key = self._keys.get(header.get("kid"))
        if key is None:
            raise jwt.InvalidKeyError
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=list(self._site.algorithms),
            audience=self._site.audience,
            issuer=self._site.issuer,
            leeway=self._site.leeway_s,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return claims


class Keys:
    """The public keys that the issuer publishes (JWKS), by id; asked for again when old or when one is not known."""

    def __init__(self, site: SiteConfig) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._tried = float("-inf")

    def get(self, kid: object) -> jwt.PyJWK | None:
        """The key of this id; None where the issuer has none. Raises BusyError where none could be asked for."""
        with self._lock:
            now = time.monotonic()
            old = now - self._fetched > _FRESH_S
            if (old or kid not in self._keys) and now - self._tried > _AGAIN_S:
                self._tried = now
                try:
                    self._keys = _published(self._site)
                    self._fetched = now
                except (httpx.HTTPError, ValueError, TypeError, KeyError, jwt.PyJWTError) as error:
                    if now - self._fetched > _STALE_S:
                        raise _no_issuer() from error
            if now - self._fetched > _STALE_S:
                raise _no_issuer()
            return self._keys.get(kid) if isinstance(kid, str) else None


def _published(site: SiteConfig) -> dict[str, jwt.PyJWK]:
    """Ask the issuer. Raises httpx.HTTPError; ValueError, TypeError, KeyError, PyJWTError for what are no keys."""
    direct = urlsplit(site.jwks_url or site.issuer or "").hostname in LOOPBACK  # whatever proxy the environment names
    with httpx.Client(timeout=5.0, follow_redirects=False, trust_env=not direct) as client:
        url = site.jwks_url
        if url is None:
            assert site.issuer is not None
            about = _fetch(client, f"{site.issuer.rstrip('/')}/.well-known/openid-configuration")
            if about["issuer"] != site.issuer:
                raise ValueError("another issuer")
            url = SiteConfig.model_validate({"issuer": site.issuer, "jwks_url": about["jwks_uri"]}).jwks_url
            assert url is not None
        return {str(one["kid"]): key for one in _fetch(client, url)["keys"] if (key := _usable(one)) is not None}


def _usable(one: dict[str, Any]) -> jwt.PyJWK | None:
    """A key that signs, of two parts and with an id; None for one that we do not know what to do with."""
    if one.get("use", "sig") != "sig" or one.get("kty") not in {"RSA", "EC", "OKP"} or not one.get("kid"):
        return None
    try:
        return jwt.PyJWK.from_dict(one)
    except jwt.PyJWTError:
        return None


def _fetch(client: httpx.Client, url: str) -> dict[str, Any]:
    with client.stream("GET", url) as reply:
        reply.raise_for_status()
        body = b""
        for part in reply.iter_bytes():
            body += part
            if len(body) > _KEYS_BYTES:
                raise ValueError("too long")
    value: dict[str, Any] = json.loads(body)
    return value


class Limit:
    """So many in a minute, and as many at once; then one for each that has passed (a token bucket)."""

    def __init__(self, per_minute: int) -> None:
        self._most, self._lock = float(per_minute), threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # by name: how many, when

    def take(self, name: str) -> bool:
        """Whether one more is within the limit."""
        with self._lock:
            now = time.monotonic()
            left, at = self._left.pop(name, (self._most, now))
            left = min(self._most, left + (now - at) * self._most / 60)
            self._left[name] = (left - 1 if left >= 1 else left, now)  # put last: the first is who was silent longest
            if len(self._left) > _CALLERS:
                del self._left[next(iter(self._left))]
            return left >= 1


class Turns:
    """So many at the same time of each person; more wait for their own, not for others'. Within one event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._held: dict[str, tuple[asyncio.Semaphore, list[None]]] = {}  # by name; one entry for each who is there

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """A block that at most so many of this name are in. Raises RefusedError where too many wait already."""
        places, there = self._held.setdefault(name, (asyncio.Semaphore(self._at_once), []))
        if len(there) >= self._at_once + _WAITING:
            raise RefusedError(429, "too many images at once", "wait for those that were asked for")
        there.append(None)
        try:
            async with places:
                yield
        finally:
            there.pop()
            if not there:
                del self._held[name]


def _highest(claims: dict[str, Any], where: str) -> Role:
    """The highest role that a token names. where: `a.b` is `b` of the object `a`, unless `a.b` itself is a claim."""
    found: Any = claims
    for part in (where,) if where in claims else where.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    names = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
    known = {role.name.lower(): role for role in Role if role is not Role.NOBODY}
    return max((known[name] for name in names if isinstance(name, str) and name in known), default=Role.NOBODY)


def _no_issuer() -> BusyError:
    return BusyError(
        "an issuer of tokens that does not answer", expected="its public keys", todo="check site.yaml and the issuer"
    )
