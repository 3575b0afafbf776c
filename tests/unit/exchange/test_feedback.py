"""Corrections leave one store and arrive at another: exactly once, with all that became of them; forged ones do not."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from sparsight.config import Config
from sparsight.errors import BundleError, ConflictError, InputError, SparsightError
from sparsight.exchange.feedback import export_feedback, import_feedback
from sparsight.exchange.feedback_lines import episode_of
from sparsight.service import Service, parse_question
from sparsight.store import Store
from sparsight.store.records import canonical, episode_to_record
from sparsight.types import Answer, Feedback, ImageVolume, Mark

QUESTION = parse_question("Is there a nodule?")


@pytest.fixture
def config(tmp_path: Path, reader_folder: Path) -> Config:
    learn = {"steps": 2, "passes": 0, "batch": 4, "group": 4}
    return Config.load(home=tmp_path / "a", serve={"reader": str(reader_folder)}, learn=learn, gate={"sentinel": 20})


@pytest.fixture
def taught(config: Config) -> Iterator[Service]:
    """Seven corrections: answers, masks with and without a place, a stroke, a draft, one withdrawn."""
    service = Service(config)
    for n in range(7):
        voxels = np.random.default_rng(n).uniform(0, 200, (1, 32, 40)).astype(np.float32)
        volume = ImageVolume(voxels, np.diag([0.5, 0.5, 1, 1]), "DX", (127.5, 255.0), sop_uids=("1.2.3",))
        asked = service.ask(volume, QUESTION, recheck=False)
        marks: tuple[Mark, ...] = ()
        if n in (1, 2):
            affine = volume.ijk_to_lps.copy() if n == 1 else None
            if affine is not None:
                affine[0, 3] = 1 / 3  # no number that float32 holds
            marks = (
                Mark(
                    "missed", mask=np.pad(np.ones((1, 9, 8), bool), ((0, 0), (3, 20), (4, 28))), mask_ijk_to_lps=affine
                ),
            )
        if n == 3:
            marks = (Mark("relevant", path_mm=((1.0, 2.0, 0.0), (9.0, 9.0, 0.0)), radius_mm=1.5),)
        given = Feedback(f"k{n}", asked.episode.id, f"r{n % 2}", "amend", datetime.now(UTC), "no", marks, "Mrs. X")
        service.correct(given, draft=n == 5)
    service.revise("k6", "withdraw", by="r0")
    yield service
    service.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "b" / "store.db", tmp_path / "b") as store:
        yield store


def states(store: Store) -> dict[str, str]:
    return {one.key: store.state_of(one.key) for one in store.all_feedback(submitted=False)}


def test_all_corrections_arrive_once_with_what_became_of_them(taught: Service, other: Store, tmp_path: Path) -> None:
    n, digest = export_feedback(taught.store, tmp_path / "out", site="site-a", comments=True)
    merged = import_feedback(other, tmp_path / "out")
    assert (n, merged.corrections, merged.known, merged.episodes, merged.conflicts) == (7, 7, 0, 7, ())
    assert merged.sha256 == digest
    assert states(other) == states(taught.store)
    for key in states(other):
        ours, theirs = taught.store.feedback(key), other.feedback(key)
        assert theirs.reviewer == f"{ours.reviewer}@site-a"
        assert (theirs.answer, theirs.comment, theirs.created) == (ours.answer, ours.comment, ours.created)
        assert other.reward(key).parts == taught.store.reward(key).parts
        for mine, its in zip(ours.marks, theirs.marks, strict=True):
            assert (mine.path_mm, mine.radius_mm) == (its.path_mm, its.radius_mm)
            for name in ("mask", "mask_ijk_to_lps"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(its, name))  # to the last bit
    entries = other.audit_head()[0]
    again = import_feedback(other, tmp_path / "out")
    assert (again.corrections, again.known, again.episodes) == (0, 7, 0)
    assert other.audit_head()[0] == entries
    assert other.verify() == []
    assert taught.store.verify() == []


def test_back_where_it_came_from_nothing_is_doubled(taught: Service, other: Store, tmp_path: Path) -> None:
    export_feedback(taught.store, tmp_path / "out", site="site-a")
    import_feedback(other, tmp_path / "out")
    export_feedback(other, tmp_path / "back", site="site-b")
    before = states(taught.store)
    merged = import_feedback(taught.store, tmp_path / "back")
    assert (merged.corrections, merged.known, merged.conflicts) == (0, 7, ())
    assert states(taught.store) == before
    assert taught.store.feedback("k0").reviewer == "r0"


def test_what_was_withdrawn_later_is_withdrawn_there_too(taught: Service, other: Store, tmp_path: Path) -> None:
    export_feedback(taught.store, tmp_path / "first", site="site-a")
    import_feedback(other, tmp_path / "first")
    taught.revise("k0", "withdraw", by="r0")
    taught.revise("k6", "undo", by="r0")
    export_feedback(taught.store, tmp_path / "second", site="site-a")
    assert import_feedback(other, tmp_path / "second").corrections == 0
    assert states(other) == states(taught.store)


def test_another_site_learns_from_them(taught: Service, config: Config, tmp_path: Path) -> None:
    export_feedback(taught.store, tmp_path / "bare", site="site-a")
    export_feedback(taught.store, tmp_path / "full", site="site-a", tokens=True)
    service = Service(config.model_copy(update={"home": tmp_path / "c"}))
    import_feedback(service.store, tmp_path / "bare")
    assert service.learn().reasons[-1] == "corrections that could not be used: 5 (not_found)"
    assert import_feedback(service.store, tmp_path / "full").tokens == 7
    learned = service.learn()
    assert learned.corrections + learned.held_out == 5
    service.close()


def test_nothing_that_names_a_patient_leaves(taught: Service, tmp_path: Path) -> None:
    episode = taught.store.episode(taught.store.feedback("k0").episode)
    named = replace(episode, id="e0", study="Jane Doe", series_uid="1.2.840.1", frame_of_reference="1.2.840.9")
    taught.store.save_episode(named)
    taught.correct(Feedback("k9", "e0", "r1", "amend", datetime.now(UTC), "no", comment="Jane Doe"))
    export_feedback(taught.store, tmp_path / "out", site="site-a")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(text in content for text in (b"Jane", b"1.2.840", b'"1.2.3"', b"Mrs. X")), path.name


def test_masks_open_in_any_viewer(taught: Service, tmp_path: Path) -> None:
    export_feedback(taught.store, tmp_path / "out", site="site-a")
    lines = [json.loads(line) for line in (tmp_path / "out" / "corrections.jsonl").read_text().splitlines()]
    [drawn] = [line["masks"]["0"] for line in lines if line["feedback"]["key"] == "k1"]
    image = nibabel.load(tmp_path / "out" / drawn["file"])
    assert int(np.asarray(image.dataobj).sum()) == 72
    ras = np.diag([-1, -1, 1, 1]) @ np.array(drawn["ijk_to_lps"])
    np.testing.assert_allclose(image.affine, ras, atol=1e-5)


def test_a_key_that_says_something_else_here_is_left_as_it_is(taught: Service, other: Store, tmp_path: Path) -> None:
    export_feedback(taught.store, tmp_path / "out", site="site-a")
    import_feedback(other, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    changed = Feedback("k0", taught.store.feedback("k0").episode, "r0", "reject", datetime.now(UTC))
    with pytest.raises(ConflictError):
        taught.correct(changed)
    path = tmp_path / "c"
    with Store(path / "store.db", path) as third:
        third.save_episode(taught.store.episode(changed.episode))
        third.save_feedback(changed, taught.store.reward("k0"))
        export_feedback(third, tmp_path / "out", site="site-c")
    merged = import_feedback(other, tmp_path / "out")
    assert (merged.corrections, merged.conflicts) == (0, ("k0",))
    assert other.feedback("k0").verdict == "amend"


def forge(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Alter a file and its hash, as one would who means harm."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    data = change((folder / name).read_bytes())
    (folder / name).write_bytes(data)
    manifest["files"][name] = sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit(path: str, value: Any, line: int = 1) -> Callable[[bytes], bytes]:
    """Set a field of a line."""

    def change(data: bytes) -> bytes:
        lines = data.splitlines()
        edited = at = json.loads(lines[line - 1])
        *names, last = path.split(".")
        for name in names:
            at = at[int(name) if isinstance(at, list) else name]
        at[last] = value
        lines[line - 1] = json.dumps(edited).encode()
        return b"\n".join(lines)

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("corrections.jsonl", edit("feedback.verdict", "maybe")),
        ("corrections.jsonl", edit("feedback.key", "a b")),
        ("corrections.jsonl", edit("feedback.episode", "e-unknown")),
        ("corrections.jsonl", edit("feedback.answer", "x" * 5000)),
        ("corrections.jsonl", edit("feedback.created", "yesterday")),
        ("corrections.jsonl", edit("feedback.marks", [{"kind": "missed"}])),
        ("corrections.jsonl", edit("feedback.marks", [{"kind": "missed", "path_mm": [[1e999, 0, 0]]}])),
        ("corrections.jsonl", edit("masks", {"0": {"file": "../../etc/passwd", "ijk_to_lps": None}})),
        ("corrections.jsonl", edit("reward.total", 7)),
        ("corrections.jsonl", edit("changes", [{"key": "x"}])),
        ("corrections.jsonl", lambda data: b"not json\n"),
        ("episodes.jsonl", edit("episode.question", 3)),
        ("episodes.jsonl", edit("episode.grid_shape", [1, 1, 1])),
        ("episodes.jsonl", edit("episode.created", "2020-01-01T00:00:00")),
        ("episodes.jsonl", edit("episode.study", "x" * 10_000)),
        ("episodes.jsonl", edit("episode.frame_of_reference", "1.2.3")),
        ("episodes.jsonl", edit("arrays", "manifest.json")),
        ("episodes.jsonl", lambda data: b"[]\n"),
    ],
)
def test_what_is_forged_is_refused_before_anything_is_stored(
    taught: Service, other: Store, tmp_path: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    export_feedback(taught.store, tmp_path / "out", site="site-a")
    forge(tmp_path / "out", name, change)
    with pytest.raises(BundleError):
        import_feedback(other, tmp_path / "out")
    assert other.counts() == {"episodes": 0, "corrections": 0}
    assert other.audit_head()[0] == 0


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"verdict": "accept", "answer": "yes"}, "accept with another answer"),
        ({"verdict": "amend", "answer": None}, "an amendment that amends nothing"),
        ({"answer": "nein"}, "none of the question's choices"),
        ({"answer": " "}, "a corrected answer of 1 characters"),
        ({"cannot_tell": True}, "what cannot be told"),
        ({"blinded": True, "verdict": "reject", "answer": None}, "an answer that was not seen"),
        ({"marks": [{"kind": "missed", "box_mm": [[9, 9, 9], [1, 1, 1]]}]}, "a box from"),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_what_would_be_refused_here_is_refused_by_its_line(
    taught: Service, other: Store, tmp_path: Path, said: dict[str, Any], why: str, known: bool
) -> None:
    """By the answer as it is stored here, where it is known: whatever the other site says that it was."""
    export_feedback(taught.store, tmp_path / "out", site="site-a")
    forge(tmp_path / "out", "episodes.jsonl", edit("episode.answer.text", "nein" if known else "no", line=5))
    if known:
        ours = taught.store.episode(taught.store.feedback("k4").episode)
        other.save_episode(replace(ours, answer=Answer("no", "", 0.9)))
        for name, value in (("kind", "free"), ("choices", [])):
            forge(tmp_path / "out", "episodes.jsonl", edit(f"episode.question.{name}", value, line=5))

    def change(data: bytes) -> bytes:
        for name, value in said.items():
            data = edit(f"feedback.{name}", value, line=5)(data)
        return data

    forge(tmp_path / "out", "corrections.jsonl", change)
    with pytest.raises(BundleError, match=rf"^corrections\.jsonl, line 5: .*{why}"):
        import_feedback(other, tmp_path / "out")
    assert other.counts() == {"episodes": int(known), "corrections": 0}


def test_no_site_speaks_in_anothers_name(taught: Service, other: Store, tmp_path: Path) -> None:
    export_feedback(taught.store, tmp_path / "out", site="site-a")
    forge(tmp_path / "out", "corrections.jsonl", edit("feedback.reviewer", "dr@site-c"))
    forge(tmp_path / "out", "corrections.jsonl", edit("changes.0.by", "dr@site-c", line=7))
    with pytest.raises(BundleError, match="another site"):
        import_feedback(other, tmp_path / "out", site="site-c")
    import_feedback(other, tmp_path / "out", site="site-a")
    assert other.feedback("k0").reviewer == "dr@site-c@site-a"
    assert other.changes_of("k6")[0].by == "dr@site-c@site-a"
    export_feedback(other, tmp_path / "further", site="site-b")
    with Store(tmp_path / "d" / "store.db", tmp_path / "d") as third:
        import_feedback(third, tmp_path / "further")
        assert third.feedback("k0").reviewer == "dr@site-c@site-a@site-b"
        assert third.feedback("k1").reviewer == "r1@site-a@site-b"


@pytest.mark.parametrize("attention", [[np.nan], [-0.1], [1.5], [0.5, 0.5]])
def test_attention_that_fits_no_token_is_refused(taught: Service, attention: list[float]) -> None:
    record, arrays = episode_to_record(taught.store.episode(taught.store.feedback("k0").episode))
    line = {"episode": json.loads(canonical(record))}
    assert episode_of(line, arrays).selection.attention is not None
    forged = np.zeros(len(arrays["scores"]) + len(attention) - 1, np.float32)
    forged[: len(attention)] = attention
    with pytest.raises(BundleError):
        episode_of(line, {**arrays, "attention": forged})


def test_what_is_altered_or_missing_is_refused(taught: Service, other: Store, tmp_path: Path) -> None:
    export_feedback(taught.store, tmp_path / "out", site="site-a", tokens=True)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    for path in files:
        kept = path.read_bytes()
        path.write_bytes(kept[:-2] + b"??")
        with pytest.raises(BundleError):
            import_feedback(other, tmp_path / "out")
        path.unlink()
        with pytest.raises(BundleError):
            import_feedback(other, tmp_path / "out")
        path.write_bytes(kept)
    assert other.counts()["episodes"] == 0
    assert import_feedback(other, tmp_path / "out").corrections == 7


@pytest.mark.parametrize("site", ["", "a b", "../x", "x" * 100])
def test_a_site_is_a_pseudonym(taught: Service, tmp_path: Path, site: str) -> None:
    with pytest.raises(InputError):
        export_feedback(taught.store, tmp_path / "out", site=site)
    assert not (tmp_path / "out").exists()


def test_a_place_where_something_is_already(taught: Service, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SparsightError):
        export_feedback(taught.store, tmp_path / "out", site="site-a")
    assert (tmp_path / "out").read_text() == "mine"
