"""What holds of the whole house."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "plugin" / "sparsight"
MOST = 450  # lines: a file fits in one head
WRITTEN = {".py", ".ts", ".js", ".mjs", ".css", ".html", ".j2", ".sh", ".yaml", ".yml", ".conf", ".service"}  # by hand
NAMED = {"Makefile", "Dockerfile"}


def test_no_file_is_too_long_for_one_head() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split() or [str(path.relative_to(ROOT)) for path in ROOT.glob("plugin/**/*.py")]
    paths = [Path(name) for name in names if (ROOT / name).is_file()]
    code = [str(path) for path in paths if path.suffix in WRITTEN or path.name in NAMED]
    assert len(code) > 300
    lines = {name: (ROOT / name).read_text(encoding="utf-8").count("\n") for name in code}
    assert {name: n for name, n in lines.items() if n > MOST} == {}


def test_security_md_names_whatever_reads_a_pickle() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    reads = re.compile(r"(?:torch\.load|pickle\.loads?|joblib\.load)\(.*")
    found = {
        str(path.relative_to(PACKAGE)): calls
        for path in PACKAGE.rglob("*.py")
        if (calls := reads.findall(path.read_text(encoding="utf-8")))
    }
    section = page.split("### Pickles")[1].split("## Logging in")[0]
    assert set(found) == set(re.findall(r"`([a-z_/]+\.py)`", section))
    assert all("weights_only=True" in call for calls in found.values() for call in calls)


def test_what_security_md_measured_can_be_repeated() -> None:
    """Each row has one command whose files are there, and counts the faults that operations.md lists."""
    pages = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("security", "operations")}
    table = pages["security"].split("## Measured")[1].split("## Dependencies")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    commands = [row[3].rstrip(" |").strip("`") for row in rows]
    assert {command.split()[0] for command in commands} == {"pytest", "sparsight", "the"}
    paths = {word for command in commands if command.startswith("pytest") for word in command.split()[1:]}
    assert not [path for path in paths if not (ROOT / path).exists()]
    faults = [line for line in pages["operations"].split("| fault |")[1].splitlines()[2:] if line.startswith("| ")]
    [counted] = [row[1] for row in rows if row[0].startswith("| faults")]
    assert counted == f"0 of {len(faults)}"
    run = {Path(path).stem for path in paths} | {f.stem for path in paths for f in (ROOT / path).rglob("test_*.py")}
    assert set(re.findall(r"test_\w+", " ".join(row.rsplit("|", 2)[1] for row in faults))) <= run
