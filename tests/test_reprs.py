"""What results look like in a console and in a notebook."""

from __future__ import annotations

import io
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import nulltext
from nulltext.diffusion.loops import run
from nulltext.editing.heatmaps import heat_map_steps

HOSTILE = "a <script>alert('cat')</script> \"white\" & black"


@pytest.fixture(scope="module")
def inversion(tiny_sd1):
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return nulltext.invert(tiny_sd1, photo, "a white cat", method="ddim", num_steps=3)


@pytest.fixture(scope="module")
def edit(tiny_sd1, inversion):
    return nulltext.edit(tiny_sd1, inversion, ["a white dog", "a black cat"])


class Figures(HTMLParser):
    """Pictures and captions of a piece of HTML."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.captions = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            data = dict(attrs)["src"].removeprefix("data:image/png;base64,")
            self.pictures.append(Image.open(io.BytesIO(b64decode(data, validate=True))))

    def handle_data(self, data):
        self.captions.append(data)


def test_results_describe_themselves_in_a_line(tiny_sd1, inversion, edit):
    seen = []
    replay = nulltext.replay(tiny_sd1, inversion, on_step=seen.append)
    (maps,) = run(heat_map_steps(tiny_sd1, inversion))
    spec = nulltext.EditSpec("a dog", mask=np.eye(16, dtype=bool))
    photo = nulltext.load_photo(Image.new("RGB", (15, 14)))
    results = (tiny_sd1, inversion, edit, replay, maps.words[0], spec, photo, *seen)
    for result in results:
        assert "\n" not in repr(result)
        assert len(repr(result)) < 400
        assert "tensor(" not in repr(result)
    assert repr(inversion).startswith("Inversion('a white cat', 32 x 32, model=")
    assert "method='ddim', num_steps=3, guidance_scale=7.5, psnr" in repr(inversion)
    assert repr(edit).startswith("Edit(images=Tensor[2, 3, 32, 32], reconstruction=Tensor[1, 3")
    assert repr(seen[0]).endswith("clean_estimate=Tensor[1, 4, 8, 8])")
    assert repr(spec).startswith("EditSpec(target='a dog', editor=PromptToPrompt(")
    assert "mask=Tensor[16, 16]" in repr(spec)
    assert repr(photo) == "Photo(image=<RGB image, 15 x 14>, bits=8)"
    assert "32 x 32, torch.float32, device='cpu', guidance_scale=7.5)" in repr(tiny_sd1)


def test_an_edit_shows_its_source_beside_its_targets(edit):
    shown = Figures(edit._repr_html_())
    assert shown.captions == ["a white cat", "a white dog", "a black cat"]
    expected = [nulltext.to_pil(image) for image in (edit.reconstruction, *edit.images)]
    assert [one.tobytes() for one in shown.pictures] == [one.tobytes() for one in expected]
    strip = Image.open(io.BytesIO(edit._repr_png_()))
    assert strip.width > 3 * 256


def test_inversions_and_replays_show_their_pictures(tiny_sd1, inversion):
    replay = nulltext.replay(tiny_sd1, inversion)
    pictures = (nulltext.to_pil(inversion.photo / 127.5 - 1), nulltext.to_pil(replay.image))
    for result, expected in zip((inversion, replay), pictures, strict=True):
        (inside,) = Figures(result._repr_html_()).pictures
        assert inside.tobytes() == expected.tobytes()
        assert Image.open(io.BytesIO(result._repr_png_())).tobytes() == expected.tobytes()


def test_prompts_are_escaped(edit, inversion):
    for result in (
        replace(edit, source=HOSTILE),
        replace(inversion, header=replace(inversion.header, prompt=HOSTILE)),
    ):
        shown = Figures(result._repr_html_())
        assert {*shown.tags} == {"div", "figure", "img", "figcaption"}
        assert shown.captions[0].startswith(HOSTILE)
