"""Native code without Python: the CUDA kernels on the host, what symbols may leave a SIMD file, that every CUDA file
compiles for sm_80 and sm_90a, and how many instructions the look-up-table matmul takes there."""

import fcntl
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from operator import le
from pathlib import Path

import pytest
import torch

from qkernels import backends

ROOT = Path(__file__).parent.parent
CXX = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
IS_CLANG = CXX and "clang" in subprocess.run([CXX, "--version"], capture_output=True, text=True).stdout
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
CLANG = {  # what gcc is told by pragma
    "-DQK_ISA=0": [],
    "-DQK_ISA=2": AVX2,
    "-DQK_ISA=512": [
        *AVX2,
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512vnni",
        "-mavx512vbmi",
        "-mgfni",
    ],
}
SANITIZE = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
UNOPTIMIZED = ["-O0", "-Wno-maybe-uninitialized"]  # where compiling takes longer than running


def run(source: str, tmp_path: Path, *flags: str) -> str:
    binary = tmp_path / "test"
    command = [
        CXX,
        "-std=c++20",
        "-ffp-contract=off",
        "-Wno-psabi",
        *flags,
        *(option for flag in flags if IS_CLANG for option in CLANG.get(flag, ())),
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


def test_lut_kernels_are_right_on_the_host(tmp_path):
    assert run("test_lut_kernels_on_host.cpp", tmp_path, *SANITIZE) == "0 failures\n"


def test_the_prefill_kernel_is_right_on_the_host(tmp_path):
    assert run("test_lut_prefill_on_host.cpp", tmp_path, *SANITIZE) == "0 failures\n"


AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


def need(wanted: set[str]) -> None:
    """Skips where the processor lacks one of these, as Linux names them."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if not wanted <= set(flags.split()):
        pytest.skip(f"needs a CPU with {', '.join(sorted(wanted))}")


@pytest.mark.parametrize(
    ("isa", "needs"),
    [
        ("0", set()),
        ("2", {"avx2", "fma", "f16c"}),
        ("512 -DQK_WITHOUT_VNNI", AVX512),
        ("512", AVX512 | {"avx512_vnni"}),
        ("512 -DQK_TILES_IN_SOFTWARE", AVX512),
    ],
)
def test_integer_kernels_stay_in_their_memory(isa, needs, tmp_path):
    need(needs)
    flags = [*SANITIZE, *UNOPTIMIZED, *f"-DQK_ISA={isa}".split()]
    assert run("test_lut_linear_int_on_host.cpp", tmp_path, *flags) == "0 failures\n"


@pytest.mark.parametrize(
    ("isa", "needs"),
    [
        ("0", set()),
        ("2", {"avx2", "fma", "f16c"}),
        ("512 -DQK_WITHOUT_VNNI", AVX512),
        ("512", AVX512 | {"avx512_vnni"}),
        ("512 -DQK_TILES_IN_SOFTWARE", AVX512 | {"avx512_vnni"}),
        ("512 -DQK_TILES_IN_SOFTWARE -DQK_GFNI", AVX512 | {"avx512_vnni", "gfni"}),
    ],
)
def test_sums_of_integers_have_the_bits_of_their_definition(isa, needs, tmp_path):
    need(needs)
    flags = [*SANITIZE, *UNOPTIMIZED, *f"-DQK_ISA={isa}".split()]
    assert run("test_lut_integers_on_host.cpp", tmp_path, *flags) == "0 failures\n"


def test_the_bfloat16_kernel_is_right_without_its_instruction(tmp_path):
    need(AVX512)
    assert run("test_lut_pairs_on_host.cpp", tmp_path, *SANITIZE, *UNOPTIMIZED, "-DQK_ISA=512") == "0 failures\n"


@pytest.mark.parametrize(("isa", "needs"), [("2", {"avx2", "fma", "f16c"}), ("512", AVX512 | {"avx512vbmi"})])
def test_tables_of_bytes_give_the_bits_of_the_other_tables(isa, needs, tmp_path):
    need(needs)
    assert run("test_lut_bytes_on_host.cpp", tmp_path, *SANITIZE, *UNOPTIMIZED, f"-DQK_ISA={isa}") == "0 failures\n"


def test_matrix_tiles_are_right_in_software_and_on_a_processor_that_has_them(tmp_path):
    """In software under the sanitizers; and to the bit what the instructions give, where there are such."""
    need(AVX512)
    source, flags = "test_lut_amx_on_host.cpp", [*UNOPTIMIZED, "-DQK_ISA=512"]
    said = run(source, tmp_path, *SANITIZE, *flags, "-DQK_TILES_IN_SOFTWARE")
    assert said.startswith("0 failures\n")
    if backends.HAS_COMPILED and "amx" in torch.ops.qkernels_cpu.isas().split(", "):
        assert run(source, tmp_path, *flags) == said


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


@pytest.fixture(scope="module")
def cuda_check(tmp_path_factory) -> tuple[Path, str]:
    """The folder of every CUDA object, and what the compiler said about them; one pytest worker makes it."""
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc here")
    folder, shared = build_folder(), tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers of this run
    objects, said = folder / "CMakeFiles/cuda_check.dir", shared / "cuda_check.txt"
    with (shared / "cuda_check.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            for path in objects.glob("**/*.o"):
                path.unlink()  # so that the compiler speaks again
            command = ["cmake", "--build", str(folder), "--target", "cuda_check"]
            built = subprocess.run(command, capture_output=True, text=True)
            assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
            said.write_text(built.stdout + built.stderr)
    return objects, said.read_text()


def test_every_cuda_file_compiles(cuda_check):
    """For sm_80 and sm_90a, with no register spilled to memory."""
    objects, said = cuda_check
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    kernels = list((ROOT / "csrc").glob("*/*_kernels.cu"))
    assert len(spills) >= 2 * len(kernels), "ptxas did not report"
    assert set(spills) == {("0", "0")}
    assert "serialized" not in said, "a wait between products of wgmma that the compiler added"
    assert len(list(objects.glob("**/*_kernels.cu.o"))) == len(kernels)


def sass_of(objects: Path, pattern: str) -> str:
    """The machine code of the objects whose names match, for all architectures."""
    triton = find_spec("triton")
    cuobjdump = triton and Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    if not cuobjdump or not cuobjdump.exists():
        pytest.skip("no cuobjdump here (it comes with triton)")
    texts = [
        subprocess.run([str(cuobjdump), "-sass", str(path)], capture_output=True, text=True, check=True).stdout
        for path in sorted(objects.glob(f"**/{pattern}.cu.o"))
    ]
    assert texts, f"no {pattern}"
    return "\n".join(texts)


@dataclass
class Loop:
    """The main loop of one decode kernel: its instructions by name, and the weights that a lane decodes in it."""

    name: str
    arch: str
    bits: int
    tiles: int  # of rows of x
    fine: bool
    wide: bool  # scales are float32
    instructions: Counter
    weights: int
    decoding: int  # instructions that fragments of the weight are made by: see `made_by`

    @property
    def shifts_and_moves(self) -> int:
        """Look-ups, their addresses, and every shift, selection and move in the loop, whatever it is for. Not among
        them: HMMA, loads, the scales' FFMA, counting."""
        return sum(self.instructions[i] for i in ("LDS", "PRMT", "LOP3", "SHF", "IMAD.SHL", "MOV", "IMAD.MOV"))

    @property
    def all(self) -> int:
        return self.instructions.total()


def main_loop(function: str, product: str) -> list[str]:
    """The instructions of the smallest loop with matrix instructions."""
    lines = [(int(a, 16), text) for a, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", function)]
    bodies = []
    for address, text in lines:
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            bodies.append([t for a, t in lines if int(target[1], 16) <= a <= address])
    return min((b for b in bodies if any(product in t for t in b)), key=len)


def registers_of(text: str, count: int = 1) -> set[str]:
    """Those named, with the ``count - 1`` that follow each."""
    return {f"{file}{int(n) + i}" for file, n in re.findall(r"\b(U?R)(\d+)\b", text) for i in range(count)}


def made_by(body: list[str]) -> set[int]:
    """Which instructions of a loop make the fragments of the weight, which are the first factors of its products, out
    of what is loaded from memory: from each register back to all that may have written it last, in this round of the
    loop or the one before. Branches inside the loop are read as never taken."""
    steps, todo = [], []
    for index, text in enumerate(body):
        predicate, kind, operands = re.fullmatch(r"(@\S+ )?(\S+) ?(.*)", text.strip()).groups()
        operands = re.sub(r"^(U?P\w+, )+", "", operands)  # a flag may be written beside a register
        kind, first, *others = kind.split("."), *operands.split(",")
        width = 4 if kind[0] == "HMMA" or "128" in kind else 2 if {"64", "WIDE"} & set(kind) else 1
        steps.append((kind[0], predicate, registers_of(first, width), registers_of(",".join(others))))
        if kind[0] == "HMMA":
            todo += [(index, register) for register in registers_of(others[0], 4)]
    found, seen = set(), set()
    while todo:
        index, register = todo.pop()
        for writer in [*range(index - 1, -1, -1), *range(len(steps) - 1, index - 1, -1)]:
            kind, predicate, writes, reads = steps[writer]
            if register not in writes:
                continue
            if kind not in ("LDG", "HMMA") and writer not in seen:
                found.add(writer)
                todo += [(writer, read) for read in reads]
            seen.add(writer)
            if not predicate:
                break
    return found


def decode_loops(sass: str) -> list[Loop]:
    """The smallest loop with matrix instructions of each decode kernel in the output of ``cuobjdump -sass``."""
    loops = []
    for section in sass.split("arch = ")[1:]:
        arch = section.split()[0]
        for function in section.split("Function : ")[1:]:
            name = function.split()[0]
            found = re.search(r"lut_decode_kernelINS_\d(half|bfloat)ELi(\d)ELi(\d)ELb(\d)E(f?)|$", name)
            if not found[0]:
                continue
            body = main_loop(function, "HMMA")
            names = [re.sub(r"^@\S+\s+", "", t).split()[0].split(".") for t in body]
            kinds = Counter(".".join(n[:2]) if n[:2] in (["IMAD", "SHL"], ["IMAD", "MOV"]) else n[0] for n in names)
            tiles = int(found[3])
            weights = kinds["HMMA"] * 16 * 16 // 32 // tiles  # a product takes 16 x 16 weights
            decoding = len(made_by(body))
            loops.append(
                Loop(name, arch, int(found[2]), tiles, found[4] == "1", found[5] == "f", kinds, weights, decoding)
            )
    return loops


# bits -> most instructions a weight that decode
MOST_DECODING = {1: 0.6, 2: 0.6, 3: 1.4, 4: 1.1, 8: 2.6}
# bits -> most, (shifts and moves, all): for one tile of x, two, one with groups finer than 128 columns
MOST = {
    1: ((0.65, 1.3), (0.65, 1.6), (0.65, 1.6)),
    2: ((0.6, 1.3), (0.65, 1.65), (0.6, 1.6)),
    3: ((1.4, 2.1), (1.4, 2.3), (1.4, 2.7)),
    4: ((1.1, 1.8), (1.1, 2.1), (1.1, 2.4)),
    8: ((2.7, 3.7), (2.7, 4.0), (2.7, 4.3)),
}


def test_the_decode_loop_is_short(cuda_check):
    """Counted in the machine code: instructions of a lane in the main loop, over the weights that it decodes there. Nor
    may a register go to memory, and two thread blocks must fit an SM."""
    objects, said = cuda_check
    loops = decode_loops(sass_of(objects, "lut_decode*_kernels"))
    assert len(loops) == 2 * 5 * 2 * 5, "x's dtypes, widths, architectures, kernels: two for two dtypes of scales, one"
    for loop in loops:
        what = f"{loop.name} {loop.arch}: {dict(loop.instructions)}"
        assert loop.weights == (64 if loop.bits == 8 else 128), what
        assert not {"LDL", "STL", "BAR"} & set(loop.instructions), what
        # Floats are for scales alone: a product with each sum of 128 columns; of 32 where groups are finer.
        assert not {"MUFU", "FADD", "FMUL", "I2F", "F2F"} & set(loop.instructions), what
        assert loop.arch == "sm_80" or "CALL" not in loop.instructions, what  # there for warps that diverged: none does
        assert loop.instructions["FFMA"] <= loop.instructions["HMMA"] * (2 if loop.fine else 0.5), what
        shares = [n / loop.weights for n in (loop.decoding, loop.shifts_and_moves, loop.all)]
        kind = f"{loop.tiles} tiles of x" + ", finer groups" * loop.fine + ", scales in 16 bits" * (not loop.wide)
        print(f"{loop.bits} bits {loop.arch}, {kind}: {shares[0]:.2f} decoding, {shares[2]:.2f} in all, a weight")
        assert loop.decoding >= loop.instructions["LDS"] + loop.instructions["PRMT"], what
        most = MOST_DECODING[loop.bits], *MOST[loop.bits][2 if loop.fine else loop.tiles - 1]
        assert all(map(le, shares, most)), (what, shares, most)
    used = re.findall(r"entry function '\S*lut_decode_kernel\S*' for .*?Used (\d+) registers", said, re.S)
    assert len(used) == len(loops) and max(map(int, used)) <= 65536 // (2 * 256)  # shared memory: a static_assert


def test_the_dequantizing_kernel_has_no_slow_path(cuda_check):
    """As a division in 64 bits would be."""
    functions = sass_of(cuda_check[0], "lut_dequantize_kernels").split("Function : ")[1:]
    assert len(functions) == 2 * 5 * 3, "architectures, widths, dtypes"
    for function in functions:
        assert not re.search(r"\b(CALL|LDL|STL|FFMA)\b", function), function.split()[0]


def test_the_prefill_kernel_keeps_the_matrix_unit_fed(cuda_check):
    """On sm_90a, for each dtype and width: a batch of 256 columns (8 bits: 128) is 16 (8) products of wgmma; nothing
    in the loop goes to memory that should not. A product of both warp groups takes 128 cycles, so beside one of them
    there is room for 64 instructions; counted here are also some that few warps run, and twice the FFMAs that run.
    Not so for 8 bits, where decoding alone takes more: that width is bound by it, not by the products."""
    found = set()
    for section in sass_of(cuda_check[0], "lut_prefill*_kernels").split("arch = ")[1:]:
        for function in section.split("Function : ")[1:]:
            name = re.search(r"lut_prefill_kernelINS_\d(half|bfloat)ELi(\d)E", function.split()[0])
            if not name or not section.startswith("sm_90"):
                continue
            body = main_loop(function, "HGMMA")
            kinds = Counter(re.sub(r"^@\S+\s+", "", t).split()[0].split(".")[0] for t in body)
            products = kinds["HGMMA"]
            print(f"{name[2]} bits {name[1]}: {len(body)} instructions for {products} products", dict(kinds))
            assert products == (8 if name[2] == "8" else 16) and not {"LDL", "STL", "BAR"} & set(kinds)
            assert (len(body) - products) / products <= (79 if name[2] == "8" else 64)
            found.add(name.groups())
    assert len(found) == 10


def test_dependent_launch_compiles(tmp_path):
    """The kernels wait for the one before them, once each, and let the next one start."""
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc here")
    ptx = tmp_path / "lut_decode1.ptx"
    command = ["nvcc", "-std=c++20", "-arch=sm_90a", "-ptx", "-o", str(ptx)]
    subprocess.run([*command, str(ROOT / "csrc/lut_linear/lut_decode1_kernels.cu")], check=True)
    text = ptx.read_text()
    kernels = len(re.findall(r"^\.visible \.entry|^\.weak \.entry", text, re.M))
    assert kernels == 12 and text.count("griddepcontrol.wait") == kernels
    assert text.count("griddepcontrol.launch_dependents") == kernels - 2  # two only add the parts up
