# SPDX-License-Identifier: Apache-2.0
"""The frame as an ONNX file: a camera's pixels in; metres, labels and their confidence out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from dpt_ros.engine.export.file import ExportError, metadata_of, write
from dpt_ros.engine.export.network import outputs_of
from dpt_ros.engine.frame import Kind, OutputRequest
from dpt_ros.engine.inference.backend import Backend, Maps
from dpt_ros.engine.inference.fold import NAMES
from dpt_ros.engine.inference.network import Network, Networks
from dpt_ros.engine.runner.chain import Chain, depth_limit
from dpt_ros.engine.runner.streams import Streams
from dpt_ros.engine.scale.plan import focal_factor
from dpt_ros.engine.settings import Settings
from dpt_ros.model.dpt import DPT

_HOST = torch.device("cpu")
_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}
_DEPTH_SPEC = ("name", "invert", "focal", "shift", "net_width", "net_height", "multiple_of")


class PlainModel(Backend):
    """A network in plain PyTorch operations, from which ONNX files are made; see `Backend`.

    Args:
        model: from ``create_model``, float32; it is folded, and for fp16 halved, in place.
        precision: "fp32", or "fp16" for the network's weights and activations. What surrounds
            the network is computed in float32.
    """

    def __init__(self, model: DPT, precision: str = "fp32") -> None:
        self.tasks = model.spec.tasks
        self.module = outputs_of(model, precision)

    def __call__(self, images: Tensor, depth: bool = True, labels: bool = True) -> Maps:
        """All outputs of the network: those that are not used are not exported."""
        names = (NAMES[task] for task in self.tasks)
        return dict(zip(names, self.module(images), strict=True))


def export_networks(
    depth: DPT | None, labels: DPT | None, precision: str = "fp32", **classes: Any
) -> Networks:
    """The networks to export.

    Args:
        depth, labels: from ``create_model``; one object for both tasks runs once.
        precision: see ``PlainModel``.
        classes: of the label network, from ``loading.label_fields``.

    Raises:
        ExportError: see ``outputs_of``.
    """
    models = {id(one): one for one in (depth, labels) if one is not None}
    made = {
        key: Network(one.spec, _HOST, PlainModel(one, precision)) for key, one in models.items()
    }
    return Networks(
        depth=made.get(id(depth)),
        labels=made.get(id(labels)),
        device=_HOST,
        precision=precision,
        **classes,
    )


class FrameModule(nn.Module):
    """A frame without a past: pixels (B, \\*kind.shape) in; the outputs of ``names`` out, as
    ``Chain.finish`` gives them.

    Its file has the input "pixels", uint8, uint16 or float32 as the encoding has them, and
    outputs of the size that ``settings.output_size`` says: "depth" (B, H, W) float32, metres, NaN
    unknown, +Inf beyond range; "inverse" (B, H, W) float32, 1/m or relative; "labels" and
    "confidence" (B, H, W) uint8.

    Args:
        networks: from ``export_networks``.
        kind: of the frames; its camera gives a frame of a metric network the focal length.
        settings: of the conversion; live settings are fixed in a frame's file.
        smoothed: see ``Chain``; for a step.

    Attributes:
        names: of the maps that are requested and possible, in the order of the outputs.

    Raises:
        ExportError: an output that a file cannot give, or networks prepared for something else.
        ValueError: the networks compute none of the outputs, or the pixels do not fit.
    """

    what = "frame"

    def __init__(
        self, networks: Networks, kind: Kind, settings: Settings, smoothed: bool = False
    ) -> None:
        super().__init__()
        _check(networks, kind.outputs, self.what == "step")
        self._networks, self._settings = networks, settings
        self.chain = Chain(networks, kind, smoothed, settings, Streams())
        depth, labels = networks.depth, networks.labels
        networks_of = dict.fromkeys(("depth", "inverse", "deviation"), depth)
        networks_of |= dict.fromkeys(("labels", "confidence"), labels)
        self.names = [
            name for name, one in networks_of.items() if one and getattr(kind.outputs, name)
        ]
        self.weights = nn.ModuleList()
        for network in filter(None, dict.fromkeys((depth, labels))):
            if not isinstance(network.backend, PlainModel):
                raise ExportError(f"{network.spec.name} is not from export_networks.")
            self.weights.append(network.backend.module)
        self._limit = depth_limit(networks, settings)
        focal = focal_factor(depth.spec.focal if depth else 0, kind.camera, self.chain.map_size[1])
        self._factor = focal * settings.scale_factor if networks.metric else 1.0
        self.eval()

    def forward(self, pixels: Tensor, *more: Tensor) -> list[Tensor]:
        chain, pixels = self.chain, self.bits(pixels)
        maps = chain.infer(chain.preprocess(pixels)[0])
        if "inverse_depth" in maps:
            maps["inverse_depth"] = chain.bounded(maps["inverse_depth"]) * (1 / self._factor)
        outputs = chain.finish(maps, pixels, self._limit)
        return [outputs[name] for name in self.names]

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Inputs: black frames, without a past."""
        kind = self.chain.kind
        return (torch.zeros((batch, *kind.shape), dtype=_DTYPES[kind.dtype]),)

    def arguments(self) -> tuple[list[str], list[str], dict[str, Any]]:
        """Names of the inputs and of all outputs, and what the metadata have beside the usual."""
        return ["pixels"], self.names, {}

    def write(
        self,
        path: str | os.PathLike[str],
        batch: int = 1,
        source: Mapping[str, str] | None = None,
        external_data: bool = False,
    ) -> None:
        """Write it as an ONNX file.

        Args:
            path: of the file.
            batch: B.
            source, external_data: see ``export_network``.

        Raises:
            ImportError, OSError: see ``file.write``.
            ExportError: a batch below 1.
        """
        if batch < 1:
            raise ExportError(f"The batch is {batch}, but must be at least 1.")
        networks, settings, chain = self._networks, self._settings, self.chain
        depth, colors = networks.depth, networks.palette.tolist()
        names = dict.fromkeys(filter(None, (networks.depth_name, networks.label_name)))
        spec = {
            "encoding": chain.kind.encoding,
            "pixels": chain.kind.shape,
            "dtype": chain.kind.dtype,
            "batch": batch,
            "outputs": asdict(chain.kind.outputs),
            "map_size": chain.map_size,
            "luma_size": chain.luma_size,
            "label_shape": chain.label_shape,
            "smoothed": chain.smoothed,
            "metric": networks.metric,
            "depth": depth and {name: getattr(depth.spec, name) for name in _DEPTH_SPEC},
            "classes": [
                {"name": name, "color": colors[k]}
                for k, name in enumerate(networks.class_names, start=1)
            ],
            "floor": networks.floor,
            "settings": {
                one.name: getattr(settings, one.name)
                for one in fields(settings)
                if getattr(settings, one.name) != one.default
            },
        }
        inputs, outputs, more = self.arguments()
        write(
            self,
            self.example(batch),
            path,
            inputs=inputs,
            outputs=outputs,
            metadata=metadata_of(self.what, list(names), spec, source, **more),
            external_data=external_data,
            rewrite=False,
        )

    @staticmethod
    def bits(pixels: Tensor) -> Tensor:
        """uint16 as int16 of the same bits, as the chain takes it; ONNX has no view."""
        if pixels.dtype != torch.uint16:
            return pixels
        values = pixels.to(torch.int32)
        return (values - 65536 * (values > 32767).to(torch.int32)).to(torch.int16)


def _check(networks: Networks, outputs: OutputRequest, refined: bool) -> None:
    if outputs.points:
        raise ExportError(
            "A file cannot give points, whose camera can change; make them from depth and labels"
            " (dpt_ros.engine.output.point_cloud.points)."
        )
    if not refined and outputs.deviation:
        raise ExportError("Only a step can give the deviation of the depth; export with --step.")
    if not refined and outputs.depth and networks.depth and not networks.metric:
        raise ExportError(
            f"{networks.depth_name} predicts relative inverse depth, so a single frame has no"
            " metres: ask for inverse instead of depth, or export with --step and give anchors."
        )


def all_outputs(networks: Networks, refined: bool) -> OutputRequest:
    """All that a file of these networks can give."""
    labels = networks.labels is not None
    return OutputRequest(
        depth=networks.depth is not None and (refined or networks.metric),
        inverse=networks.depth is not None and not networks.metric,
        labels=labels,
        confidence=labels,
        deviation=networks.depth is not None and refined,
    )
