# SPDX-License-Identifier: Apache-2.0
"""DPT, the dense prediction transformer (arXiv 2103.13413, Fig. 1)."""

from __future__ import annotations

from torch import Tensor, nn

from dpt_ros.model.decoder import Fusion, Reassemble, ReassembleMap
from dpt_ros.model.encoder import Encoder
from dpt_ros.model.heads import DepthHead, SegmentationHead, upsample2
from dpt_ros.model.zoo import ModelSpec

TOKEN_MAP_FACTORS = (4, 2, 1, 0.5)
"""Size of the four reassembled maps relative to the token grid: strides 4, 8, 16, 32."""


class DPT(nn.Module):
    """Tap the encoder at four depths, reassemble, fuse, predict.

    Args:
        spec: the row of the zoo to build.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        geometry, features = spec.geometry, spec.geometry.features
        self.encoder = Encoder(geometry, spec.weight_std)
        self.reassemble = nn.ModuleList()
        for index, factor in enumerate(TOKEN_MAP_FACTORS):
            channels = geometry.reassemble_channels[index]
            self.reassemble.append(
                ReassembleMap(channels, features)
                if index < len(geometry.stage_taps)
                else Reassemble(geometry.width, channels, features, factor, spec.readout)
            )
        self.fusion = nn.ModuleList(
            Fusion(features, spec.batch_norm, deepest=index == 3) for index in range(4)
        )
        self.depth_head = self.label_head = self.auxiliary_head = None
        if "depth" in spec.tasks:
            self.depth_head = DepthHead(
                features, geometry.depth_head, spec.scale, spec.shift, spec.invert
            )
        if "labels" in spec.tasks:
            self.label_head = SegmentationHead(features, spec.num_classes)
            if spec.auxiliary:
                self.auxiliary_head = SegmentationHead(features, spec.num_classes)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the network predicts, out of "depth" and "labels"."""
        return self.spec.tasks

    @property
    def metric(self) -> bool:
        """Whether depth is in metres rather than relative inverse depth."""
        return self.spec.invert

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Predict depth, labels or both.

        Args:
            images: (B, 3, H, W), RGB, normalised with the spec's mean and std; H and W multiples
                of ``spec.multiple_of``.

        Returns:
            By task name: "depth" (B, H, W), relative inverse depth, or metres if :attr:`metric`;
            "labels" (B, C, H, W), logits. In training, an auxiliary head adds its logits
            (B, C, H / 2, W / 2) as "auxiliary".
        """
        features = self.features(images)
        outputs: dict[str, Tensor] = {}
        if self.depth_head is not None:
            outputs["depth"] = self.depth_head(features)
        if self.label_head is not None:
            outputs["labels"] = upsample2(self.label_head(features))
            if self.auxiliary_head is not None and self.training:
                outputs["auxiliary"] = self.auxiliary_head(features)
        return outputs

    def features(self, images: Tensor) -> Tensor:
        """The input of all heads: ``images`` (B, 3, H, W) -> (B, F, H / 2, W / 2)."""
        taps, grid = self.encoder(images)
        maps = [
            reassemble(tap, grid) for reassemble, tap in zip(self.reassemble, taps, strict=True)
        ]
        # Each stage upsamples to the size of the next map: exactly twice, unless the coarsest had
        # to round up because the input is no multiple of 32.
        path = self.fusion[3](maps[3], None, maps[2].shape[2:])
        path = self.fusion[2](maps[2], path, maps[1].shape[2:])
        path = self.fusion[1](maps[1], path, maps[0].shape[2:])
        return self.fusion[0](maps[0], path, (2 * maps[0].shape[2], 2 * maps[0].shape[3]))
