"""An issuer of tokens on the loopback, with real keys: what an OpenID Connect provider publishes."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm


class Issuer:
    """Signs tokens and publishes its keys; `asked` counts how often they were fetched."""

    def __init__(self) -> None:
        self.private: dict[str, Any] = {"one": rsa.generate_private_key(65537, 2048)}
        self.published = {"one"}
        self.asked, self.up, self.named = 0, True, None
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = issuer.reply(self.path)
                self.send_response(200 if body else 503)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reply(self, path: str) -> bytes:
        if not self.up:
            return b""
        if path == "/":  # as Keycloak tells the one key of a realm: what MONAI Label's own authentication asks for
            der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            key = self.private["one"].public_key().public_bytes(*der)
            return json.dumps({"public_key": base64.b64encode(key).decode()}).encode()
        if path == "/.well-known/openid-configuration":
            return json.dumps({"issuer": self.named or self.url, "jwks_uri": f"{self.url}/keys"}).encode()
        self.asked += 1
        odd = {"kty": "RSA", "kid": "odd", "n": "AQAB"}  # a key that nobody can use hides none of the others
        return json.dumps({"keys": [odd, *(self.public(kid) for kid in sorted(self.published))]}).encode()

    def public(self, kid: str) -> dict[str, Any]:
        key = self.private[kid].public_key()
        as_jwk = RSAAlgorithm.to_jwk if isinstance(key, rsa.RSAPublicKey) else ECAlgorithm.to_jwk
        return {**as_jwk(key, as_dict=True), "kid": kid, "use": "sig"}

    def token(self, kid: str = "one", alg: str = "RS256", **claims: Any) -> str:
        body = {"iss": self.url, "aud": "sparsight", "sub": "jane", "exp": time.time() + 60, "roles": ["reviewer"]}
        body = {name: value for name, value in {**body, **claims}.items() if value is not None}
        return jwt.encode(body, self.private[kid], alg, headers={"kid": kid})

    def close(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()
