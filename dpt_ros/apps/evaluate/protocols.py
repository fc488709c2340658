# SPDX-License-Identifier: Apache-2.0
"""How predictions on each dataset are evaluated, and the published results.

Tables 1 to 5 of Ranftl, Bochkovskiy, Koltun: Vision Transformers for Dense Prediction, ICCV 2021,
arXiv 2103.13413, with EVALUATION.md of isl-org/DPT and the code it names. [MiDaS] Ranftl,
Lasinger, Hafner, Schindler, Koltun: Towards Robust Monocular Depth Estimation, TPAMI 2020, arXiv
1907.01341.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

NAMES = {
    "abs_rel": "AbsRel", "rmse": "RMSE [m]", "rmse_log": "RMSE log", "log10": "log10",
    "delta1": "delta1", "delta2": "delta2", "delta3": "delta3", "bad": "delta > 1.25 [%]",
    "whdr": "WHDR [%]", "pixel_accuracy": "pixAcc", "miou": "mIoU",
    "tepe": "TEPE [%]", "tae": "TAE [%]", "opw": "OPW [m]", "rtc": "rTC [%]",
    "edge": "edge AbsRel", "ghost": "ghost [%]", "miss": "miss [%]", "tc": "TC [%]",
    "vc8": "VC8 [%]", "vc16": "VC16 [%]", "mover_iou": "mover IoU [%]",
    "ghost_label": "ghost label [%]",
}  # fmt: skip
HIGHER_IS_BETTER = {"delta1", "delta2", "delta3", "pixel_accuracy", "miou"}


class ArgumentError(ValueError):
    """The networks, the protocol and the dataset do not go together: wrong arguments."""


class Published(NamedTuple):
    """A row of a table of a paper: the method, its values by measure in the units of ``NAMES``,
    and the names of ``list_models()`` that are this method."""

    method: str
    values: Mapping[str, float]
    networks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """How predictions for one kind of ground truth of a dataset are evaluated."""

    dataset: str
    # "zero-shot" (depth after a fit to each image), "metric", "order" (pairs of points), "labels"
    kind: str
    measures: tuple[str, ...]  # in the order of the table
    rank: str  # the measure that orders images from good to bad
    # Metres, both exclusive; pixels with a true depth outside are ignored.
    low: float = 0.0
    high: float = float("inf")
    cap: float = float("inf")  # metres, the largest depth of an aligned prediction
    crop: str = ""  # of ``metrics.depth.crop_mask``
    kb_crop: bool = False  # predict and evaluate only KITTI's bottom centre 352 x 1216
    far: float = 15.0  # metres, upper end of the colour map of depth
    table: str = ""  # source of the published numbers, "" if there are none
    published: tuple[Published, ...] = ()  # rows of that table
    images: int = 0  # of the published evaluation; 0 if unknown
    variant: str = ""  # of the dataset there; "" if there is only one
    differs: tuple[str, ...] = ()  # known differences from the published evaluation

    def differences(self, images: int, variant: str = "") -> tuple[str, ...]:
        """Differences of a run on ``images`` images of a variant of the dataset from the published
        evaluation."""
        found = self.differs
        if self.images and images != self.images:
            found += (f"The paper evaluates {self.images} images, this run {images}.",)
        if self.variant and variant != self.variant:
            found += (f"The paper uses {self.dataset} as {self.variant}, this run {variant}.",)
        return found


_PAPER = "Vision Transformers for Dense Prediction (Ranftl et al., ICCV 2021), Table"
_HYBRID = ("dpt_hybrid_midas", "dpt_hybrid_384", "Intel/dpt-hybrid-midas")
_LARGE = ("dpt_large_midas", "dpt_large_384", "Intel/dpt-large")
_DEPTH = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "rmse_log", "log10")
_LABELS = ("pixel_accuracy", "miou")
_TABLE1 = (
    # method, networks: DIW, ETH3D, Sintel, KITTI, NYU, TUM
    ("DPT-Large", _LARGE, (10.82, 0.089, 0.270, 8.46, 8.32, 9.97)),
    ("DPT-Hybrid", _HYBRID, (11.06, 0.093, 0.274, 11.56, 8.69, 10.89)),
    ("MiDaS, MIX 6", (), (12.95, 0.116, 0.329, 16.08, 8.71, 12.51)),
    ("MiDaS, MIX 5", (), (12.46, 0.129, 0.327, 23.90, 9.55, 14.29)),
)
_COLUMNS = ("diw", "eth3d", "sintel", "kitti", "nyu", "tum")
_RESIZED = (
    "The authors published their code for this table for NYU and KITTI only: how they resized "
    "images of this dataset is not known; here as for those two."
)


def _zero_shot(dataset: str, measure: str, **values: Any) -> Protocol:
    column = _COLUMNS.index(dataset)
    rows = ((method, networks, row[column]) for method, networks, row in _TABLE1)
    published = _rows((measure,), *rows)
    kind = "order" if measure == "whdr" else "zero-shot"
    measures = ("whdr",) if measure == "whdr" else ("abs_rel", "bad")
    more = {"table": f"{_PAPER} 1", "published": published, **values}
    return Protocol(dataset, kind, measures, measure, **more)


def _rows(measures: tuple[str, ...], *rows: tuple[Any, ...]) -> tuple[Published, ...]:
    """Rows of (method, networks, value, value, ...), None where the paper has no value."""

    def known(values: list[float | None]) -> dict[str, float]:
        return {m: v for m, v in zip(measures, values, strict=True) if v is not None}

    return tuple(Published(method, known(values), nets) for method, nets, *values in rows)


# fmt: off
PROTOCOLS = (
    _zero_shot("diw", "whdr", images=74441, differs=(_RESIZED,)),
    # Caps: [MiDaS], Experiments: the farthest truth; Sintel: only where the truth is nearer.
    _zero_shot("eth3d", "abs_rel", cap=72.0, far=30.0, images=454, differs=(_RESIZED,)),
    _zero_shot(
        "sintel", "abs_rel", cap=72.0, high=72.0, far=30.0, images=1064, variant="final",
        differs=(_RESIZED,),
    ),
    _zero_shot("kitti", "bad", cap=80.0, kb_crop=True, far=80.0, images=161),
    _zero_shot("nyu", "bad", cap=10.0, high=10.0, far=10.0, images=654,
               variant=".mat file, raw depth"),
    _zero_shot(
        "tum", "bad", cap=10.0, far=10.0, images=1815,
        differs=("The paper takes the frames of the dynamic sequences that Li et al. (2019) "
                 "prepared; this reader takes the sequences as TUM publishes them.", _RESIZED),
    ),
    Protocol(
        "nyu", "metric", _DEPTH, "abs_rel", 1e-3, 10.0, 10.0, "eigen", far=10.0,
        table=f"{_PAPER} 2", images=654, variant="extract with black borders, raw depth",
        published=_rows(
            ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10"),
            ("DORN", (), 0.828, 0.965, 0.992, 0.115, 0.509, 0.051),
            ("VNL", (), 0.875, 0.976, 0.994, 0.111, 0.416, 0.048),
            ("BTS", (), 0.885, 0.978, 0.994, 0.110, 0.392, 0.047),
            ("DPT-Hybrid", ("dpt_hybrid_nyu",), 0.904, 0.988, 0.998, 0.110, 0.357, 0.045),
        ),
    ),
    Protocol(
        "kitti", "metric", _DEPTH, "abs_rel", 1e-3, 80.0, 80.0, "garg", True, 80.0,
        table=f"{_PAPER} 3", images=652,
        published=_rows(
            ("delta1", "delta2", "delta3", "abs_rel", "rmse", "rmse_log"),
            ("DORN", (), 0.932, 0.984, 0.994, 0.072, 2.626, 0.120),
            ("VNL", (), 0.938, 0.990, 0.998, 0.072, 3.258, 0.117),
            ("BTS", (), 0.956, 0.993, 0.998, 0.059, 2.756, 0.096),
            ("DPT-Hybrid", ("dpt_hybrid_kitti",), 0.959, 0.995, 0.999, 0.062, 2.573, 0.092),
        ),
    ),
    Protocol(
        "ade20k", "labels", _LABELS, "pixel_accuracy", table=f"{_PAPER} 4", images=2000,
        differs=("The paper averages predictions at several scales, this run takes one.",),
        published=_rows(
            _LABELS,
            ("OCNet", (), None, 0.4545),
            ("ACNet", (), 0.8196, 0.4590),
            ("ResNeSt-101", (), 0.8207, 0.4691),
            ("ResNeSt-200", (), 0.8245, 0.4836),
            ("DPT-Hybrid", ("dpt_hybrid_ade20k",), 0.8311, 0.4902),
            ("DPT-Large", ("dpt_large_ade20k", "Intel/dpt-large-ade"), 0.8270, 0.4763),
        ),
    ),
    Protocol(
        "pascal_context", "labels", _LABELS, "pixel_accuracy", table=f"{_PAPER} 5", images=5105,
        variant="59 classes",
        differs=("The network of this table is not published.",),
        published=_rows(
            _LABELS,
            ("HRNet-W48 OCNet", (), None, 0.562),
            ("ResNeSt-200", (), 0.8250, 0.5837),
            ("ResNeSt-269", (), 0.8306, 0.5892),
            ("DPT-Hybrid", (), 0.8483, 0.6046),
        ),
    ),
    Protocol("world", "metric", _DEPTH, "abs_rel", 0.1, 40.0, 40.0),
    Protocol("world", "zero-shot", ("abs_rel", "bad"), "abs_rel", 0.1, 40.0, 40.0),
    Protocol("world", "labels", _LABELS, "pixel_accuracy"),
    Protocol("tum", "metric", _DEPTH, "abs_rel", 1e-3, 10.0, 10.0, far=10.0),
    Protocol("eth3d", "metric", _DEPTH, "abs_rel", 1e-3, 80.0, 80.0, far=30.0),
    Protocol("sintel", "metric", _DEPTH, "abs_rel", 1e-3, 72.0, 72.0, far=30.0),
)
# fmt: on


def find_protocol(dataset: str, kind: str) -> Protocol:
    """The protocol of a dataset; raises ArgumentError if there is none of this kind."""
    kinds = {protocol.kind: protocol for protocol in PROTOCOLS if protocol.dataset == dataset}
    if kind in kinds:
        return kinds[kind]
    raise ArgumentError(f"{dataset} has no protocol {kind}. Available: {', '.join(kinds)}.")
