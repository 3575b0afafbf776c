"""The model card that lies beside the weights: what it is, how it was made, what it can and cannot do, with figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsight.model.nano.weights import NanoSpec
from sparsight.recipe.report import TABLES
from sparsight.rl.tables import signed, value


def write_card(folder: Path, figures: dict[str, Any], spec: NanoSpec) -> None:
    """Write card.md and figures.json."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    lines = [_HEAD.format(reader=figures["reader"], seed=figures["seed"]), "## Figures", ""]
    for name in TABLES:
        lines += _table(name, figures[name])
    lines += _real(figures["real val"])
    lines += _making(figures, spec)
    (folder / "card.md").write_text("\n".join(lines), encoding="utf-8")


def _making(figures: dict[str, Any], spec: NanoSpec) -> list[str]:
    c = spec.calibration
    return [
        "## How it was made",
        "",
        f"- Seconds per stage (over all calls; the last one on {figures['threads']} threads): {figures['seconds']}.",
        f"- Images: {figures['images']}.",
        f"- Sizes: {figures['size']}.",
        *([f"- {figures['note']}"] if "note" in figures else []),
        f"- Confidence = sigmoid({c.slope:.3f} logit(p) + {c.offset:.3f}), fitted on validation rows.",
        f"  Below {c.abstain_below:g} it abstains; a word it was never taught caps the confidence at {c.unknown:g}.",
        "",
    ]


_HEAD = """# {reader}

The embedded reader of sparsight: a local-token encoder, a language model of three layers, and a token policy; trained
from answers and simulated rationales (seed {seed}). Research use only; not a medical device.

- **Supervision.** Questions with answers. No mask or box reached encoder, language stream or policy as a target or
  reward; but:
  - the language stream also learned to write the simulator's rationales, gold text made from its ground truth, which
    often names the finding's quadrant ("I see a ring in the upper left."), and the policy's reward is the probability
    that this reader gives the right answer;
  - simulated answers follow from where findings were drawn, and some name the place;
  - where a data folder was given, the answers of its MS FLAIR and BCCD questions say what those sets' masks and boxes
    hold (is one there, how many, on which side), and the lesion mask of one FLAIR patient served to fill the lesions
    of that patient's volume before it became a training background.

  Otherwise masks and boxes score the evidence below and feed the oracle row, nothing else.
- **Spatial priors, all of them.** "Upper left", "left half" or "middle third" in a question or answer name that part
  of the image or of the slices (encoder stage, and the warm start of the policy); tokens carry their place as sines and
  cosines; what the policy's network adds to the encoder's log-odds, where it begins, is averaged over 3 x 3 tokens.
  Left and right are of the image as displayed, except where a data set's own answers say otherwise.
- **Data.** Simulated findings, part of them in anatomy made to look as if taken otherwise, in synthetic anatomy,
  in the ICBM 152 template and, where a data folder was given, in
  real chest radiographs without finding and FLAIR slices; train rows of NIH ChestX-ray14 samples (Wang et al., CVPR
  2017; NIH Clinical Center), BCCD (MIT), VQA-RAD (CC0), MS FLAIR and MS follow-up pairs (Lesjak et al. 2016, 2017,
  CC-BY), one of the two patients each of the MS sets.
- **Pairs.** A prior and a current image are two slices of one volume. It learned to compare them on simulated pairs
  (new, gone, grown, still there), whose images lie within two pixels of each other, and, where a data folder was given,
  on the 36 real pairs of one patient.
- **It cannot** answer outside the words it was taught, read text in images, or see what is smaller than a pixel of a
  192-pixel image. On real images its answers are weak: see the last table. It gives no reasoning where the data it
  learned a question from had none.
"""

_MAJORITY = """Majority: the most frequent answer to each question (in VQA-RAD to each kind of question), counted on
the very rows it is scored on, so an upper bound of what majority voting would reach. No image: the reader without any
token."""


def _table(name: str, figures: dict[str, Any]) -> list[str]:
    budgets = [b for b in dict.fromkeys(row["budget"] for row in figures["rows"]) if b < 1]
    title = f"### {name}: {figures['n']} questions, accuracy [95 % interval, bootstrap over images], evidence recall"
    lines = [title, ""]
    lines += ["| |" + "".join(f" {b:.1%} |" for b in budgets), "|---|" + "---|" * len(budgets)]
    for selector in dict.fromkeys(row["selector"] for row in figures["rows"]):
        own = {row["budget"]: row for row in figures["rows"] if row["selector"] == selector}
        if selector == "all":
            lines.append(f"| all tokens | {_cell(own[1.0])} |" + " |" * (len(budgets) - 1))
        else:
            lines.append(f"| {selector} |" + "".join(f" {_cell(own[b])} |" for b in budgets))
    lines += ["", "Paired difference of ours to:", ""]
    for rival in dict.fromkeys(row["rival"] for row in figures["paired"]):
        own_ = [row for row in figures["paired"] if row["rival"] == rival]
        cells = ", ".join(f"{r['budget']:.1%} {signed(r['gain'], r['ci'])}" for r in own_)
        lines.append(f"- {rival}: {cells}")
    by = ", ".join(f"{label} {accuracy:.2f} ({n})" for label, (accuracy, n) in figures["ours by question"].items())
    return [*lines, "", f"Ours at the widest budget by question: {by}.", ""]


def _cell(row: dict[str, Any]) -> str:
    recall = "" if row["recall"] is None else f" r {row['recall']:.2f}"
    return f"{value(row['accuracy'], row['ci'])}{recall}"


def _real(figures: dict[str, Any]) -> list[str]:
    if not figures:
        return []
    names = [n for n in next(iter(figures.values())) if n != "n"]
    lines = ["### real sets, val rows with choices, accuracy", "", "| set | n |" + "".join(f" {n} |" for n in names)]
    lines.append("|---|---|" + "---|" * len(names))
    for source, row in figures.items():
        lines.append(f"| {source} | {row['n']} |" + "".join(f" {row[n]:.3f} |" for n in names))
    return [*lines, "", _MAJORITY, ""]
