"""A bundle as MONAI sees it: its metadata has what the specification demands, its config runs and answers."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser, run, verify_metadata

from sparsight.errors import BundleError, InputError
from sparsight.exchange import Answerer, Exported, answer
from sparsight.service import Service, parse_question

# itk's SWIG types lack __module__ on Python 3.11: https://github.com/swig/swig/issues/2881
pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
QUESTION = "Is there a nodule?"
TENSOR = ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"]
SCHEMA: dict[str, Any] = {  # what the MONAI bundle specification demands of metadata.json
    "type": "object",
    "required": [
        *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
        *("task", "description", "authors", "copyright", "network_data_format"),
    ],
    "properties": {
        "version": {"type": "string"},
        "changelog": {"type": "object"},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "intended_use": {"type": "string", "pattern": "(?i)research use only"},
        "eval_metrics": {"type": "object"},
        "network_data_format": {
            "required": ["inputs", "outputs"],
            "properties": {
                side: {
                    "minProperties": 2,
                    "additionalProperties": {
                        "anyOf": [
                            {"type": "string"},
                            {
                                "type": "object",
                                "required": TENSOR,
                                "properties": {
                                    "num_channels": {"type": "integer"},
                                    "spatial_shape": {"items": {"type": ["string", "integer"]}},
                                    "value_range": {"items": {"type": "number"}},
                                },
                            },
                        ]
                    },
                }
                for side in ("inputs", "outputs")
            },
        },
    },
}


def test_the_metadata_has_what_monai_demands(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_here(*, filepath: str, url: str, **_: Any) -> None:
        assert url.endswith(".json")
        Path(filepath).write_text(json.dumps(SCHEMA))

    monkeypatch.setattr("monai.bundle.scripts.download_url", from_here)
    path = tmp_path / "bundle" / "configs" / "metadata.json"
    verify_metadata(meta_file=str(path), filepath=str(tmp_path / "schema.json"))
    metadata = json.loads(path.read_text())
    assert metadata["eval_metrics"] == {"held_out_gain": 0.21}
    assert exported.policy.sha256 in metadata["description"]
    del metadata["network_data_format"]["inputs"]
    (tmp_path / "less.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "less.json"), filepath=str(tmp_path / "schema.json"))


def test_monai_runs_the_config_and_the_answer_is_that_of_the_site(
    exported: Exported, first: Service, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, labels = tmp_path / "bundle", tmp_path / "evidence.nii.gz"
    with pytest.warns(UserWarning, match="source you trust"):
        run(
            config_file=str(root / "configs" / "inference.json"),
            bundle_root=str(root),
            image=str(picture),
            question=QUESTION,
            output=str(labels),
        )
    printed = json.loads(capsys.readouterr().out)
    asked = first.ask(str(picture), parse_question(QUESTION))
    episode = asked.episode
    assert printed["answer"] == episode.answer.text
    assert printed["confidence"] == round(episode.answer.confidence, 4)
    assert printed["evidence"][0]["box_mm"] == [list(corner) for corner in episode.evidence.regions[0].box_mm]
    assert printed["policy"] == {"id": exported.policy.id, "sha256": exported.policy.sha256}
    assert printed["budget"]["kept"] == (episode.recheck.kept if episode.recheck else len(episode.selection.keep))
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(labels).dataobj).transpose(2, 1, 0),  # type: ignore[attr-defined]  # of a base class
        asked.labelmap(),
    )


def test_the_parser_makes_a_callable(exported: Exported, tmp_path: Path, picture: Path) -> None:
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "bundle" / "configs" / "inference.json"))
    parser.read_meta(str(tmp_path / "bundle" / "configs" / "metadata.json"))
    parser["bundle_root"] = str(tmp_path / "bundle")
    answerer = parser.get_parsed_content("network_def")
    assert isinstance(answerer, Answerer)
    few, many = (answerer(picture, "Which?", choices=["left", "right"], budget=b).reply for b in (0.05, 1.0))
    assert {few["answer"], many["answer"]} <= {"left", "right"}
    assert many["budget"]["kept"] == many["budget"]["total"] == 480


def test_an_answerer_looks_at_the_hashes_but_not_at_what_else_lies_there(
    exported: Exported, tmp_path: Path, picture: Path
) -> None:
    root = tmp_path / "bundle"
    (root / "image.png").write_bytes(picture.read_bytes())
    (root / "models" / "reader" / "config.json").write_text("{}")  # as a model of transformers has
    answerer = Answerer(root)
    with pytest.raises(InputError, match="no image"):
        answer(answerer, "", QUESTION)
    assert answer(answerer, str(root / "image.png"), QUESTION)["answer"] in ("yes", "no")
    path = root / "models" / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BundleError, match="sha256"):
        Answerer(root)
