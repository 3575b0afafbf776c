"""Make the pictures of docs/screenshots from the screenshots that the tests took. Usage: pictures.py ARTEFACTS"""

import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[3] / "docs/screenshots"
PICTURES = {
    "ohif-9-ring": "ohif-answer",
    "ohif-5-reward": "ohif-reward",
    "ohif-8-mpr": "ohif-mpr",
    "ohif-18-report-2": "ohif-report",
    "ohif-19-segmentation": "ohif-segmentation",
    "reader": "reader",
    "slicer-panel": "slicer-panel",
}
LARGEST = 200_000  # bytes


def main(artefacts: Path) -> None:
    """As WebP: a quarter of the PNG's size, with no loss to be seen."""
    DOCS.mkdir(exist_ok=True)
    for taken, name in PICTURES.items():
        path = DOCS / f"{name}.webp"
        with Image.open(artefacts / f"{taken}.png") as picture:
            picture.convert("RGB").save(path, quality=82, method=6)
        if path.stat().st_size > LARGEST:
            raise SystemExit(f"{path.name} has {path.stat().st_size} bytes: at most {LARGEST} are wanted")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
