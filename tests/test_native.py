"""Native code without Python: the CUDA kernels on the host, what symbols may leave a SIMD file, and
that every CUDA file compiles for sm_80 and sm_90a."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CXX = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run(source: str, tmp_path: Path, *flags: str) -> str:
    binary = tmp_path / "test"
    command = [
        CXX,
        "-std=c++20",
        "-ffp-contract=off",
        "-Wno-psabi",
        *flags,
        str(ROOT / "tests/cpp" / source),
        "-o",
        str(binary),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    done = subprocess.run([str(binary)], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_cuda_kernels_are_right_on_the_host(tmp_path):
    assert run("test_cuda_kernels_on_host.cpp", tmp_path, *SANITIZE) == "0 failures\n"


def test_the_bfloat16_kernel_is_right_without_its_instruction(tmp_path):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if not {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(flags.split()):
        pytest.skip("needs a CPU with AVX-512")
    assert run("test_lut_pairs_on_host.cpp", tmp_path, *SANITIZE, "-Wno-maybe-uninitialized") == "0 failures\n"


def build_folder() -> Path:
    folders = sorted((ROOT / "build").glob("cmake-*"), key=lambda p: p.stat().st_mtime)
    if not folders:
        pytest.skip("the package was not built from this checkout")
    return folders[-1]


def test_simd_files_export_only_their_tables():
    """A weak function compiled for AVX-512 could replace its twin in portable code: SIGILL on an older CPU."""
    objects = sorted(build_folder().glob("CMakeFiles/qkernels_simd_*/csrc/*/*_simd.cpp.o"))
    assert len(objects) >= 2
    for path in objects:
        symbols = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        exported = re.findall(r"^[0-9a-f]+ ([A-Zuvw]) (.*)$", symbols, re.M)
        allowed = re.compile(r"qk::\w+_(scalar|avx2|avx512)$")
        leaked = [name for kind, name in exported if not (kind in "DRB" and allowed.match(name))]
        assert not leaked, f"{path}: {leaked[:3]}"


def test_every_cuda_file_compiles():
    """For sm_80 and sm_90a, with no register spilled to memory."""
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc here")
    folder = build_folder()
    for path in folder.glob("CMakeFiles/cuda_check.dir/**/*.o"):
        path.unlink()  # so that the compiler speaks again
    built = subprocess.run(["cmake", "--build", str(folder), "--target", "cuda_check"], capture_output=True, text=True)
    said = built.stdout + built.stderr
    assert built.returncode == 0, said[-3000:]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    kernels = list((ROOT / "csrc").glob("*/*_kernels.cu"))
    assert len(spills) >= 2 * len(kernels), "ptxas did not report"
    assert set(spills) == {("0", "0")}
    assert len(list(folder.glob("CMakeFiles/cuda_check.dir/**/*_kernels.cu.o"))) == len(kernels)
