"""Pictures as networks: what is kept, what comes back, what counts more; JPEG and its like beside."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import structural_similarity as published

from codec_cases import noise
from regraft.codecs import image, symbol_code
from regraft.codecs.frame import DamagedFileError, TooLargeError, header, read_header
from regraft.codecs.image import (
    FittedImage,
    fit_image,
    pack_image,
    quantized,
    read_image,
    weight_of,
)
from regraft.codecs.image_network import (
    CoordinateNetwork,
    ImagePlan,
    NetworkSize,
    fresh_network,
    places,
    structural_similarity,
)
from regraft.codecs.pictures import read_pixels
from regraft.jobs.picture_jobs import likeness, others, pack_picture, side_by_side

SMALL = NetworkSize(1, 16, 4)
QUICK = ImagePlan(steps=60, places=512)


def picture(height=48, width=64, colours=3):
    y, x = np.mgrid[:height, :width] / 32
    shown = [np.sin(3 * x), np.cos(2 * y), np.sin(x + y)][:colours]
    return ((np.stack(shown, -1) + 1) * 127).astype(np.uint8)


def file_of(made):
    out = io.BytesIO()
    pack_image(made, out)
    return out.getvalue()


def psnr(one, other):
    return -10 * np.log10(np.mean((one.astype(float) - other) ** 2) / 255**2)


@pytest.mark.parametrize("colours", [1, 3])
def test_a_picture_comes_back_near_and_always_the_same(colours):
    pixels = picture(colours=colours)
    made = fit_image(pixels, SMALL, replace(QUICK, steps=300), bits=8)
    back = read_image(io.BytesIO(file_of(made)))
    assert back == made
    assert (back.pixels == made.pixels).all()
    assert psnr(pixels, back.pixels) > 25
    assert len(file_of(made)) < pixels.size / 4


def test_the_same_seed_makes_the_same_file():
    first, again, other = (file_of(fit_image(picture(), SMALL, replace(QUICK, seed=s))) for s in (1, 1, 2))
    assert first == again != other


def test_rows_and_columns_make_the_picture_that_single_places_make(monkeypatch):
    network = fresh_network(NetworkSize(2, 8, 3), 3, 0)
    y, x = torch.meshgrid(places(9), places(14), indexing="ij")
    single = network(x.reshape(-1), y.reshape(-1)).detach().clamp(0, 1).view(9, 14, 3)
    monkeypatch.setattr("regraft.codecs.image_network.ROWS_AT_ONCE", 30)
    torch.testing.assert_close(network.picture(9, 14), single)


def test_the_network_is_the_sum_of_blocks_that_methods_defines():
    """Σ A φ(ψ_x(x) + ψ_y(y)) + b, written out with matrices."""
    network = fresh_network(NetworkSize(2, 5, 2), 3, 3)
    x, y = torch.tensor([0.3, -0.7]), torch.tensor([0.1, 0.9])
    rates = [0.5, 2.0]

    def features(v):
        return torch.stack(
            [v, *(torch.sin(torch.pi * v * r) for r in rates), *(torch.cos(torch.pi * v * r) for r in rates)],
            1,
        )

    total = torch.zeros(2, 3)
    for across, down, colour in zip(network.across, network.down, network.colour, strict=True):
        inner = features(x) @ across.weight.T + across.bias + features(y) @ down.weight.T
        total = total + torch.sin(inner) @ colour.weight.T + (0 if colour.bias is None else colour.bias)
    torch.testing.assert_close(network(x, y), total)
    assert sum(p.numel() for p in network.parameters()) == image.weights_of(network.size, 3)


def test_structural_similarity_is_the_published_one():
    one = torch.rand(1, 2, 40, 40, generator=torch.Generator().manual_seed(0))
    other = (one + 0.1 * torch.rand(1, 2, 40, 40, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    whole = published(
        one[0].numpy(), other[0].numpy(), channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )[1]  # fmt: skip
    assert float(structural_similarity(one, other)) == pytest.approx(whole[:, 5:-5, 5:-5].mean(), abs=1e-4)


def test_structure_in_the_loss_makes_it_more_alike():
    pixels = (
        np.kron(np.random.default_rng(0).integers(0, 2, (8, 8, 1)), np.ones((8, 8, 1))).astype(np.uint8) * 255
    )
    plain, with_structure = (
        fit_image(pixels, NetworkSize(1, 24, 6), ImagePlan(steps=100, places=4096, ssim=share), bits=8).pixels
        for share in (0.0, 0.1)
    )
    assert likeness("", 0, pixels, with_structure).ssim > likeness("", 0, pixels, plain).ssim


def test_a_region_counts_more(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 1)).astype(np.uint8)
    inside = np.zeros((40, 40), bool)
    inside[5:15, 20:35] = True
    Image.fromarray((inside * 255).astype(np.uint8)).save(tmp_path / "m.png")
    boxed = weight_of(pixels, [(20, 5, 15, 10)])
    masked = weight_of(pixels, mask=tmp_path / "m.png")
    assert boxed is not None
    assert masked is not None
    torch.testing.assert_close(boxed, masked)
    assert float(boxed.mean()) == pytest.approx(1)
    assert float(boxed[6, 22] / boxed[0, 0]) == pytest.approx(image.INSIDE)
    plain, with_region = (
        fit_image(pixels, SMALL, replace(QUICK, steps=200), 8, weight).pixels for weight in (None, boxed)
    )
    error = [((made.astype(float) - pixels) ** 2)[inside].mean() for made in (plain, with_region)]
    assert error[1] < error[0]


def test_what_draws_the_eye_is_found_without_a_box():
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[40:48, 10:18] = (255, 0, 0)
    weight = weight_of(pixels, salient=True)
    assert weight is not None
    assert float(weight[36:52, 6:22].mean()) > 1.3 * float(weight.mean())
    assert weight_of(pixels) is None


@pytest.mark.parametrize("bits", [3, 6, 8])
def test_fewer_bits_err_more_and_take_less(bits):
    network = fresh_network(NetworkSize(1, 32, 4), 3, 0)
    whole = quantized(network, FittedImage(8, 8, 3, network.size, bits))
    values = torch.cat([p.detach().flatten() for p in network.parameters()])
    kept = torch.cat([p.detach().flatten() for p in whole.network.parameters()])
    assert float((kept - values).square().mean() / values.square().mean()) < 4.0**-bits * 8
    assert len(set(whole.weights)) <= 2**bits


def test_a_packed_picture_is_fitted_on():
    pixels = picture()
    first = fit_image(pixels, SMALL, QUICK, bits=8)
    more = fit_image(pixels, SMALL, replace(QUICK, rate=3e-3), 8, begin=first)
    fresh = fit_image(pixels, SMALL, replace(QUICK, rate=3e-3), 8)
    assert psnr(pixels, more.pixels) > psnr(pixels, first.pixels)
    assert psnr(pixels, more.pixels) > psnr(pixels, fresh.pixels)
    with pytest.raises(ValueError, match="has 3 colours, and the picture 1"):
        fit_image(picture(colours=1), SMALL, QUICK, begin=first)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000))
def test_symbols_come_back(data):
    assert symbol_code.unpack_block(symbol_code.pack_block(data), len(data)) == data


def test_symbols_take_the_bits_of_their_frequencies():
    draw = np.random.default_rng(0)
    data = np.clip(draw.normal(128, 3, 20_000), 0, 255).astype(np.uint8)
    share = np.bincount(data)[np.bincount(data) > 0] / len(data)
    bits = -(share * np.log2(share)).sum()
    assert 8 * len(symbol_code.pack_block(data.tobytes())) / len(data) == pytest.approx(bits, rel=0.01)


def test_frequencies_that_lie_are_refused():
    for stored in (b"", bytes(32), b"\xff" * 32, b"\xff" * 4000, symbol_code.pack_block(noise(500))[:40]):
        with pytest.raises(DamagedFileError):
            symbol_code.unpack_block(stored, 501)


@pytest.mark.parametrize(
    "change",
    [
        {"height": -1}, {"height": 2**40}, {"colours": 7}, {"scales": []}, {"scales": [None]}, {"bits": "x"},
        {"size": {"blocks": 10**9, "units": 1, "fourier": 1}}, {"size": {}, "height": 0}, {"size": None},
        {"size": {"blocks": 2, "units": 16, "fourier": 4}},
        {"height": 8000, "width": 8000, "size": {"blocks": 1, "units": 4096, "fourier": 4}},
    ],
)  # fmt: skip
def test_a_header_that_tells_an_impossible_picture_is_refused(change):
    source = io.BytesIO(file_of(fit_image(picture(), SMALL, replace(QUICK, steps=1))))
    number, parameters = read_header(source)
    with pytest.raises(DamagedFileError, match="damaged"):
        read_image(io.BytesIO(header(number, {**parameters, **change}) + source.read()))


def test_a_picture_that_is_too_large_is_refused():
    packed = file_of(fit_image(picture(), SMALL, replace(QUICK, steps=1)))
    with pytest.raises(TooLargeError, match="64 × 48 pixels, more than the 100 bytes"):
        read_image(io.BytesIO(packed), 100)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 9}, "--bits 9"), ({"region": ["0,0,65,2"]}, "--region 0,0,65,2 does not lie"),
        ({"region": ["1,2"]}, "is no region"),
        ({"units": 0}, "--units 0"), ({"steps": 0}, "--steps"), ({"ssim": -1.0}, "--ssim"),
    ],
)  # fmt: skip
def test_impossible_options_are_refused_before_the_fit(options, said, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "p.png")
    with pytest.raises(ValueError, match=said):
        pack_picture(str(tmp_path / "p.png"), str(tmp_path / "o"), options)
    assert not (tmp_path / "o").exists()


def test_others_take_no_more_bytes_and_the_best_that_fits(tmp_path):
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (24, 24, 3)), np.ones((4, 4, 1))).astype(
        np.uint8
    )
    found = {one.name: one for one in others(pixels, 3000)}
    assert set(found) == {"JPEG", "WEBP", "AVIF"}
    assert all(0 < one.bytes <= 3000 for one in found.values())
    assert all(found[name].psnr < others(pixels, 5000)[at].psnr for at, name in enumerate(found))
    side_by_side(pixels, list(found.values()), tmp_path / "s.png")
    assert read_pixels(tmp_path / "s.png").shape == (116, 4 * 96 + 24, 3)


def test_the_features_go_down_to_two_pixels_a_wave_at_most():
    network = CoordinateNetwork(NetworkSize(1, 4, 8), 1)
    found = network.features(torch.tensor([1.0]))
    assert found.shape == (1, 17)
    assert float(found[0, 0]) == 1


def test_deep_palette_and_transparent_pictures_are_read_as_they_look(tmp_path):
    place, ramp = tmp_path / "p.png", np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(place)
    assert (np.abs(read_pixels(place)[:, :, 0].astype(int) - ramp / 257) <= 0.5).all()
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2, :, 3] = 255
    Image.fromarray(clear).save(place)
    assert (read_pixels(place)[:, :, 0] == np.repeat([[0], [0], [255], [255]], 4, 1)).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.save(place, transparency=1)
    assert (read_pixels(place) == 255).all()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(ValueError, match="fractions, which are no shades"):
        read_pixels(tmp_path / "f.tiff")
    place.write_bytes(place.read_bytes()[:60])
    with pytest.raises(ValueError, match="no picture that Pillow reads"):
        read_pixels(place)


def test_a_wide_picture_is_shown_tile_by_tile(monkeypatch):
    network = fresh_network(NetworkSize(1, 4, 2), 1, 0)
    whole = network.picture(3, 50)
    monkeypatch.setattr("regraft.codecs.image_network.ROWS_AT_ONCE", 7)
    torch.testing.assert_close(network.picture(3, 50), whole)
    with pytest.raises(ValueError, match="too many for"):
        fit_image(np.zeros((1, 1 << 20, 1), np.uint8), NetworkSize(1, 128, 512), QUICK)


def test_a_fit_that_comes_to_no_numbers_is_refused():
    network = fresh_network(SMALL, 1, 0)
    with torch.no_grad():
        network.colour[0].weight[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="did not come to numbers"):
        quantized(network, FittedImage(8, 8, 1, SMALL, 6))
    with pytest.raises(ValueError, match="are numbers"):
        ImagePlan(ssim=float("nan")).check((64, 64))
