"""Each quirk of an annotation file has one outcome, wherever the file is read."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maskrcnn_core.config.heads import KeypointHeadConfig, MaskHeadConfig
from maskrcnn_core.config.image import InputConfig
from maskrcnn_core.config.model import ModelConfig
from maskrcnn_core.data.coco.category_names import distinct_names
from maskrcnn_core.data.coco.dataset import CocoDataset, load_coco
from maskrcnn_core.data.dataset import CocoTrainingData, Sample
from maskrcnn_core.data.files import Folder
from maskrcnn_core.data.targets import TargetRule
from maskrcnn_core.errors import AnnotationError
from maskrcnn_core.report.settings import PicturesConfig
from pipelines.evaluation.config import EvaluateConfig, EvaluateRun
from pipelines.evaluation.run import EvaluationSummary, evaluate
from pipelines.images.parts import Part
from pipelines.images.tables import coco_entries, find_image_root
from pipelines.report.run import report_evaluation
from pipelines.training.config import TrainRun
from pipelines.training.data_checks import check_data
from pipelines.training.data_config import DataConfig, DatasetConfig
from pipelines.training.data_summary import summarize
from pipelines.training.datasets import training_data
from pipelines.training.validation import PredictedShare, draw_pictures, score_shares
from tests.pipelines.evaluation.annotation_cases import (
    CASES,
    HEIGHT,
    IMAGES,
    WIDTH,
    Case,
    Document,
    perfect_labels,
    perfect_records,
    plain,
    write_pictures,
)

MASKS = ModelConfig(mask_head=MaskHeadConfig(enabled=True))
BOXES = ModelConfig(mask_head=MaskHeadConfig(enabled=False))
_OTHER_NAMES = ("cat_same_name", "cat_name_number")  # than those of the labels here: see the tests of labels
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
read_cases = pytest.mark.parametrize("case", [one for one in CASES if not one.refused], ids=lambda case: case.name)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases") / "images"
    write_pictures(folder)
    return folder


def write(case: Case, folder: Path) -> str:
    document = plain()
    case.change(document)
    (folder / "instances.json").write_text(json.dumps(document))
    return str(folder / "instances.json")


def run_of(annotations: str, images: Path, model: ModelConfig = MASKS, val: str = "") -> TrainRun:
    data = DataConfig(train=DatasetConfig(images=str(images), annotations=annotations))
    if val:
        data = replace(data, val=DatasetConfig(images=str(images), annotations=val))
    return TrainRun(output="nowhere", model=model, data=data)


def pictures_for(name: str, images: Path) -> Path:
    """A folder without pictures for the cases whose sizes would come from them."""
    return images / "none" if name.startswith("size_") else images


def looked_at(dataset: CocoDataset, images: Path, mask_size: int | None) -> None:
    """Every image of the data set as training sees it."""
    source = CocoTrainingData(
        dataset, Folder(str(images)), InputConfig(short_side=WIDTH, long_side=WIDTH), TargetRule(mask_size=mask_size)
    )
    for place, image in enumerate(dataset.images):
        targets = source[Sample(index=place, flip=bool(place % 2), short_side=HEIGHT)].targets
        assert len(targets) == len(image.objects)
        assert targets.boxes.isfinite().all()
        boxes = targets.boxes
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert ((boxes >= 0) & (boxes <= WIDTH)).all()


@every_case
def test_training_on_masks(case: Case, pictures: Path, tmp_path: Path) -> None:
    path = write(case, tmp_path)
    if case.refused:
        with pytest.raises(AnnotationError) as caught:
            check_data(run_of(path, pictures_for(case.name, pictures)))
        assert case.refused in str(caught.value)
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    found = check_data(run_of(path, pictures))["data.train"]
    assert found.dataset.faults.counts == case.faults
    assert len(found.notes) == len(case.faults)
    regions = sum(item.crowd for image in found.dataset.images for item in image.objects)
    assert regions == case.faults.get("no mask", 0) + (case.name == "iscrowd_strange")
    for size in (0, 16):
        looked_at(found.dataset, pictures, size)
    summary = summarize(found.dataset)
    assert sum(summary.objects_per_category.values()) == summary.objects


@read_cases
def test_training_on_boxes(case: Case, pictures: Path, tmp_path: Path) -> None:
    found = training_data(run_of(write(case, tmp_path), pictures, BOXES)).dataset
    assert found.faults.counts == {kind: n for kind, n in case.faults.items() if kind not in ("mask", "no mask")}
    looked_at(found, pictures, None)


@read_cases
def test_training_on_keypoints(case: Case, pictures: Path, tmp_path: Path) -> None:
    """Keypoints of the first category, whose annotations have some or not."""
    document = plain()
    case.change(document)
    if case.name == "kp_two_lists":
        return  # refused, see test_coco
    document["categories"][0]["keypoints"] = ["a", "b", "c"]
    (tmp_path / "a.json").write_text(json.dumps(document))
    head = KeypointHeadConfig(enabled=True, names=("a", "b", "c"), categories=("red",))
    model = ModelConfig(mask_head=MaskHeadConfig(enabled=False), keypoint_head=head)
    found = training_data(run_of(str(tmp_path / "a.json"), pictures, model)).dataset
    expected = {kind: n for kind, n in case.faults.items() if kind not in ("mask", "no mask")}
    assert found.faults.counts == expected | ({"keypoints": 1} if case.name == "one_kp_null" else {})
    looked_at(found, pictures, None)


def perfect_share(dataset: CocoDataset) -> PredictedShare:
    records = dict(zip(range(1, IMAGES + 1), perfect_records(), strict=True))
    return PredictedShare(
        [(one.image_id, one.file_name, records[one.image_id]) for one in dataset.images if one.image_id in records]
    )


@read_cases
def test_validation_scores_and_draws_what_was_checked(case: Case, pictures: Path, tmp_path: Path) -> None:
    path = write(case, tmp_path)
    run = run_of(path, pictures, val=path)
    found = check_data(run)["data.val"]
    assert found.dataset.faults.counts == case.faults
    config = replace(MASKS, categories=found.dataset.categories)
    share = perfect_share(found.dataset)
    scores = score_shares([share], config, found.dataset)
    if case.bbox is not None:
        assert scores.metrics["bbox/AP"] == pytest.approx(case.bbox)
    if case.segm is not None:
        assert scores.metrics["segm/AP"] == pytest.approx(case.segm)
    shown = distinct_names((one.id, one.name) for one in found.dataset.categories)
    assert set(scores.categories) <= set(shown.values())
    sheet = draw_pictures(share, found.dataset, run.data.val, number=4, max_pixels=10**6)
    assert sheet is not None


def scored(path: str, labels: Path, **settings: object) -> EvaluationSummary:
    config = EvaluateConfig(details=True, bootstrap_samples=2, **settings)  # type: ignore[arg-type]
    return evaluate(EvaluateRun(str(labels), path, evaluate=config))


@pytest.fixture(scope="module")
def labels(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("labels") / "labels.parquet"
    pq.write_table(perfect_labels(pictures), file, row_group_size=3)
    return file


@every_case
def test_evaluation_by_both_engines(case: Case, labels: Path, tmp_path: Path) -> None:
    if case.name in _OTHER_NAMES:
        return
    path = write(case, tmp_path)
    refused = case.refused if case.unscored is None else case.unscored
    if refused:
        with pytest.raises(AnnotationError) as caught:
            scored(path, labels)
        assert refused in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    ours, reference = (scored(path, labels, engine=engine) for engine in ("hotcoco", "pycocotools"))
    assert ours.scores == reference.scores
    by_name = case.name == "cat_id_zero"
    for kind, expected in (("bbox", 1.0 if by_name else case.bbox), ("segm", 1.0 if by_name else case.segm)):
        if expected == -1 and kind == "segm" and kind not in ours.scores.stats:
            assert "segm" in ours.scores.skipped
        elif expected is not None:
            assert ours.scores.stats[kind][0] == pytest.approx(expected)
    if not case.refused:
        assert len(ours.notes) == len(case.faults) + (case.name == "ann_id_zero") + by_name
    assert json.loads(json.dumps(ours.to_json()))["notes"] == list(ours.notes)


@read_cases
def test_report(case: Case, labels: Path, pictures: Path, tmp_path: Path) -> None:
    if case.name in _OTHER_NAMES:
        return
    path = write(case, tmp_path)
    few = PicturesConfig(per_gallery=2, side=64)
    run = EvaluateRun(str(labels), path, report=str(tmp_path / "page"), pictures=few)
    summary = evaluate(replace(run, report=None, evaluate=EvaluateConfig(details=True, bootstrap_samples=2)))
    assert report_evaluation(run, summary, "").examples > 0


@every_case
def test_the_list_of_images(case: Case, pictures: Path, tmp_path: Path) -> None:
    path = write(case, tmp_path)
    if case.unlabelled is not None:
        with pytest.raises(AnnotationError, match=case.unlabelled):
            find_image_root(path, str(pictures))
        return
    root = find_image_root(path, str(pictures))
    (entries,) = coco_entries(Part("coco", path, root=root))
    assert entries.uris[:IMAGES] == [str(pictures / f"im{number}.png") for number in range(1, IMAGES + 1)]
    assert entries.ids is not None
    assert list(entries.ids)[:IMAGES] == [1, 2, 3, 4]


def changed_categories(change: Callable[[Document], object], folder: Path) -> str:
    document = copy.deepcopy(plain())
    change(document)
    (folder / "val.json").write_text(json.dumps(document))
    return str(folder / "val.json")


def _swap(document: Document) -> None:
    document["categories"] = [{"id": 2, "name": "red"}, {"id": 1, "name": "blue"}]
    for one in document["annotations"]:
        one["category_id"] = 3 - one["category_id"]


def _subset(document: Document) -> None:
    document["categories"] = document["categories"][:1]
    document["annotations"] = document["annotations"][::2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_swap, "categories meet by name: 'blue' has the id 1 here and 2 there, 'red' has the id 2 here and 1 there"),
        (_subset, "categories meet by name: 1 are not in this file ('blue')"),
    ],
)
def test_validation_meets_training_by_name(
    change: Callable[[Document], object], said: str, pictures: Path, tmp_path: Path
) -> None:
    train = write(CASES[0], tmp_path)
    run = run_of(train, pictures, val=changed_categories(change, tmp_path))
    found = check_data(run)["data.val"]
    assert [note.endswith(said) for note in found.notes] == [True]
    share = perfect_share(found.dataset)
    if change is _subset:
        red = [(i, name, replace(one, detections=one.detections[:1])) for i, name, one in share.entries]
        share = PredictedShare(red)
    config = replace(MASKS, categories=found.dataset.categories)
    assert score_shares([share], config, found.dataset).score == pytest.approx(1.0)


def test_a_name_that_training_does_not_know_is_refused(pictures: Path, tmp_path: Path) -> None:
    train = write(CASES[0], tmp_path)
    val = changed_categories(lambda d: d["categories"][1].update(name="green"), tmp_path)
    with pytest.raises(
        AnnotationError, match=r"val\.json: .*'green' \(id 2, which is 'blue' there\); expected some of"
    ):
        check_data(run_of(train, pictures, val=val))


def test_a_validation_set_of_crowds_is_said(pictures: Path, tmp_path: Path) -> None:
    train = write(CASES[0], tmp_path)
    val = changed_categories(lambda d: [one.update(iscrowd=1) for one in d["annotations"]], tmp_path)
    (note,) = check_data(run_of(train, pictures, val=val))["data.val"].notes
    assert note == f"{val}: there is nothing to score on: no annotation is an object (iscrowd 0)"


def test_crowds_beside_boxes_without_masks_teach_nothing(pictures: Path, tmp_path: Path) -> None:
    def change(document: Document) -> None:
        for place, one in enumerate(document["annotations"]):
            name, value = ("iscrowd", 1) if place % 2 else ("segmentation", [])
            one[name] = value

    path = changed_categories(change, tmp_path)
    with pytest.raises(
        AnnotationError, match=r"nothing to learn, every one of its 8 annotations is a crowd .* or has no"
    ):
        check_data(run_of(path, pictures))
    check_data(run_of(path, pictures, BOXES))  # boxes are there


def test_names_below_a_folder_of_the_split(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "train2017").symlink_to(pictures)
    case = next(one for one in CASES if one.name == "lvis_v1")
    path = write(case, tmp_path)
    for folder, name in ((pictures, "im1.png"), (tmp_path, "train2017/im1.png"), (tmp_path / "train2017", "im1.png")):
        assert training_data(run_of(path, folder)).dataset.images[0].file_name == name
        assert find_image_root(path, str(folder)) == str(folder)
        (entries,) = coco_entries(Part("coco", path, root=str(folder)))
        assert entries.uris[0] == str(folder / name)


def test_a_report_finds_pictures_whose_names_begin_with_their_split(
    labels: Path, pictures: Path, tmp_path: Path
) -> None:
    path = write(next(one for one in CASES if one.name == "lvis_v1"), tmp_path)
    run = EvaluateRun(str(labels), path, images=str(pictures), report=str(tmp_path / "page"))
    summary = evaluate(replace(run, report=None, images=None))
    assert report_evaluation(run, summary, "").examples > 0


@pytest.mark.parametrize("name", [one.name for one in CASES])
def test_the_cases_beside_the_repository(name: str) -> None:
    """The same by files that were written without these tests, where they are there."""
    folder = Path(__file__).resolve().parents[3] / ".." / "shared" / "cases" / "annotations"
    file = folder / f"{name}.json"
    if not file.exists():
        pytest.skip(f"not there: {file}")
    case = next(one for one in CASES if one.name == name)
    if case.refused:
        with pytest.raises(AnnotationError):
            check_data(run_of(str(file), pictures_for(name, folder / "images")))
    else:
        assert load_coco(str(file), require_masks=True, keypoints=False, on_fault="drop").images
