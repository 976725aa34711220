"""Build qkernels._C and libqkernels.so with CMake and Ninja: CMakeLists.txt says what, this file says where.

Without torch, CMake, Ninja, pybind11 or a C++ compiler the package installs all the same, as pure Python and Triton.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def missing() -> str | None:
    """Why the native part cannot be built here, or None."""
    if os.environ.get("QKERNELS_NO_BUILD") == "1":
        return "QKERNELS_NO_BUILD=1"
    for module in ("torch", "pybind11"):
        try:
            __import__(module)
        except ImportError:
            return f"{module} is not importable (install it first, then pip install --no-build-isolation .)"
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool):
            return f"{tool} was not found"
    if not any(shutil.which(cxx) for cxx in (os.environ.get("CXX"), "c++", "g++", "clang++") if cxx):
        return "no C++ compiler was found"
    return None


def cuda() -> tuple[str, str]:
    """(torch's CUDA version, nvcc) if kernels can be built for it here, else ""; refuses another major version."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if not torch.version.cuda or not CUDA_HOME:
        return "", ""
    compiler = f"{CUDA_HOME}/bin/nvcc"
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    nvcc = said.split("release ")[1].split(",")[0]
    if nvcc.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise SystemExit(
            f"qkernels: nvcc and torch must share a CUDA major version, got {nvcc} and {torch.version.cuda}"
        )
    return torch.version.cuda, compiler


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        if why := missing():
            print(
                f"qkernels: building without compiled kernels ({why}); Triton and reference backends work", flush=True
            )
            return
        import pybind11
        from torch.utils.cpp_extension import include_paths, library_paths

        out = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"  # fixed, so that a second build is incremental
        build.mkdir(parents=True, exist_ok=True)
        version, nvcc = cuda()
        subprocess.check_call(
            [
                *("cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build)),
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DTORCH_INCLUDE={';'.join(include_paths())}",
                f"-DTORCH_LIB={';'.join(library_paths())}",
                f"-DQK_CUDA_VERSION={version}",
                *([f"-DCMAKE_CUDA_COMPILER={nvcc}"] if nvcc else []),
            ]
        )
        subprocess.check_call(["cmake", "--build", str(build)])

    def copy_extensions_to_source(self) -> None:  # an editable install: the kernels' library goes beside _C
        super().copy_extensions_to_source()
        for library in Path(self.build_lib, "qkernels").glob("libqkernels.so"):
            shutil.copy2(library, ROOT / "qkernels" / library.name)


setup(ext_modules=[Extension("qkernels._C", [], optional=True)], cmdclass={"build_ext": CMakeBuild})
