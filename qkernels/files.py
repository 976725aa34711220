"""Packed weights on disk: one safetensors file in a directory.

``write`` and ``read`` know tensors only; what saves and loads a model stands on them.

The file's metadata is ``{"format": "qkernels", "version": "1", "config": json}``, and the json holds::

    {"config": what the caller gave,
     "weights": {name: {"bits": 4, "group_size": 128, "shape": [N, ...], "layout": "t16" or "rows"}}}

Each packed weight is three tensors, [N, K] being its matrix, G = K / group_size::

    layout         "t16"                             "rows"
    name.codes     U8 [T16 bytes], as in memory      U8 [N, ceil(K * bits / 8)], see pack.pack_rows
    name.levels    F32 [n_levels]                    F32 [n_levels]
    name.scale     F32 | F16 | BF16 [N/16, G, 16]    F32 | F16 | BF16 [N, G]

The layout is "t16" where T16 has no padding and "rows" elsewhere, so that small layers make small files.
"""

import contextlib
import ctypes
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from . import methods
from .nn.linear import QuantConv2d, QuantLinear
from .nn.lut import LutConv2d, LutLinear
from .nn.quantizer import make_activation_quantizer, replace_modules
from .pack import PLANES, LutWeight, check_group_size, matrix_shape, pack_rows, t16_nbytes, unpack_rows

FILE = "model.safetensors"
FORMAT = "qkernels"
VERSION = 1

_MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit
_MAX_SIZE = 2**48  # of one dimension: products of a few stay small integers
_MAX_DIMS = 16
_SCALES = ("F32", "F16", "BF16")
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
_KINDS = {"LutLinear": LutLinear, "LutConv2d": LutConv2d}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write(path: Path | str, weights: dict[str, LutWeight], tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write ``path/model.safetensors``. An older file is replaced at the end, in one step.

    Args:
        path: a directory; made if it is not there.
        weights: packed weights by name.
        tensors: all other tensors by name.
        config: anything json can hold; ``read`` gives it back.

    Raises:
        ValueError: a name taken twice, a tensor that is not plain, dense and of a common dtype, NaN or infinity in
            ``config``.
        TypeError: a ``config`` that json cannot hold.
    """
    stored, listing = dict(tensors), {}
    for name, w in weights.items():
        N, K = matrix_shape(w.shape)
        layout = _layout(N, K, w.bits)
        listing[name] = {"bits": w.bits, "group_size": w.group_size, "shape": list(w.shape), "layout": layout}
        parts = {
            "codes": w.codes if layout == "t16" else pack_rows(w.unpack().view(N, K), w.bits),
            "levels": w.levels,
            "scale": w.scale if layout == "t16" else w.scales(),
        }
        for suffix, tensor in parts.items():
            _require(f"{name}.{suffix}" not in stored, f"names must differ, got {name}.{suffix} twice")
            stored[f"{name}.{suffix}"] = tensor
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps({"config": config, "weights": listing}, allow_nan=False),
    }
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{FILE}.{os.getpid()}"
    try:
        with temporary.open("w+b") as f:
            _write_file(f, stored, metadata)
            f.flush()
            os.fsync(f.fileno())  # the bytes are down before the name points at them
            f.seek(0)
            _read_header(f)  # refuse now what `read` would refuse later
        os.replace(temporary, directory / FILE)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path | str) -> tuple[dict[str, LutWeight], dict[str, Tensor], dict[str, Any]]:
    """Read what ``write`` wrote: (weights, tensors, config), on the CPU.

    Every size is checked against the header and the file before a tensor is made; no byte of it is ever run as code.

    Raises:
        FileNotFoundError: no ``path/model.safetensors``.
        ValueError: anything in it that is not as the top of this file says; names the file.
    """
    file = Path(path) / FILE
    with _naming(str(file)):
        with file.open("rb") as f:
            metadata, header = _read_header(f)
        config, listing = _read_config(metadata)
        for name, entry in listing.items():
            with _naming(f"weight {name!r}"):
                _check_weight(name, entry, header)
        try:
            with safe_open(file, "pt") as f:  # it maps the file: clone for alignment, and to outlive the file
                tensors = {name: f.get_tensor(name).clone() for name in header}
        except SafetensorError as error:
            raise ValueError(f"must be a safetensors file, got {error}") from error
        weights = {}
        for name, entry in listing.items():
            parts = [tensors.pop(f"{name}.{suffix}") for suffix in ("codes", "levels", "scale")]
            with _naming(f"weight {name!r}"):
                weights[name] = _make_weight(*parts, **entry)
    return weights, tensors, config


def _layout(N: int, K: int, bits: int) -> str:
    padded = N % 16 or any(K % (256 // p) for p in PLANES[bits])
    return "rows" if padded else "t16"


def _write_file(f: BinaryIO, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file: 8 bytes of the header's length, the header in json, the data. The library's needs numpy."""
    header, end = {"__metadata__": metadata}, 0
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # wide items first: all aligned
    for name, tensor in ordered:
        _require(
            type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_meta,
            f"tensor {name!r} must be a plain dense tensor with data, "
            f"got {type(tensor).__name__}, {tensor.layout}, on {tensor.device}",
        )
        _require(tensor.dtype in _NAMES, f"tensor {name!r} must have dtype {list(_NAMES)}, got {tensor.dtype}")
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    f.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        data = tensor.cpu().contiguous()  # one tensor at a time
        f.write((ctypes.c_char * data.nbytes).from_address(data.data_ptr()))


def _read_header(f: BinaryIO) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """(metadata, {tensor name: {"dtype", "shape", "data_offsets"}}) of a safetensors file whose sizes all agree."""
    size = os.fstat(f.fileno()).st_size
    _require(size >= 8, f"must start with the 8 bytes of the header's length, got {size} bytes in all")
    length = int.from_bytes(f.read(8), "little")
    limit = min(_MAX_HEADER, size - 8)
    _require(length <= limit, f"header must have at most {limit} bytes, got {length}: truncated, or not safetensors")
    header = _parse_json("header", f.read(length))
    metadata = header.pop("__metadata__", {})
    _require(
        isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()),
        f"metadata must be strings by name, got {metadata}",
    )
    _require(
        metadata.get("format") == FORMAT,
        f"metadata must hold format={FORMAT!r}, got {metadata.get('format')!r}: not a file of qkernels",
    )
    end = 0
    for name, entry in header.items():
        with _naming(f"tensor {name!r}"):
            _check_entry(entry)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        _require(start == end, f"tensor {name!r} must start at byte {end} of the data, got {start}")
        end = stop
    data = size - 8 - length
    _require(end == data, f"tensors must fill the data, {end} bytes, got {data}: truncated or too long")
    return metadata, header


def _check_entry(entry: Any) -> None:
    _require(
        isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"},
        f"entry must be dtype, shape and data_offsets, got {entry}",
    )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _require(isinstance(dtype, str) and dtype in _DTYPES, f"dtype must be one of {list(_DTYPES)}, got {dtype}")
    _require(_is_sizes(shape, low=0), f"shape must be at most {_MAX_DIMS} sizes below 2**48, got {shape}")
    _require(_is_sizes(offsets, low=0) and len(offsets) == 2, f"data_offsets must be 2 sizes, got {offsets}")
    nbytes = math.prod(shape) * _DTYPES[dtype].itemsize
    _require(
        offsets[1] - offsets[0] == nbytes,
        f"data_offsets must span {nbytes} bytes for {dtype} {shape}, got {offsets[1] - offsets[0]}",
    )


def _read_config(metadata: dict[str, str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(the caller's config, {weight name: listing})."""
    version = metadata.get("version", "")
    _require(version.isdecimal() and int(version) >= 1, f"version must be a number from 1, got {version!r}")
    _require(int(version) <= VERSION, f"version must be at most {VERSION}, got {version}: needs a newer qkernels")
    config = _parse_json("config", metadata.get("config", "").encode())
    _require(
        config.keys() == {"config", "weights"} and all(isinstance(v, dict) for v in config.values()),
        f"config must hold the objects config and weights, got {config}",
    )
    return config["config"], config["weights"]


def _check_weight(name: str, entry: Any, header: dict[str, dict[str, Any]]) -> None:
    """Check a listing, and that its three tensors have the dtypes and shapes which follow from it."""
    _require(
        isinstance(entry, dict) and entry.keys() == {"bits", "group_size", "shape", "layout"},
        f"listing must be bits, group_size, shape and layout, got {entry}",
    )
    bits, group_size, shape, layout = (entry[key] for key in ("bits", "group_size", "shape", "layout"))
    _require(type(bits) is int and bits in PLANES, f"bits must be one of {list(PLANES)}, got {bits}")
    _require(
        _is_sizes(shape, low=1) and len(shape) >= 2,
        f"shape must be 2 to {_MAX_DIMS} sizes from 1 and below 2**48, got {shape}",
    )
    N, K = matrix_shape(shape)
    _require(type(group_size) is int, f"group_size must be a number, got {group_size}")
    check_group_size(group_size, K)
    G = K // group_size
    expected = _layout(N, K, bits)
    _require(layout == expected, f"layout must be {expected!r} for {bits} bits and shape {shape}, got {layout!r}")
    if layout == "t16":
        codes_shape, scale_shape = [t16_nbytes(N, K, bits)], [N // 16, G, 16]
    else:
        codes_shape, scale_shape = [N, math.ceil(K * bits / 8)], [N, G]
    for suffix, dtypes in (("codes", ("U8",)), ("levels", ("F32",)), ("scale", _SCALES)):
        _require(f"{name}.{suffix}" in header, f"tensor {name}.{suffix} must be in the file, got none")
        dtype = header[f"{name}.{suffix}"]["dtype"]
        _require(dtype in dtypes, f"{suffix} must be {' or '.join(dtypes)}, got {dtype}")
    for suffix, wanted in (("codes", codes_shape), ("scale", scale_shape)):
        got = header[f"{name}.{suffix}"]["shape"]
        _require(
            got == wanted,
            f"{suffix} must have shape {wanted} for {bits} bits, group_size={group_size} and shape {shape}, got {got}",
        )
    got = header[f"{name}.levels"]["shape"]
    _require(len(got) == 1 and 1 <= got[0] <= 2**bits, f"levels must have shape [1 to {2**bits}], got {got}")


def _make_weight(
    codes: Tensor, levels: Tensor, scale: Tensor, *, bits: int, group_size: int, shape: list[int], layout: str
) -> LutWeight:
    if layout == "t16":
        w = LutWeight(codes, levels, scale, bits, group_size, tuple(shape))
        w.check()
        return w
    codes = unpack_rows(codes, math.prod(shape[1:]), bits).view(shape)
    return LutWeight.pack(codes, levels, scale.flatten(), bits=bits, group_size=group_size, scale_dtype=scale.dtype)


def _parse_json(what: str, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{what} must be json, got {error}") from error
    _require(isinstance(value, dict), f"{what} must be a json object, got {value}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json object without a name twice: two readers could take different ones."""
    result = {}
    for name, value in pairs:
        _require(name not in result, f"names must differ, got {name!r} twice")
        result[name] = value
    return result


def _is_sizes(value: Any, *, low: int) -> bool:
    """Whether ``value`` is a short list of numbers in [low, 2**48); true and false are no numbers."""
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMS
        and all(type(v) is int and low <= v < _MAX_SIZE for v in value)
    )


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Put ``what`` in front of a ValueError's message, which is cut to a readable length."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        raise ValueError(f"{what}: {message[:500]}") from error


def save_packed(model: nn.Module, path: Path | str) -> None:
    """Write a converted model to ``path/model.safetensors``: packed weights, every other tensor of its state dict once.

    Raises:
        ValueError: the model has quantized layers left (``convert_`` it), no packed layer, is itself the packed layer,
            has a packed layer whose levels or scales are not finite, or has state that is not a tensor; as ``write``.
    """
    left = [name for name, module in model.named_modules() if isinstance(module, (QuantLinear, QuantConv2d))]
    _require(not left, f"save_packed: the model must be converted, got quantized layers {_list(left)}")
    packed = {name: m for name, m in model.named_modules() if isinstance(m, (LutLinear, LutConv2d))}
    _require(bool(packed), "save_packed: the model must have a packed layer, got none: prepare_, train and convert_ it")
    _require("" not in packed, "save_packed: the model must contain its packed layers, got a packed layer itself")
    own = _packed_keys(model)
    tensors, shared, seen = {}, {}, {}
    for name, tensor in model.state_dict().items():
        if name in own:
            continue
        _require(
            isinstance(tensor, Tensor), f"save_packed: state must be tensors, got {type(tensor).__name__} at {name!r}"
        )
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and seen.setdefault(place, name) != name:
            shared[name] = seen[place]
        else:
            tensors[name] = tensor
    layers = {}
    for name, module in packed.items():
        activation = module.activation_quantizer
        layers[name] = {
            "kind": type(module).__name__,
            "method": module.method,
            "activation": None if activation is None else methods.to_dict(activation.config),
        }
    weights = {name: module.weight_lut for name, module in packed.items()}
    for name, w in weights.items():  # a table that trained may have diverged
        with _naming(f"save_packed: layer {name!r}"):
            w.check()
    write(path, weights, tensors, {"layers": layers, "shared": shared})


def load_packed(model: nn.Module, path: Path | str) -> nn.Module:
    """Make the freshly built float ``model`` the one that ``save_packed`` wrote, in place; returns it.

    Its layers become packed layers where the file says so, on the device where they are; all other tensors are loaded
    by name. No pickle. A model built on the meta device takes the file's tensors as they are. On an error the model's
    layers are as they were.

    Raises:
        FileNotFoundError, ValueError: as ``read``; layers or tensors that the model and the file do not share, a tensor
            of another shape, or of a dtype that holds less than the file's: names them.
    """
    weights, tensors, config = read(path)
    with _naming(str(Path(path) / FILE)):
        layers, shared = _read_model_config(config, weights, tensors)
        modules = dict(model.named_modules())
        new, old = {}, {}
        for name, entry in layers.items():
            _require(name in modules and name != "", f"the model must have layer {name!r}, got none: another model?")
            with _naming(f"layer {name!r}"):
                layer = modules[name]
                packed = _packed_layer(layer, weights[name], entry)
            new[id(layer)], old[id(packed)] = packed, layer
        replace_modules(model, new)
        try:
            _load_tensors(model, tensors | {name: tensors[kept] for name, kept in shared.items()})
        except (ValueError, RuntimeError) as error:
            replace_modules(model, old)
            raise ValueError(str(error)) from error
    return model


def _packed_keys(model: nn.Module) -> set[str]:
    """Names in the state dict of the packed weights' tensors, under every name that their layers have."""
    return {
        f"{name}.{part}"
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, (LutLinear, LutConv2d))
        for part in ("codes", "levels", "scale")
    }


def _read_model_config(
    config: dict[str, Any], weights: dict[str, LutWeight], tensors: dict[str, Tensor]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """(layers, shared) of a file that ``save_packed`` wrote."""
    layers, shared = config.get("layers"), config.get("shared")
    _require(
        isinstance(layers, dict) and isinstance(shared, dict) and layers.keys() == weights.keys(),
        "config must hold layers, one for each packed weight, and shared: not a file of save_packed",
    )
    for name, entry in layers.items():
        _require(
            isinstance(entry, dict) and entry.keys() == {"kind", "method", "activation"},
            f"layer {name!r} must be kind, method and activation, got {entry}",
        )
        kind, activation = entry["kind"], entry["activation"]
        _require(
            isinstance(kind, str) and kind in _KINDS, f"layer {name!r} must be one of {', '.join(_KINDS)}, got {kind!r}"
        )
        _require(isinstance(entry["method"], str), f"layer {name!r}: method must be a string, got {entry['method']!r}")
        _require(
            activation is None or isinstance(activation, dict),
            f"layer {name!r}: activation must be null or a config, got {activation!r}",
        )
    for name, kept in shared.items():
        _require(
            isinstance(kept, str) and kept in tensors and name not in tensors,
            f"shared tensor {name!r} must name a tensor of the file, got {kept!r}",
        )
    return layers, shared


def _packed_layer(layer: nn.Module, weight: LutWeight, entry: dict[str, Any]) -> nn.Module:
    kind = _KINDS[entry["kind"]]
    _require(type(layer) is kind.like, f"must be a {kind.like.__name__} as in the file, got {type(layer).__name__}")
    device = layer.weight.device
    packed = kind(layer, weight if device.type == "meta" else weight.to(device), method=entry["method"])
    if entry["activation"] is not None:
        try:
            activation = methods.from_dict(entry["activation"])
        except TypeError as error:
            raise ValueError(str(error)) from error
        packed.activation_quantizer = make_activation_quantizer(activation, layer)
    return packed


def _load_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load every tensor of the model but the packed weights, strictly."""
    state, own = model.state_dict(), _packed_keys(model)
    missing = [name for name in state if name not in tensors and name not in own]
    unexpected = [name for name in tensors if name not in state or name in own]
    _require(
        not missing, f"the file must have every tensor of the model, got none for {_list(missing)}: another model?"
    )
    _require(not unexpected, f"the model must have every tensor of the file, got none for {_list(unexpected)}")
    for name, tensor in tensors.items():
        there = state[name]
        _require(
            there.shape == tensor.shape,
            f"tensor {name!r} must have shape {list(there.shape)} as in the model, got {list(tensor.shape)}",
        )
        _require(
            there.is_meta or torch.promote_types(there.dtype, tensor.dtype) == there.dtype,
            f"tensor {name!r} must fit the model's {there.dtype}, got {tensor.dtype}: cast the model first",
        )
    for name, module in model.named_modules():
        if isinstance(module, (LutLinear, LutConv2d)):
            for key, tensor in tensors.items():
                own = key.startswith(f"{name}.activation_quantizer.") and tensor.is_floating_point()
                _require(not own or bool(tensor.isfinite().all()), f"tensor {key!r} must be finite, got other values")
    model.load_state_dict(tensors, strict=False, assign=any(tensor.is_meta for tensor in state.values()))


def _list(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
