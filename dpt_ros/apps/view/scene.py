# SPDX-License-Identifier: Apache-2.0
"""What a viewer shows of the node's cameras, as a rerun recording: pictures, points, plots.

Imports rerun, which is optional: import this module only where it is about to be used.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from rerun.components import Colormap

from dpt_ros.data import class_names, palette
from dpt_ros.engine.frame import CameraModel
from dpt_ros.engine.output.color import depth_to_color
from dpt_ros.engine.output.label_groups import load_groups
from dpt_ros.engine.output.legend import bar_legend, class_legend, depth_legend

TIMELINE = "stamp"
WORLD = "world"
UNLABELLED = 255
_LABEL_FILES = ("labels_world.json", "labels_ade20k.json")
_EXPLAINED = ("depth", "deviation", "labels")  # the pictures with a legend
_PLOT_SECONDS = 60.0
_LEGEND_WIDTH = 480  # pixels
_COLOR_QUALITY = 90  # of the JPEG of coloured depth
_MAGMA = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_MAGMA)[0, :, ::-1]
_SHORTEST_STEP = 0.02  # metres; a path of a camera that stands still would grow for nothing
# Optical axes (x right, y down, z forward) in a world with x forward, y left, z up (REP 103).
_LOOKING_AHEAD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])


@dataclass(frozen=True)
class Look:
    """How things are drawn.

    Args:
        far: depth at the end of the colour map, metres.
        max_points: of one cloud, at most.
        jpeg_quality: of pictures that come raw, 1 to 100; 0 keeps them as they are.
    """

    far: float = 10.0
    max_points: int = 40_000
    jpeg_quality: int = 0


class CameraScene:
    """Logs what one camera sees and what is predicted of it.

    Args:
        recording: takes it.
        name: of the camera, for its entities.
        look: how it is drawn.
    """

    def __init__(self, recording: rr.RecordingStream, name: str, look: Look) -> None:
        self._recording = recording
        self._look = look
        self._flat = name
        self._body = f"{WORLD}/{name}"
        self._camera: CameraModel | None = None
        self._image_size = (0, 0)
        self._last_position: np.ndarray | None = None
        self._series: set[str] = set()
        self._legends: set[str] = set()
        self._seen: set[int] = set()
        self._names: Mapping[int, str] = {}
        self._colors = np.zeros((256, 3), np.uint8)
        recording.log(WORLD, rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)

    def image(self, stamp_ns: int, rgb: np.ndarray) -> None:
        """The camera's picture, (H, W, 3) uint8."""
        picture = rr.Image(rgb, color_model="RGB")
        quality = self._look.jpeg_quality
        self._log_image(stamp_ns, picture.compress(quality) if quality else picture, rgb.shape)

    def image_file(self, stamp_ns: int, content: bytes, kind: str, shape: Sequence[int]) -> None:
        """A JPEG or PNG file as it is; ``shape`` is (height, width)."""
        media = f"image/{kind.lower()}"
        self._log_image(stamp_ns, rr.EncodedImage(contents=content, media_type=media), shape)

    def _log_image(self, stamp_ns: int, picture: rr.AsComponents, shape: Sequence[int]) -> None:
        self._at(stamp_ns)
        size = (shape[1], shape[0])
        if size != self._image_size:
            self._image_size = size
            self._log_lens()
        self._recording.log(f"{self._body}/image", picture)
        self._stand_still()

    def camera(self, stamp_ns: int, camera: CameraModel) -> None:
        """The intrinsics: a frustum in the world, the size of the picture."""
        self._at(stamp_ns)
        self._camera = camera
        self._log_lens()
        self._stand_still()

    def _log_lens(self) -> None:
        if self._camera is None:
            return
        camera = self._camera
        if self._image_size[0]:
            camera = camera.scaled(*self._image_size)
        lens = rr.Pinhole(
            image_from_camera=camera.matrix(),
            resolution=[camera.width, camera.height],
            camera_xyz=rr.ViewCoordinates.RDF,
            image_plane_distance=0.5,
        )
        self._recording.log(f"{self._body}/image", lens)

    def depth(self, stamp_ns: int, depth: np.ndarray) -> None:
        """Metres, (H, W) float32; NaN and +Inf are shown as they are when pointed at."""
        # The values are for the pointer. The colours are those of depth/color, which rerun's own
        # colour maps cannot give: they are dark where near.
        self._log_scalars(stamp_ns, "depth", depth, Colormap.Inferno, self._look.far)
        colors = rr.Image(depth_to_color(depth, self._look.far), color_model="RGB")
        self._recording.log(f"{self._flat}/depth/color", colors.compress(_COLOR_QUALITY))
        self._legend("depth", depth_legend(_LEGEND_WIDTH, self._look.far))

    def deviation(self, stamp_ns: int, deviation: np.ndarray) -> None:
        """Standard deviation of the depth, (H, W) float32, metres."""
        end = self._look.far / 10
        self._log_scalars(stamp_ns, "deviation", deviation, Colormap.Magma, end)
        self._legend("deviation", bar_legend(_LEGEND_WIDTH, "0 m", f"{end:g} m", _MAGMA))

    def inverse(self, stamp_ns: int, inverse: np.ndarray) -> None:
        """Inverse depth, (H, W) float32; its range follows each frame, for it has no unit."""
        self._log_scalars(stamp_ns, "inverse", inverse, Colormap.Inferno, None)

    def _legend(self, name: str, picture: np.ndarray) -> None:
        """Show what the colours of a picture mean, once."""
        if name not in self._legends:
            self._legends.add(name)
            image = rr.Image(picture, color_model="RGB")
            self._recording.log(f"{self._flat}/{name}_legend", image, static=True)

    def _log_scalars(
        self,
        stamp_ns: int,
        name: str,
        values: np.ndarray,
        colormap: Colormap,
        end: float | None,
    ) -> None:
        self._at(stamp_ns)
        shown = rr.DepthImage(
            values,
            meter=1.0,
            colormap=colormap,
            depth_range=None if end is None else [0.0, end],
        )
        self._recording.log(f"{self._flat}/{name}", shown)

    def labels(self, stamp_ns: int, labels: np.ndarray) -> None:
        """Class ids, (H, W) uint8."""
        self._at(stamp_ns)
        self._recording.log(f"{self._flat}/labels", rr.SegmentationImage(labels))
        if new := set(np.unique(labels).tolist()) - self._seen:
            self._seen |= new
            self._legends.discard("labels")
            self._explain_labels()

    def _explain_labels(self) -> None:
        """A legend of the classes that were there so far: ADE20K has 150."""
        names = {k: name for k, name in self._names.items() if k in self._seen}
        if names:
            self._legend("labels", class_legend(_LEGEND_WIDTH, names, self._colors))

    def confidence(self, stamp_ns: int, confidence: np.ndarray) -> None:
        """Confidence of the labels, (H, W) uint8, 255 is 1."""
        self._at(stamp_ns)
        self._recording.log(f"{self._flat}/confidence", rr.Image(confidence, color_model="L"))

    def classes(self, names: Mapping[int, str]) -> None:
        """Names of the class ids, and the colours that go with them; holds for all times."""
        named = {k: name for k, name in names.items() if 0 <= k <= UNLABELLED}  # labels are uint8
        colors = class_colors(named)
        entries = {0: ("none", (0, 0, 0)), UNLABELLED: ("unlabelled", (70, 70, 70))}
        entries |= {k: (name, tuple(colors[k].tolist())) for k, name in named.items()}
        context = rr.AnnotationContext([rr.AnnotationInfo(k, *v) for k, v in entries.items()])
        for entity in (f"{self._flat}/labels", f"{self._body}/points_by_class"):
            self._recording.log(entity, context, static=True)
        self._names, self._colors = named, colors
        self._legends.discard("labels")
        self._explain_labels()

    def points(
        self, stamp_ns: int, xyz: np.ndarray, rgb: np.ndarray, labels: np.ndarray | None
    ) -> None:
        """Points in the optical frame, thinned out to ``max_points``.

        Args:
            stamp_ns: of the frame.
            xyz: (H, W, 3) float32, metres; points that are not finite are left out.
            rgb: (H, W, 3) uint8.
            labels: (H, W) uint8 class ids; None for points without a class.
        """
        self._at(stamp_ns)
        stride = int(np.ceil(np.sqrt(xyz[..., 0].size / self._look.max_points)))
        thin = np.s_[::stride, ::stride]
        finite = np.isfinite(xyz[thin]).all(axis=-1)
        places = xyz[thin][finite]
        self._recording.log(f"{self._body}/points", rr.Points3D(places, colors=rgb[thin][finite]))
        if labels is not None:
            classed = rr.Points3D(places, class_ids=labels[thin][finite].astype(np.uint16))
            self._recording.log(f"{self._body}/points_by_class", classed)

    def pose(self, stamp_ns: int, world_from_camera: np.ndarray) -> None:
        """Where the camera is, (4, 4); the way since the last pose becomes part of its path."""
        self._at(stamp_ns)
        self._log_pose(world_from_camera)
        position = world_from_camera[:3, 3]
        if self._last_position is not None:
            if np.linalg.norm(position - self._last_position) < _SHORTEST_STEP:
                return
            step = rr.LineStrips3D([[self._last_position, position]], colors=[255, 160, 0])
            self._recording.log(f"{WORLD}/path/{self._flat}", step)
        self._last_position = position

    def _stand_still(self) -> None:
        """Without a pose the camera looks ahead from the origin."""
        if self._last_position is None:
            self._log_pose(_LOOKING_AHEAD)

    def _log_pose(self, pose: np.ndarray) -> None:
        where = rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3])
        self._recording.log(self._body, where)

    def plot(self, stamp_ns: int, chart: str, series: str, value: float) -> None:
        """A value over time.

        Args:
            stamp_ns: where it belongs on the timeline.
            chart: "rate" (frames per second) or "latency" (milliseconds).
            series: name of the line.
            value: in the chart's unit.
        """
        entity = f"plots/{self._flat}/{chart}/{_entity_name(series)}"
        if entity not in self._series:
            color = _own_color(len(self._series))
            self._series.add(entity)
            self._recording.log(entity, rr.SeriesLines(names=series, colors=color), static=True)
        self._at(stamp_ns)
        self._recording.log(entity, rr.Scalars(value))

    def _at(self, stamp_ns: int) -> None:
        self._recording.set_time(TIMELINE, timestamp=np.datetime64(stamp_ns, "ns"))


def _entity_name(series: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in series)


def class_colors(names: Mapping[int, str]) -> np.ndarray:
    """The colours of classes, by name: those of the label list that knows most of the names.

    Args:
        names: of the class ids, 0 to 255.

    Returns:
        (256, 3) uint8 RGB, indexed by class id. A class that no list knows gets a colour of its
        own, from its id.
    """
    tables: list[Mapping[str, Sequence[int]]] = [load_groups()[1]]
    for file_name in _LABEL_FILES:
        colors = palette(file_name)[1:].tolist()
        tables.append(dict(zip(class_names(file_name), colors, strict=False)))
    # ADE20K knows the names of the synthetic world, too, in colours that are hard to tell apart:
    # of two lists that know as many names, the shorter one is meant.
    known = max(tables, key=lambda t: (sum(name in t for name in names.values()), -len(t)))
    colors = np.zeros((256, 3), np.uint8)
    for number, name in names.items():
        colors[number] = known.get(name, _own_color(number))
    return colors


def _own_color(number: int) -> tuple[int, int, int]:
    # The golden ratio spreads hues evenly, however many there are.
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def blueprint(
    cameras: Sequence[str], kinds: Iterable[str], live: bool, latency: bool = True
) -> rrb.Blueprint:
    """The arrangement of the window: a tab per camera.

    Args:
        cameras: names of the cameras.
        kinds: what is shown, names of ``view_topics.KINDS``.
        live: plots show the last minute and time follows the newest frame.
        latency: whether there is one to plot.
    """
    pages = [_page(name, set(kinds), live, latency) for name in cameras]
    return rrb.Blueprint(
        pages[0] if len(pages) == 1 else rrb.Tabs(*pages, name="Cameras"),
        rrb.BlueprintPanel(state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.TimePanel(
            state="collapsed", timeline=TIMELINE, play_state="following" if live else "playing"
        ),
        auto_views=False,
    )


def _page(camera: str, kinds: set[str], live: bool, latency: bool) -> rrb.Container:
    """One camera: pictures above, the world and the plots below."""
    body = f"{WORLD}/{camera}"

    def pictures(*views: tuple[str, str, str]) -> list[rrb.View | rrb.Container]:
        return [
            _with_legend(entity, title) if kind in _EXPLAINED else _picture(entity, title)
            for kind, entity, title in views
            if kind in kinds
        ]

    rows = [
        pictures(("image", f"{body}/image", "Image")),
        pictures(
            ("depth", f"{camera}/depth", "Depth (m)"),
            ("deviation", f"{camera}/deviation", "Standard deviation (m)"),
            ("inverse", f"{camera}/inverse", "Inverse depth"),
        ),
        pictures(
            ("labels", f"{camera}/labels", "Labels"),
            ("confidence", f"{camera}/confidence", "Confidence of labels"),
        ),
    ]
    above = [row[0] if len(row) == 1 else rrb.Tabs(*row, active_tab=0) for row in rows if row]
    below: list[rrb.View | rrb.Container] = []
    if kinds & {"points", "path"}:
        worlds = [_world_view(camera, "Points", "points_by_class")]
        if {"points", "labels"} <= kinds:
            worlds.append(_world_view(camera, "Points by class", "points"))
        below.append(worlds[0] if len(worlds) == 1 else rrb.Tabs(*worlds, active_tab=0))
    if "plots" in kinds:
        plots = [_plot_view(camera, "rate", "Rate (Hz)", live)]
        if latency:
            plots.append(_plot_view(camera, "latency", "Latency (ms)", live))
        below.append(rrb.Vertical(*plots))
    parts = [rrb.Horizontal(*part) for part in (above, below) if part]
    shares = [2, 3] if len(parts) == 2 else None
    return rrb.Vertical(*parts, name=camera, row_shares=shares)


def _picture(entity: str, title: str) -> rrb.View:
    return rrb.Spatial2DView(origin=entity, name=title)


def _with_legend(entity: str, title: str) -> rrb.Container:
    legend = _picture(f"{entity}_legend", f"{title}: colours")
    return rrb.Vertical(_picture(entity, title), legend, name=title, row_shares=[5, 1])


def _world_view(camera: str, title: str, without: str) -> rrb.View:
    cursor = rrb.TimeRangeBoundary
    so_far = rrb.VisibleTimeRange(TIMELINE, start=cursor.infinite(), end=cursor.cursor_relative())
    return rrb.Spatial3DView(
        origin=WORLD,
        name=title,
        contents=["$origin/**", f"- $origin/{camera}/{without}"],
        # Each entry is a step: together they are the way so far.
        overrides={f"{WORLD}/path/{camera}": rrb.VisibleTimeRanges(so_far)},
    )


def _plot_view(camera: str, chart: str, title: str, live: bool) -> rrb.View:
    recent = rrb.VisibleTimeRange(
        TIMELINE,
        start=rrb.TimeRangeBoundary.cursor_relative(seconds=-_PLOT_SECONDS),
        end=rrb.TimeRangeBoundary.cursor_relative(),
    )
    return rrb.TimeSeriesView(
        origin=f"plots/{camera}/{chart}",
        name=title,
        plot_legend=rrb.PlotLegend(visible=True),
        time_ranges=[recent] if live else None,
    )
