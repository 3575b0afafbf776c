"""Commands of the loop: ask, correct, revise, learn, policies, promote, rollback, next."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.markup import escape
from rich.table import Table

from sparsight.cli.output import Json, check_targets, console, emit_json, progress_bar, refused
from sparsight.cli.session import Session
from sparsight.errors import BudgetError, FeedbackError, SparsightError
from sparsight.types import Budget, Change, Difficulty, Feedback, Mark, MarkKind, Point, Verdict

Studies = Annotated[str | None, typer.Option(help="Folder or DICOMweb URL; STUDY is then an id of it.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (ask, correct, revise, learn, policies, promote, rollback):
        app.command()(command)
    app.command("next")(next_case)


def ask(
    context: typer.Context,
    study: Annotated[
        str, typer.Argument(help="DICOM, NIfTI, NRRD, PNG, JPEG or TIFF file or folder, or a study's id.")
    ],
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    prior: Annotated[str | None, typer.Option(help="An earlier image to compare with, as STUDY.")] = None,
    budget: Annotated[str | None, typer.Option(help="Share of the visual tokens to keep, in (0, 1], or auto.")] = None,
    no_recheck: Annotated[
        bool, typer.Option("--no-recheck", help="Do not read a negative or ungrounded answer again from more tokens.")
    ] = False,
    choice: Annotated[list[str] | None, typer.Option(help="A possible answer; repeat it for each.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Write the evidence as a picture (PNG).")] = None,
    labelmap: Annotated[Path | None, typer.Option(help="Write the evidence as a label map (NIfTI or NRRD).")] = None,
    studies: Studies = None,
    json: Json = False,
) -> None:
    """Ask a question about a study and see what the answer rests on."""
    from sparsight.imaging.export import overlay_png, write_labelmap
    from sparsight.imaging.files import ITK, NIFTI
    from sparsight.reply import ask_json
    from sparsight.service import parse_question

    share = _budget(budget)
    check_targets(overlay, kinds=(".png", ""))
    check_targets(labelmap, kinds=(*NIFTI, *ITK))
    parsed = parse_question(question, choices=tuple(choice or ()))
    session: Session = context.obj
    with session.service(studies) as service, progress_bar("ask", quiet=json) as tell:
        asked = service.ask(
            study,
            parsed,
            prior=prior,
            budget=share,
            recheck=not no_recheck,
            on_progress=lambda p: tell(p.stage, p.done, p.total),
        )
        reply = ask_json(asked)
        if not json:  # now: other slices may still have to be encoded; and whatever becomes of the files
            _print_answer(reply)
    try:
        if overlay:
            regions = asked.episode.evidence.regions
            overlay_png(asked.volume, asked.grid, asked.weights(), regions, overlay, title=parsed.text)
            reply["overlay"] = str(overlay)
        if labelmap:
            write_labelmap(labelmap, asked.labelmap(), asked.image)
            reply["labelmap"] = str(labelmap)
    except (SparsightError, OSError) as error:
        if not json:
            raise
        emit_json(reply | (refused(error) if isinstance(error, OSError) else error).as_dict())
        raise typer.Exit(1) from error
    if json:
        emit_json(reply)
    else:
        for name in ("overlay", "labelmap"):
            if name in reply:
                console.print(f"  {name}: {escape(reply[name])}")


def correct(
    context: typer.Context,
    episode: Annotated[str, typer.Argument(help="The episode that `ask` printed.")],
    verdict: Annotated[
        str | None, typer.Option(help="accept, amend or reject; amend, where something else is said.")
    ] = None,
    answer: Annotated[str | None, typer.Option(help="The right answer.")] = None,
    mark: Annotated[Path | None, typer.Option(help="A mask (NIfTI, NRRD, DICOM SEG) of a region.")] = None,
    mark_kind: Annotated[str, typer.Option(help="relevant, irrelevant or missed.")] = "relevant",
    box: Annotated[list[str] | None, typer.Option(help="A region in LPS mm: x0,y0,z0,x1,y1,z1.")] = None,
    point: Annotated[list[str] | None, typer.Option(help="A click in LPS mm: x,y,z.")] = None,
    stroke: Annotated[list[str] | None, typer.Option(help="A stroke in LPS mm: x,y,z;x,y,z;...")] = None,
    radius: Annotated[float, typer.Option(help="Half the width of clicks and strokes, mm.", min=0, max=100)] = 0.0,
    cannot_tell: Annotated[
        bool, typer.Option("--cannot-tell", help="This image does not answer the question.")
    ] = False,
    difficulty: Annotated[str | None, typer.Option(help="easy, moderate or hard.")] = None,
    comment: Annotated[str, typer.Option(help="For people; never learned from.")] = "",
    draft: Annotated[bool, typer.Option("--draft", help="Keep it, but learn nothing from it until submitted.")] = False,
    blinded: Annotated[bool, typer.Option("--blinded", help="--answer was given before ours was seen.")] = False,
    reviewer: Annotated[str, typer.Option(help="Pseudonym of who corrects.")] = "local",
    key: Annotated[str | None, typer.Option(help="Makes a repeated call the same correction.")] = None,
    json: Json = False,
) -> None:
    """Say what was right or wrong about an answer; the reward is shown at once."""
    from sparsight.imaging.export import frame_of, read_mask
    from sparsight.reply import corrected_json

    kind = cast(MarkKind, _one_of("--mark-kind", mark_kind, get_args(MarkKind)))
    marks = [Mark(kind, box_mm=_box(text)) for text in box or ()]
    paths = [_path(text) for text in (*(point or ()), *(stroke or ()))]
    marks += [Mark(kind, path_mm=path, radius_mm=radius) for path in paths]
    if mark:
        mask, ijk_to_lps = read_mask(mark)
        marks.append(Mark(kind, mask=mask, mask_ijk_to_lps=ijk_to_lps, frame_of_reference=frame_of(mark)))
    amends = answer or marks or cannot_tell or blinded
    if not (verdict or amends):
        raise FeedbackError(
            "a correction that says nothing",
            expected="--verdict, --answer, --cannot-tell or a mark",
            todo="say --verdict accept where the answer is right",
        )
    chosen = _one_of("--verdict", verdict or "amend", get_args(Verdict))
    hard = None if difficulty is None else _one_of("--difficulty", difficulty, get_args(Difficulty))
    feedback = Feedback(
        key=key or uuid.uuid4().hex,
        episode=episode,
        reviewer=reviewer,
        verdict=cast(Verdict, chosen),
        created=datetime.now(UTC),
        answer=answer,
        marks=tuple(marks),
        comment=comment,
        cannot_tell=cannot_tell,
        difficulty=cast(Difficulty | None, hard),
        blinded=blinded,
    )
    session: Session = context.obj
    with session.service() as service:
        reward = service.correct(feedback, draft=draft)
        reply = corrected_json(service, feedback, reward)
    if json:
        emit_json(reply)
    else:
        parts = ", ".join(f"{name} {value:+.2f}" for name, value in reward.parts.items() if value is not None)
        console.print(f"recorded as {feedback.key}; reward [bold]{reward.total:+.2f}[/] ({parts or 'verdict only'})")
        for note in reply["notes"]:
            console.print(f"  [yellow]{escape(note)}[/]")


def revise(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="Key of a correction, as `correct` printed it.")],
    change: Annotated[str, typer.Argument(help="submit, withdraw or undo.")],
    reviewer: Annotated[str, typer.Option(help="Pseudonym of who changes it.")] = "local",
    json: Json = False,
) -> None:
    """Submit a draft, withdraw a correction, or undo its last change."""
    chosen = cast(Change, _one_of("CHANGE", change, get_args(Change)))
    session: Session = context.obj
    with session.service() as service:
        state = service.revise(key, chosen, by=reviewer)
        learned_by = service.learned_by(key)
    if json:
        emit_json({"key": key, "state": state, "learned_by": list(learned_by)})
        return
    console.print(f"{escape(key)} is {'a draft' if state == 'draft' else state}")
    if learned_by and state != "submitted":
        console.print(f"  [yellow]policy {learned_by[0]} has learned from it; `rollback` undoes that[/]")


def learn(context: typer.Context, json: Json = False) -> None:
    """Train a candidate policy on the new corrections; the gate promotes it or holds it, with reasons."""
    from sparsight.reply import learn_json
    from sparsight.report.cards import write_own_cards

    session: Session = context.obj
    with session.processes() as ranks:
        if ranks is None:
            return
        with session.service() as service, progress_bar("learn", quiet=json) as tell:
            learned = service.learn(on_progress=lambda p: tell(p.stage, p.done, p.total), ranks=ranks)
            if learned.candidate:
                write_own_cards(service)
    if json:
        emit_json(learn_json(learned))
        return
    if learned.candidate is None:
        console.print(f"nothing to learn: {'; '.join(learned.reasons)}")
        return
    state = "[bold green]promoted[/]" if learned.promoted else "[bold yellow]held[/]"
    console.print(f"{learned.candidate.id} {state} after {learned.corrections} corrections, {learned.seconds:.1f} s")
    for reason in learned.reasons:
        console.print(f"  - {escape(reason)}")


def policies(context: typer.Context, json: Json = False) -> None:
    """List the policy versions."""
    from sparsight.reply import policy_json

    session: Session = context.obj
    with session.service() as service:
        versions = service.policies()
    if json:
        emit_json({"policies": [policy_json(v) for v in versions]})
        return
    table = Table("policy", "state", "parent", "created", "sha256", "why")
    for v in versions:
        created = v.created.strftime("%Y-%m-%d %H:%M")
        table.add_row(v.id, v.state, v.parent or "-", created, v.sha256[:12], escape("; ".join(v.reasons)))
    console.print(table)


def promote(
    context: typer.Context,
    policy: Annotated[str, typer.Argument(help="Id of a policy that `policies` lists.")],
    sign_off: Annotated[str | None, typer.Option(help="Who signs.")] = None,
    json: Json = False,
) -> None:
    """Make a policy live: one that passed the gate, one shipped with a newer release or imported, or a retired one."""
    from sparsight.reply import policy_json

    session: Session = context.obj
    with session.service() as service:
        version = service.promote(policy, sign_off=sign_off)
    if json:
        emit_json(policy_json(version))
    else:
        console.print(f"{version.id} is live")


def rollback(context: typer.Context, json: Json = False) -> None:
    """Make the live policy's parent live again, bit for bit."""
    from sparsight.reply import policy_json

    session: Session = context.obj
    with session.service() as service:
        version = service.rollback()
    if json:
        emit_json(policy_json(version))
    else:
        console.print(f"{version.id} is live again (sha256 {version.sha256[:12]})")


def next_case(
    context: typer.Context,
    studies: Annotated[str, typer.Option(help="Folder or DICOMweb URL with the studies.")],
    json: Json = False,
) -> None:
    """Say which study to correct next, and what to ask about it."""
    session: Session = context.obj
    with session.service(studies) as service, progress_bar("next", quiet=json):
        case = service.next_case()
    if json:
        emit_json({"next": vars(case) if case else None})
    elif case is None:
        console.print("every study has been corrected")
    else:
        console.print(f"{escape(case.study)}: {escape(case.question)}  ({escape(case.reason)})")


def _print_answer(reply: dict[str, Any]) -> None:
    words = "not sure enough to answer" if reply["abstained"] else f"confidence {reply['confidence']:.0%}"
    console.print(f"[bold]{escape(reply['answer'])}[/]  ({words})")
    if reply["reasoning"]:
        console.print(f"  {escape(reply['reasoning'])}", style="italic")
    if reply["grounded"] is False:
        console.print("  [yellow]not grounded: the answer hardly depends on these regions[/]")
    if reply["recheck"]:
        console.print(f"  {escape(reply['recheck']['note'])}")
    for note in reply["notes"]:
        console.print(f"  [yellow]{escape(note)}[/]")
    budget = reply["budget"]
    console.print(f"  rests on {budget['kept']} of {budget['total']} visual tokens ({budget['fraction']:.1%})")
    if seen := reply["slices"]:
        console.print(f"  after a first look at {seen['total']} slices, {seen['encoded']} of them were encoded")
    for region in reply["evidence"][:5]:
        (x0, y0, z0), (x1, y1, z1) = region["box_mm"]
        box = f"x {round(x0)}..{round(x1)}, y {round(y0)}..{round(y1)}, z {round(z0)}..{round(z1)} mm (LPS)"
        where = f"{region['image']} image" if region["image"] else f"slice {region['slice']}"
        console.print(f"  {region['weight']:>5.0%}  {box}, {where}")
    if (more := len(reply["evidence"]) - 5) > 0:
        console.print(f"  and {more} more (--json has them)")
    console.print(f"  episode {reply['episode']}, policy {reply['policy']['id']}")


def _budget(text: str | None) -> Budget | None:
    if text is None or text == "auto":
        return "auto" if text else None
    try:
        return float(text)
    except ValueError:
        raise BudgetError(
            f"a budget of {text[:20]!r}", expected="a share in (0, 1], or auto", todo="for example 0.1"
        ) from None


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise FeedbackError(f"{option} {value[:20]!r}", expected=" or ".join(allowed), todo="choose one of them")
    return value


def _path(text: str) -> tuple[Point, ...]:
    try:
        points = tuple(tuple(float(part) for part in point.split(",")) for point in text.split(";"))
        if any(len(point) != 3 for point in points):
            raise ValueError
    except ValueError:
        raise FeedbackError(
            f"a path {text[:40]!r}", expected="x,y,z;x,y,z;... in LPS mm", todo="see `ask --json`"
        ) from None
    return cast(tuple[Point, ...], points)


def _box(text: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    try:
        x0, y0, z0, x1, y1, z1 = (float(part) for part in text.split(","))
    except ValueError:
        raise FeedbackError(
            f"--box {text[:40]!r}", expected="six numbers, x0,y0,z0,x1,y1,z1 in LPS mm", todo="see `ask --json`"
        ) from None
    return (x0, y0, z0), (x1, y1, z1)
