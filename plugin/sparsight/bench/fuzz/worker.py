"""The process that reads what may crash it: one case after the other, told and answered in lines of JSON.

`python -m sparsight.bench.fuzz.worker SPEC`; SPEC is JSON: the seed, the indices, the folder to work in. Inputs go
through what the product reads them with: `load`, `read_mask`, `Config.load`, a folder of studies, and our routes behind
the middleware of the server. MONAI Label's application around them is left out: it is built once a process, from the
environment, and takes seconds and memory that each worker would pay; the tests ask it as it runs.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sparsight.bench.fuzz.cases import Case, Cases
from sparsight.bench.fuzz.seeds import EPISODE, STUDY
from sparsight.config import Config
from sparsight.errors import InputError, SparsightError
from sparsight.imaging.dicomweb import FolderWeb
from sparsight.imaging.load import load
from sparsight.imaging.masks import read_mask
from sparsight.imaging.studies import FolderStudies
from sparsight.service import Service, parse_question

_SPARE = 8 * 2**30  # bytes of address space beyond what is taken at the start: the machine is not to suffer
_ASKED = 16  # of so many images that are read, one is also asked about
_QUESTION = parse_question("Is there a nodule?")


class Reading:
    """Everything that reads, over one service on a store of its own."""

    def __init__(self, folder: Path, config: Config) -> None:
        from fastapi import FastAPI
        from fastapi.testclient import TestClient

        from sparsight.server import problems, state
        from sparsight.server.entrance import Entrance
        from sparsight.server.routes import router
        from sparsight.server.watch import Watch

        self._folder = folder
        self._service = Service(config, folder / "studies")
        app = FastAPI()
        app.include_router(router)
        problems.install(app)
        state.use(self._service)
        entrance = Entrance(app, allowed=frozenset(), max_bytes=config.serve.max_upload_bytes)
        self._client = TestClient(Watch(entrance), base_url="http://localhost", raise_server_exceptions=False)
        if not self._service.store.counts()["episodes"]:  # of an earlier worker
            self._service.ask(STUDY, _QUESTION, episode_id=EPISODE)
        self._read = 0

    def read(self, case: Case) -> None:
        """Raise SparsightError where it is refused, RuntimeError for a status from 500 on, whatever else it is."""
        if case.kind == "yaml":
            target = self._folder / "configs" / f"{case.name}.yaml"
            target.write_bytes(case.data)
            try:
                Config.load(target.parent)
            finally:
                target.unlink()
        elif case.kind in ("json", "mark"):
            self._send(case.name, content=case.data, headers={"Content-Type": "application/json"})
        else:
            path = self._folder / "input" / f"case{case.name}"
            path.write_bytes(case.data)
            try:
                self._file(case.kind, path)
            finally:
                path.unlink()

    def _file(self, kind: str, path: Path) -> None:
        if kind == "mask":
            form = {"feedback": json.dumps({"episode": EPISODE, "verdict": "amend"})}
            self._send("/sparsight/feedback/mask", data=form, files={"mask": (path.name, path.read_bytes())})
            read_mask(path)
            return
        if kind == "dicom":
            self._folder_of(path.parent)
        volume = load(path)
        self._read += 1
        if self._read % _ASKED == 0:
            self._service.ask(volume, _QUESTION, recheck=False).labelmap()

    def _folder_of(self, folder: Path) -> None:
        """As a folder of studies: its list, what OHIF fetches, the images."""
        listed = FolderStudies(folder)
        web = FolderWeb(listed)
        web.studies({})
        for info in listed.list():
            web.series(info.study_uid, {})
            for row in web.metadata(info.study_uid, info.series_uid):
                json.dumps(row)
                web.frame(info.study_uid, info.series_uid, str(row["00080018"]["Value"][0]), 1)
            listed.load(info.id)

    def _send(self, route: str, **sent: Any) -> None:
        reply = self._client.post(route, **sent)
        if reply.status_code >= 500:
            raise RuntimeError(f"status {reply.status_code}")
        if reply.status_code >= 400:
            raise InputError(f"status {reply.status_code}", expected="one that is carried out", todo="see its body")


def outcome(read: Callable[[], None]) -> tuple[str, str]:
    """What became of a case, and of a defect its kind and place; never its words."""
    try:
        read()
    except SparsightError as error:
        if error.status >= 500:
            return "server_error", _place(error)
        return ("memory", _place(error)) if _out_of_memory(error) else ("refused", error.code)
    except MemoryError as error:
        return "memory", _place(error)
    except BaseException as error:  # a decoder in Rust panics with one that is no Exception
        return ("server_error" if str(error).startswith("status 5") else "crash"), _place(error)
    return "read", ""


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


def _place(error: BaseException) -> str:
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "sparsight" in frame.filename]
    at = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    said = f" {error}" if type(error) is RuntimeError and str(error).startswith("status") else ""
    return f"{type(error).__name__}{said}{at}"


def _status(name: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Say `ready`, then of each case that it begins and what became of it."""
    spec = json.loads(sys.argv[1])
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(spec["folder"])
    reading = Reading(folder, Config.load(home=folder / "home", serve={"reader": spec["reader"]}))
    cases = Cases(spec["seed"], tuple(spec["kinds"]))
    able: dict[str, bool] = {}
    for case in cases.valid():  # what is imported or built once is no case's own time and memory
        what, place = outcome(partial(reading.read, case))
        if what not in ("read", "refused"):
            raise SystemExit(f"a valid {case.kind} input: {what} {place}")
        able[case.kind] = able.get(case.kind, False) or what == "read"
    if not all(able.values()):
        raise SystemExit(f"no valid input is read of these: {able}")
    taken = _status("VmSize:")
    if taken:
        resource.setrlimit(resource.RLIMIT_AS, (taken + _SPARE, taken + _SPARE))
    _say(ready=True)
    for index in range(spec["first"], spec["last"]):
        case = cases[index]
        before = _status("VmRSS:")
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        _say(begin=index)
        begun = time.process_time()
        what, place = outcome(partial(reading.read, case))
        seconds, grown = time.process_time() - begun, max(0, _status("VmHWM:") - before)
        _say(end=index, outcome=what, place=place, seconds=round(seconds, 4), mib=round(grown / 2**20, 1))


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
