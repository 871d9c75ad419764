"""A drawn person with the 17 COCO keypoints, in a random pose, facing the viewer."""

import colorsys
from dataclasses import dataclass

import numpy as np

from maskrcnn_core.config.person import COCO_KEYPOINTS
from maskrcnn_core.data.generated.shapes import Color, Figure, Floats, Part, capsule, disc

PERSON_KEYPOINTS = COCO_KEYPOINTS
"""In this order. Left and right are the person's own."""

_INK: Color = (35, 30, 40)


@dataclass(frozen=True)
class _Clothes:
    skin: Color
    hair: Color
    shirt: Color
    trousers: Color
    shoes: Color


def _rgb(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _dress(rng: np.random.Generator) -> _Clothes:
    return _Clothes(
        skin=_rgb(rng.uniform(0.04, 0.09), rng.uniform(0.30, 0.60), rng.uniform(0.45, 0.98)),
        hair=_rgb(rng.uniform(0.02, 0.12), rng.uniform(0.3, 0.8), rng.uniform(0.10, 0.75)),
        shirt=_rgb(rng.uniform(), rng.uniform(0.35, 0.95), rng.uniform(0.45, 1.0)),
        trousers=_rgb(rng.uniform(), rng.uniform(0.15, 0.7), rng.uniform(0.2, 0.75)),
        shoes=_rgb(rng.uniform(), rng.uniform(0.0, 0.8), rng.uniform(0.1, 0.9)),
    )


def _step(start: Floats, length: float, angle: float) -> Floats:
    """The point `length` away from `start`; angle 0 is down, positive towards the right of the picture."""
    return start + length * np.array([np.sin(angle), np.cos(angle)])


def _beside(points: Floats, right: float, down: float) -> Floats:
    return np.asarray(points + np.array([right, down]))


def _pose(rng: np.random.Generator) -> Floats:
    """[17, 2] keypoints; the person is 2 units tall, its hips near the origin."""
    joints = np.zeros((17, 2))
    lean = rng.uniform(-0.12, 0.12)
    neck = _step(np.zeros(2), -0.60, lean)
    head = _step(neck, -0.33, lean + rng.uniform(-0.15, 0.15))
    turn = rng.uniform(-0.05, 0.05)
    joints[0] = _beside(head, 1.6 * turn, 0.03)
    for side, sign in ((0, 1.0), (1, -1.0)):
        joints[1 + side] = _beside(head, sign * 0.085 + turn, -0.035)
        joints[3 + side] = _beside(head, sign * 0.195, 0.0)
        joints[5 + side] = _beside(neck, sign * 0.24, 0.05)
        joints[11 + side] = (sign * 0.14, 0.0)
        raised = rng.uniform(0.15, 0.9) if rng.random() < 0.65 else rng.uniform(0.9, 2.6)
        joints[7 + side] = _step(joints[5 + side], 0.31, sign * raised)
        joints[9 + side] = _step(joints[7 + side], 0.29, sign * (raised + rng.uniform(-0.7, 0.7)))
        spread = rng.uniform(0.0, 0.45)
        joints[13 + side] = _step(joints[11 + side], 0.40, sign * spread)
        joints[15 + side] = _step(joints[13 + side], 0.38, sign * (spread - rng.uniform(0.0, 0.4)))
    return joints


def _legs(joints: Floats, clothes: _Clothes) -> list[Part]:
    parts = []
    for side, sign in ((0, 1.0), (1, -1.0)):
        hip, knee, ankle = joints[11 + side], joints[13 + side], joints[15 + side]
        toe = _beside(ankle, sign * 0.09, 0.05)
        parts.append(Part(capsule(_beside(ankle, 0.0, 0.03), toe, 0.07, 0.06), clothes.shoes))
        parts.append(Part(capsule(knee, ankle, 0.085, 0.065), clothes.trousers))
        parts.append(Part(capsule(hip, knee, 0.105, 0.085), clothes.trousers))
    return parts


def _torso(joints: Floats, clothes: _Clothes) -> list[Part]:
    left_shoulder, right_shoulder, left_hip, right_hip = joints[5], joints[6], joints[11], joints[12]
    neck = (left_shoulder + right_shoulder) / 2
    return [
        Part(capsule(neck, joints[[1, 2]].mean(axis=0), 0.075, 0.075), clothes.skin),
        Part(capsule(left_shoulder, left_hip, 0.10, 0.10), clothes.shirt),
        Part(capsule(right_shoulder, right_hip, 0.10, 0.10), clothes.shirt),
        Part(_beside(np.stack([left_shoulder, right_shoulder, right_hip, left_hip]), 0.0, 0.08), clothes.shirt),
        Part(capsule(left_shoulder, right_shoulder, 0.09, 0.09), clothes.shirt),
    ]


def _arms(joints: Floats, clothes: _Clothes) -> list[Part]:
    parts = []
    for side in (0, 1):
        shoulder, elbow, wrist = joints[5 + side], joints[7 + side], joints[9 + side]
        parts.append(Part(capsule(elbow, wrist, 0.065, 0.055), clothes.skin))
        parts.append(Part(disc(wrist, 0.075, 16), clothes.skin))
        parts.append(Part(capsule(shoulder, elbow, 0.085, 0.070), clothes.shirt))
    return parts


def _head(joints: Floats, clothes: _Clothes) -> list[Part]:
    middle = (joints[3] + joints[4]) / 2
    hair = Part(disc(_beside(middle, 0.0, -0.045), 0.225), clothes.hair)
    ears = [Part(disc(joints[index], 0.06, 12), clothes.skin) for index in (3, 4)]
    face = Part(disc(_beside(middle, 0.0, 0.025), 0.185), clothes.skin)
    eyes = [Part(disc(joints[index], 0.030, 10), _INK) for index in (1, 2)]
    red, green, blue = clothes.skin
    nose = Part(disc(joints[0], 0.022, 10), (7 * red // 10, 7 * green // 10, 7 * blue // 10))
    mouth_left, mouth_right = _beside(joints[0], 0.05, 0.075), _beside(joints[0], -0.05, 0.075)
    return [hair, *ears, face, *eyes, nose, Part(capsule(mouth_left, mouth_right, 0.014, 0.014), (150, 60, 60))]


def person(rng: np.random.Generator) -> Figure:
    """A person in random clothes and pose, 2 units tall, with 17 keypoints that lie on its mask."""
    joints, clothes = _pose(rng), _dress(rng)
    parts = _legs(joints, clothes) + _torso(joints, clothes) + _arms(joints, clothes) + _head(joints, clothes)
    return Figure("person", tuple(parts), joints)
