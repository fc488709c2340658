# SPDX-License-Identifier: Apache-2.0
"""What the host decides about the scale of a frame, and what it tells of the result."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np

from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.packed import Fields, pack
from dpt_ros.engine.scale.anchors import MAX_PAIRS, Anchors
from dpt_ros.engine.scale.ground import GRID_POINTS, TILT_SIGMA, floor_inverse_depth
from dpt_ros.engine.scale.kalman import KALMAN, initial
from dpt_ros.engine.scale.robust_fit import FIT_STATES, MIN_PAIRS
from dpt_ros.engine.settings import Settings

NO_ANCHORS = "no anchors"
MAX_ANCHOR_AGE = 0.15  # seconds between a frame and its anchors

SCALE_FIELDS: Fields = {
    "fresh": ((), "1: the state of the scale is not used: first frame, other intrinsics"),
    "seconds": ((), "since the previous frame"),
    "disabled": ((), "1: no metres"),
    "unasked": ((), "1: anchors may be missing"),
    "ground_only": ((), "1: metres by the floor alone"),
    "tilt": ((), "standard deviation of the floor's inverse depth, 1/m"),
    "initial": ((len(KALMAN),), "state of a fresh camera"),
    "anchors": (
        (MAX_PAIRS, 3),
        "share of width, share of height, inverse depth 1/m of each; 0: none",
    ),
    "floor": (
        (GRID_POINTS,),
        "inverse depth of the floor on a grid of 20 x 15 points, 1/m; 0: none",
    ),
}
"""The numbers of one camera that ``scale`` needs of a frame. Where anchors may be missing, that is
no reason before the first fit; the error of ``tilt`` is common to the whole floor."""

SOURCES = ("none", "network", "anchors", "ground")
STATES = ("", "fitted", "scale only", "held", "uncorrected", "not metric yet", "disabled")
HELD, UNCORRECTED, NOT_METRIC, DISABLED = range(3, 7)


ScaleStats = namedtuple(
    "ScaleStats", "metric scale shift sigma residual pairs source state reason"
)
"""What ``scale`` tells of a frame; float32.

metric: 1 where inverse depth is in 1/m.
scale, shift: inverse_depth = scale * raw_inverse_depth + shift.
sigma: relative standard deviation of the inverse depth at the pairs; inf if not metric.
residual: relative standard deviation of the network about the last fit, 0 without one.
pairs: how many pairs of the frame were fitted.
source: index into ``SOURCES``: what the scale comes from.
state: index into ``STATES``.
reason: index into ``FIT_STATES``: why the frame was not used, 0 if it was; -1: see the reason that
``plan_scale`` gave.
"""


@dataclass(frozen=True)
class ScaleHistory:
    """What the host keeps of the last frame.

    Args:
        stamp_ns: of the frame, nanoseconds.
        camera: its intrinsics.
    """

    stamp_ns: int
    camera: CameraModel | None


def focal_factor(trained: float, camera: CameraModel | None, input_width: int) -> float:
    """Factor of a metric network's depth for a camera of another focal length than in training.

    Twice the focal length looks like half the distance to a network. Depth therefore scales with
    the focal length in pixels of the network's input, over that of its training.

    Args:
        trained: focal length of the training cameras, pixels of the network's input
            (``ModelSpec.focal``); 0 if there is none.
        camera: of the image; None if it is not known.
        input_width: of the network's input, pixels.

    Returns:
        1.0 without either.
    """
    if not trained or camera is None:
        return 1.0
    return camera.fx * input_width / camera.width / trained


def plan_scale(
    history: ScaleHistory | None,
    settings: Settings,
    metric: bool,
    focal: float,
    stamp_ns: int,
    camera: CameraModel | None,
    anchors: Anchors | None,
    down: np.ndarray | None,
    has_labels: bool,
    seen: np.ndarray | None = None,
) -> tuple[np.ndarray, str, ScaleHistory]:
    """The numbers of a frame for ``scale``.

    Args:
        history: of the frame before; None for the first one. A fit does not apply to other
            intrinsics, which therefore begin anew.
        settings: where metres come from; a ``scale_source`` that the network allows.
        metric: whether the network predicts 1/m by itself.
        focal: from ``focal_factor``, > 0; used with a metric network.
        stamp_ns: of the frame, nanoseconds.
        camera: intrinsics; for the ground.
        anchors: measured at about the same time, None if there are none.
        down: (3,) unit vector, see ``scale.ground.down_direction``; for the ground.
        has_labels: whether there are labels of which some are the floor; for the ground.
        seen: (H, W) bool, false where a rectified picture shows nothing; None if it does
            everywhere.

    Returns:
        (length(SCALE_FIELDS),) float32, named by ``SCALE_FIELDS``; why anchors are not used, for
        ``describe``; the history for the next frame.
    """
    fresh = history is None or history.camera != camera
    seconds = 0.0 if fresh or history is None else max(stamp_ns - history.stamp_ns, 0) * 1e-9
    values = {
        "fresh": fresh,
        "seconds": seconds,
        "disabled": settings.scale_source == "none",
        "ground_only": settings.scale_source == "ground",
        "initial": initial(1 / (focal * settings.scale_factor) if metric else None),
    }
    reason = "" if settings.scale_source == "network" else NO_ANCHORS
    if anchors is not None and seen is not None:
        anchors = anchors.within(seen)
    if anchors is not None and settings.scale_source in ("auto", "anchors"):
        age = abs(stamp_ns - anchors.stamp_ns) * 1e-9
        if age > MAX_ANCHOR_AGE:
            reason = f"anchors {age:.2f} s from the frame"
        elif len(anchors) < MIN_PAIRS:
            reason = FIT_STATES[3]
        else:
            reason, few = "", anchors.thinned()
            places = np.zeros((MAX_PAIRS, 3))
            places[: len(few)] = np.stack(
                [(few.u + 0.5) / few.width, (few.v + 0.5) / few.height, 1 / few.metres], 1
            )
            values["anchors"] = places
    values["unasked"] = settings.scale_source == "auto" and reason == NO_ANCHORS
    height = settings.scale_camera_height if settings.scale_source in ("auto", "ground") else 0
    if height > 0 and has_labels and camera is not None and down is not None:
        values["floor"] = floor_inverse_depth(camera, down, height, seen)
        values["tilt"] = TILT_SIGMA / height
    return pack(SCALE_FIELDS, values), reason, ScaleHistory(stamp_ns, camera)


def describe(stats: np.ndarray, reason: str) -> tuple[bool, dict[str, str]]:
    """What /diagnostics tells of a frame's scale.

    Args:
        stats: the fields of ``ScaleStats``.
        reason: from ``plan_scale``.

    Returns:
        Whether inverse depth is in 1/m; names and values.
    """
    s = ScaleStats(*stats.tolist())
    # Why the anchors or the floor were not used; "" if they were, or need not be.
    why = reason if s.reason < 0 else FIT_STATES[int(s.reason)]
    state = STATES[int(s.state)]
    return bool(s.metric), {
        "scale source": SOURCES[int(s.source)],
        "scale state": f"{state} ({why})" if why else state,
        "scale": f"{s.scale:.6g}",
        "shift": f"{s.shift:.4f} 1/m",
        "scale sigma": f"{100 * s.sigma:.1f} %",
        "scale residual": f"{100 * s.residual:.1f} %",
        "scale pairs": str(int(s.pairs)),
    }
