"""Every Triton kernel compiled ahead of time for sm_80 and sm_90, without a GPU: it compiles, spills nothing, and its
PTX divides with correct rounding, fuses no multiply-add and has no min or max that would swallow a NaN."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# kernel -> its compile-time arguments, one dict a variant; with a tile of its own, or those of ops/tiles.py
VARIANTS = {
    "channel_error.channel_error_kernel": [{"ROWS": 32, "BLOCK": 64}, {"ROWS": 1, "BLOCK": 2048}],
    "cpq.cpq_fwd_kernel": [{}],
    "cpq.cpq_bwd_kernel": [
        {"FULL": full, "TRUNCATE": truncate} for full in (False, True) for truncate in (False, True)
    ],
    "daq.daq_fwd_kernel": [{}],
    "daq.daq_bwd_kernel": [{}],
    "dropbits.dropbits_fwd_kernel": [{"BITWISE": True}, {"BITWISE": False}],
    "dropbits.dropbits_bwd_kernel": [{"BITWISE": True}, {"BITWISE": False}],
    "lsq.lsq_fwd_kernel": [{}],
    "lsq.lsq_bwd_kernel": [{}],
    "lut_linear.lut_dequantize_kernel": [{"BITS": bits, "ROWS": 1, "BLOCK": 128} for bits in (1, 2, 3, 4, 8)],
    "lut_linear.lut_linear_kernel": [
        {"BITS": 1, "BIAS": False, "BLOCK_M": 16, "ROWS": 1, "BLOCK": 32},
        {"BITS": 2, "BIAS": True, "BLOCK_M": 16, "ROWS": 1, "BLOCK": 32},
        {"BITS": 3, "BIAS": True, "BLOCK_M": 16, "ROWS": 1, "BLOCK": 32},
        {"BITS": 4, "BIAS": False, "BLOCK_M": 32, "ROWS": 2, "BLOCK": 16},
        {"BITS": 8, "BIAS": True, "BLOCK_M": 32, "ROWS": 2, "BLOCK": 16},
    ],
    "post.post_fwd_kernel": [{"ZERO": True}, {"ZERO": False}],
    "post.post_bwd_kernel": [{"ZERO": True, "CLIP": True}, {"ZERO": False, "CLIP": False}],
    "soft_assign.soft_assign_fwd_kernel": [{"HARD": False}, {"HARD": True}],
    "soft_assign.soft_assign_bwd_kernel": [{}],
}
# what a kernel asks ops/tiles.py for, where it is not 2048
ELEMENTS = {
    "cpq.cpq_bwd_kernel": 512,
    "daq.daq_bwd_kernel": 1024,
    "dropbits.dropbits_fwd_kernel": 1024,
    "dropbits.dropbits_bwd_kernel": 256,
    "soft_assign.soft_assign_fwd_kernel": 1024,
    "soft_assign.soft_assign_bwd_kernel": 1024,
}
# no code depends on them: nothing is divided; and a matmul's sums may fuse
MATMUL, DEQUANTIZE = "lut_linear.lut_linear_kernel", "lut_linear.lut_dequantize_kernel"
INTEGERS = ("P", "L", "columns", "K", "C", "inner", "M", "N", "group", "G", "low_tiles", "high_first", "high_tiles",
            "levels")  # fmt: skip
# parameters and sums are float32 whatever x is
FLOAT32 = ("step_ptr", "scale_ptr", "ds_ptr", "sigma_ptr", "dsigma_ptr", "lower_ptr", "upper_ptr", "dlower_ptr",
           "dupper_ptr", "dscale_ptr", "levels_ptr", "temperature_ptr", "bias_ptr", "w_ptr",
           "keep_ptr", "dkeep_ptr")  # fmt: skip

# Runs in a process of its own: an ahead-of-time compile fails where TRITON_INTERPRET=1.
COMPILE = """
import importlib, json, pathlib, subprocess, sys, tempfile, warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

cuobjdump = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
variants, elements, integers, float32 = json.loads(sys.argv[1])
for name, constants in variants.items():
    module, kernel = name.split(".")
    fn = getattr(importlib.import_module(f"qkernels.ops.{module}.triton"), kernel)
    most = elements.get(name, 2048)
    for extra in constants:
        for tile in [extra] if "ROWS" in extra else [{"ROWS": 1, "BLOCK": most}, {"ROWS": most // 32, "BLOCK": 32}]:
            for dtype in ("fp32", "bf16", "fp16") if tile["ROWS"] == 1 else ("fp32",):
                for capability in (80, 90):
                    constexprs = extra | tile
                    signature = {p: "i32" if p in integers else "fp32" for p in fn.arg_names}
                    signature |= {p: "*" + dtype for p in fn.arg_names if p.endswith("_ptr")}
                    signature |= {p: "*fp32" for p in fn.arg_names if p in float32}
                    signature |= {p: "*u8" for p in fn.arg_names if p == "codes_ptr"}
                    signature |= dict.fromkeys(constexprs, "constexpr")
                    options = dict(enable_fp_fusion=False, num_warps=8)
                    compiled = triton.compile(
                        ASTSource(fn, signature, constexprs), target=GPUTarget("cuda", capability, 32), options=options
                    )
                    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
                        f.write(compiled.asm["cubin"])
                        f.flush()
                        usage = subprocess.run([cuobjdump, "-res-usage", f.name], capture_output=True, text=True).stdout
                    print(json.dumps([name, constexprs, dtype, capability, compiled.asm["ptx"], usage]), flush=True)
    # an argument that is 1 is a plain int to a kernel
    signature |= dict.fromkeys([p for p in fn.arg_names if p in integers], "constexpr")
    ones = constexprs | {p: 1 for p in fn.arg_names if p in integers}
    try:
        triton.compile(ASTSource(fn, signature, ones), target=GPUTarget("cuda", 90, 32), options=options)
        print(json.dumps([name, "ones", None]), flush=True)
    except Exception as error:
        print(json.dumps([name, "ones", str(error)]), flush=True)
"""


@pytest.fixture(scope="module")
def compiled():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    arguments = json.dumps([VARIANTS, ELEMENTS, INTEGERS, FLOAT32])
    run = subprocess.run([sys.executable, "-c", COMPILE, arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    ones = {row[0]: row[2] for row in rows if row[1] == "ones"}
    rows = [row for row in rows if row[1] != "ones"]
    tiles = [[v.get("ROWS")] if "ROWS" in v else [1, 32] for variants in VARIANTS.values() for v in variants]
    assert len(rows) == sum((3 if row == 1 else 1) * 2 for tile in tiles for row in tile)
    return rows, ones


def test_every_kernel_is_listed():
    found = set()
    for path in Path(__file__).parent.parent.glob("qkernels/ops/*/triton.py"):
        found |= {f"{path.parent.name}.{k}" for k in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M)}
    assert found == set(VARIANTS)


def test_sizes_of_1_compile(compiled):
    """Triton hands an integer argument that is 1 over as a constant, which knows no method of a tensor."""
    assert compiled[1] == dict.fromkeys(VARIANTS)


def test_nothing_spills(compiled):
    for name, constexprs, dtype, capability, _, usage in compiled[0]:
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
        assert found, f"no resource usage in {usage!r}"
        registers, stack, _, local = map(int, found.groups())
        most = 128 if name == MATMUL else 96  # two or more programs of 8 warps an SM
        assert (stack, local) == (0, 0) and registers <= most, f"{name} {constexprs} {dtype} sm_{capability}: {usage}"


def test_ptx_keeps_nan_and_rounding(compiled):
    for name, constexprs, dtype, capability, ptx, _ in compiled[0]:
        what = f"{name} {constexprs} {dtype} sm_{capability}"
        approximate = re.findall(r"div\.(?:approx|full)[\w.]*", ptx)
        assert not approximate, f"{what}: {approximate[:3]}"
        if not constexprs.get("HARD") and name not in (MATMUL, DEQUANTIZE):  # soft_assign's hard forward only compares
            assert "div.rn.f32" in ptx, f"{what}: a code depends on a correctly rounded quotient"
        fused = re.findall(r"^\s*(?:fma|mad)\.[\w.]*f32.*$", ptx, re.M) if name != MATMUL else []
        assert not fused, f"{what}: {fused[:3]}"
        swallowing = [m for m in re.findall(r"\b(?:min|max)\.[\w.]*f(?:32|16)\b", ptx) if "NaN" not in m]
        assert not swallowing, f"{what}: {swallowing[:3]}"
        assert "ftz" not in ptx, f"{what}: denormals would be flushed"
