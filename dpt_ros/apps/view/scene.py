# SPDX-License-Identifier: Apache-2.0
"""Cameras and predictions as a rerun recording: images, points, plots.

Imports rerun, which is optional.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from rerun.components import Colormap

from dpt_ros.data import class_names, palette
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output.color import bar_legend, class_legend, depth_legend, depth_to_color
from dpt_ros.engine.output.label_groups import load_groups

TIMELINE = "stamp"
WORLD = "world"
UNLABELLED = 255
_LABEL_FILES = ("labels_world.json", "labels_ade20k.json")
_WITH_LEGEND = ("depth", "deviation", "labels")
_PLOT_SECONDS = 60.0
_LEGEND_WIDTH = 480  # pixels
_JPEG_QUALITY = 90  # of coloured depth
_MAGMA = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_MAGMA)[0, :, ::-1]
_SHORTEST_STEP = 0.02  # metres; a camera that stands still adds nothing to its path
# Optical axes (x right, y down, z forward) in a world with x forward, y left, z up (REP 103).
_LOOKING_AHEAD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])


class CameraScene:
    """Logs the data of one camera; ``far``: depth at the end of the colour map, metres;
    ``max_points``: of one cloud; ``jpeg_quality``: of raw images, 1 to 100, 0 for uncompressed."""

    def __init__(
        self, recording: rr.RecordingStream, name: str, far: float, max_points: int,
        jpeg_quality: int,
    ) -> None:  # fmt: skip
        self._recording, self._name = recording, name
        self._far, self._max_points, self._jpeg_quality = far, max_points, jpeg_quality
        self._body = f"{WORLD}/{name}"
        self._camera: CameraModel | None = None
        self._image_size = (0, 0)
        self._last_position: np.ndarray | None = None
        self._series: set[str] = set()
        self._legends: set[str] = set()
        self._class_ids: set[int] = set()  # that have occurred
        self._class_names: Mapping[int, str] = {}
        self._colors = np.zeros((256, 3), np.uint8)
        recording.log(WORLD, rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)

    def time(self, stamp_ns: int) -> None:
        """Set the stamp of what is logged from now on, nanoseconds."""
        self._recording.set_time(TIMELINE, timestamp=np.datetime64(stamp_ns, "ns"))

    def image(self, rgb: np.ndarray) -> None:
        """The camera's image, (H, W, 3) uint8."""
        image, quality = rr.Image(rgb, color_model="RGB"), self._jpeg_quality
        self._log_image(image.compress(quality) if quality else image, rgb.shape)

    def image_file(self, content: bytes, kind: str, shape: Sequence[int]) -> None:
        """A JPEG or PNG file, unchanged; ``shape`` is (height, width)."""
        media = f"image/{kind.lower()}"
        self._log_image(rr.EncodedImage(contents=content, media_type=media), shape)

    def _log_image(self, image: rr.AsComponents, shape: Sequence[int]) -> None:
        size = (shape[1], shape[0])
        if size != self._image_size:
            self._image_size = size
            self._log_pinhole()
        self._recording.log(f"{self._body}/image", image)
        self._log_default_pose()

    def camera(self, camera: CameraModel) -> None:
        """The intrinsics: a frustum in the world, scaled to the size of the image."""
        self._camera = camera
        self._log_pinhole()
        self._log_default_pose()

    def _log_pinhole(self) -> None:
        camera = self._camera
        if camera is None:
            return
        if self._image_size[0]:
            camera = camera.scaled(*self._image_size)
        pinhole = rr.Pinhole(
            image_from_camera=camera.matrix(),
            resolution=[camera.width, camera.height],
            camera_xyz=rr.ViewCoordinates.RDF,
            image_plane_distance=0.5,
        )
        self._recording.log(f"{self._body}/image", pinhole)

    def depth(self, depth: np.ndarray) -> None:
        """Metres, (H, W) float32; NaN and +Inf are shown as such under the cursor."""
        # The values are for the cursor. The colours are those of depth/color, dark where near,
        # which none of rerun's colour maps has.
        far = self._far
        self._log_scalars("depth", depth, Colormap.Inferno, far)
        colors = rr.Image(depth_to_color(depth, far), color_model="RGB")
        self._recording.log(f"{self._name}/depth/color", colors.compress(_JPEG_QUALITY))
        self._log_legend("depth", depth_legend(_LEGEND_WIDTH, far))

    def deviation(self, deviation: np.ndarray) -> None:
        """Standard deviation of the depth, (H, W) float32, metres."""
        end = self._far / 10
        self._log_scalars("deviation", deviation, Colormap.Magma, end)
        self._log_legend("deviation", bar_legend(_LEGEND_WIDTH, "0 m", f"{end:g} m", _MAGMA))

    def inverse(self, inverse: np.ndarray) -> None:
        """Inverse depth, (H, W) float32, without a unit: the colours span each frame's range."""
        self._log_scalars("inverse", inverse, Colormap.Inferno, None)

    def _log_legend(self, name: str, picture: np.ndarray) -> None:
        """Log the legend of an image's colours, once."""
        if name not in self._legends:
            self._legends.add(name)
            image = rr.Image(picture, color_model="RGB")
            self._recording.log(f"{self._name}/{name}_legend", image, static=True)

    def _log_scalars(
        self, name: str, values: np.ndarray, colormap: Colormap, end: float | None
    ) -> None:
        limits = None if end is None else [0.0, end]
        image = rr.DepthImage(values, meter=1.0, colormap=colormap, depth_range=limits)
        self._recording.log(f"{self._name}/{name}", image)

    def labels(self, labels: np.ndarray) -> None:
        """Class ids, (H, W) uint8."""
        self._recording.log(f"{self._name}/labels", rr.SegmentationImage(labels))
        if new := set(np.unique(labels).tolist()) - self._class_ids:
            self._class_ids |= new
            self._log_class_legend()

    def _log_class_legend(self) -> None:
        """A legend of the classes that have occurred: ADE20K has 150."""
        names = {k: name for k, name in self._class_names.items() if k in self._class_ids}
        self._legends.discard("labels")
        if names:
            self._log_legend("labels", class_legend(_LEGEND_WIDTH, names, self._colors))

    def confidence(self, confidence: np.ndarray) -> None:
        """Confidence of the labels, (H, W) uint8, 255 is 1."""
        self._recording.log(f"{self._name}/confidence", rr.Image(confidence, color_model="L"))

    def classes(self, names: Mapping[int, str]) -> None:
        """Names of the class ids, with their colours, for the whole recording."""
        names = {k: name for k, name in names.items() if 0 <= k <= UNLABELLED}  # labels are uint8
        colors = class_colors(names)
        entries = {0: ("none", (0, 0, 0)), UNLABELLED: ("unlabelled", (70, 70, 70))}
        entries |= {k: (name, tuple(colors[k].tolist())) for k, name in names.items()}
        context = rr.AnnotationContext([rr.AnnotationInfo(k, *v) for k, v in entries.items()])
        for entity in (f"{self._name}/labels", f"{self._body}/points_by_class"):
            self._recording.log(entity, context, static=True)
        self._class_names, self._colors = names, colors
        self._log_class_legend()

    def points(self, xyz: np.ndarray, rgb: np.ndarray, labels: np.ndarray | None) -> None:
        """Points in the optical frame, subsampled to ``max_points``: xyz (H, W, 3) float32 metres
        (those that are not finite are skipped), rgb (H, W, 3) uint8, labels (H, W) uint8 class ids
        or None."""
        stride = int(np.ceil(np.sqrt(xyz[..., 0].size / self._max_points)))
        sample = np.s_[::stride, ::stride]
        finite = np.isfinite(xyz[sample]).all(axis=-1)
        points, colors = xyz[sample][finite], rgb[sample][finite]
        self._recording.log(f"{self._body}/points", rr.Points3D(points, colors=colors))
        if labels is not None:
            ids = labels[sample][finite].astype(np.uint16)
            classed = rr.Points3D(points, class_ids=ids)
            self._recording.log(f"{self._body}/points_by_class", classed)

    def pose(self, world_from_camera: np.ndarray) -> None:
        """The camera's pose, (4, 4); its path is extended to there."""
        self._log_pose(world_from_camera)
        position = world_from_camera[:3, 3]
        if self._last_position is not None:
            if np.linalg.norm(position - self._last_position) < _SHORTEST_STEP:
                return
            step = rr.LineStrips3D([[self._last_position, position]], colors=[255, 160, 0])
            self._recording.log(f"{WORLD}/path/{self._name}", step)
        self._last_position = position

    def _log_default_pose(self) -> None:
        """Without odometry the camera is at the origin and looks ahead."""
        if self._last_position is None:
            self._log_pose(_LOOKING_AHEAD)

    def _log_pose(self, pose: np.ndarray) -> None:
        transform = rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3])
        self._recording.log(self._body, transform)

    def plot(self, chart: str, series: str, value: float) -> None:
        """A value over time, of a line of the chart "rate" (frames per second) or "latency"
        (milliseconds)."""
        entity = f"plots/{self._name}/{chart}/{re.sub('[^A-Za-z0-9]', '_', series)}"
        if entity not in self._series:
            color = _distinct_color(len(self._series))
            self._series.add(entity)
            self._recording.log(entity, rr.SeriesLines(names=series, colors=color), static=True)
        self._recording.log(entity, rr.Scalars(value))


def class_colors(names: Mapping[int, str]) -> np.ndarray:
    """Colours of classes by the names of their ids: those of the class list that has most of them;
    one that is on no list has a colour by its id. (256, 3) uint8 RGB, indexed by class id."""
    lists: list[Mapping[str, Sequence[int]]] = [load_groups()[1]]
    for file_name in _LABEL_FILES:
        colors = palette(file_name)[1:].tolist()
        lists.append(dict(zip(class_names(file_name), colors, strict=False)))
    # ADE20K has the names of the synthetic world, too, in colours that are hard to tell apart: of
    # two lists with as many of the names, the shorter one is meant.
    known = max(lists, key=lambda t: (sum(name in t for name in names.values()), -len(t)))
    table = np.zeros((256, 3), np.uint8)
    for number, name in names.items():
        table[number] = known.get(name, _distinct_color(number))
    return table


def _distinct_color(number: int) -> tuple[int, int, int]:
    # The golden ratio spreads hues evenly, however many there are.
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def blueprint(
    cameras: Sequence[str], kinds: Iterable[str], live: bool, latency: bool = True
) -> rrb.Blueprint:
    """The layout of the window: a tab per camera; ``live``: plots show the last minute and time
    follows the newest frame; ``latency``: whether there are latencies to plot."""
    pages = [_page(name, set(kinds), live, latency) for name in cameras]
    return rrb.Blueprint(
        _tabs(pages, name="Cameras"),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.TimePanel(
            state="collapsed", timeline=TIMELINE, play_state="following" if live else "playing"
        ),
        auto_views=False,
    )


_Part = rrb.View | rrb.Container


def _tabs(parts: Sequence[_Part], name: str | None = None) -> _Part:
    return parts[0] if len(parts) == 1 else rrb.Tabs(*parts, active_tab=0, name=name)


def _page(camera: str, kinds: set[str], live: bool, latency: bool) -> rrb.Container:
    """One camera: images above, the world and the plots below."""
    # Kind, entity and title of the images in each place.
    places = (
        (("image", f"{WORLD}/{camera}/image", "Image"),),
        (
            ("depth", f"{camera}/depth", "Depth (m)"),
            ("deviation", f"{camera}/deviation", "Standard deviation (m)"),
            ("inverse", f"{camera}/inverse", "Inverse depth"),
        ),
        (
            ("labels", f"{camera}/labels", "Labels"),
            ("confidence", f"{camera}/confidence", "Confidence of labels"),
        ),
    )
    images = [[_image_view(*view) for view in place if view[0] in kinds] for place in places]
    above = [_tabs(views) for views in images if views]
    below: list[_Part] = []
    if kinds & {"points", "path"}:
        worlds = [_world_view(camera, "Points", "points_by_class")]
        if {"points", "labels"} <= kinds:
            worlds.append(_world_view(camera, "Points by class", "points"))
        below.append(_tabs(worlds))
    if "plots" in kinds:
        charts = (("rate", "Rate (Hz)"), ("latency", "Latency (ms)"))[: 1 + latency]
        below.append(rrb.Vertical(*(_plot_view(camera, *chart, live) for chart in charts)))
    rows = [rrb.Horizontal(*row) for row in (above, below) if row]
    return rrb.Vertical(*rows, name=camera, row_shares=[2, 3] if len(rows) == 2 else None)


def _image_view(kind: str, entity: str, title: str) -> _Part:
    image = rrb.Spatial2DView(origin=entity, name=title)
    if kind not in _WITH_LEGEND:
        return image
    legend = rrb.Spatial2DView(origin=f"{entity}_legend", name=f"{title}: colours")
    return rrb.Vertical(image, legend, name=title, row_shares=[5, 1])


def _world_view(camera: str, title: str, without: str) -> rrb.View:
    cursor = rrb.TimeRangeBoundary
    so_far = rrb.VisibleTimeRange(TIMELINE, start=cursor.infinite(), end=cursor.cursor_relative())
    return rrb.Spatial3DView(
        origin=WORLD,
        name=title,
        contents=["$origin/**", f"- $origin/{camera}/{without}"],
        # Each entry is a segment of the path.
        overrides={f"{WORLD}/path/{camera}": rrb.VisibleTimeRanges(so_far)},
    )


def _plot_view(camera: str, chart: str, title: str, live: bool) -> rrb.View:
    now = rrb.TimeRangeBoundary.cursor_relative
    recent = rrb.VisibleTimeRange(TIMELINE, start=now(seconds=-_PLOT_SECONDS), end=now())
    return rrb.TimeSeriesView(
        origin=f"plots/{camera}/{chart}",
        name=title,
        plot_legend=rrb.PlotLegend(visible=True),
        time_ranges=[recent] if live else None,
    )
