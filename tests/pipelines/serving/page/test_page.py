"""The page in a real browser: pictures come in every way, and everything that was found can be looked at."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn_core.drawing.objects import category_color
from pipelines.serving.renderings import label_row
from tests.pipelines.serving.page.conftest import Opened

DROP = """([name, content]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(content)], name, { type: "image/jpeg" }));
    const fire = (kind) => document.querySelector("#stage").dispatchEvent(
        new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
    fire("dragenter");
    const told = !document.querySelector("#drop").hidden;
    fire("dragover");
    fire("drop");
    return told && document.querySelector("#drop").hidden;
}"""
PASTE = """([name, content]) => {
    const data = new DataTransfer();
    if (name) data.items.add(new File([Uint8Array.from(content)], name, { type: "image/png" }));
    document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
}"""


def found(opened: Opened, file: Path) -> dict[str, Any]:
    """The record that the server has of a picture."""
    return label_row(opened.server.detectors["drawn"].function(file.read_bytes()), "")


def shown(opened: Opened) -> int:
    return int(opened.window.locator("#count b").first.inner_text())


def slide(opened: Opened, control: str, value: float) -> None:
    opened.window.locator(control).fill(str(value))
    opened.painted()


def test_a_chosen_picture(opened: Opened, examples: dict[int, Path]) -> None:
    opened.choose(examples[2])
    record = found(opened, examples[2])
    strong = [one for one in record["detections"] if one["score"] >= 0.5]
    assert 1 < len(strong) < len(record["detections"])
    assert shown(opened) == len(strong)
    assert opened.window.locator("#count").inner_text() == f"{len(strong)} of {len(record['detections'])} instances"
    names = opened.rows().locator(".name").all_inner_texts()
    assert names == [one["category"] for one in strong]
    size = opened.window.locator("canvas.masks").evaluate("canvas => [canvas.width, canvas.height]")
    assert size == [record["width"], record["height"]]
    assert opened.server.requests == [{"model": "drawn", "format": "json"}]
    assert "model" in opened.window.locator("#timings").inner_text()
    said = opened.window.locator("#live").inner_text()
    assert said.startswith(f"{len(strong)} of {len(record['detections'])} instances shown in")


def test_a_dropped_picture(opened: Opened, examples: dict[int, Path]) -> None:
    assert opened.window.evaluate(DROP, ["dropped.jpg", list(examples[3].read_bytes())])
    opened.answered()
    assert opened.window.locator("#about").inner_text().startswith("dropped.jpg, ")
    assert shown(opened) > 0


def test_a_pasted_picture(opened: Opened, examples: dict[int, Path]) -> None:
    opened.window.evaluate(PASTE, [None, []])
    assert "No picture to paste" in opened.problem()
    opened.window.evaluate(PASTE, ["image.png", list(examples[3].read_bytes())])
    opened.answered()
    assert not opened.window.locator("#problem").is_visible()
    assert shown(opened) > 0


def test_an_example(opened: Opened) -> None:
    opened.window.locator("#example-list button").nth(1).click()
    opened.answered()
    assert opened.window.locator("#about").inner_text().startswith("3.jpg, ")
    opened.window.locator("#close").click()
    assert opened.window.locator("#start").is_visible()
    assert not opened.window.locator("#panel").is_visible()
    assert opened.focused() == "choose"


def test_a_real_detector(opened: Opened, examples: dict[int, Path]) -> None:
    """What a network finds, with masks full of holes."""
    opened.window.locator("#model").select_option("small")
    opened.choose(examples[2])
    assert opened.server.requests[-1]["model"] == "small"
    record = opened.server.detectors["small"].function(examples[2].read_bytes())
    slide(opened, "#score", 0)
    assert shown(opened) == len(record.detections) > 3


def test_the_score_acts_at_once(opened: Opened, examples: dict[int, Path]) -> None:
    opened.choose(examples[2])
    scores = [one["score"] for one in found(opened, examples[2])["detections"]]
    for threshold in (0.0, 0.8, 0.3):
        slide(opened, "#score", threshold)
        assert shown(opened) == sum(score >= threshold for score in scores)
        assert opened.rows().count() == shown(opened)
    slide(opened, "#score", 1)
    assert shown(opened) == 0
    assert f"the best scores {max(scores):.2f}" in opened.window.locator("#none").inner_text()
    assert len(opened.server.requests) == 1
    expect(opened.window.locator("#live")).to_have_text(re.compile("^0 of"))


def test_masks_are_painted_where_they_are(opened: Opened, examples: dict[int, Path]) -> None:
    opened.choose(examples[2])
    slide(opened, "#opacity", 1)
    slide(opened, "#score", 0)
    record = found(opened, examples[2])
    masks = [coco_mask.decode(one["segmentation"]).astype(bool) for one in record["detections"]]
    alpha = opened.pixels("masks")[..., 3]
    assert np.array_equal(alpha == 255, np.any(masks, axis=0))
    assert set(np.unique(alpha)) == {0, 255}


def test_categories_act_at_once(opened: Opened, examples: dict[int, Path]) -> None:
    opened.choose(examples[2])
    slide(opened, "#score", 0)
    record = found(opened, examples[2])
    people = sum(one["category"] == "person" for one in record["detections"])
    everything = len(record["detections"])
    assert 0 < people < everything
    chip = opened.window.locator("#categories .chip", has_text="person")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert shown(opened) == everything - people
    opened.window.locator("#no-categories").click()
    assert shown(opened) == 0
    assert "switched off" in opened.window.locator("#none").inner_text()
    opened.window.locator("#all-categories").click()
    assert shown(opened) == everything
    assert len(opened.server.requests) == 1


def test_layers_and_colours(opened: Opened, examples: dict[int, Path]) -> None:
    opened.choose(examples[2])
    slide(opened, "#opacity", 1)
    best = found(opened, examples[2])["detections"][0]
    rows, columns = np.nonzero(coco_mask.decode(best["segmentation"]))
    inside = int(columns[len(columns) // 2]), int(rows[len(rows) // 2])
    by_instance = opened.pixel("masks", *inside)
    opened.window.locator('[name="colour"][value="category"]').check()
    opened.painted()
    assert opened.pixel("masks", *inside) == [*category_color(best["category_id"]), 255]
    assert by_instance[3] == 255
    assert by_instance != opened.pixel("masks", *inside)
    opened.window.locator('[name="masks"]').uncheck()
    opened.painted()
    assert opened.pixel("masks", *inside) == [0, 0, 0, 0]
    for name in ("boxes", "labels", "keypoints"):
        opened.window.locator(f'[name="{name}"]').uncheck()
    opened.painted()
    assert not opened.pixels("marks").any()


def test_the_pointer_brings_out_and_chooses(opened: Opened, examples: dict[int, Path]) -> None:
    opened.choose(examples[2])
    detections = found(opened, examples[2])["detections"]
    index, person = next((index, one) for index, one in enumerate(detections) if one["keypoints"])
    row = opened.rows().nth(index)
    rows, columns = np.nonzero(coco_mask.decode(person["segmentation"]))
    place = opened.on_screen(columns[len(columns) // 2] + 0.5, rows[len(rows) // 2] + 0.5)
    opened.window.mouse.move(*place)
    assert "looked" in (row.get_attribute("class") or "")
    opened.window.mouse.click(*place)
    assert row.get_attribute("aria-selected") == "true"
    numbers = row.inner_text()
    x, y, width, height = person["bbox"]
    assert f"x {x:.1f}, y {y:.1f}" in numbers
    assert f"{width:.1f} × {height:.1f} px" in numbers
    assert f"{int(rows.size):,} px" in numbers
    assert "17, mean" in numbers
    opened.window.mouse.click(*opened.on_screen(-4, -4))
    assert opened.window.locator('[aria-selected="true"]').count() == 0


def test_zoom_and_move(opened: Opened, examples: dict[int, Path]) -> None:
    opened.choose(examples[3])
    window = opened.window

    def box() -> dict[str, float]:
        opened.painted()
        found = window.locator("canvas.picture").bounding_box()
        assert found is not None
        return {name: found[name] for name in ("x", "y", "width", "height")}

    fitted = box()
    point = opened.on_screen(100, 120)
    window.mouse.move(*point)
    window.mouse.wheel(0, -300)
    assert box()["width"] > 1.5 * fitted["width"]
    assert opened.on_screen(100, 120) == pytest.approx(point, abs=1)  # what is under the pointer stays there
    zoomed = box()
    window.mouse.down()
    window.mouse.move(point[0] + 40, point[1] - 30, steps=4)
    window.mouse.up()
    moved = box()
    assert (moved["x"] - zoomed["x"], moved["y"] - zoomed["y"]) == pytest.approx((40, -30), abs=1)
    assert window.locator('[aria-selected="true"]').count() == 0  # a move is no click
    window.mouse.move(point[0] + 2000, point[1])
    window.locator("#fit").click()
    assert box() == pytest.approx(fitted, abs=1)
    window.locator("#zoom-in").click()
    assert box()["width"] == pytest.approx(1.4 * fitted["width"], rel=0.01)
    assert window.locator("#zoom").inner_text().endswith(" %")
    window.locator("#zoom-out").click()
    assert box() == pytest.approx(fitted, abs=1)


def test_everything_by_keyboard(opened: Opened, examples: dict[int, Path]) -> None:
    window = opened.window
    record = found(opened, examples[2])

    def tab_to(wanted: str) -> None:
        for _ in range(40):
            window.keyboard.press("Tab")
            if window.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
                return
        raise AssertionError(f"no way to {wanted}")

    tab_to("#example-list button")
    window.keyboard.press("Enter")
    opened.answered()
    window.locator("body").focus()
    tab_to(".view")
    assert opened.focused("getAttribute('aria-label')").startswith("Picture with ")
    window.keyboard.press("n")
    window.keyboard.press("n")
    assert opened.rows().nth(1).get_attribute("aria-selected") == "true"
    said = window.locator("#live").inner_text()
    assert said.startswith(f"{record['detections'][1]['category']}, score 0.")
    before = window.locator("#zoom").inner_text()
    window.keyboard.press("Enter")
    opened.painted()
    assert window.locator("#zoom").inner_text() != before
    window.keyboard.press("0")
    opened.painted()
    assert window.locator("#zoom").inner_text() == before
    window.keyboard.press("Escape")
    assert window.locator('[aria-selected="true"]').count() == 0
    tab_to("#score")
    for _ in range(5):
        window.keyboard.press("ArrowRight")
    assert window.locator("#score-value").inner_text() == "0.55"
    tab_to("#categories .chip")
    window.keyboard.press("Space")
    assert opened.focused("getAttribute('aria-pressed')") == "false"  # the focus stays on it
    window.keyboard.press("Space")
    tab_to("#instances")
    window.keyboard.press("ArrowDown")
    window.keyboard.press("ArrowDown")
    window.keyboard.press("Home")
    assert opened.rows().first.get_attribute("aria-selected") == "true"
    assert opened.focused("getAttribute('aria-activedescendant')") == opened.rows().first.get_attribute("id")
    tab_to("#save-coco")


def test_coco_json(opened: Opened, examples: dict[int, Path], tmp_path: Path) -> None:
    opened.choose(examples[2])
    slide(opened, "#score", 0.4)
    opened.window.locator("#categories .chip", has_text="star").click()
    with opened.window.expect_download() as download:
        opened.window.locator("#save-coco").click()
    assert download.value.suggested_filename == "example 2.coco.json"
    download.value.save_as(tmp_path / "coco.json")
    record = found(opened, examples[2])
    wanted = [one for one in record["detections"] if one["score"] >= 0.4 and one["category"] != "star"]
    document = json.loads((tmp_path / "coco.json").read_text())
    assert document["images"] == [
        {"id": 1, "file_name": "example 2.jpg", "width": record["width"], "height": record["height"]}
    ]
    kept = ("category_id", "score", "bbox", "segmentation")
    assert [[entry[name] for name in kept] for entry in document["annotations"]] == [
        [one[name] for name in kept] for one in wanted
    ]
    coco = COCO(tmp_path / "coco.json")
    for entry, one in zip(document["annotations"], wanted, strict=True):
        assert coco.annToMask(entry).sum() == entry["area"] == coco_mask.area(one["segmentation"])
    person = next(category for category in document["categories"] if category["name"] == "person")
    assert len(person["keypoints"]) == 17


def test_png(opened: Opened, examples: dict[int, Path], tmp_path: Path) -> None:
    opened.choose(examples[2])
    with opened.window.expect_download() as download:
        opened.window.locator("#save-png").click()
    assert download.value.suggested_filename == "example 2.detections.png"
    download.value.save_as(tmp_path / "drawn.png")
    drawn, picture = (
        np.asarray(Image.open(file).convert("RGB"), int) for file in (tmp_path / "drawn.png", examples[2])
    )
    assert drawn.shape == picture.shape
    changed = np.abs(drawn - picture).max(axis=2) > 40
    masks = [
        coco_mask.decode(one["segmentation"]).astype(bool)
        for one in found(opened, examples[2])["detections"]
        if one["score"] >= 0.5
    ]
    assert changed[np.any(masks, axis=0)].mean() > 0.5
    assert changed[~np.any(masks, axis=0)].mean() < 0.2


def test_two_models_side_by_side(opened: Opened, examples: dict[int, Path]) -> None:
    opened.choose(examples[2])
    opened.window.locator("#compare").click()
    expect(opened.window.locator("#timings .bar")).to_have_count(2)
    opened.painted()
    assert [query["model"] for query in opened.server.requests] == ["drawn", "drawn", "small"]
    assert opened.window.locator(".view").count() == 2
    assert opened.window.locator(".caption b").all_inner_texts() == ["drawn", "small"]
    assert opened.window.locator('[role="group"][aria-label="small"] [role="option"]').count() > 0

    def places() -> list[float]:
        opened.painted()
        boxes = [opened.window.locator("canvas.picture").nth(index).bounding_box() for index in (0, 1)]
        return [boxes[0]["width"], boxes[1]["width"]]

    fitted = places()
    assert fitted[0] == pytest.approx(fitted[1], abs=1)
    opened.window.locator(".view").nth(1).hover()
    opened.window.mouse.wheel(0, -300)
    zoomed = places()
    assert zoomed[0] == pytest.approx(zoomed[1], abs=1)
    assert zoomed[0] > 1.5 * fitted[0]
    opened.window.locator("#model").select_option("small")  # then the other one becomes "drawn"
    opened.answered()
    assert opened.window.locator("#other-model").input_value() == "drawn"
    opened.window.locator("#compare").click()
    opened.answered()
    assert opened.window.locator(".view").count() == 1


def test_run_lengths_are_those_of_coco(opened: Opened) -> None:
    """Random masks, the empty one, the full one, single pixels and long runs."""
    generator = np.random.default_rng(0)
    masks = [
        generator.random((height, width)) < share for height, width, share in ((1, 1, 1), (7, 5, 0.5), (40, 33, 0.9))
    ]
    masks += [np.zeros((4, 6), bool), np.ones((300, 500), bool), np.eye(9, dtype=bool), np.eye(1500, 3, dtype=bool)]
    for mask in masks:
        encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        segmentation = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
        decode = """async (segmentation) => {
            const mask = (await import("/page/rle.js")).decodeMask(segmentation);
            return mask && { ...mask, bits: [...mask.bits] };
        }"""
        decoded = opened.window.evaluate(decode, segmentation)
        if not mask.any():
            assert decoded is None
            continue
        rebuilt = np.zeros_like(mask)
        bits = np.array(decoded["bits"], bool).reshape(decoded["height"], decoded["width"])
        rebuilt[decoded["top"] :, decoded["left"] :][: decoded["height"], : decoded["width"]] = bits
        assert np.array_equal(rebuilt, mask)
        assert bits.any(axis=0)[[0, -1]].all()
        assert bits.any(axis=1)[[0, -1]].all()
        assert decoded["area"] == mask.sum()


def test_categories_have_the_colours_of_drawn_pictures(opened: Opened) -> None:
    read = """async () => {
        const { categoryColour } = await import("/page/colours.js");
        return Array.from({ length: 200 }, (_, id) => categoryColour(id));
    }"""
    colours = np.array(opened.window.evaluate(read))
    assert np.abs(colours - np.array([category_color(number) for number in range(200)])).max() <= 1
