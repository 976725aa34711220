"""Convolutions with packed weights, by blocks of the weight and as a matmul: values, gradients, memory."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

import qkernels as qk
from qkernels import backends
from qkernels.ops.lut_linear import conv, op
from qkernels.pack import PLANES

from .test_lut_gradients import Largest, dense, trained
from .test_matmul import BACKENDS, DTYPES, make, randint, randn

compiled = pytest.mark.skipif("cpu" not in BACKENDS, reason="the compiled kernels are not built")

KERNELS = [(1, 1), (3, 3), (1, 5)]
GROUPS = [(15, 37, 1), (15, 21, 3), (12, 72, 3), (20, 40, 20)]  # C, N, groups: 7 and 24 rows in a group; depthwise
OPTIONS = [
    dict(),
    dict(stride=2, padding=1),
    dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    dict(padding="same", dilation=2),
    dict(padding="valid", stride=[2]),
]
CASES = list(itertools.product(KERNELS, GROUPS, OPTIONS))
every = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(params=["whole", "blocks"])
def blocks(request, monkeypatch):
    """The weight at once, or a stripe of 16 rows at a time."""
    if request.param == "blocks":
        monkeypatch.setattr(op, "_CHUNK", 1)
    return request.param == "blocks"


def shape_of(case) -> tuple[tuple[int, ...], dict]:
    kernel, (C, N, groups), options = case
    return (N, C // groups, *kernel), dict(options, groups=groups)


def sums(x, w, bias, options, dtype):
    return F.conv2d(x.to(dtype), w.to(dtype), bias.to(dtype), **options)


def assert_as_good(got, plain, truth, size, parts=1):
    """At most twice the error of plain PyTorch in the same dtype for each part, but for what sums in float32 lose."""
    own, off = (plain.double() - truth).abs().max(), (got.double() - truth).abs().max()
    assert off <= 2 * parts * own + 4 * torch.finfo(torch.float32).eps * size.abs().max()


@every
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_torchs_convolution_with_the_dequantized_weight(case, dtype, blocks):
    """Whole, to the bit; but where it is a matmul or by blocks, as good as that."""
    shape, options = shape_of(case)
    bits = list(PLANES)[CASES.index(case) % len(PLANES)]
    w, bias = make(*shape, bits=bits, P=shape[0]), randn(shape[0], seed=3).to(dtype)
    for x in (
        randn(2, shape[1] * options["groups"], 10, 9).to(dtype),
        randn(shape[1] * options["groups"], 8, 9).to(dtype),
    ):
        y, plain = qk.lut_conv2d(x, w, bias, **options), sums(x, w.dequantize(), bias, options, dtype)
        assert y.dtype == dtype and y.stride() == plain.stride()
        if not blocks and (shape[2:] != (1, 1) or dtype == torch.float32):
            assert torch.equal(y, plain)
        truth = sums(x, w.dequantize(), bias, options, torch.float64)
        assert_as_good(y, plain, truth, sums(x.abs(), w.dequantize().abs(), bias.abs(), options, torch.float64))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_integers_are_those_of_autograd(case, dtype, blocks):
    shape, options = shape_of(case)
    bits = list(PLANES)[CASES.index(case) % len(PLANES)]
    w = trained(make(*shape, bits=bits, P=shape[0], integers=True))
    x = randint(2, shape[1] * options["groups"], 9, 9).to(dtype).requires_grad_()
    bias = randint(shape[0], seed=3).requires_grad_()
    y = qk.lut_conv2d(x, w, bias, **options)
    g = randint(*y.shape, seed=4).to(dtype)
    got = torch.autograd.grad(y, (x, bias, w.levels, w.scale), g)
    own = [t.detach().double().requires_grad_() for t in (x, bias, w.levels, w.scale)]
    want = torch.autograd.grad(F.conv2d(own[0], dense(w, *own[2:]), own[1], **options), own, g.double())
    for one, two, of in zip(got, want, (x, bias, w.levels, w.scale), strict=True):
        assert one.dtype == of.dtype and torch.equal(one.double(), two)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_in_16_bits_are_as_good_as_autograds(case, dtype, blocks):
    shape, options = shape_of(case)
    w = trained(make(*shape, P=shape[0]))
    x = randn(2, shape[1] * options["groups"], 9, 9).to(dtype).requires_grad_()
    y = qk.lut_conv2d(x, w, **options)
    g = randn(*y.shape, seed=4).to(dtype)
    got = torch.autograd.grad(y, (x, w.levels, w.scale), g)

    def autograd(x, g, w, wide) -> tuple:
        own = [t.detach().to(wide).requires_grad_() for t in (x, w.levels, w.scale)]
        return torch.autograd.grad(F.conv2d(own[0], dense(w, *own[1:]), **options), own, g.to(wide))

    positive = dataclasses.replace(w, levels=w.levels.abs())
    size = autograd(x.abs(), g.abs(), positive, torch.float64)
    rounded = torch.autograd.grad(F.conv2d(x, w.dequantize(dtype).detach(), **options), x, g)
    plain = (*rounded, *autograd(x, g, w, torch.float32)[1:])
    for args in zip(got, plain, autograd(x, g, w, torch.float64), size, strict=True):
        assert_as_good(*args, parts=3 if blocks else 1)  # dx of 37 or 24 rows is of as many, each rounded


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parts_of_the_gradient_of_x_are_added_in_float32(dtype, monkeypatch):
    """40 of them, each exact in 16 bits: their sum is rounded once."""
    monkeypatch.setattr(op, "_CHUNK", 1)
    w, x = make(640, 6, 1, 1, bits=2, integers=True), randint(2, 6, 5, 5).to(dtype).requires_grad_()
    y = qk.lut_conv2d(x, w, padding=1)
    g = randint(*y.shape, seed=4).to(dtype)
    (got,) = torch.autograd.grad(y, x, g)
    want = torch.nn.grad.conv2d_input(x.shape, w.dequantize().double(), g.double(), padding=1)
    assert torch.equal(got, want.to(dtype)) and want.abs().max() > 256


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's, in F.conv2d
@pytest.mark.parametrize("dilation", [1, 3, (1, 2)])
@pytest.mark.parametrize("kernel", [(2, 4), (2, 1), (3, 6)])
def test_an_even_kernel_has_its_odd_padding_at_the_end(kernel, dilation, blocks):
    w, x = make(20, 6, *kernel, integers=True), randint(2, 6, 9, 8).requires_grad_()
    y, want = (f(x, v, None, 1, "same", dilation) for f, v in ((qk.lut_conv2d, w), (F.conv2d, w.dequantize())))
    assert torch.equal(y, want)
    g = randint(*y.shape, seed=4)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], torch.autograd.grad(want, x, g)[0])


@pytest.mark.parametrize("groups", [1, 2, 12])
def test_no_float_weight_is_saved(groups, blocks):
    w, x, bias = make(24, 12 // groups, 3, 3, P=24), randn(2, 12, 9, 9).requires_grad_(), randn(24).requires_grad_()
    for weight, more in ((w, 0), (trained(w), x.nbytes), (trained(w, scale=False), x.nbytes)):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            qk.lut_conv2d(x, weight, bias, groups=groups)
        assert sum(t.nbytes for t in saved) == w.nbytes + more


@pytest.mark.parametrize("groups", [1, 2, 64])
def test_only_a_part_of_the_weight_is_ever_float(groups, monkeypatch):
    w, x = trained(make(512, 64 // groups, 3, 3, P=512)), randn(1, 64, 3, 3).requires_grad_()
    row = 9 * 64 // groups
    monkeypatch.setattr(op, "_CHUNK", 64 * row)
    with Largest() as largest:
        loss = qk.lut_conv2d(x, w, groups=groups).square().sum()
    assert largest.nbytes == max(4 * 64 * row, x.nbytes)
    with Largest() as largest:
        loss.backward()
    assert largest.nbytes <= max(4 * 64 * row, 8 * 64 * 9 * 2), "dW of 16 rows as float64, W of 64, or the image"


def test_a_few_groups_at_a_time():
    """Rows from 16 to 64 of groups of 7: the end of one, whole ones, the start of another."""
    pieces = list(conv._pieces(slice(16, 64), (70, 3, 1, 1), 10))
    assert pieces == [
        (slice(16, 21), slice(6, 9), 1),
        (slice(21, 63), slice(9, 27), 6),
        (slice(63, 64), slice(27, 30), 1),
    ]
    assert list(conv._pieces(slice(0, 70), (70, 3, 1, 1), 10)) == [(slice(0, 70), slice(0, 30), 10)]


@compiled
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"stride": (1, 3), "padding": "valid"}, {"dilation": 3}], ids=str
)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_1x1_convolution_of_few_pixels_is_the_packed_matmul(dtype, last, options):
    """Its weight is exact, also in the gradient of x; layouts are those of F.conv2d."""
    w, bias = make(1040, 1024, 1, 1, P=1040), randn(1040, seed=3)
    x = randn(1, 1024, 4, 8).to(dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
    x.requires_grad_()
    plain = F.conv2d(x.float(), w.dequantize(), bias, **options)
    pixels = x[:, :, :: 4 // plain.shape[2], :: -(-8 // plain.shape[3])]
    y = qk.lut_conv2d(x, w, bias, **options)
    assert torch.equal(y, qk.lut_linear(pixels.movedim(1, -1), w, bias).movedim(-1, 1))
    assert y.stride() == plain.stride()
    g = torch.randn_like(y)
    dx, exact = torch.autograd.grad(y, x, g)[0], torch.autograd.grad(plain, x, g.float())[0]
    torch.testing.assert_close(dx, exact.to(dtype), atol=1e-3, rtol={torch.float32: 1e-4}.get(dtype, 2**-7))
    assert dx.stride() == x.stride()


@compiled
@pytest.mark.parametrize(
    ("shape", "dtype", "pixels", "options", "yes"),
    [
        ((1024, 1024), torch.float32, (4, 8), {}, True),
        ((1024, 1024), torch.float32, (3, 11), {}, False),
        ((2048, 2048), torch.float32, (5, 13), {}, False),
        ((1024, 1024), torch.float32, (7, 16), {"stride": 2}, True),
        ((256, 128), torch.float32, (1, 1), {}, True),
        ((256, 128), torch.float32, (1, 2), {}, False),
        ((255, 128), torch.float32, (1, 1), {}, False),
        ((4, 4), torch.bfloat16, (16, 16), {}, True),
        ((4, 4), torch.float16, (257, 1), {}, False),
        ((4, 4), torch.bfloat16, (1, 1), {"padding": (0, 1)}, False),
        ((4, 2), torch.bfloat16, (1, 1), {"groups": 2}, False),
        ((4, 4), torch.float64, (1, 1), {}, False),
    ],
)
def test_which_convolutions_are_matmuls(shape, dtype, pixels, options, yes, monkeypatch):
    w, calls, linear = make(*shape, 1, 1, integers=True), [], op.linear
    monkeypatch.setattr(conv, "_library_has", lambda dtype: True)
    x = randint(1, shape[1] * options.get("groups", 1), *pixels).to(dtype)
    monkeypatch.setattr(op, "linear", lambda *args, **kw: calls.append(1) or linear(*args, **kw))
    y, want = qk.lut_conv2d(x, w, **options), F.conv2d(x.double(), w.dequantize().double(), **options)
    assert bool(calls) == yes and torch.equal(y, want.to(dtype))
    monkeypatch.setenv("QKERNELS_BACKEND", "reference")
    assert torch.equal(qk.lut_conv2d(x, w, **options), want.to(dtype)) and len(calls) == yes


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_processor_without_16_bit_convolutions_has_the_matmul_for_all_pixels(dtype, monkeypatch):
    w, x = make(8, 12, 1, 1, P=8), randn(3, 12, 20, 20).to(dtype)
    rows = qk.lut_linear(x.movedim(1, -1), w).movedim(-1, 1)
    monkeypatch.setattr(conv, "_library_has", lambda dtype: True)
    assert not torch.equal(qk.lut_conv2d(x, w), rows)
    monkeypatch.setattr(conv, "_library_has", lambda dtype: False)
    assert torch.equal(qk.lut_conv2d(x, w), rows)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("groups", [1, 3, 24])
def test_layouts_are_those_of_torch(last, groups, blocks):
    w, x = make(48, 24 // groups, 3, 3), randn(2, 24, 7, 6)
    x = x.to(memory_format=torch.channels_last) if last else x
    results = []
    for weight in (w, None):
        own = x.detach().requires_grad_()
        y = qk.lut_conv2d(own, w, groups=groups) if weight else F.conv2d(own, w.dequantize(), groups=groups)
        results.append((y, torch.autograd.grad(y.square().sum(), own)[0]))
    for got, want in zip(*results, strict=True):
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("shape", [(0, 12, 9, 9), (2, 12, 9, 9)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_no_images_and_some_have_the_same_gradients_in_kind(shape, kernel, blocks):
    w, bias = trained(make(24, 12, kernel, kernel, P=24)), torch.zeros(24, requires_grad=True)
    x = randn(*shape).requires_grad_()
    y = qk.lut_conv2d(x, w, bias)
    assert y.shape == F.conv2d(x, w.dequantize(), bias).shape
    y.sum().backward()
    for t in (x, bias, w.levels, w.scale):
        assert t.grad.shape == t.shape and bool(t.grad.any()) == (shape[0] > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_autocast_is_that_of_torchs_convolution(dtype, blocks):
    w, x, bias = make(20, 12, 3, 3, P=20), randn(2, 12, 7, 7).to(dtype).requires_grad_(), randn(20, seed=3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        wide = torch.promote_types(dtype, torch.float32)
        y, want = qk.lut_conv2d(x, w, bias), F.conv2d(x, w.dequantize(wide), bias)  # W is rounded once
    assert y.dtype == want.dtype and torch.allclose(y, want, rtol=2**-7, atol=2**-7)
    assert torch.autograd.grad(y.sum(), x)[0].dtype == dtype


REFUSED = [
    {"dilation": 0}, {"dilation": (1, 2, 3)}, {"padding": (0, 0, 0, 0)}, {"padding": -1}, {"padding": "some"},
    {"padding": "same", "stride": 2}, {"stride": 1.0}, {"stride": 0}, {"stride": (1, 1, 1)}, {"dilation": 9},
]  # fmt: skip


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_what_torch_refuses_is_refused(options, blocks):
    w, x = make(20, 12, 3, 3), randn(1, 12, 8, 8)
    errors = []
    for call in (lambda: F.conv2d(x, w.dequantize(), **options), lambda: qk.lut_conv2d(x, w, **options)):
        with pytest.raises((RuntimeError, TypeError, ValueError)) as error:
            call()
        errors.append(error.type)
    assert errors[0] == errors[1]


def test_groups_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(RuntimeError, match="divisible by"):
        qk.lut_conv2d(randn(1, 9, 4, 4), make(20, 3, 3, 3), groups=3)
    for shape in ((1, 4, 0, 3), (1, 4, 3, 0)):
        with pytest.raises(RuntimeError):
            qk.lut_conv2d(torch.zeros(shape).bfloat16(), make(4, 4, 1, 1))


def test_a_second_derivative_is_refused():
    w, x = make(6, 4, 3, 3), randn(1, 4, 5, 5).requires_grad_()
    (dx,) = torch.autograd.grad(qk.lut_conv2d(x, w).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bits", [3, 8])
def test_opcheck(bits, last, blocks):
    w, tests = make(40, 6, 3, 3, bits=bits, P=40), ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    x = randn(2, 12, 7, 6).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    y = F.conv2d(x, w.dequantize(), padding=1, stride=2, groups=2)
    packed, options = (w.codes, w.levels, w.scale), ((2, 2), (1, 1), (1, 1), 2)
    args = (x, *packed, None, bits, w.group_size, w.shape, *options, "auto")
    torch.library.opcheck(torch.ops.qkernels.lut_conv2d.default, args, test_utils=tests)
    for of in itertools.product((True, False), repeat=3):
        own = x if of[1] or of[2] else None
        args = (torch.randn_like(y), own, *packed, bits, w.group_size, w.shape, x.shape, last, *options, *of, "auto")
        torch.library.opcheck(torch.ops.qkernels.lut_conv2d_bwd.default, args, test_utils=tests)


@pytest.mark.parametrize("kernel", [1, 3])
def test_it_compiles_whole_and_goes_through_torch_func(kernel, blocks):
    w, x = make(40, 12, kernel, kernel, P=40), randn(3, 12, 6, 6).to(torch.bfloat16)

    def loss(x, levels, scale):
        own = dataclasses.replace(w, levels=levels, scale=scale)
        return qk.lut_conv2d(x, own, stride=2).float().square().sum()

    own = (x.clone().requires_grad_(), w.levels.clone().requires_grad_(), w.scale.clone().requires_grad_())
    want = torch.autograd.grad(loss(*own), own)
    torch._dynamo.reset()
    for dynamic in (False, True):
        compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        assert all(map(torch.equal, torch.autograd.grad(compiled(*own), own), want))
    assert all(map(torch.equal, torch.func.grad(loss, argnums=(0, 1, 2))(x, w.levels, w.scale), want))
    gradient = torch.func.grad(lambda x: loss(x, w.levels, w.scale))
    each = torch.stack([gradient(image) for image in x])
    torch.testing.assert_close(torch.func.vmap(gradient)(x), each)
    assert torch.func.vmap(gradient)(x[:0]).shape == each[:0].shape


@pytest.mark.parametrize("last", [False, True])
def test_it_compiles_after_images_of_one_pixel(last):
    """Whose strides say little of their layout: the compiler must think of the same one as the next convolution."""
    a, b = make(32, 64, 1, 1), make(32, 32, 3, 3)
    x = randn(2, 64, 8, 8).to(memory_format=torch.channels_last if last else torch.contiguous_format)

    def net(x):
        return qk.lut_conv2d(F.relu(qk.lut_conv2d(F.adaptive_avg_pool2d(x, 1), a)), b, padding=2) * 2

    torch._dynamo.reset()
    y = torch.compile(net, fullgraph=True, options={"fx_graph_cache": False})(x)
    torch.testing.assert_close(y, net(x))


def test_a_compiled_convolution_keeps_no_float_weight():
    """What a compiled forward hands to its backward."""
    w, x = make(64, 32, 3, 3, P=64), randn(1, 32, 4, 4).requires_grad_()
    torch._dynamo.reset()
    compiled, saved = torch.compile(lambda x: qk.lut_conv2d(x, w), fullgraph=True, backend="aot_eager"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        compiled(x)
    assert max(t.nbytes for t in saved) < 64 * 32 * 9 * 2


def test_it_is_no_function_of_the_table_of_backends():
    assert "lut_conv2d" not in backends.table()


def weight4(*shape: int) -> qk.LutWeight:
    return dataclasses.replace(make(shape[0], shape[1] * shape[2] * shape[3], P=shape[0], integers=True), shape=shape)


def test_vmap_takes_images_that_lie_otherwise():
    w, x = weight4(20, 12, 3, 3), randint(4, 12 * 49).view(4, 12, 7, 7)
    want = F.conv2d(x, w.dequantize())
    for images, dim in ((x.to(memory_format=torch.channels_last), 0), (x.transpose(0, 1).contiguous(), 1)):
        got = torch.vmap(lambda image: qk.lut_conv2d(image, w), in_dims=dim)(images)
        torch.testing.assert_close(got, want)
    x = x.to(memory_format=torch.channels_last)
    dx = torch.vmap(torch.func.grad(lambda image: qk.lut_conv2d(image, w).square().sum()))(x)
    own = x.clone().requires_grad_()
    torch.testing.assert_close(dx, torch.autograd.grad(F.conv2d(own, w.dequantize()).square().sum(), own)[0])


def test_forward_mode_reaches_x():
    w, x, t = weight4(20, 12, 3, 3), randn(2, 12 * 49).view(2, 12, 7, 7), randn(2, 12 * 49, seed=3).view(2, 12, 7, 7)
    _, tangent = torch.func.jvp(lambda x: qk.lut_conv2d(x, w), (x,), (t,))
    torch.testing.assert_close(tangent, F.conv2d(t, w.dequantize()))


def test_meta_tensors_give_shapes():
    w = weight4(20, 12, 3, 3)
    assert qk.lut_conv2d(torch.empty(2, 12, 7, 7, device="meta"), w.to("meta")).shape == (2, 20, 5, 5)
    assert qk.lut_linear(torch.empty(2, 64, device="meta"), make(20, 64, P=20).to("meta")).shape == (2, 20)


@pytest.mark.parametrize("as_argument", [True, False])
def test_compiles_with_dynamic_shapes_whatever_the_weight_is_called(as_argument):
    """A shape that is symbolic in the graph would not reach the backward."""
    ww = weight4(6, 8, 3, 3)
    fn = (lambda x, ww: qk.lut_conv2d(x, ww)) if as_argument else (lambda x, _: qk.lut_conv2d(x, ww))
    torch._dynamo.reset()
    compiled = torch.compile(fn, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 8, 9, 9), (3, 8, 10, 7)):
        x = torch.randn(size, requires_grad=True)
        (got,) = torch.autograd.grad(compiled(x, ww).sum(), x)
        torch.testing.assert_close(got, torch.autograd.grad(F.conv2d(x, ww.dequantize()).sum(), x)[0])


def test_the_layout_of_y_is_that_of_plain_pytorch():
    """By the strides of x, where one channel or one pixel leaves it open."""
    for shape, size in (((3, 1, 2, 4), (2, 1, 12, 10)), ((3, 5, 1, 1), (2, 5, 1, 1)), ((3, 5, 3, 3), (2, 5, 7, 7))):
        for layout in (torch.channels_last, torch.contiguous_format):
            w, x = weight4(*shape), torch.randn(size).contiguous(memory_format=layout)
            x = x.as_strided(size, torch.empty(size).to(memory_format=layout).stride())
            y, want = qk.lut_conv2d(x, w), F.conv2d(x, w.dequantize())
            assert y.stride() == want.stride(), (shape, layout)
