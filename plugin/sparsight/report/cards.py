"""A model card and a data card for a policy version, written from what was measured: nothing in them is made up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import sparsight
from sparsight.errors import SparsightError
from sparsight.imaging.whole import whole
from sparsight.model import is_nano, model_config
from sparsight.model.quantized import told
from sparsight.report.gather import gate_of
from sparsight.service import Service
from sparsight.types import Feedback, PolicyVersion

_CHECKS = ("check", "value", "low", "high", "n", "passed")


def write_cards(service: Service, folder: Path) -> None:
    """Write folder/POLICY/{model,data}.md of every version, anew where something was decided since. Raises OSError."""
    for version in service.policies():
        own = folder / version.id
        own.mkdir(parents=True, exist_ok=True)
        for name, card in (("model.md", model_card(service, version)), ("data.md", data_card(service, version))):
            with whole(own / name) as temporary:
                temporary.write_text(card, encoding="utf-8")


def write_own_cards(service: Service) -> None:
    """Beside the policies themselves; where the disk does not take them, the next learning or report tries again."""
    with suppress(SparsightError, OSError):
        write_cards(service, service.config.home / "readers" / service.reader.id / "cards")


def model_card(service: Service, version: PolicyVersion) -> str:
    """What a version is, how it was measured and decided about, and what it is not for. Markdown."""
    learn, gate = service.config.learn, service.config.gate
    reasons = [f"- {reason}" for reason in version.reasons] or ["- none were given"]
    return "\n".join(
        [
            f"# Policy {version.id}",
            "",
            "**Research use only; not a medical device.** A visual stream of sparsight: it chooses which visual tokens",
            f"of an image reader `{version.reader}` is given. Of no use to another reader.",
            "",
            f"- state: {version.state}; made {version.created:%Y-%m-%d %H:%M} UTC by sparsight {sparsight.__version__}",
            f"- sha256 of the weights: `{version.sha256}`",
            f"- parent: {version.parent or 'none'}; signed off by: {version.sign_off or 'nobody'}",
            *([f"- imported from {version.origin.site or 'a site without a name'}"] if version.origin else []),
            "",
            "## How it was made",
            "",
            *_made(service, version),
            "",
            "## How it was measured",
            "",
            f"Against its parent, paired: on {gate.sentinel} frozen simulated questions (seed {gate.sentinel_seed}"
            f"{', version ' + version.sentinel if version.sentinel else ''}),",
            "and on corrections of studies that were kept out of training (every other one until",
            f"there are {learn.held_out_early}, then a share of {learn.held_out:g}). Bounds are",
            "bootstrap over studies, at a level that counts the looks (docs/method.md).",
            "",
            *_table(_CHECKS, _checks(version)),
            "",
            "## Why it is in this state",
            "",
            *reasons,
            "",
            *_reader(service),
            "## Limits",
            "",
            "- It was not measured on patients other than those of the corrections; strata below 20 questions were not",
            "  judged. Accuracy is bounded by the reader: see its own card.",
            "- It learned what its reviewers hold for right: [the data card](data.md) says who and how much.",
            "",
        ]
    )


def data_card(service: Service, version: PolicyVersion) -> str:
    """Which corrections a version was trained on and measured on: how many, of what kind, by whom. Markdown."""
    every = service.store.all_feedback(submitted=False, on_fault=lambda _: None)
    trained, held = (
        [one for one in every if one.key in keys]
        for keys in (service.store.learned_keys([version.id], role) for role in ("train", "heldout"))
    )
    used = trained + held
    gone = [sum(service.store.state_of(one.key) == "withdrawn" for one in some) for some in (trained, held)]
    span = sorted(one.created for one in used)
    when = f", from {span[0]:%Y-%m-%d} to {span[-1]:%Y-%m-%d}" if span else ""
    answers, reviewers = len({one.episode for one in used}), len({one.reviewer for one in used})
    return "\n".join(
        [
            f"# Data of policy {version.id}",
            "",
            f"Trained on {len(trained)} corrections, measured on {len(held)} others that were held out; of {answers}",
            f"answers by {reviewers} reviewers{when}. Reviewers are",
            "pseudonyms. No image, question or answer is in this card. Those of its ancestors were replayed, held out",
            "then or not, beside simulated questions.",
            "",
            f"- withdrawn since: {gone[0]} that it was trained on (a rollback undoes that), {gone[1]} held out",
            "",
            *_both("what was said", _kinds(trained), _kinds(held)),
            "",
            *_both("reviewer", *(Counter(one.reviewer for one in some) for some in (trained, held))),
            "",
            "Corrections that other readers' majority contradicts, and those of readers left out, are not among them.",
            "",
        ]
    )


def _made(service: Service, version: PolicyVersion) -> list[str]:
    if version.parent is None:
        return ["It was shipped with its reader, or imported: nothing was learned here."]
    n, held = (round(version.metrics.get(name, 0)) for name in ("corrections", "held_out"))
    learn = service.config.learn
    return [
        f"Policy gradient from {n} corrections (and {held} kept out of training), {learn.replay:.0%} of each batch",
        f"replay of earlier cases, KL to its parent (weight {learn.kl:g}); settings as they are now: at least",
        f"{learn.steps} steps, {learn.group} subsets a question, shares "
        f"{', '.join(f'{b:g}' for b in learn.budgets)} of the tokens, seed {learn.seed}.",
    ]


def _reader(service: Service) -> list[str]:
    """What a model of one's own is known to lose by how it is loaded; of nano its own card says all."""
    name = service.config.serve.reader
    if is_nano(name):
        return []
    notes: Sequence[str] = getattr(service.reader, "notes", ())
    lines = told(model_config(name), service.reader.sha256, smaller=bool(notes))
    return ["## Its reader", "", *lines, *(f"It was {note}." for note in notes), ""]


def _checks(version: PolicyVersion) -> list[list[str]]:
    rows = []
    for check in gate_of(version):
        numbers = [f"{check[name]:.3f}" if check[name] is not None else "-" for name in ("value", "low", "high")]
        rows.append([check["name"], *numbers, f"{check['n'] or 0:.0f}", "yes" if check["passed"] else "no"])
    return rows or [["none: no gate has measured it", "", "", "", "", ""]]


def _kinds(given: list[Feedback]) -> Counter[str]:
    counted: Counter[str] = Counter(f"verdict: {f.verdict}" for f in given)
    counted.update(f"mark: {mark.kind}" for f in given for mark in f.marks)
    counted["with the right answer"] = sum(f.answer is not None for f in given)
    return counted


def _both(what: str, trained: Counter[str], held: Counter[str]) -> list[str]:
    names = sorted({*trained, *held}, key=lambda name: (-trained[name] - held[name], name))
    return _table((what, "trained on", "held out"), [[name, str(trained[name]), str(held[name])] for name in names])


def _table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
