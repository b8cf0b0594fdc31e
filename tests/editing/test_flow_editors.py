"""Editors of rectified-flow models: against plain transcriptions, and in all that edits promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import nulltext
from nulltext.attention.blend import LocalBlend
from nulltext.diffusion.guidance import guided_output
from nulltext.diffusion.levels import Level
from nulltext.editing import FlowEdit, RFInversionEdit, UniEdit, chain, edit_photo
from nulltext.errors import OptionError
from support.tiny_flow import tiny_flow_pipeline

SOURCE, TARGET = "a cat on a sofa", "a dog on a sofa"
STEPS = 5
EDITORS = [FlowEdit(), RFInversionEdit(), UniEdit()]


@pytest.fixture(scope="session")
def inversions(tiny_flows, photo):
    """By kind of model and method."""
    return {
        (kind, method): nulltext.invert(model, photo, SOURCE, method=method, num_steps=STEPS)
        for kind, model in tiny_flows.items()
        for method in ("encode", "ddim", "fixed-point")
    }


@pytest.fixture
def encoded(tiny_flow, inversions, request):
    return inversions[request.node.callspec.params["tiny_flow"], "encode"]


def velocity(model, prompt, w):
    """v(z, s) under guidance w, by whatever way the model has."""
    empty, embeds = model.embed(["", prompt]).chunk(2)

    def v(z, s):
        level = Level(1 - s, s, 1000 * s)
        return guided_output(
            model, z, level, null_embeds=empty, prompt_embeds=embeds, guidance_scale=w
        )

    return v


def sigmas(model):
    return [*(step.noisier.sigma for step in model.grid(STEPS, (32, 32))), 0.0]


def latents_of(model, inversion, editor, target=TARGET, **options):
    edit = nulltext.edit(model, inversion, nulltext.EditSpec(target, editor=editor, **options))
    return edit.latents


def noise_of(inversion, index, draw):
    """eps as it is drawn; its distribution is tested below."""
    state = np.random.SeedSequence([inversion.header.seed, index, draw])
    seed = int(state.generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(inversion.trajectory[:1].shape, generator=generator)


def plain_flow_edit(model, inversion, n_max, n_min, n_avg, w_src, w_tgt):
    """Algorithm 1 of Kulikov et al. 2025 and the last steps of its code, as they stand there."""
    v_src, v_tgt = velocity(model, SOURCE, w_src), velocity(model, TARGET, w_tgt)
    x_src, s = inversion.trajectory[:1], sigmas(model)
    z = x_src.clone()
    for i in range(STEPS):
        if STEPS - i > n_max:
            continue
        if STEPS - i > n_min:
            mean = torch.zeros_like(z)
            for k in range(n_avg):
                eps = noise_of(inversion, i, k)
                z_src = (1 - s[i]) * x_src + s[i] * eps
                z_tgt = z + z_src - x_src
                mean += (v_tgt(z_tgt, s[i]) - v_src(z_src, s[i])) / n_avg
            z = z + (s[i + 1] - s[i]) * mean
        else:
            if i == STEPS - n_min:
                eps = noise_of(inversion, i, 0)
                z = z + (1 - s[i]) * x_src + s[i] * eps - x_src
            z = z + (s[i + 1] - s[i]) * v_tgt(z, s[i])
    return z


@pytest.mark.parametrize(
    ("n_max", "n_min", "n_avg"), [(3, 0, 1), (5, 0, 1), (4, 2, 1), (4, 2, 3), (5, 5, 1), (0, 0, 1)]
)
def test_flowedit_equals_its_formulae(tiny_flow, encoded, n_max, n_min, n_avg):
    w_src, w_tgt = (1.0, 1.0) if tiny_flow.guidance == "none" else (2.0, 4.0)
    editor = FlowEdit(n_max / STEPS, n_min / STEPS, n_avg, source_guidance=w_src)
    edited = latents_of(tiny_flow, encoded, editor, guidance_scale=w_tgt)
    plain = plain_flow_edit(tiny_flow, encoded, n_max, n_min, n_avg, w_src, w_tgt)
    torch.testing.assert_close(edited, plain, atol=2e-4, rtol=0)  # float32, batches of the network


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sd3", (33, 3.5, 13.5)),
        ("flux-dev", (24, 1.5, 5.5)),
        ("flux-schnell", (24, 1.0, 1.0)),
    ],
)
def test_flowedits_defaults_are_the_published_ones(tiny_flows, kind, expected):
    steps = 50 if kind == "sd3" else 28
    model = tiny_flows[kind]
    rule = FlowEdit().plan(model, [], steps, (8, 8))
    assert (steps - rule.first, rule.source_guidance, rule.guidance_scale) == expected
    assert rule.plain == steps
    full = FlowEdit().at_strength(1.0).plan(model, [], steps, (8, 8))
    assert full.first == 0


def test_flowedits_noise_is_standard_and_fresh(tiny_sd3, photo):
    draws = []
    for seed in (0, 1):
        inversion = nulltext.invert(
            tiny_sd3, photo, SOURCE, method="encode", num_steps=STEPS, seed=seed
        )
        draws += [noise_of(inversion, i, k).flatten() for i in range(20) for k in range(2)]
    drawn = torch.stack(draws)
    assert abs(float(drawn.mean())) < 0.02  # 20,480 numbers
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
    alike = (drawn @ drawn.T / drawn.shape[1]).fill_diagonal_(0)
    assert float(alike.abs().max()) < 0.35


def test_flowedit_needs_z_0_alone_of_any_inversion(tiny_flow, inversions, request):
    kind = request.node.callspec.params["tiny_flow"]
    edits = [
        nulltext.edit(
            tiny_flow, inversions[kind, method], nulltext.EditSpec(TARGET, editor=FlowEdit())
        )
        for method in ("encode", "ddim", "fixed-point")
    ]
    for edit in edits[1:]:
        assert torch.equal(edit.latents, edits[0].latents)
        assert edit.unet_evaluations == edits[0].unet_evaluations
    bound = inversions[kind, "encode"].header.psnr_bound
    assert edits[0].psnr_reconstruction == pytest.approx(bound, abs=1e-3)


def test_rf_inversions_edit_equals_its_formula(tiny_flow, inversions, request):
    inversion = inversions[request.node.callspec.params["tiny_flow"], "ddim"]
    w = 1.0 if tiny_flow.guidance == "none" else 3.0
    editor = RFInversionEdit(eta=0.7, eta_start=0.2, eta_stop=0.6)
    v, s = velocity(tiny_flow, TARGET, w), sigmas(tiny_flow)
    y_0, z = inversion.trajectory[:1], inversion.trajectory[-1:]
    for i in range(STEPS):
        eta = 0.7 if 1 <= i < 3 else 0.0
        v_t, v_cond = -v(z, s[i]), (y_0 - z) / s[i]  # 1 - t of the paper is s
        z = z + (v_t + eta * (v_cond - v_t)) * (s[i] - s[i + 1])
    edited = latents_of(tiny_flow, inversion, editor, guidance_scale=w)
    torch.testing.assert_close(edited, z, atol=2e-4, rtol=0)


def test_rf_inversions_controller_leads_to_the_photo(tiny_sd3, inversions):
    inversion = inversions["sd3", "ddim"]
    edited = latents_of(tiny_sd3, inversion, RFInversionEdit(eta=1.0, eta_stop=1.0))
    torch.testing.assert_close(edited, inversion.trajectory[:1], atol=1e-5, rtol=0)


def test_uniedit_equals_its_formula(tiny_flow, inversions, request):
    inversion = inversions[request.node.callspec.params["tiny_flow"], "ddim"]
    v_tgt, v_src = (velocity(tiny_flow, prompt, 1.0) for prompt in (TARGET, SOURCE))
    s, z = sigmas(tiny_flow), inversion.trajectory[3:4]
    for i in range(STEPS - 3, STEPS):
        t, o = v_tgt(z, s[i]), v_src(z, s[i])
        d = t - o
        m = d.abs().mean(dim=1, keepdim=True)
        m = (m - m.min()) / (m.max() - m.min())
        ds = s[i + 1] - s[i]
        z = z + ds * (m * t + (1 - m) * o) + 2.0 * ds * (1 + m) * d
    edited = latents_of(tiny_flow, inversion, UniEdit(alpha=0.6, omega=2.0))
    torch.testing.assert_close(edited, z, atol=2e-4, rtol=0)


@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.name)
@pytest.mark.parametrize("kind", ["sd3", "flux-dev"])
def test_targets_side_by_side_are_as_alone(tiny_flows, inversions, kind, editor):
    """Different strengths and targets in one batch."""
    tiny_flow, inversion = tiny_flows[kind], inversions[kind, "fixed-point"]
    specs = [nulltext.EditSpec(TARGET, editor=editor).at_strength(s) for s in (0.3, 0.5, 0.8)]
    specs.append(nulltext.EditSpec("a white cat on a sofa", editor=editor))
    together = nulltext.edit(tiny_flow, inversion, specs).latents
    alone = torch.cat([nulltext.edit(tiny_flow, inversion, spec).latents for spec in specs])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)


@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.name)
def test_masks_chains_and_strength_hold_to_the_parent(tiny_sd3, inversions, editor):
    inversion = inversions["sd3", "fixed-point"]
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    spec = nulltext.EditSpec(TARGET, editor=editor, mask=mask)
    first, second = chain(spec, "a white dog on a sofa")
    other = nulltext.EditSpec(TARGET, editor=editor).at_strength(0.0)
    edit = nulltext.edit(tiny_sd3, inversion, [first, second, other])
    kept = inversion.trajectory[0, :, 4:]
    for row in edit.latents[:2]:
        torch.testing.assert_close(row[:, 4:], kept, atol=1e-5, rtol=0)
        assert float((row[:, :4] - inversion.trajectory[0, :, :4]).abs().max()) > 1e-3
    torch.testing.assert_close(edit.latents[2], inversion.trajectory[0], atol=1e-5, rtol=0)
    assert edit.unchanged[:2] == (None, None)
    assert "strength 0" in edit.unchanged[2]


@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.name)
@pytest.mark.parametrize("kind", ["sd35", "flux-schnell"])
def test_blends_regions_and_compositing_work(tiny_flows, inversions, photo, kind, editor):
    tiny_flow = tiny_flows[kind]
    inversion = inversions[kind, "encode" if isinstance(editor, FlowEdit) else "fixed-point"]
    blended = nulltext.EditSpec(
        TARGET, editor=editor, blend=LocalBlend(("dog",), threshold=0.999, start=0.5)
    )
    plain = nulltext.EditSpec(TARGET, editor=editor)
    edit = nulltext.edit(tiny_flow, inversion, [blended, plain.at_strength(0.2)])
    assert 0 < float(edit.masks[0].mean()) < 0.5
    (placed,) = edit_photo(tiny_flow, inversion, plain, photo)
    assert placed.found == "cat"


def test_flowedit_goes_beside_editors_that_replay(tiny_sd3, inversions):
    inversion = inversions["sd3", "fixed-point"]
    specs = [nulltext.EditSpec(TARGET, editor=FlowEdit()), nulltext.EditSpec(TARGET)]
    together = nulltext.edit(tiny_sd3, inversion, specs)
    alone = [nulltext.edit(tiny_sd3, inversion, spec) for spec in specs]
    for row, edit in zip(together.latents, alone, strict=True):
        torch.testing.assert_close(row, edit.latents[0], atol=2e-4, rtol=0)


def test_negative_prompts_steer_where_there_is_a_null_branch(tiny_flows, inversions):
    for kind in ("sd3", "flux-dev"):
        spec = nulltext.EditSpec(TARGET, editor=FlowEdit(), negative="red")
        if kind == "sd3":
            steered = nulltext.edit(tiny_flows[kind], inversions[kind, "encode"], spec)
            plain = latents_of(tiny_flows[kind], inversions[kind, "encode"], FlowEdit())
            assert not torch.allclose(steered.latents, plain, atol=1e-4)
        else:
            with pytest.raises(OptionError, match="no null branch"):
                nulltext.edit(tiny_flows[kind], inversions[kind, "encode"], spec)


@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.name)
def test_other_models_are_refused_by_name(tiny_sd1, photo, editor):
    inversion = nulltext.invert(tiny_sd1, photo, SOURCE, method="ddim", num_steps=2)
    with pytest.raises(OptionError, match=f"editor {editor.name} steps by the velocity"):
        nulltext.edit(tiny_sd1, inversion, nulltext.EditSpec(TARGET, editor=editor))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlowEdit(n_max=33),
        lambda: FlowEdit(n_min=-1),
        lambda: FlowEdit(n_avg=0),
        lambda: FlowEdit(n_avg=1.5),
        lambda: FlowEdit(source_guidance=float("inf")),
        lambda: FlowEdit(strength=2),
        lambda: RFInversionEdit(eta=1.1),
        lambda: RFInversionEdit(eta_start=0.5, eta_stop=0.2),
        lambda: UniEdit(alpha=float("nan")),
        lambda: UniEdit(omega=-1),
    ],
)
def test_values_without_meaning_are_refused(make):
    with pytest.raises(OptionError, match=r"from 0|from 1|at most"):
        make()


def test_flowedit_refuses_more_plain_steps_than_steps(tiny_sd3):
    with pytest.raises(OptionError, match="n_min of at most n_max"):
        FlowEdit(n_max=0.2, n_min=0.5).plan(tiny_sd3, [], 10, (8, 8))


def test_flowedit_guides_flux_schnell_not_at_all(tiny_flows):
    with pytest.raises(OptionError, match="distilled to work without guidance"):
        FlowEdit(source_guidance=2.0).plan(tiny_flows["flux-schnell"], [], 10, (8, 8))


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow") / "tiny"
    tiny_flow_pipeline("sd3").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("editor", "method"), [("flowedit", "encode"), ("rf-inversion", "rf-inversion")]
)
def test_the_command_line_takes_the_editors_own_method(
    flow_folder, photo, run, tmp_path, monkeypatch, editor, method
):
    monkeypatch.chdir(tmp_path)
    photo.save("p.png")
    edit = ("edit", "p.png", "--model", flow_folder, "--source", SOURCE, "--target", TARGET)
    more = ("--editor", editor, "--steps", 3, "--save-inversion", "i.safetensors", "--json")
    code, out, err = run(*edit, *more)
    assert code == 0, err
    assert json.loads(out)["outputs"] == ["p-edited.png"]
    assert nulltext.Inversion.load("i.safetensors").header.method == method
    code, out, err = run("edit", "--inversion", "p-edited.png", "--target", TARGET)
    assert code == 2


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("encode", "-o edited.png --editor flowedit --model"),
        ("rf-solver", "does not say how well the method rf-solver inverts"),
        ("uni-inv", "-o edited.png --editor uniedit --model"),
    ],
)
def test_invert_says_what_its_figure_is_worth_and_what_comes_next(
    flow_folder, photo, run, tmp_path, monkeypatch, method, said
):
    monkeypatch.chdir(tmp_path)
    photo.save("p.png")
    invert = ("invert", "p.png", "--model", flow_folder, "--prompt", SOURCE, "-o", "i.safetensors")
    code, out, err = run(*invert, "--method", method, "--steps", 2)
    assert code == 0, err
    assert said in " ".join((out + err).split())


def test_the_command_line_says_what_does_not_go_together(
    flow_folder, photo, run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    photo.save("p.png")
    edit = ("edit", "p.png", "--model", flow_folder, "--source", SOURCE, "--target", TARGET)
    for more, said in (
        (("--editor", "flowedit", "--guidance", 3), "--guidance steers nothing"),
        (("--method", "encode"), "holds the encoded photo and no noise"),
        (("--n-max", 0.5), "--n-max belongs to --editor flowedit"),
        (("--editor", "flowedit", "--n-max", 33), "n-max is 33; choose a number from 0 to 1"),
    ):
        code, _, err = run(*edit, *more, "--steps", 2)
        assert code == 2, err
        assert said in err.replace("\n", " ")
