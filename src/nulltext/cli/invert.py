"""`nulltext invert`: from a photo and its description to a saved inversion."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nulltext import defaults
from nulltext.cli.options import (
    BudgetOption,
    CaptionerOption,
    CropOption,
    DeviceOption,
    DTypeOption,
    InnerStepsOption,
    JsonOption,
    Method,
    ModelOption,
    QuietOption,
    SeedOption,
    SizeOption,
    SolverOption,
)
from nulltext.cli.report import Reporter, decibels


def invert(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The photo.")],
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", metavar="P", help="What the photo shows, in words; auto: ask a captioner."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Default: IMAGE's name.safetensors."),
    ] = None,
    method: Annotated[
        Method, typer.Option("--method", help="How the photo is inverted.")
    ] = Method.NULL_TEXT,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="T", help="DDIM steps, 1 to 1000; more is slower."),
    ] = None,
    budget: BudgetOption = None,
    solver: SolverOption = None,
    inner_steps: InnerStepsOption = None,
    guidance: Annotated[
        float, typer.Option("--guidance", metavar="W", help="How strongly words will steer.")
    ] = defaults.GUIDANCE_SCALE,
    captioner: CaptionerOption = None,
    crop: CropOption = None,
    size: SizeOption = None,
    model: ModelOption = defaults.MODEL,
    device: DeviceOption = None,
    dtype: DTypeOption = "float32",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Invert a photo once, so that it can be edited many times.

    Example: [bold]nulltext invert dahlia.jpg --prompt "a photo of an orange flower"
    -o dahlia.safetensors[/bold]
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from nulltext.cli.captions import AUTO, check_captioner_use, check_readable, written_prompt
    from nulltext.cli.work import check_inversion_target, invert_with_bars, open_model, open_photo
    from nulltext.framing import parse_size
    from nulltext.inversion.budgets import planned

    check_captioner_use("--prompt", prompt, captioner)
    plan = planned(method, budget=budget, solver=solver, num_steps=steps, inner_steps=inner_steps)
    target = check_inversion_target(output or Path(f"{image.stem}.safetensors"))
    wanted = None if size is None else parse_size(size)
    photo, box = open_photo(image, crop, wanted)
    given = [prompt] if prompt != AUTO else []
    if not given:
        prompt = written_prompt(reporter, "--prompt", photo, box, captioner, device)
    loaded = open_model(reporter, model, device, dtype, given)
    check_readable(loaded, "--prompt", prompt)
    asked = (reporter, loaded, photo, prompt, box, wanted)
    inversion = invert_with_bars(*asked, plan=plan, guidance=guidance, seed=seed)
    inversion.save(target)
    header = inversion.header
    reporter.result(
        {
            "file": str(target),
            "prompt": prompt,
            "method": header.method,
            "psnr_bound": header.psnr_bound,
            "psnr_reconstruction": header.psnr_reconstruction,
            "seconds": header.seconds,
            "unet_evaluations": header.unet_evaluations,
        },
        [
            f"Inverted in {header.seconds:.1f} s with {header.unet_evaluations} UNet evaluations.",
            f"Reconstruction {decibels(header.psnr_reconstruction)}; "
            f"the autoencoder alone reaches {decibels(header.psnr_bound)}.",
            f"Saved {target}",
            f'Next: nulltext edit --inversion {shlex.quote(str(target))} --target "…" '
            f"-o edited.png{'' if model == defaults.MODEL else f' --model {shlex.quote(model)}'}",
        ],
    )
