"""`make audit`: which locked versions a checkout of the advisory database says to be affected."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

AUDIT = Path(__file__).parents[2] / "deploy" / "audit.py"


def audited(tmp_path: Path, lock: str, *affected: dict[str, Any], **more: Any) -> tuple[int, str]:
    """Exit code and output for a lock file and one advisory about Jane.Doe."""
    folder = tmp_path / "vulns" / "jane-doe"
    folder.mkdir(parents=True, exist_ok=True)
    package = {"package": {"ecosystem": "PyPI", "name": "Jane.Doe"}}
    one = {"id": "PYSEC-1", "aliases": ["CVE-1"], "published": "2026-01-02T00:00:00Z", **more}
    (folder / "PYSEC-1.yaml").write_text(yaml.safe_dump({**one, "affected": [package | entry for entry in affected]}))
    (tmp_path / "requirements.lock").write_text(lock)
    command = [sys.executable, str(AUDIT), str(tmp_path), str(tmp_path / "requirements.lock")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


RANGE = {
    "ranges": [
        {"type": "GIT", "events": [{"introduced": "0"}]},
        {
            "type": "ECOSYSTEM",
            "events": [{"introduced": "0"}, {"fixed": "1.4"}, {"introduced": "2.0"}, {"fixed": "2.10"}],
        },
    ]
}
LAST = {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.2"}, {"last_affected": "1.9"}]}]}


@pytest.mark.parametrize(
    ("entry", "hit", "sound"),
    [
        (RANGE, ["0.1", "1.3.9", "2.0", "2.9"], ["1.4", "1.9", "2.10", "3.0"]),
        (LAST, ["1.2", "1.9"], ["1.1", "1.9.1"]),
        ({"versions": ["1.0", "2004d", "1.0.post1"]}, ["1.0", "1.0.0"], ["1.1", "1.0.post2"]),
    ],
)
def test_versions_are_judged_by_lists_and_ranges(
    tmp_path: Path, entry: dict[str, Any], hit: list[str], sound: list[str]
) -> None:
    for version in hit:
        code, told = audited(tmp_path, f"other==1.0\njane_doe=={version}  # why\n", entry)
        assert (code, told.splitlines()[0]) == (1, f"jane-doe {version}: PYSEC-1 CVE-1")
    for version in sound:
        code, told = audited(tmp_path, f"other==1.0\njane_doe=={version}\n", entry)
        assert (code, told.splitlines()) == (
            0,
            [
                "1 advisories, the newest of 2026-01-02; they name 1 of 2 packages",
                "0 apply to the versions that are locked",
            ],
        )


def test_what_was_withdrawn_does_not_count(tmp_path: Path) -> None:
    assert audited(tmp_path, "jane-doe==1.0\n", RANGE, withdrawn="2026-02-01T00:00:00Z")[0] == 0


def test_a_folder_without_advisories_is_no_clean_bill(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("jane==1.0\n")
    command = [sys.executable, str(AUDIT), str(tmp_path), str(tmp_path / "requirements.lock")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no vulns" in done.stderr
