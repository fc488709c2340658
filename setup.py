# SPDX-License-Identifier: Apache-2.0
"""The package for pip and colcon. Every version range of the project stands here, once."""

import sys
from glob import glob
from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

NAME = "dpt_ros"
FOLDER = Path(__file__).parent
MANIFEST = ElementTree.parse(FOLDER / "package.xml").getroot()

CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
    "Topic :: Scientific/Engineering :: Image Recognition",
]

PROGRAMS = {
    "dpt_ros": "dpt_ros.__main__:main",
    "dpt_doctor": "dpt_ros.apps.doctor:main",
    "dpt_node": "dpt_ros.ros.command_line:dpt_node",
    "dpt_camera_sim": "dpt_ros.ros.command_line:dpt_camera_sim",
    "dpt_bag_player": "dpt_ros.apps.bag_player:main",
    "dpt_demo": "dpt_ros.apps.demo:main",
    "dpt_bag": "dpt_ros.apps.bag:main",
    "dpt_evaluate": "dpt_ros.apps.evaluate:main",
    "dpt_train": "dpt_ros.apps.train:main",
    "dpt_run": "dpt_ros.apps.run:main",
    "dpt_export": "dpt_ros.apps.export:main",
    "dpt_view": "dpt_ros.apps.view:main",
    "dpt_bench": "dpt_ros.apps.bench:main",
    "dpt_status": "dpt_ros.apps.status:main",
}

REQUIRES = [
    "numpy>=1.26,<3",
    "opencv-python>=4.8,<6",
    "pillow>=10,<15",
    "pyyaml>=6,<7",
    "safetensors>=0.4,<1",
    "timm>=1.0.22,<2",
    "torch>=2.9,<3",
    "torchvision>=0.24,<1",
    "tqdm>=4.60,<5",
]

MESSAGES = (
    "diagnostic-msgs",
    "geometry-msgs",
    "lifecycle-msgs",
    "nav-msgs",
    "rosgraph-msgs",
    "sensor-msgs",
    "std-msgs",
    "std-srvs",
)


def ros(distribution: str, rclpy: str) -> list[str]:
    """A ROS 2 distribution from PyPI, for machines without a ROS install."""
    # The packages that are named after a distribution pin its versions of the messages.
    messages = [f"ros-{distribution}-{package}" for package in MESSAGES]
    return [f"ros-rclpy[fastrtps]{rclpy}", "rosbags>=0.11.7,<0.12", *messages]


# Another way to run the networks on a CPU (backend: openvino).
OPENVINO = ["openvino>=2026.4,<2027"]

# Networks as ONNX files (dpt_export), and run by ONNX Runtime (backend: onnxruntime).
ONNX = ["onnx>=1.18,<2", "onnxruntime>=1.20,<2", "onnxscript>=0.6.2,<1"]
# Compressed video (image_transport: video; dpt_bag, dpt_run).
VIDEO = ["av>=16,<19"]

# Many bags on many processes or machines (dpt_bag --ray).
RAY = ["ray>=2.40,<3"]
# NYUv2's .mat files (dpt_evaluate, dpt_train).
DATASETS = ["h5py>=3.8,<4", "scipy>=1.10,<2"]
# Curves of a training (dpt_train --tensorboard).
TENSORBOARD = ["tensorboard>=2.15,<3"]
# Looking at images and points (dpt_view).
VIEW = ["rerun-sdk>=0.41,<0.50; python_version >= '3.11'"]

TEST = [
    *DATASETS,
    *ONNX,
    *OPENVINO,
    *RAY,
    *TENSORBOARD,
    *VIDEO,
    *VIEW,
    "colcon-common-extensions>=0.3,<0.4",
    "hypothesis>=6.100,<7",
    "mkdocs>=1.6,<2",
    "mypy>=2.4,<3",
    "pytest>=8,<10",
    "pytest-xdist>=3.6,<4",
    "rosbags-image>=0.10,<0.12",
    "ruff>=0.17,<0.18",
    "scikit-learn>=1.3,<2",
    "setuptools>=70.1,<80",
    "torchmetrics>=1.3,<2",
    "transformers>=4.45,<6",
]


def programs_for_ros2_run() -> list[tuple[str, list[str]]]:
    """Wrappers in lib/dpt_ros, where ros2 run and ros2 launch look; wheels fill only bin."""
    if "bdist_wheel" not in sys.argv:
        return []
    folder = Path("build") / "ros2_run"
    folder.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        wrapper = folder / program
        here = '$(dirname "$(readlink -f "$0")")'
        wrapper.write_text(f'#!/bin/sh\nexec "{here}/../../bin/{program}" "$@"\n')
        wrapper.chmod(0o755)
    return [(f"lib/{NAME}", [str(folder / program) for program in PROGRAMS])]


setup(
    name=NAME,
    version=MANIFEST.findtext("version"),
    description=MANIFEST.findtext("description"),
    long_description=(FOLDER / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author=MANIFEST.findtext("maintainer"),
    license=MANIFEST.findtext("license"),
    license_files=["LICENSE"],
    classifiers=CLASSIFIERS,
    keywords=["ROS 2", "monocular depth", "semantic segmentation", "DPT", "vision transformer"],
    project_urls={url.get("type").title(): url.text for url in MANIFEST.findall("url")},
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["data/*.json", "data/*.safetensors"]},
    install_requires=REQUIRES,
    extras_require={
        "ros": ros("jazzy", ">=7.1,<8"),
        "ros-kilted": ros("kilted", ">=9.1,<10"),
        "datasets": DATASETS,
        "onnx": ONNX,
        "openvino": OPENVINO,
        "ray": RAY,
        "tensorboard": TENSORBOARD,
        "video": VIDEO,
        "view": VIEW,
        "test": TEST,
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(glob("launch/*.py"))),
        (f"share/{NAME}/config", sorted(glob("config/*.*"))),
        (f"share/{NAME}/config/sros2", sorted(glob("config/sros2/*.*"))),
        *programs_for_ros2_run(),
    ],
    entry_points={"console_scripts": [f"{name} = {target}" for name, target in PROGRAMS.items()]},
    zip_safe=False,
)
