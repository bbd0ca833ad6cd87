"""Package metadata, requirements, and the files of the wheel that are not Python.

The C++ sources in ``kernels/`` and the run files in ``configs/`` are at the top of the repository. The wheel contains
them as ``ds4sci._csrc`` and ``ds4sci._configs``. Code finds both by path: first the packaged folder, then that of the
repository, which is the only one in an editable install.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

# A lower bound is the oldest release with the functions in use; an upper bound, an interface that is known to change.
REQUIRES = [
    "deepspeed>=0.19.8,<0.20",  # the engine; 0.x minors remove modules (elasticity went in 0.19)
    "torch>=2.6,<2.14",  # torch.library custom ops with autograd and weights_only=True by default; 2.13 is tested
    "transformers>=5,<6",  # ESMFold as the independent check of the fold modules; language models
    "tokenizers>=0.20",  # tokenizer.json of our own vocabularies, which transformers reads without ds4sci
    "scipy>=1.11",  # search of nearby atoms; solutions of differential equations; Spearman's correlation in tests
    "numpy>=1.26",  # data up to the batch; arrays of both the 1.x and the 2.x line work
    "safetensors>=0.4.3",  # model weights on disk, never a pickle
    "gemmi>=0.7",  # mmCIF and PDB in and out: the faster reader (see benchmarks/)
    "biopython>=1.83",  # Stockholm, and the second reader that tests compare with
    "einops>=0.8",  # reshapes that name every axis
    "pydantic>=2.7,<3",  # configs: extra="forbid", validation errors with a location
    "typer>=0.12",  # the command line
    "rich>=13.7",  # progress and tables in the terminal
    "matplotlib>=3.8",  # plots of the report page
    "psutil>=5.9",  # memory of a step; whether the launcher still lives
    "hjson>=3.1",  # DeepSpeed reads its JSON with it: comments and trailing commas are allowed
    "ninja>=1.11",  # DeepSpeed's JIT builds; a wheel, so no system package is needed
    # torch.utils.cpp_extension, which DeepSpeed's JIT builds go through, imports setuptools; Python 3.12 has none.
    "setuptools>=69",
]

DOCS = [
    "sphinx>=8,<10",  # the documentation site
    "myst-parser>=4",  # its pages are Markdown, as README is
    "furo>=2024.8",  # its theme: readable on a phone, light and dark
]

IMAGES = [
    "scikit-image>=0.22",  # non-local means, which the benchmark em_denoise is measured against
    "tifffile>=2024.1",  # TIFF images of the task `image`, with the metadata of ImageJ and OME
    "pillow>=10.3",  # PNG images and masks
    "nibabel>=5.2",  # NIfTI volumes and their orientation
    "pydicom>=3",  # DICOM images and series; 3 has pydicom.pixels
]

EXTRAS = {
    "gpu": [
        "flash-attn>=2.7",  # built on the user's machine against its CUDA toolkit
        "nvidia-ml-py>=12",  # use of the GPU in the timeline of a run
    ],
    "wandb": ["wandb>=0.17"],  # "wandb" section of the DeepSpeed JSON; offline works
    "tensorboard": ["tensorboard>=2.16"],  # "tensorboard" section of the DeepSpeed JSON
    # Weights of 8 bits (torchao: the activations stay in fp32) and 4 bits (bitsandbytes: packed, on CPUs too) that
    # transformers reads, with accelerate.
    "quantize": ["torchao>=0.18", "bitsandbytes>=0.49", "accelerate>=1.1"],
    "lora": ["peft>=0.14"],  # [model.lora]: low-rank adapters of Hugging Face models
    "mlperf": ["mlperf-logging>=4.1"],  # [benchmark]: MLPerf logs and upstream's checkers; brings pandas
    "cosmo": ["colossus>=1.3"],  # matter power spectra and growth factors from which the dataset `cosmo` is generated
    "deepxde": ["deepxde>=1.15"],  # `ds4sci bench zcs` measures its zero coordinate shift beside ours
    "images": IMAGES,
    "docs": DOCS,
    "dev": [
        *DOCS,
        *IMAGES,
        "pytest>=8.2",
        "pytest-xdist>=3.6",  # launch/test.sh runs the files in three processes: most tests use one thread
        "peft>=0.14",  # tests of adapters
        "torchao>=0.18",  # tests of weights of 8 bits
        "bitsandbytes>=0.49",  # tests of weights of 4 bits
        "colossus>=1.3",  # the generator of the dataset `cosmo`, and the check on its boxes
        "accelerate>=1.1",  # transformers.Trainer, which `ds4sci bench lm` measures beside ours
        "pyfaidx>=0.8",  # measured beside our index of FASTA files
        "hypothesis>=6.100",  # property-based tests of the parsers
        "tmtools>=0.2",  # TM-score of the original program: the check on ours
        "biotite>=1.0",  # lDDT and superposition: the check on ours
        # Tests of the Triton kernels on a CPU: interpreter and compiler. torch for CUDA or ROCm brings its own.
        "triton>=3.3,<3.10; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "mlperf-logging>=4.1",  # the checkers and scores that ours are compared with
        "ruff>=0.6",
        "mypy>=1.11",
        "pre-commit>=3.7",
    ],
}

PREBUILD = os.environ.get("DS4SCI_PREBUILD") == "1"
"""Put native code, built for every instruction set, into the wheel: a wheel for one platform that needs no compiler."""


class Build(build_py):
    def run(self) -> None:
        super().run()
        if PREBUILD and not self.editable_mode:
            spec = importlib.util.spec_from_file_location("native", ROOT / "ds4sci" / "kernels" / "native.py")
            assert spec
            assert spec.loader
            native = sys.modules["native"] = importlib.util.module_from_spec(spec)
            sys.path.insert(0, str(ROOT))  # native.py imports ds4sci.files, which needs the standard library only
            try:
                spec.loader.exec_module(native)
            finally:
                sys.path.remove(str(ROOT))
            native.prebuild(Path(self.build_lib).absolute() / "ds4sci" / native.BUILT)


class Wheel(bdist_wheel):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = self.root_is_pure and not PREBUILD

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if PREBUILD else (python, abi, platform)


setup(
    name="ds4sci",
    version=next(
        line.split('"')[1]
        for line in (ROOT / "ds4sci" / "__init__.py").read_text(encoding="utf-8").splitlines()
        if line.startswith("__version__")
    ),
    description="Train protein-structure models and science language models on DeepSpeed, on any machine",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0 AND BSD-3-Clause",  # the second is 3Dmol.js
    license_files=["LICENSE", "NOTICE", "ds4sci/report/assets/3dmol/LICENSE"],
    python_requires=">=3.11",
    cmdclass={"build_py": Build, "bdist_wheel": Wheel},
    packages=[*find_packages(include=["ds4sci", "ds4sci.*"]), "ds4sci._csrc", "ds4sci._configs"],
    package_dir={"ds4sci._csrc": "kernels", "ds4sci._configs": "configs"},
    package_data={
        "ds4sci": ["*.json", "**/*.json", "**/*.md", "**/*.yaml", "py.typed", "report/assets/**/*"],
        "ds4sci._csrc": ["**/*.cpp", "**/*.h", "**/*.hpp", "**/*.cu", "**/*.cuh", "**/*.md"],
        "ds4sci._configs": ["**/*.toml", "**/*.json"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ds4sci = ds4sci.cli.main:main"]},
)
