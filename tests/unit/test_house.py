"""What holds of the whole house."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST = 450  # lines: a file fits in one head


def test_no_file_is_too_long_for_one_head() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split() or [str(path.relative_to(ROOT)) for path in ROOT.glob("plugin/**/*.py")]
    code = [name for name in names if name.endswith((".py", ".ts", ".js", ".mjs", ".css")) and (ROOT / name).is_file()]
    assert len(code) > 300
    lines = {name: (ROOT / name).read_text(encoding="utf-8").count("\n") for name in code}
    assert {name: n for name, n in lines.items() if n > MOST} == {}
