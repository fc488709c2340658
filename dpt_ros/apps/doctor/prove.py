# SPDX-License-Identifier: Apache-2.0
"""dpt_doctor --prove: published weights on a public picture, beside their published outputs.

The values are those of the integration tests of Hugging Face's transformers
(tests/models/dpt/test_modeling_dpt.py and test_modeling_dpt_hybrid.py): the first three rows and
columns of the output for the whole picture. Their Intel/dpt-* networks are the authors' files
under other key names (convert_dpt_to_pytorch.py, convert_dpt_hybrid_to_pytorch.py). The picture
there is a PNG, whose pixels are those of COCO's JPEG as Pillow decodes it.

The image processors of Intel/dpt-large and -ade resize with Pillow's bilinear filter ("resample":
2 in their preprocessor_config.json). That of Intel/dpt-hybrid-midas was saved when bilinear was
the default of DPTImageProcessor; today's is bicubic. So both are tried, in this order: nine values
to four digits are not met by chance.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from dpt_ros.apps.doctor.finding import WARNING, Finding, brief, error
from dpt_ros.apps.doctor.networks import hash_finding
from dpt_ros.model.download import cache_folder, fetch
from dpt_ros.model.zoo import ZOO

if TYPE_CHECKING:
    import numpy as np

    from dpt_ros.engine.inference.network import Network

_SIZE = (640, 480)  # of the public picture
_RESIZES = ("bilinear", "bicubic")  # see above
_MOST_EMPTY = 0.5  # share of pixels without any depth
_NEEDS = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino",)}


ABSOLUTE = 1e-4
RELATIVE = {"fp32": 1e-4, "fp16": 1e-2}
"""The largest difference is ABSOLUTE + RELATIVE * |value|: for fp32, whatever the backend, as in
transformers' tests; for fp16 as in ``dpt_export --parity``."""


class Download(NamedTuple):
    """A file and its sha256."""

    url: str
    sha256: str


# 173,131 bytes, 640x480; several public projects pin this hash.
CATS = Download(
    "http://images.cocodataset.org/val2017/000000039769.jpg",
    "dea9e7ef97386345f7cff32f9055da4982da5471c48d575146c796ab4563b04e",
)


@dataclass(frozen=True)
class Answer:
    """What some networks, all with the same weights, give for a picture."""

    networks: tuple[str, ...]  # their names in the zoo
    side: int  # height and width at which the picture enters, pixels; its aspect is not kept
    # The output from its first pixel on, row by row: relative inverse depth, or logits of the
    # first class, at the size of the input.
    values: tuple[tuple[float, ...], ...]
    divisor: float = 1.0  # the output is divided by it before it is compared
    source: str = "transformers' tests"  # who published the values
    picture: Download = CATS  # what is shown to the network
    weights: Download | None = None  # where they are; None for what the zoo has


ANSWERS = (
    Answer(
        ("dpt_large_midas", "dpt_large_384", "Intel/dpt-large"),
        384,
        ((6.3199, 6.3629, 6.4148), (6.3850, 6.3615, 6.4166), (6.3519, 6.3176, 6.3575)),
    ),
    Answer(
        ("dpt_hybrid_midas", "dpt_hybrid_384", "Intel/dpt-hybrid-midas"),
        384,
        ((5.6437, 5.6146, 5.6511), (5.4371, 5.5649, 5.5958), (5.5215, 5.5184, 5.5293)),
        divisor=100.0,
    ),
    Answer(
        ("dpt_large_ade20k", "Intel/dpt-large-ade"),
        480,
        ((4.0480, 4.2420, 4.4360), (4.3124, 4.5693, 4.8261), (4.5768, 4.8965, 5.2163)),
    ),
)


def read_answers(path: Path) -> tuple[Answer, ...]:
    """Answers of a JSON file: a list of objects with the fields of `Answer`. Raises ValueError if
    it cannot be read, or is something else."""
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            row |= {key: Download(**row[key]) for key in ("picture", "weights") if key in row}
            if len({len(line) for line in row["values"]}) != 1:
                raise ValueError("the rows of values differ in length")
        return tuple(Answer(**row) for row in rows)
    except (OSError, ValueError, TypeError, LookupError) as error:
        names = ", ".join(field.name for field in fields(Answer))
        raise ValueError(
            f"{path} holds no answers ({error}); expected a JSON list of objects with {names}."
        ) from error


class _Run(NamedTuple):
    backend: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}" + (" GPU" if self.device == "cuda" else "")


def prove(args: argparse.Namespace) -> Iterator[Finding]:
    """Compare a network with what was published of it, with the arguments of ``dpt_doctor``: what
    was used and found; the last finding is the verdict."""
    name: str = args.prove
    try:
        answers = read_answers(Path(args.answers)) if args.answers else ANSWERS
        answer = next((row for row in answers if name in row.networks), None)
        weights, published = yield from _weights(name, answer, args.weights)
        image = yield from _picture(answer, args.picture)
        runs = list(_runs(args.backend))
    except (ValueError, OSError, ImportError, RuntimeError) as why:
        cure = "" if isinstance(why, ValueError | OSError) else "dpt_doctor without --prove"
        yield error("verdict", f"not proven: {name} was not run. {why}", cure)
        return
    named: tuple[list[str], list[str]] = ([], [])
    for run in runs:
        finding = _finding(run, name, weights, answer, image)
        named[bool(finding.level)].append(finding.name)
        yield finding
    right, wrong = map(", ".join, named)
    if wrong:
        message = f"not proven: {name} with {wrong}, by the figures above."
        message += f" With {right} it is as expected." if right else ""
        cure = "With the published file and picture (above): please report this text."
        yield error("verdict", message, cure)
    elif answer is None:
        parts = "hash, keys" if published else "keys (not the hash, see above)"
        message = f"no published answer; {parts}, shapes and value range of {name} are as expected"
        yield Finding("verdict", f"not proven: {message} with {right}.", level=WARNING)
    else:
        yield Finding("verdict", f"proven: {name} gives the values of {answer.source}: {right}")


def _file(what: str, given: str | None, url: str, sha256: str) -> Path:
    """A local file, or a download that is checked."""
    if given and not given.startswith(("https://", "http://")):
        path = Path(given).expanduser()
        if not path.exists():
            raise ValueError(f"--{what}: {path} does not exist.")
        return path
    path = cache_folder() / "prove" / Path(urlsplit(given or url).path).name
    fetch(given or url, path, sha256)
    return path


def _weights(
    name: str, answer: Answer | None, given: str | None
) -> Generator[Finding, None, tuple[Path, bool]]:
    from dpt_ros.model.factory import weights_path

    spec = ZOO[name]
    own = answer.weights if answer else None
    url, sha256 = own or (spec.url, spec.sha256)
    wanted = given or own
    path = _file("weights", given, url, sha256) if wanted else weights_path(spec, "download")
    if not path.is_file():  # a folder
        return path, False
    finding = hash_finding("weights", path, sha256)
    yield finding
    return path, bool(sha256) and not finding.level


def _picture(answer: Answer | None, given: str | None) -> Generator[Finding, None, Any]:
    from PIL import Image

    published = answer.picture if answer else CATS
    path = _file("picture", given, *published)
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError) as why:
        message = f"{path} is no picture, or a damaged one ({brief(why)}). Get {published.url}."
        raise ValueError(message) from why
    finding = hash_finding("picture", path, published.sha256)
    if finding.level and published == CATS and image.size != _SIZE:
        raise ValueError(
            f"{path} has {image.width}x{image.height} pixels, but the published picture has"
            f" {_SIZE[0]}x{_SIZE[1]}: it is another one. Get {published.url}."
        )
    yield finding
    return image


def _runs(backends: list[str] | None) -> Iterator[_Run]:
    """On the CPU every backend that is installed; on a GPU PyTorch in both precisions."""
    import torch

    for backend in backends or ("torch", "onnxruntime", "openvino"):
        missing = [name for name in _NEEDS.get(backend, ()) if find_spec(name) is None]
        if missing and backends:
            raise ValueError(f"--backend {backend}: pip install {' '.join(missing)}.")
        if not missing:
            yield _Run(backend, "cpu", "fp32")
        if backend == "torch" and torch.cuda.is_available():
            yield from (_Run(backend, "cuda", precision) for precision in RELATIVE)


def source_input(image: Any, size: tuple[int, int], resize: str) -> np.ndarray:
    """A picture (PIL.Image in RGB) as transformers' DPTImageProcessor makes it with Pillow, bit by
    bit: (1, 3, height, width) float32.

    Pillow resizes the uint8 picture to ``size`` (height, width) with its filter "bilinear" or
    "bicubic", without keeping its aspect; then * 1/255 in float64, rounded to float32, and
    (x - 0.5) / 0.5 in float32.
    """
    import numpy as np
    from PIL import Image

    small = np.asarray(image.resize(size[::-1], Image.Resampling[resize.upper()]))
    scaled = (small.astype(np.float64) * (1 / 255)).astype(np.float32)
    half = np.float32(0.5)
    return ((scaled - half) / half).transpose(2, 0, 1)[None].copy()


def _finding(run: _Run, name: str, weights: Path, answer: Answer | None, image: Any) -> Finding:
    try:
        network = _network(run, name, weights)
        if answer is None:
            return _plausible(run, network, image)
        return _compared(run, network, answer, image)
    except (ValueError, OSError, ImportError, RuntimeError) as why:
        return error(str(run), f"It was not run: {why}", "")


def _network(run: _Run, name: str, weights: Path) -> Network:
    """The network as the node runs it; keys and shapes of the file are checked."""
    import torch

    from dpt_ros.engine.inference.network import Network
    from dpt_ros.engine.loading import make_backend
    from dpt_ros.engine.settings import Settings
    from dpt_ros.model import create_model

    # Products in float32 as such: on a GPU cuDNN shortens them (TF32) by default.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = create_model(name, weights)
    device = torch.device(run.device)
    backend = make_backend(model, device, run.precision, Settings(backend=run.backend))
    return Network(model.spec, device, backend)


def _output(network: Network, image: Any, size: tuple[int, int], resize: str) -> dict[str, Any]:
    """Maps at the size of the input: inverse_depth (H, W), logits (C, H, W)."""
    import torch

    from dpt_ros.model.heads import upsample2

    images = torch.from_numpy(source_input(image, size, resize))
    maps = network(images.to(network.device))
    if "logits" in maps:
        maps["logits"] = upsample2(maps["logits"].float())
    return {key: value[0].float().cpu() for key, value in maps.items()}


def _compared(run: _Run, network: Network, answer: Answer, image: Any) -> Finding:
    import torch

    wanted = torch.tensor(answer.values)
    rows, columns = wanted.shape
    bound = ABSOLUTE + RELATIVE[run.precision] * wanted.abs()
    results = []
    for resize in _RESIZES:
        maps = _output(network, image, (answer.side, answer.side), resize)
        found = maps["inverse_depth"] if "inverse_depth" in maps else maps["logits"][0]
        difference = (found[:rows, :columns] / answer.divisor - wanted).abs()
        if not bool(difference.isfinite().all()):
            return error(str(run), "not as published: the output is not finite.", "")
        results.append((float((difference / bound).max()), float(difference.max()), resize))
        if results[-1][0] <= 1:
            break
    times, largest, resize = min(results)
    text = f"largest difference {largest:.1e} of {float(wanted.abs().max()):.4g}, {resize} resize,"
    text += f" allowed {ABSOLUTE:g} + {RELATIVE[run.precision]:g} * |value|"
    if times <= 1:
        return Finding(str(run), f"as published: {text}")
    return error(str(run), f"not as published: {text}: {times:.3g} times too much.", "")


def _plausible(run: _Run, network: Network, image: Any) -> Finding:
    """Whether the output can be right, where nothing is published to compare it with."""
    spec = network.spec
    maps = _output(network, image, (spec.net_height, spec.net_width), _RESIZES[-1])
    faults = [f"{key} is not finite" for key, value in maps.items() if not value.isfinite().all()]
    facts = []
    if "inverse_depth" in maps:
        inverse = maps["inverse_depth"]
        low, high = float(inverse.min()), float(inverse.max())
        metres = f"depth {1 / max(high, 1e-8):.2f} to {1 / max(low, 1e-8):.2f} m"
        facts.append(metres if spec.invert else f"inverse depth {low:.4g} to {high:.4g}")
        empty = float((inverse <= spec.shift).float().mean())
        if low < 0 or high - low < 1e-3 * high or empty > _MOST_EMPTY:
            faults.append(f"depth is negative or constant, or {empty:.0%} of the pixels have none")
    if "logits" in maps:
        counts = maps["logits"].argmax(0).flatten().bincount()
        share = float(counts.max() / counts.sum())
        facts.append(f"{int((counts > 0).sum())} classes, the largest on {share:.0%}")
        faults += ["one class is everywhere"] if share == 1 else []
    if faults:
        return error(str(run), f"not plausible: {'; '.join(faults + facts)}.", "")
    return Finding(str(run), f"plausible: {'; '.join(facts)}")
