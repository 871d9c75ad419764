"""Proposals out of a predictor, and into it again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs
from torch import Tensor

from maskrcnn_core.config.dense import DenseConfig
from maskrcnn_core.config.heads import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.proposals import ImageProposals, ProposalFiles
from maskrcnn_core.errors import ConfigError, ImageError
from maskrcnn_core.inference.predictor import Predictor, describe_checkpoint, load_predictor
from maskrcnn_core.inference.settings import PredictorSettings, check_settings, combined_fingerprint
from maskrcnn_core.records.labels import ImageRecord
from maskrcnn_core.records.proposals import ProposalRecord, proposals_to_table
from maskrcnn_core.weights.checkpoint import save_checkpoint
from tests.core.inference.test_predictor import encoded
from tests.small_detector import FINDING, finding_detector

PROPOSES = PredictorSettings(record="proposals")


def predictor_of(settings: PredictorSettings, config: ModelConfig = FINDING) -> Predictor:
    return Predictor(finding_detector(config), config, settings)


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [encoded(60, 90), encoded(150, 100, seed=1), encoded(60, 90, seed=2)]


@pytest.fixture(scope="module")
def proposed(images: list[bytes]) -> list[ProposalRecord]:
    return predictor_of(PROPOSES).propose(images)


def test_proposals_are_in_original_pixels_and_best_first(proposed: list[ProposalRecord]) -> None:
    for record, (height, width) in zip(proposed, [(60, 90), (150, 100), (60, 90)], strict=True):
        assert (record.status, record.error, record.height, record.width) == ("ok", None, height, width)
        assert record.boxes.shape == (len(record.scores), 4)
        assert 0 < len(record.scores) <= FINDING.dense.post_nms_test
        assert (np.diff(record.scores) <= 0).all()
        corners = record.boxes[:, :2] + record.boxes[:, 2:]
        assert record.boxes.min() >= 0
        assert (corners <= np.array([width, height]) + 1e-3).all()
    assert proposed[1].boxes[:, 1].max() > 64  # not the frame that the network saw


def test_the_input_frame_is_scaled_to_the_original_one(images: list[bytes], proposed: list[ProposalRecord]) -> None:
    """As `Detector.propose` has them, times original / input: 96 x 64 for 90 x 60."""
    predictor = predictor_of(PROPOSES)
    item = predictor._preparation.prepare(0, images[0])
    found = predictor.detector.propose(predictor._preparation.padded([item]).views[0])
    scale = np.array([90 / 96, 60 / 64] * 2, np.float32)
    boxes = found.boxes[0, : int(found.count[0])].numpy() * scale
    np.testing.assert_allclose(proposed[0].boxes[:, :2], boxes[:, :2], atol=1e-3)
    np.testing.assert_allclose(proposed[0].boxes[:, 2:], boxes[:, 2:] - boxes[:, :2], atol=1e-3)


def test_settings_limit_proposals(images: list[bytes], proposed: list[ProposalRecord]) -> None:
    few = predictor_of(replace(PROPOSES, max_detections=3)).propose(images)
    for one, other in zip(few, proposed, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes[:3])
    limit = float(proposed[0].scores[4:6].mean())
    sure = predictor_of(replace(PROPOSES, min_score=limit)).propose(images[:1])[0]
    assert len(sure.scores) == 5
    many = predictor_of(replace(PROPOSES, max_detections=60)).propose(images[:1])[0]
    assert len(many.scores) > FINDING.dense.post_nms_test


def test_an_image_that_fails_costs_only_itself(images: list[bytes], proposed: list[ProposalRecord]) -> None:
    contents: list[bytes | Tensor | ImageError] = [ImageError("missing", "gone"), images[0], b"no image", images[1]]
    records = predictor_of(PROPOSES).propose(contents)
    assert [record.status for record in records] == ["missing", "ok", "unreadable", "ok"]
    assert records[0].error == "gone"
    assert records[0].boxes.shape == (0, 4)
    np.testing.assert_allclose(records[3].boxes, proposed[1].boxes, atol=1e-3)
    assert predictor_of(PROPOSES).propose([]) == []


def through_a_file(records: list[ProposalRecord], folder: Path) -> list[ImageProposals]:
    ids = list(range(len(records)))
    pq.write_table(proposals_to_table(ids, ["x"] * len(ids), records, "model"), folder / "proposals.parquet")
    files = ProposalFiles([str(folder / "proposals.parquet")], fs.LocalFileSystem())
    return [files.read(number, FINDING.dense.post_nms_test) for number in ids]


@pytest.mark.parametrize("masks", [True, False])
def test_given_the_rpns_own_proposals_the_detections_are_the_same(
    images: list[bytes], proposed: list[ProposalRecord], tmp_path: Path, masks: bool
) -> None:
    config = replace(FINDING, mask_head=replace(FINDING.mask_head, enabled=masks))
    expected = predictor_of(PredictorSettings(), config).predict(images)
    given = predictor_of(PredictorSettings(proposals="print"), config)
    found = given.predict(images, through_a_file(proposed, tmp_path))
    assert min(len(record.detections) for record in found) > 0
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def assert_same(got: ImageRecord, expected: ImageRecord) -> None:
    assert (got.status, got.width, got.height) == (expected.status, expected.width, expected.height)
    assert [found.category_id for found in got.detections] == [found.category_id for found in expected.detections]
    for one, other in zip(got.detections, expected.detections, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.bbox == pytest.approx(other.bbox, abs=0.02)
        assert (one.rle_counts is None) == (other.rle_counts is None)


def test_a_model_without_an_rpn_detects_from_given_proposals(
    images: list[bytes], proposed: list[ProposalRecord], tmp_path: Path
) -> None:
    config = replace(FINDING, dense=replace(FINDING.dense, enabled=False))
    detector = finding_detector(config)
    assert not any(name.startswith("dense.") for name in detector.state_dict())
    whole = finding_detector(FINDING).state_dict()
    detector.load_state_dict({name: value for name, value in whole.items() if not name.startswith("dense.")})
    found = Predictor(detector, config, PredictorSettings(proposals="print"))
    expected = predictor_of(PredictorSettings()).predict(images)
    for one, other in zip(found.predict(images, through_a_file(proposed, tmp_path)), expected, strict=True):
        assert_same(one, other)


def test_several_views_look_at_the_same_given_proposals(
    images: list[bytes], proposed: list[ProposalRecord], tmp_path: Path
) -> None:
    given = through_a_file(proposed, tmp_path)
    settings = PredictorSettings(proposals="print", test_short_sides=(64, 96), test_flip=True)
    records = predictor_of(settings).predict(images, given)
    assert [record.status for record in records] == ["ok"] * 3
    for record in records:
        assert record.width is not None
        assert 0 < len(record.detections) <= FINDING.box_head.max_detections
        assert max(found.bbox[0] + found.bbox[2] for found in record.detections) <= record.width + 1e-3
    mirrored = predictor_of(replace(settings, test_short_sides=())).predict(images[:1], given[:1])[0]
    plain = predictor_of(PredictorSettings(proposals="print")).predict(images[:1], given[:1])[0]
    assert {found.bbox for found in mirrored.detections} != {found.bbox for found in plain.detections}


def test_an_image_without_proposals_has_no_detections(images: list[bytes]) -> None:
    given = predictor_of(PredictorSettings(proposals="print"))
    nothing = ImageProposals(torch.zeros(0, 4), torch.zeros(0), (60, 90))
    one = ImageProposals(torch.tensor([[5.0, 5.0, 50.0, 50.0]]), torch.tensor([0.9]), (60, 90))
    records = given.predict([images[0], images[2]], [nothing, one])
    assert [record.status for record in records] == ["ok", "ok"]
    assert records[0].detections == ()
    assert given.predict([images[0]], [nothing])[0].detections == ()


def test_proposals_that_do_not_fit_fail_their_image(images: list[bytes]) -> None:
    given = predictor_of(PredictorSettings(proposals="print"))
    turned = ImageProposals(torch.zeros(0, 4), torch.zeros(0), (90, 60))
    right = ImageProposals(torch.zeros(0, 4), torch.zeros(0), (60, 90))
    records = given.predict([images[0]] * 3, [turned, right, ImageError("failed", "no row of this image")])
    assert [record.status for record in records] == ["failed", "ok", "failed"]
    assert "90 x 60 pixels (width x height), its proposals were made at 60 x 90" in str(records[0].error)
    assert records[2].error == "no row of this image"


# ---- what a model can do ---------------------------------------------------------------------------------------------

NO_HEADS = replace(
    FINDING,
    box_head=BoxHeadConfig(enabled=False),
    mask_head=MaskHeadConfig(enabled=False),
    keypoint_head=KeypointHeadConfig(enabled=False),
)
NO_RPN = replace(FINDING, dense=DenseConfig(enabled=False))


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (NO_HEADS, PredictorSettings(), r"the checkpoint is an RPN alone; expected 'proposals'"),
        (NO_RPN, PredictorSettings(), r"the checkpoint has no RPN; give --proposals URI"),
        (NO_RPN, PROPOSES, r"label\.record: got 'proposals', but the checkpoint has no RPN"),
        (FINDING, replace(PROPOSES, proposals="print"), r"expected only one of the two"),
        (FINDING, replace(PROPOSES, test_flip=True), r"only detections are merged"),
        (FINDING, replace(PROPOSES, test_short_sides=(64,)), r"only detections are merged"),
    ],
)
def test_what_a_model_cannot_do_is_said_before_any_work(
    config: ModelConfig, settings: PredictorSettings, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(config, settings)
    save_checkpoint(tmp_path, finding_detector(config).state_dict(), config)
    for read in (describe_checkpoint, load_predictor):
        with pytest.raises(ConfigError, match=message):
            read(str(tmp_path), settings)


def test_an_rpn_alone_proposes(images: list[bytes], proposed: list[ProposalRecord], tmp_path: Path) -> None:
    detector = finding_detector(NO_HEADS)
    assert {name.split(".")[0] for name in detector.state_dict()} == {"trunk", "pyramid", "dense"}
    whole = finding_detector(FINDING).state_dict()
    detector.load_state_dict({name: whole[name] for name in detector.state_dict()})
    save_checkpoint(tmp_path, detector.state_dict(), NO_HEADS)
    records = load_predictor(str(tmp_path), PROPOSES).propose(images)
    for one, other in zip(records, proposed, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)


def test_fingerprints_of_detections_stay_and_of_proposals_differ() -> None:
    plain = combined_fingerprint("weights", PredictorSettings())
    others = [
        combined_fingerprint("weights", settings)
        for settings in (PROPOSES, PredictorSettings(proposals="one"), PredictorSettings(proposals="two"))
    ]
    assert len({plain, *others}) == 4
    assert plain == "036538ccaf50c1a1e6dbf8a92f493b55"  # as before there were proposals: runs go on
