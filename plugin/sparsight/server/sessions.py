"""Images uploaded for a session (`PUT /session/`): whose they are, and how much of the disk they may take.

Stock has neither: whoever knows or guesses an id sees and deletes another's upload, and uploads fill the disk. Import
it after compat.allow_monailabel(), as stock.py.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks, UploadFile
from monailabel.endpoints import session
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.sessions import SessionInfo, Sessions

from sparsight.config import SiteConfig
from sparsight.errors import InputError, NotFoundError, SessionsFullError
from sparsight.server import guard
from sparsight.server.access import CALLER
from sparsight.server.rules import Role

_OWNER = "owner"  # in the session's meta.info: the caller's hash
_TODO = "DELETE /session/{id} what is done with, send less, or wait: a session ends an hour after it was last used"
_ADDING = threading.Lock()  # else two uploads at once would both find room


def apply(site: SiteConfig) -> None:
    """Change the functions of MONAI Label's endpoint. Call once, before importing `monailabel.app`."""
    session.create_session = _bounded(site)
    session.get_session = _own(session.get_session)
    session.remove_session = _own(session.remove_session, or_admin=True)


def own(session_id: str, *, or_admin: bool = False) -> SessionInfo:
    """A session that whoever asks may use: their own, where people log in; or_admin: an admin may, too.

    One of somebody else is as unknown as one that never was. Raises InputError, NotFoundError.
    """
    sessions, caller = _sessions(), CALLER.get()
    found = _found(sessions, guard.safe_id(session_id, "session id"))
    if found is not None:
        allowed = caller is None or found.meta.get(_OWNER) == caller.name
        if allowed or (caller is not None and or_admin and caller.role >= Role.ADMIN):
            return found
    raise _unknown()


def _unknown() -> NotFoundError:
    return NotFoundError("an unknown session", expected="one PUT /session/ gave", todo="make a new session")


def _sessions() -> Sessions:
    sessions: Sessions | None = app_instance().sessions()
    if sessions is None:  # MONAI_LABEL_SESSIONS=false
        raise NotFoundError("sessions are switched off", expected="an image of the datastore", todo="name it by its id")
    return sessions


def _found(sessions: Sessions, name: str) -> SessionInfo | None:
    try:
        found: SessionInfo | None = sessions.get_session(name, update_ts=False)
    except (ValueError, OSError):  # half written: nobody's, and goes by its age; or it ends just now
        return None
    return found


def _own(original: Callable[..., Any], *, or_admin: bool = False) -> Callable[..., Any]:
    def checked(session_id: str, *args: Any) -> Any:
        own(session_id, or_admin=or_admin)
        try:
            return original(session_id, *args)
        except FileNotFoundError as error:  # it has ended since
            raise _unknown() from error

    return checked


def _bounded(site: SiteConfig) -> Callable[..., Any]:
    def create_session(
        background_tasks: BackgroundTasks,  # noqa: ARG001 - the stock route gives it
        uncompress: bool = False,
        expiry: int = 0,
        files: list[UploadFile] | None = None,
    ) -> dict[str, Any]:
        """Keep images until the session ends; of several, the session's image is their folder."""
        if uncompress:  # an archive may hold links and paths that leave its folder
            raise InputError("an archive", expected="image files", todo="send the files themselves")
        extensions = [guard.safe_extension(file.filename, guard.IMAGE_EXTENSIONS) for file in files or []]
        sessions = _sessions()
        with tempfile.TemporaryDirectory(prefix="sparsight-") as folder:
            for i, (file, extension) in enumerate(zip(files or [], extensions, strict=True)):
                with (Path(folder) / f"{i:04d}{extension}").open("wb") as target:
                    shutil.copyfileobj(file.file, target)
            with _ADDING:
                _check_room(sessions, _size(Path(folder)), site)
                info = _add(sessions, Path(folder), expiry)
        return {"session_id": info.name, "session_info": info.to_json()}

    return create_session


def _add(sessions: Sessions, folder: Path, expiry: int) -> SessionInfo:
    """Move what is in the folder to a new session of whoever asks: all of it, or nothing."""
    name, caller = str(uuid.uuid4()), CALLER.get()  # stock's own names tell when and where, and can be guessed
    held = list(folder.iterdir())
    image = held[0] if len(held) == 1 else folder / "images"
    try:
        if len(held) != 1:
            image.mkdir()
            for file in held:
                file.rename(image / file.name)
        info: SessionInfo = sessions.add_session(str(image), expiry, session_id=name)[1]
        if caller is not None:
            info.meta[_OWNER] = caller.name
            sessions._write_meta_info(name, info)
    except BaseException:
        sessions.remove_session(name)
        raise
    return info


def _check_room(sessions: Sessions, more: int, site: SiteConfig) -> None:
    """Raises SessionsFullError where so many bytes more are too many, of one person or in all."""
    caller, total, mine = CALLER.get(), 0, 0
    for folder in Path(sessions.store_path).glob("*"):
        size = _size(folder)
        total += size
        if caller is not None:
            info = _found(sessions, folder.name)
            mine += size if info is not None and info.meta.get(_OWNER) == caller.name else 0
    if caller is not None and mine + more > site.person_sessions_bytes:
        raise SessionsFullError(
            f"an upload of {more} bytes beside your sessions of {mine}",
            expected=f"at most {site.person_sessions_bytes} together (person_sessions_bytes of site.yaml)",
            todo=_TODO,
        )
    if total + more > site.sessions_bytes:
        raise SessionsFullError(
            f"an upload of {more} bytes beside all sessions of {total}",
            expected=f"at most {site.sessions_bytes} together (sessions_bytes of site.yaml)",
            todo=_TODO,
        )


def _size(folder: Path) -> int:
    """Bytes of all files in it; what is deleted meanwhile is none."""
    size = 0
    with suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            size += path.stat().st_size if path.is_file() else 0
    return size
