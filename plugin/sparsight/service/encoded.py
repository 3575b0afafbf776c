"""Studies, loaded and encoded once and kept while they fit: ask many questions, pay once.

Questions about one study that come at the same time pay once, too: the first loads and encodes, the others wait.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sparsight.errors import BusyError, NotFoundError
from sparsight.imaging.load import load
from sparsight.imaging.pair import pair_of
from sparsight.imaging.studies import StudySource
from sparsight.model.protocols import Reader, Where
from sparsight.service.once import Once
from sparsight.store import Features
from sparsight.types import ImageVolume, TokenGrid

Turn = Callable[[], AbstractContextManager[None]]  # takes and gives back the machine


@dataclass(frozen=True, eq=False)
class Encoded:
    """A study with its tokens, and what it took to get them. prior: id of what it is compared with in `volume`."""

    id: str
    volume: ImageVolume
    grid: TokenGrid
    timings_ms: dict[str, float] = field(default_factory=dict)
    prior: str | None = None
    key: tuple[str, str] = ("", "")  # that it is kept under

    @property
    def whole(self) -> bool:
        """Whether all slices are encoded."""
        return self.grid.encoded is None

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        held = (self.volume.voxels, self.grid.features, *self.grid.extras.values())
        return sum(int(part.nbytes) for part in held)


@dataclass(frozen=True)
class _Located:
    """Where a study is: its id (None: its content will name it), what changes when it does, and how to load it."""

    id: str | None
    fingerprint: str
    load: Callable[[], ImageVolume]


class EncodedStudies:
    """A bounded cache over a study source. The most recent study is always kept, however large it is."""

    def __init__(self, source: StudySource | None, max_bytes: int) -> None:
        self.source, self._max_bytes = source, max_bytes
        self._kept: OrderedDict[tuple[str, str], Encoded] = OrderedDict()
        self._opened: tuple[str, ImageVolume] | None = None  # the last study loaded for its pictures alone
        self._lock = threading.Lock()
        self._encoding: Once[Encoded] = Once()
        self._opening: Once[ImageVolume] = Once()
        self._wanted: Counter[tuple[str, str]] = Counter()  # callers of `complete`

    def get(
        self,
        study: str | ImageVolume,
        reader: Reader,
        on_stage: Callable[[str], None],
        turn: Turn,
        *,
        prior: str | ImageVolume | None = None,
        where: Where | None = None,
    ) -> Encoded:
        """Load and encode, unless that was done before. study: an id of the source (or, without one, a path); a volume.

        prior: likewise, an earlier image; both are then encoded as one pair. where: which slices of a study that is new
        to encode first; `complete` does the others. Whoever asks meanwhile waits for all of them.
        on_stage: told `load` when the study is known to be there, also where it is loaded already; then `encode`.
        A study that changed on disk is loaded anew: its fingerprint is part of the key. Only encoding takes a turn at
        the machine: a slow PACS holds up nobody else.
        Raises NotFoundError, ImageError, GeometryError, InputError.
        """
        located = self._locate(study)
        compared = None if prior is None else self._locate(prior)
        key = (located.fingerprint if compared is None else f"{located.fingerprint}\n{compared.fingerprint}", reader.id)
        if isinstance(study, str) or isinstance(prior, str):
            on_stage("load")
        if hit := self._hit(key):
            return self.complete(hit, reader, turn)
        start = time.perf_counter()
        own: list[Encoded] = []  # encoded for this very question

        def make() -> Encoded:
            if hit := self._hit(key):
                return hit
            own.append(replace(_encode(located, compared, reader, on_stage, turn, where), key=key))
            return self._keep(own[0])

        made, _ = self._encoding.do(key, make)
        if own:
            return made
        waited = replace(made, timings_ms={"load": _ms_since(start), "encode": 0.0})
        return self.complete(waited, reader, turn)

    def complete(
        self, study: Encoded, reader: Reader, turn: Turn, on_step: Callable[[], None] = lambda: None
    ) -> Encoded:
        """The study with all its slices encoded; of several callers one does it, the others wait.

        on_step: called now and then by the one who does, as long as nobody waits.
        """
        if study.whole:
            return study
        start = time.perf_counter()

        def step() -> None:
            if self._wanted[study.key] == 1:
                on_step()

        def make() -> Encoded:
            hit = self._hit(study.key)
            if hit is not None and hit.whole:
                return hit
            with turn():
                made = replace(study, grid=reader.complete(study.grid, step))
            _give_back_memory()
            with self._lock:
                if study.key in self._kept:  # else it had to go, and is not to drive out what came after it
                    self._kept[study.key] = made
            return made

        with self._lock:
            self._wanted[study.key] += 1
        try:
            made, _ = self._encoding.do(("rest", study.key), make)
        finally:
            with self._lock:
                self._wanted[study.key] -= 1
                self._wanted += Counter()  # forgets those that nobody wants
        encode = study.timings_ms.get("encode", 0.0) + _ms_since(start)
        return replace(made, timings_ms={**study.timings_ms, "encode": encode})

    def volume(self, study_id: str, prior: str | None = None) -> ImageVolume:
        """The study (with a prior: the pair) without its tokens. Raises NotFoundError where it can no longer be had."""
        with self._lock:
            for kept in reversed(self._kept.values()):
                if (kept.id, kept.prior) == (study_id, prior):
                    return kept.volume
        if prior is not None:
            return pair_of(self.volume(prior), self.volume(study_id))
        if self.source is None:
            raise NotFoundError(
                "a study asked about by path", expected="a study source", todo="name the folder with --studies"
            )
        source, fingerprint = self.source, self.source.fingerprint(study_id)

        def load_it() -> ImageVolume:
            opened = self._opened
            if opened is None or opened[0] != fingerprint:
                opened = self._opened = (fingerprint, source.load(study_id))
            return opened[1]

        return self._opening.do(fingerprint, load_it)[0]

    def grid_of(self, volume_sha256: str, reader: str) -> TokenGrid | None:
        """A reader's tokens of a volume, where they are still here; those of some slices may not be encoded yet."""
        with self._lock:
            kept = list(self._kept.values())
        return next((k.grid for k in kept if (k.volume.sha256, k.grid.reader) == (volume_sha256, reader)), None)

    def _hit(self, key: tuple[str, str]) -> Encoded | None:
        with self._lock:
            if kept := self._kept.get(key):
                self._kept.move_to_end(key)
                return replace(kept, timings_ms={"load": 0.0, "encode": 0.0})
        return None

    def _keep(self, made: Encoded) -> Encoded:
        with self._lock:
            self._kept[made.key] = made
            while len(self._kept) > 1 and sum(e.bytes for e in self._kept.values()) > self._max_bytes:
                self._kept.popitem(last=False)
        return made

    def _locate(self, study: str | ImageVolume) -> _Located:
        """With a source only its ids count: a client of a server must not name paths."""
        if isinstance(study, ImageVolume):
            return _Located(None, study.sha256, lambda: study)
        if self.source is not None:
            source = self.source
            return _Located(source.info(study).id, source.fingerprint(study), lambda: source.load(study))
        path = Path(study)
        if not path.exists():
            raise NotFoundError(
                "a study that is not here",
                expected="the path of an image file or of a folder with one series",
                todo="check the path; with --studies DIR, `sparsight doctor` lists the ids of a folder",
            )
        return _Located(None, _path_fingerprint(path), lambda: load(path))


def _encode(
    study: _Located,
    prior: _Located | None,
    reader: Reader,
    on_stage: Callable[[str], None],
    turn: Turn,
    where: Where | None,
) -> Encoded:
    """Load a study, or a study and its prior as one pair, and encode it when it is our turn."""
    start = time.perf_counter()
    volume, prior_id = study.load(), None
    study_id = _named(study.id, volume)
    if prior is not None:
        earlier = prior.load()
        prior_id = _named(prior.id, earlier)
        volume = pair_of(earlier, volume)
    load_ms = _ms_since(start)
    with turn():
        on_stage("encode")
        start = time.perf_counter()
        grid = reader.encode(volume, where)
        timings = {"load": load_ms, "encode": _ms_since(start)}
    _give_back_memory()
    return Encoded(study_id, volume, grid, timings, prior_id)


def _give_back_memory() -> None:
    """Return freed memory to the system: a long series leaves a quarter of a gigabyte of it. Where there is glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _named(study_id: str | None, volume: ImageVolume) -> str:
    """The id that a study is recorded under. A file name may hold a patient's name: else the content names it."""
    return study_id or volume.series_uid or f"sha256-{volume.sha256[:16]}"


def _path_fingerprint(path: Path) -> str:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    newest = max((f.stat().st_mtime_ns for f in files), default=0)
    return f"{path.resolve()}:{len(files)}:{sum(f.stat().st_size for f in files)}:{newest}"


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def patiently(complete: Callable[[], Encoded]) -> Encoded:
    """Complete a study. Whoever was at it already, and was refused a turn, refused us, too: then it is our work."""
    while True:
        try:
            return complete()
        except BusyError:
            continue


def features_of(grid: TokenGrid) -> Features:
    """Tokens as they are stored, in float16; what that cannot hold becomes the largest that it can."""
    largest = float(np.finfo(np.float16).max)

    def half(part: torch.Tensor) -> NDArray[np.float16]:
        return part.clamp(-largest, largest).numpy().astype(np.float16)

    extras = {name: half(part) for name, part in grid.extras.items()}
    return Features(half(grid.features), grid.shape, grid.patch, grid.uvw_to_ijk, grid.uvw_to_lps, extras)


def grid_of(kept: Features, reader: str) -> TokenGrid:
    """Tokens as they were stored, to be read again. reader: id of the one that made them."""
    features = torch.from_numpy(kept.features.astype(np.float32))
    extras = {name: torch.from_numpy(np.asarray(part, np.float32)) for name, part in kept.extras.items()}
    return TokenGrid(features, kept.shape, kept.patch, kept.uvw_to_ijk, kept.uvw_to_lps, reader, extras=extras)
