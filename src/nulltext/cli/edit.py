"""`nulltext edit`: a photo and two sentences in, an edited photo out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nulltext import defaults
from nulltext.cli.arguments import numbered, parse_weights
from nulltext.cli.options import (
    Align,
    Budget,
    BudgetOption,
    CropOption,
    DeviceOption,
    DTypeOption,
    InnerStepsOption,
    JsonOption,
    Method,
    ModelOption,
    QuietOption,
    SeedOption,
    Solver,
    SolverOption,
)
from nulltext.cli.report import Reporter, decibels
from nulltext.errors import OptionError

if TYPE_CHECKING:
    from nulltext.editing import EditSpec
    from nulltext.images import CropBox
    from nulltext.inversion.budgets import Plan
    from nulltext.models.latent_diffusion import LatentDiffusion
    from nulltext.photos import Photo
    from nulltext.record import Inversion


@dataclass(frozen=True)
class _Request:
    """What the command line asked for, besides the prompts."""

    image: Path | None
    source: str | None
    inversion: Path | None
    save_inversion: Path | None
    method: Method | None
    steps: int | None
    budget: Budget | None
    solver: Solver | None
    inner_steps: int | None
    guidance: float | None
    crop: str | None
    seed: int

    def plan(self) -> Plan:
        """How to invert."""
        from nulltext.inversion.budgets import planned

        return planned(
            self.method or Method.NULL_TEXT,
            budget=self.budget,
            solver=self.solver,
            num_steps=self.steps,
            inner_steps=self.inner_steps,
        )


def edit(
    image: Annotated[
        Path | None,
        typer.Argument(metavar="[IMAGE]", help="The photo; may be left out with --inversion."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="What the photo shows, in words.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="What it shall show instead; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT.png",
            help="Default: IMAGE's name-edited.png; several targets add -1, -2, …",
        ),
    ] = None,
    strip: Annotated[
        Path | None,
        typer.Option(
            "--strip",
            metavar="STRIP.png",
            help="Also photo, bound, reconstruction, edits in a row.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Paste the edit back into the photo at its own size.")
    ] = False,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight", metavar="WORD=FACTOR", help="Stress a word of the target: yellow=2, red=-1."
        ),
    ] = None,
    cross_steps: Annotated[
        float,
        typer.Option("--cross-steps", help="Fraction of steps in which words keep their places."),
    ] = defaults.CROSS_STEPS,
    self_steps: Annotated[
        float, typer.Option("--self-steps", help="Fraction of steps in which shapes are kept.")
    ] = defaults.SELF_STEPS,
    align: Annotated[
        Align, typer.Option("--align", help="How the words of source and target are paired.")
    ] = "auto",
    inversion: Annotated[
        Path | None,
        typer.Option("--inversion", metavar="FILE", help="A saved inversion: no need to invert."),
    ] = None,
    save_inversion: Annotated[
        Path | None,
        typer.Option("--save-inversion", metavar="FILE", help="Keep the inversion for later."),
    ] = None,
    method: Annotated[
        Method | None, typer.Option("--method", help="How to invert; default null-text.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="T", help="DDIM steps, 1 to 1000.")
    ] = None,
    budget: BudgetOption = None,
    solver: SolverOption = None,
    inner_steps: InnerStepsOption = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", metavar="W", help="How strongly words steer; default 7.5."),
    ] = None,
    crop: CropOption = None,
    model: ModelOption = defaults.MODEL,
    device: DeviceOption = None,
    dtype: DTypeOption = "float32",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Edit a photo by changing the words that describe it.

    Example: [bold]nulltext edit dahlia.jpg --source "a photo of an orange flower"
    --target "a photo of a white daisy" -o daisy.png[/bold]

    Invert once, edit often: [bold]nulltext edit --inversion dahlia.safetensors
    --target "a photo of a red flower"[/bold]
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    targets = target or []
    effort = (method, steps, budget, solver, inner_steps)
    request = _Request(image, source, inversion, save_inversion, *effort, guidance, crop, seed)
    _check_request(request, targets, full=full)
    weights = parse_weights(weight or [])
    outputs = _output_paths(request, output, strip, len(targets))
    from nulltext.cli.work import open_model, save_edit, save_strip
    from nulltext.editing import EditSpec, edit_steps
    from nulltext.record import run

    specs = [EditSpec(words, cross_steps, self_steps, weights, align) for words in targets]
    opened = _Opened.of(request)
    prompt = opened.prompt
    loaded = open_model(reporter, model, device, dtype, [prompt, *targets])
    made, seconds_invert, evaluations = _inversion(reporter, loaded, opened, specs)
    started = time.perf_counter()
    with reporter.progress(loaded) as on_step:
        result = run(edit_steps(loaded, made, specs), on_step)
    seconds_edit = time.perf_counter() - started
    for path, row, spec in zip(outputs, result.images, specs, strict=True):
        save_edit(path, row, spec, made, opened.photo if full else None)
    if strip:
        save_strip(strip, loaded, made, result, specs)
    header = made.header
    reporter.result(
        {
            "outputs": [str(path) for path in outputs],
            "strip": str(strip) if strip else None,
            "psnr_bound": header.psnr_bound,
            "psnr_reconstruction": result.psnr_reconstruction,
            "seconds_invert": seconds_invert,
            "seconds_edit": seconds_edit,
            "unet_evaluations": evaluations + result.unet_evaluations,
        },
        [
            ("" if inversion else f"Inverted in {seconds_invert:.1f} s. ")
            + f"Edited in {seconds_edit:.1f} s.",
            f"Reconstruction {decibels(result.psnr_reconstruction)}; "
            f"the autoencoder alone reaches {decibels(header.psnr_bound)}.",
            *[f"Saved {path}" for path in [*outputs, *([strip] if strip else [])]],
        ],
    )


def _check_request(request: _Request, targets: list[str], *, full: bool) -> None:
    """Refuse what cannot be meant, before anything is opened."""
    if not targets:
        raise OptionError('There is no --target; say what the photo shall show: --target "…".')
    if request.inversion is None:
        if request.image is None:
            raise OptionError("There is no IMAGE; pass a photo, or --inversion FILE.")
        if request.source is None:
            raise OptionError('There is no --source; say what the photo shows: --source "…".')
        return
    effort = ("method", "steps", "budget", "solver", "inner_steps")
    settled = (*effort, "guidance", "crop", "save_inversion")
    given = [name for name in settled if getattr(request, name) is not None]
    if given:
        raise OptionError(
            f"--{given[0].replace('_', '-')} is settled by the saved inversion; leave it out, "
            "or leave out --inversion to invert again."
        )
    if full and request.image is None:
        raise OptionError("--full pastes into the photo; pass IMAGE beside --inversion.")


def _output_paths(
    request: _Request, output: Path | None, strip: Path | None, count: int
) -> list[Path]:
    """Where the pictures go; refuses early what cannot be written or would be overwritten."""
    from nulltext.cli.work import check_inversion_target
    from nulltext.images import check_writable

    origin = request.image or request.inversion
    assert origin is not None
    paths = numbered(output or Path(f"{origin.stem}-edited.png"), count)
    pictures = [*paths, *([strip] if strip else [])]
    for path in pictures:
        check_writable(path)
    written = [*pictures]
    if request.save_inversion:
        written.append(check_inversion_target(request.save_inversion))
    taken = {p.resolve(): "is read" for p in (request.image, request.inversion) if p is not None}
    for path in written:
        if path.resolve() in taken:
            raise OptionError(
                f"'{path}' {taken[path.resolve()]} by this very command; choose another name."
            )
        taken[path.resolve()] = "is also written"
    return paths


@dataclass(frozen=True)
class _Opened:
    """The request with its files open."""

    request: _Request
    photo: Photo | None
    box: CropBox | None
    saved: Inversion | None

    @classmethod
    def of(cls, request: _Request) -> _Opened:
        from nulltext.cli.work import check_same_photo, open_photo
        from nulltext.photos import load_photo
        from nulltext.record import Inversion

        if request.inversion is None:
            assert request.image is not None
            photo, box = open_photo(request.image, request.crop)
            return cls(request, photo, box, None)
        saved = Inversion.load(request.inversion)
        if request.source is not None and request.source != saved.header.prompt:
            raise OptionError(
                f'The inversion was made for "{saved.header.prompt}"; leave --source out, '
                "or leave out --inversion to invert again."
            )
        if request.image is None:
            return cls(request, None, None, saved)
        loaded = load_photo(request.image)
        check_same_photo(saved, loaded)
        return cls(request, loaded, None, saved)

    @property
    def prompt(self) -> str:
        return self.saved.header.prompt if self.saved else str(self.request.source)


def _inversion(
    reporter: Reporter, model: LatentDiffusion, opened: _Opened, specs: list[EditSpec]
) -> tuple[Inversion, float, int]:
    """(inversion, seconds, UNet evaluations): the saved one, or a new one."""
    from nulltext.cli.work import invert_with_bars
    from nulltext.editing import check_specs
    from nulltext.sampling import check_model

    if opened.saved is not None:
        check_model(model, opened.saved)
    check_specs(model, opened.prompt, specs)
    if opened.saved is not None:
        return opened.saved, 0.0, 0
    request = opened.request
    assert opened.photo is not None
    assert opened.box is not None
    made = invert_with_bars(
        reporter,
        model,
        opened.photo,
        opened.prompt,
        opened.box,
        plan=request.plan(),
        guidance=(defaults.GUIDANCE_SCALE if request.guidance is None else request.guidance),
        seed=request.seed,
    )
    if request.save_inversion:
        made.save(request.save_inversion)
        reporter.note(f"Saved {request.save_inversion}")
    return made, made.header.seconds, made.header.unet_evaluations
