"""Settings, read once at an edge and passed down: environment > YAML files > the defaults here.

configs/*.yaml repeat every default with a comment; a test keeps them equal. Secrets come from the environment only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sparsight.errors import ConfigError

SECTIONS = ("serve", "learn", "gate", "site", "pool")  # one file each
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})  # hosts that reach this machine only
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


def default_home() -> Path:
    """SPARSIGHT_HOME, or the user's data folder (XDG)."""
    if home := os.environ.get("SPARSIGHT_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "sparsight"


class _Strict(BaseModel):
    """Frozen; an unknown key or a number that is none is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServeConfig(_Strict):
    """How questions are answered. configs/serve.yaml."""

    reader: str = Field("nano", description="nano, one of configs/model/*.yaml, or a folder of weights")
    budget: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        0.1, description="share of visual tokens kept when the caller names none; auto: the policy decides"
    )
    max_question_chars: int = Field(2000, ge=1, description="a longer question is refused")
    cache_bytes: int = Field(512 * 2**20, ge=0, description="bytes of encoded studies kept in memory")
    necessity_nats: float = Field(0.5, ge=0, description="support an answer must lose without its evidence, nats")
    recheck_budget: float | None = Field(
        1.0, ge=0, le=1, description="share of the tokens a negative or ungrounded answer is read again from; 0: never"
    )
    first_slices: int = Field(
        32,
        ge=0,
        description="slices of 128 or more that are encoded before the first answer, at least an eighth; 0: all",
    )
    together: int = Field(
        8, ge=1, description="questions that are answered at the same time, their texts written in the same passes"
    )
    max_waiting: int = Field(
        32, ge=1, description="questions in the queue before a new one is refused; of a batch half"
    )
    max_wait_s: float = Field(300.0, gt=0, description="longest that a question waits for its turn, seconds")
    suggested_questions: dict[str, str] = Field(
        default_factory=lambda: {
            "CR": "Is there a nodule?",
            "DX": "Is there a nodule?",
            "CT": "Is there a nodule?",
            "MR": "Is there a spot?",
            "default": "Is there a mass?",
        },
        description="first question offered for a study, by DICOM modality; `default` for the others",
    )
    max_upload_bytes: int = Field(256 * 2**20, ge=1, description="largest mark or label accepted, bytes")

    @property
    def share(self) -> float:
        """One share for all questions, where they are compared at the same one (gate, next case)."""
        return 0.1 if self.budget == "auto" else self.budget


class RewardsConfig(_Strict):
    """How much each part of a kept subset's reward counts (rl.rewards); those that do not apply drop out."""

    answer: float = Field(1.0, ge=0, description="probability of the right answer")
    utility: float = Field(0.0, ge=0, description="what the subset adds to the question alone")
    necessity: float = Field(0.0, ge=0, description="what the answer loses without the subset")
    consensus: float = Field(0.0, ge=0, description="overlap with the other subsets that led to the right answer")
    grounding: float = Field(1.0, ge=0, description="agreement with what a clinician marked")

    @model_validator(mode="after")
    def _count_something(self) -> Self:
        if not any(self.model_dump().values()):
            raise ValueError("no part counts: all weights are 0")
        return self


class LearnConfig(_Strict):
    """How corrections become a candidate policy. configs/learn.yaml."""

    steps: int = Field(40, ge=1, description="policy-gradient steps; more where `passes` asks for them")
    passes: float = Field(4, ge=0, le=1000, description="times that each correction is drawn, on average and at least")
    batch: int = Field(12, ge=1, description="questions per step, corrections and replay together")
    group: int = Field(8, ge=2, description="G, subsets sampled per question")
    replay: float = Field(0.5, ge=0, lt=1, description="share of a batch that replays earlier cases")
    budgets: tuple[float, ...] = Field((0.05, 0.1, 0.2), description="shares of the tokens that subsets are drawn at")
    block: int = Field(1, ge=1, description="side of the blocks of tokens that are drawn first; 1: tokens at once")
    lr: float = Field(6e-3, gt=0, description="peak learning rate, Adam")
    kl: float = Field(0.05, ge=0, description="weight of KL(policy, live policy)")
    floor: float = Field(0.03, gt=0, description="added to the spread of a group's rewards, which divides them")
    entropy: float = Field(0.003, ge=0, description="weight of the entropy bonus")
    rewards: RewardsConfig = Field(RewardsConfig(), description="weights of the parts of a subset's reward")
    held_out: float = Field(0.3, ge=0, lt=1, description="share of corrections never trained on: the gate's test")
    held_out_early: int = Field(25, ge=0, description="every other study is held out until this many are")
    reader_share: float = Field(
        0.5, gt=0, le=1, description="the most of all corrections' weight that is one reader's, where there are others"
    )
    tuning_steps: int = Field(
        0, ge=0, description="steps that teach the language stream's adapter (LoRA) right answers; 0: none"
    )
    tuning_lr: float = Field(2e-4, gt=0, description="peak learning rate of these steps, Adam")
    language_steps: int = Field(0, ge=0, description="steps of that adapter's reinforcement, after these; 0: none")
    language_lr: float = Field(1e-4, gt=0, description="peak learning rate of its reinforcement, Adam")
    language_rank: int = Field(16, ge=1, le=256, description="of that adapter's matrices")
    seed: int = Field(0, description="of subsets, batches and the held-out split")
    every_hours: float = Field(
        0, ge=0, le=8760, description="how often the server looks whether learning is due; 0: only who asks starts it"
    )
    at_least: int = Field(20, ge=1, description="new corrections that make it due then")

    @property
    def earlier(self) -> int:
        """Questions of a batch that replay earlier cases, where there are any."""
        return round(self.batch * self.replay)

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        if self.earlier == self.batch:
            raise ValueError(f"batch {self.batch} with replay {self.replay:g} leaves no room for corrections")
        return self

    def for_corrections(self, n: int) -> Self:
        """The same with as many steps as n corrections need."""
        return self.model_copy(
            update={"steps": max(self.steps, math.ceil(self.passes * n / (self.batch - self.earlier)))}
        )


class GateConfig(_Strict):
    """When a candidate goes live. configs/gate.yaml."""

    sentinel: int = Field(300, ge=20, description="frozen simulated questions that must not get worse")
    sentinel_seed: int = Field(20261122, description="of the sentinel set; changing it makes another set")
    sentinel_version: str = Field(
        "", description="that the sentinel set must have; empty: as it is, and it is recorded"
    )
    margin: float = Field(0.03, ge=0, description="accuracy that may be lost on the sentinel set (lower 95 % bound)")
    min_feedback: int = Field(6, ge=1, description="held-out corrections needed before anything is promoted")
    min_gain: float = Field(0.01, description="lower 95 % bound of the reward gained on held-out corrections is above")
    exact: bool = Field(True, description="exact tests must agree: seven studies are the least that can")
    bootstrap: int = Field(2000, ge=100, description="resamples of the paired intervals")
    sign_off: bool = Field(False, description="a person must confirm each promotion")
    shadow: bool = Field(False, description="the candidate that waits for its signature answers silently, too")
    canary: float = Field(0.0, ge=0, le=0.5, description="share of the studies that the candidate answers itself")


class SiteConfig(_Strict):
    """Who may reach the server, and how it logs. configs/site.yaml, docs/security.md."""

    issuer: str | None = Field(None, description="OpenID Connect issuer (URL); null: nobody logs in, this machine only")
    jwks_url: str | None = Field(None, description="its public keys; null: where the issuer's own discovery says")
    audience: str = Field("sparsight", min_length=1, description="`aud` that a token must have")
    algorithms: tuple[Algorithm, ...] = Field(("RS256", "ES256"), min_length=1, description="of tokens' signatures")
    roles_claim: str = Field("roles", min_length=1, description="where a token has its roles, realm_access.roles say")
    leeway_s: float = Field(30.0, ge=0, le=300, description="by which clocks may differ, seconds")
    hosts: tuple[str, ...] = Field((), description="names beside localhost that requests may name this server by")
    tls_certificate: Path | None = Field(None, description="PEM file; beside `tls_key`, else plain HTTP")
    tls_key: Path | None = Field(None, description="PEM file, not encrypted; readable by this user alone")
    behind_proxy: bool = Field(False, description="plain HTTP off this machine: a proxy in front speaks TLS")
    changes_per_minute: int = Field(600, ge=1, description="of one person who logged in; GETs are not counted")
    images_at_once: int = Field(
        16, ge=1, description="requests of one person who logged in for images (GET), answered together; more wait"
    )
    sessions_bytes: int = Field(4 * 2**30, ge=1, description="of all uploads for sessions together, on the disk")
    person_sessions_bytes: int = Field(2**30, ge=1, description="of these, those of one person who logged in")
    body_timeout_s: float = Field(300.0, gt=0, le=86_400, description="within which a request must have arrived")
    log: Literal["text", "json"] = Field("text", description="form of the server's log lines")

    @field_validator("issuer", "jwks_url")
    @classmethod
    def _https(cls, url: str | None) -> str | None:
        """Keys that came over plain HTTP could be anybody's, but on this machine."""
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
            raise ValueError("not an https URL")
        return url

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together")
        if self.issuer is None and (self.hosts or self.behind_proxy or self.jwks_url):
            raise ValueError(
                "hosts, behind_proxy and jwks_url need an issuer: without a login only this machine is served"
            )
        return self


class PoolConfig(_Strict):
    """Readers in other processes, or on other machines, that score subsets or answer (Ray). configs/pool.yaml."""

    workers: int = Field(0, ge=0, le=1024, description="readers, each in a process of its own; 0: this process scores")
    replicas: int = Field(
        0,
        ge=0,
        le=1024,
        description="readers that answer the server's questions, likewise; 0: its own one answers",
    )
    address: str | None = Field(
        None,
        pattern=r"^[^:/\s]+:[0-9]{1,5}$",
        description="HOST:PORT of a Ray cluster that this machine is a node of; null: one is started here, for the run",
    )
    cpus: int = Field(1, ge=1, description="of each worker and replica: its threads, and what Ray counts")
    gpus: float = Field(0.0, ge=0, description="of each worker and replica, as Ray counts; 0.5: two share one")
    start_s: float = Field(300, gt=0, description="seconds in which all of them must have loaded their reader")


class ReaderSettings(_Strict):
    """What makes a vision-language model of one's own this reader, on whatever machine."""

    name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="in ids; default: the folder's")
    family: str | None = Field(None, description="model_type that the weights must be of")
    quantization: Literal["none", "int8", "nf4"] = Field("none", description="of the language stream's layers")
    quantization_keeps: tuple[str, ...] = Field(
        (), description="layers of the language stream that are left as they are, by the end of their names"
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of what is not quantized, and of computing")
    tokens_per_image: int = Field(
        1024, ge=16, le=16384, description="visual tokens, the most of one picture, where open"
    )
    tiles: int = Field(1, ge=1, le=6, description="the most along a side of a single picture, where there are any")
    slices: int = Field(24, ge=1, le=512, description="the most of a volume, spread evenly")
    max_tokens: int = Field(4096, ge=16, description="the most visual tokens kept for one question")
    reasoning_tokens: int = Field(512, ge=1, le=8192, description="the most tokens of a written text")
    abstain_below: float = Field(0.5, ge=0, le=1, description="a lower confidence is shown as not sure")
    confidence_slope: float = Field(
        1.0, gt=0, le=100, description="of the confidence's log-odds over those of the answer (sparsight calibrate)"
    )
    confidence_offset: float = Field(0.0, ge=-100, le=100, description="added to these log-odds (sparsight calibrate)")


class ModelConfig(ReaderSettings):
    """How a vision-language model of one's own becomes a reader here. configs/model/*.yaml."""

    weights: Path | None = Field(None, description="folder of the model as it was published")
    policy: Path | None = Field(None, description="visual stream trained for it; default: a new one, all tokens kept")
    quantization_figures: Path | None = Field(
        None, description="what `sparsight bench quantization --out` wrote; cards and bundles repeat it"
    )
    device: str | None = Field(
        None, pattern=r"^(cpu|cuda(:\d{1,2})?)$", description="cpu, cuda, cuda:1; default: a GPU where there is one"
    )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one of configs/model/*.yaml; paths are meant from where that file is. Raises ConfigError."""
        if not path.is_file():
            raise ConfigError(
                f"no such model configuration: {path.name[:80]}", expected="a YAML file", todo="see configs/model/"
            )
        try:
            config = cls.model_validate(_read_yaml(path))
        except ValidationError as error:
            raise _setting(error, "configs/model/") from error
        places = {name: getattr(config, name) for name in ("weights", "policy", "quantization_figures")}
        found = {name: path.parent / at.expanduser() for name, at in places.items() if at is not None}
        return config.model_copy(update=found)


class Config(_Strict):
    """All of it, and where things are kept."""

    home: Path = Field(default_factory=default_home, description="store, policies and cache live here")
    database: str | None = Field(None, description="SQLAlchemy URL; default: SQLite in home")
    serve: ServeConfig = ServeConfig()
    learn: LearnConfig = LearnConfig()
    gate: GateConfig = GateConfig()
    site: SiteConfig = SiteConfig()
    pool: PoolConfig = PoolConfig()

    @property
    def sha256(self) -> str:
        """Hash of every setting that can change an answer or a policy (not of places, people, processes and times)."""
        other: Any = {"home": True, "database": True, "site": True, "pool": True, "learn": {"every_hours", "at_least"}}
        text = json.dumps(self.model_dump(mode="json", exclude=other), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path | None = None, **overrides: Any) -> Self:
        """Read SECTIONS, one YAML file each and all optional, from `folder` (or SPARSIGHT_CONFIGS).

        overrides: `home`, `database`, or a whole section as a dict of the keys to change. Raises ConfigError.
        """
        folder = folder or (Path(os.environ["SPARSIGHT_CONFIGS"]) if os.environ.get("SPARSIGHT_CONFIGS") else None)
        values: dict[str, Any] = {}
        if url := os.environ.get("SPARSIGHT_DATABASE"):
            values["database"] = url
        for section in SECTIONS:
            values[section] = _read_yaml(folder / f"{section}.yaml") if folder else {}
        for key, value in overrides.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        try:
            return cls.model_validate({k: v for k, v in values.items() if v is not None})
        except ValidationError as error:
            raise _setting(error, "configs/*.yaml") from error


def _setting(error: ValidationError, where: str) -> ConfigError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    return ConfigError(f"setting {name}: {first['msg']}", expected="a known setting in its range", todo=f"see {where}")


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except Exception as error:  # YAMLError, and what dates, numbers and depth make its reader raise
        raise ConfigError(f"{path.name} cannot be read", expected="a YAML mapping", todo="check its syntax") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} is not a mapping", expected="`key: value` lines", todo="see configs/")
    return content
