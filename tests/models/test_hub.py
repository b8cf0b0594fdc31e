"""Models of the hub, through the real client against a hub on this machine."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import nulltext
from nulltext.cli.report import Reporter
from nulltext.models.hub import HubModel, explained, parse_hub_model
from support.examples import small_disk
from support.processes import PATIENCE
from support.standin_hub import sha256, standin_hub
from support.tiny import tiny_pipeline

FIRST, SECOND = "a" * 40, "b" * 40
TOKEN = "hf_abcdefghijklmnop"

CONFIGS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
]
PLAIN = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
HALF = [name.replace(".safetensors", ".fp16.safetensors") for name in PLAIN]

CLIENT = """
import json, os, sys
from huggingface_hub import constants
from nulltext.errors import ModelError
from nulltext.models.hub import fetch, parse_hub_model
constants.DOWNLOAD_CHUNK_SIZE = 4096  # so that a small file comes in as many parts as a large one
for line in sys.stdin:
    cache, offline, token, name, order = json.loads(line)
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = cache, offline
    os.environ["HF_TOKEN"] = token
    told, model = [], parse_hub_model(name)
    try:
        outcome = {"path": str(fetch(model, **order, on_bytes=lambda *now: told.append(now)))}
    except ModelError as error:
        outcome = {"error": str(error)}
    print(json.dumps(outcome | {"told": told}), flush=True)
"""
"""Fetches what it is told to, line by line; the hub's address is read as the client is imported."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny pipeline, as its makers may publish it."""
    root = tmp_path_factory.mktemp("published")
    pipe = tiny_pipeline("sd1")
    pipe.save_pretrained(root / "plain")
    pipe.save_pretrained(root / "shards", max_shard_size="500KB")
    pipe.to(torch.float16)
    pipe.save_pretrained(root / "half", variant="fp16")
    pipe.save_pretrained(root / "half shards", variant="fp16", max_shard_size="200KB")
    shutil.copytree(root / "half", root / "all")
    shutil.copytree(root / "plain", root / "all", dirs_exist_ok=True)
    for name in PLAIN:
        shutil.copy(root / "plain" / name, (root / "all" / name).with_suffix(".bin"))
    (root / "all" / "README.md").write_text("A card.")
    (root / "all" / "whole.safetensors").write_bytes(b"a single-file checkpoint")
    return root


@dataclass
class Client:
    """A process that asks a hub, as one with a cache of its own for each test."""

    process: subprocess.Popen[str]
    said: Path
    """Its standard error."""
    cache: Path

    def __call__(self, name, *, cache=None, offline=False, token="", **more):
        """What an order came to; nothing may be said beside it, not even by the hub's client."""
        order = [str(cache or self.cache), offline, token, name, more]
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert self.said.read_text() == ""
        return json.loads(answer)


@contextmanager
def client_of(address, folder):
    """A client of the hub at an address."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSF"))}
    own |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home")}
    own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    said = folder / "stderr.txt"
    with said.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        yield Client(process, said, folder / "cache")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A hub and a client of it, for all tests."""
    with (
        standin_hub() as hub,
        client_of(hub.address, tmp_path_factory.mktemp("client")) as client,
    ):
        yield hub, client


@pytest.fixture
def hub(running):
    """The hub, with nothing in it."""
    running[0].repositories.clear()
    running[0].forget()
    return running[0]


@pytest.fixture
def fetched(running, tmp_path):
    """The client, with nothing in its cache."""
    return replace(running[1], cache=tmp_path / "cache")


def path_of(outcome):
    assert "path" in outcome, outcome
    return Path(outcome["path"])


def test_a_model_is_downloaded_once_and_counted_in_bytes(hub, fetched, folders):
    hub.add("somebody/tiny", folders / "plain")
    first, second = fetched("somebody/tiny"), fetched("somebody/tiny")
    folder = path_of(first)
    assert hub.files() == sorted(CONFIGS + PLAIN)
    assert {name: sha256(folder / name) for name in CONFIGS + PLAIN} == {
        name: sha256(folders / "plain" / name) for name in CONFIGS + PLAIN
    }
    index = (folder / "model_index.json").stat().st_size  # is read before the count begins
    size = sum((folder / name).stat().st_size for name in CONFIGS + PLAIN) - index
    assert first["told"][0] == [0, size]
    assert first["told"][-1] == [size, size]
    assert [done for done, _ in first["told"]] == sorted(done for done, _ in first["told"])
    assert len(first["told"]) > size / 8192
    assert second == {"path": str(folder), "told": []}
    assert nulltext.load(folder).fingerprint == nulltext.load(folders / "plain").fingerprint


@pytest.mark.parametrize(
    ("kind", "variant", "weights"),
    [
        ("half", None, HALF),
        ("half", "fp16", HALF),
        ("all", None, PLAIN),
        ("all", "fp16", HALF),
        ("shards", None, None),
        ("half shards", None, None),
    ],
)
def test_only_what_is_needed_is_downloaded(hub, fetched, folders, kind, variant, weights):
    hub.add("somebody/tiny", folders / kind)
    folder = path_of(fetched("somebody/tiny", variant=variant))
    if weights is None:  # nothing else is in these
        assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 2
        weights = [
            path.relative_to(folders / kind).as_posix()
            for path in (folders / kind).rglob("*.safetensors*")
        ]
    assert hub.files() == sorted(CONFIGS + weights)


def test_a_variant_that_is_not_there_is_refused_before_anything_large(hub, fetched, folders):
    hub.add("somebody/tiny", folders / "all")
    assert fetched("somebody/tiny", variant="bf16")["error"] == (
        "The model 'somebody/tiny' has no weights of the variant 'bf16'; it has fp16, plain."
    )
    assert hub.files() == ["model_index.json"]


def test_a_branch_a_tag_and_a_commit_are_revisions(hub, fetched, folders, tmp_path):
    changed = shutil.copytree(folders / "plain", tmp_path / "changed")
    config = changed / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"beta_end": 0.012', '"beta_end": 0.02'))
    repository = hub.add("somebody/tiny", folders / "plain", FIRST)
    repository.commits[SECOND] = changed
    repository.names |= {"refs/pr/1": SECOND, "v1.0": FIRST}
    names = "v1.0", "refs/pr/1", FIRST, SECOND
    outcomes = [fetched(f"somebody/tiny@{name}") for name in names]
    assert [path_of(outcome).name for outcome in outcomes] == [FIRST, SECOND, FIRST, SECOND]
    assert '"beta_end": 0.02' in (path_of(outcomes[1]) / config.relative_to(changed)).read_text()
    assert hub.files().count("unet/diffusion_pytorch_model.safetensors") == 1
    assert hub.files().count("scheduler/scheduler_config.json") == 2

    hub.forget()
    fetched(f"somebody/tiny@{FIRST}")
    assert hub.asked == []  # a commit is what it was

    assert path_of(fetched("somebody/tiny")).name == FIRST
    repository.names["main"] = SECOND
    assert path_of(fetched("somebody/tiny")).name == SECOND


def without_pipeline(folder):
    (folder / "model_index.json").unlink()


def without_safetensors(folder):
    for name in HALF:
        (folder / name).rename(folder / name.replace(".safetensors", ".bin"))


def as_another_pipeline(folder):
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxKontextPipeline"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            without_pipeline,
            "The hub model 'somebody/tiny' is no pipeline: it has no model_index.json, but "
            "text_encoder/model.fp16.safetensors, unet/diffusion_pytorch_model.fp16.safetensors, ",
        ),
        (
            without_safetensors,
            "The unet of the model 'somebody/tiny' has its weights as diffusion_pytorch_model.fp16"
            ".bin, which could run code when opened, and not as safetensors; look for",
        ),
        (as_another_pipeline, "The model 'somebody/tiny' is of class FluxKontextPipeline (FLUX.1 "),
    ],
)
def test_what_cannot_be_used_is_refused_without_weights(
    hub, fetched, folders, tmp_path, change, sentence
):
    changed = shutil.copytree(folders / "half", tmp_path / "changed")
    change(changed)
    hub.add("somebody/tiny", changed)
    assert fetched("somebody/tiny")["error"].startswith(sentence)
    assert set(hub.files()) <= {"model_index.json"}


def test_refusals_of_the_hub_say_what_to_do(hub, fetched, folders):
    hub.add("somebody/gated", folders / "plain").refusal = 401, "GatedRepo"
    hub.add("somebody/tiny", folders / "plain")
    page = f"{hub.address}/somebody"
    names = "somebody/gated", "somebody/else", "somebody/tiny@v9"
    assert [fetched(name)["error"] for name in names] == [
        f"The hub model 'somebody/gated' is gated: accept its licence at {page}/gated, then log in "
        "with `hf auth login` or set HF_TOKEN.",
        "There is no folder 'somebody/else', and the hub shows no model of that name: check the "
        "spelling, or, if it is private, log in with `hf auth login` or set HF_TOKEN.",
        "The hub model 'somebody/tiny' has no branch, tag or commit 'v9'; see "
        f"{page}/tiny/commits/main for those that it has.",
    ]
    assert hub.files() == []


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((403, "GatedRepo"), "Your account may not read the hub model 'somebody/gated', which is"),
        ((401, ""), "The hub refuses your token for the hub model 'somebody/gated'; log in again"),
        ((403, ""), "Your token may not read the hub model 'somebody/gated'; give it the right"),
        ((429, ""), "The hub takes no more requests for a while; wait a few minutes"),
    ],
)
def test_refused_tokens_are_explained_and_not_shown(hub, fetched, folders, refusal, words):
    hub.add("somebody/gated", folders / "plain").refusal = refusal
    outcome = fetched("somebody/gated", token=TOKEN)
    assert outcome["error"].startswith(words)
    assert TOKEN not in str(outcome)
    assert any(asked.authorized for asked in hub.asked)


def test_a_password_in_the_address_of_the_hub_is_not_shown(tmp_path, hub):
    with client_of(hub.address.replace("//", f"//me:{TOKEN}@"), tmp_path) as fetched:
        missing = fetched("somebody/tiny")
        hub.add("somebody/tiny", tmp_path).refusal = 503, ""
        broken = fetched("somebody/tiny")
    assert "There is no folder 'somebody/tiny'" in missing["error"]
    assert f"The hub {hub.address} answers 503" in broken["error"]
    assert TOKEN not in str((missing, broken))


def test_a_broken_connection_is_continued_where_it_broke(hub, fetched, folders):
    repository = hub.add("somebody/tiny", folders / "plain")
    repository.cut[PLAIN[1]] = 50_000
    outcome = fetched("somebody/tiny")
    parts = [content.first for content in hub.contents if content.file == PLAIN[1]]
    assert len(parts) == 2
    assert 0 < parts[1] <= 50_000
    assert sha256(path_of(outcome) / PLAIN[1]) == sha256(folders / "plain" / PLAIN[1])
    assert outcome["told"][-1][0] == outcome["told"][-1][1]


def test_a_killed_download_keeps_the_files_that_are_complete(hub, fetched, folders, tmp_path):
    repository = hub.add("somebody/tiny", folders / "plain")
    last = PLAIN[0]  # weights come in the order of the family's modules: unet, vae, text encoder
    repository.stuck[last] = 10_000
    with client_of(hub.address, tmp_path) as other, ThreadPoolExecutor() as pool:
        broken = pool.submit(other, "somebody/tiny")
        end = time.monotonic() + PATIENCE
        while last not in hub.files():
            assert time.monotonic() < end
            time.sleep(0.02)
        other.process.kill()
        with pytest.raises(json.JSONDecodeError):  # no answer
            broken.result()
    repository.stuck.clear()
    hub.forget()
    offline = fetched("somebody/tiny", offline=True)
    assert (
        "does not hold all of the hub model of that name; unset HF_HUB_OFFLINE"
        in (offline["error"])
    )
    outcome = fetched("somebody/tiny")
    assert hub.files() == [last]
    assert sha256(path_of(outcome) / last) == sha256(folders / "plain" / last)


def test_what_the_cache_has_is_used_when_the_hub_does_not_answer(hub, fetched, folders, tmp_path):
    repository = hub.add("somebody/tiny", folders / "half")
    held = {"path": fetched("somebody/tiny")["path"], "told": []}
    hub.forget()
    assert fetched("somebody/tiny", offline=True) == held
    assert hub.asked == []

    repository.refusal = 503, ""
    assert fetched("somebody/tiny") == held
    with client_of("http://127.0.0.1:1", tmp_path) as far:  # takes no connections
        assert far("somebody/tiny") == held
        error = far("somebody/else")["error"]
    assert error.startswith("The hub http://127.0.0.1:1 cannot be reached for the hub model")
    with standin_hub() as silent, client_of(silent.address, tmp_path) as far:
        silent.silent = True
        assert far("somebody/tiny") == held
        assert (
            "cannot be reached for the hub model 'somebody/else' (no answer"
            in (far("somebody/else")["error"])
        )


def test_a_part_of_a_model_in_the_cache_is_not_taken_for_the_model(hub, fetched, folders):
    hub.add("somebody/tiny", folders / "all")
    pinned = f"somebody/tiny@{FIRST}"
    half = path_of(fetched(pinned, variant="fp16"))
    assert hub.files() == sorted(CONFIGS + HALF)
    assert path_of(fetched(pinned)) == half
    assert hub.files() == sorted(CONFIGS + HALF + PLAIN)  # the plain ones, though fp16 were there
    (half / PLAIN[1]).resolve().unlink()
    hub.forget()
    fetched(pinned)
    assert hub.files() == [PLAIN[1]]


def test_a_full_disk_is_said_before_the_download(hub, fetched, folders, tmp_path):
    hub.add("somebody/tiny", folders / "plain")
    size = sum((folders / "plain" / name).stat().st_size for name in CONFIGS[1:] + PLAIN)
    with small_disk(tmp_path / "small", "1m") as small:
        error = fetched("somebody/tiny", cache=small)["error"]
    words = f"The hub model 'somebody/tiny' needs {size / 1e6:.1f} MB more in the cache {small}, "
    assert error.startswith(words)
    assert hub.files() == ["model_index.json"]


def test_a_single_file_is_fetched_by_its_path(hub, fetched, folders, tmp_path):
    lora = tmp_path / "lora"
    lora.mkdir()
    save_file({}, lora / "pytorch_lora_weights.safetensors")
    (lora / "README.md").write_text("A card.")
    hub.add("somebody/lora", lora)
    hub.add("somebody/tiny", folders / "all")
    names = ["somebody/lora/pytorch_lora_weights.safetensors@main"]
    names += ["somebody/tiny/whole.safetensors", "somebody/tiny/README.md"]
    names += ["somebody/tiny/other.safetensors"]
    outcomes = [fetched(name) for name in names]
    assert path_of(outcomes[0]).name == "pytorch_lora_weights.safetensors"
    assert path_of(outcomes[1]).read_bytes() == b"a single-file checkpoint"
    assert "is no safetensors file" in outcomes[2]["error"]
    assert "has no other.safetensors, it has text_encoder/model.fp16" in outcomes[3]["error"]
    assert hub.files() == ["pytorch_lora_weights.safetensors", "whole.safetensors"]


@pytest.mark.parametrize(
    ("error", "begun", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True, "is full; make room and repeat"),
        (RuntimeError("Data error: No space left on device (os error 28)"), True, "is full; make"),
        (PermissionError(errno.EACCES, "Permission denied"), True, "cannot be written (Permission"),
        (OSError("Consistency check failed: 9 of 10 bytes"), True, "broke off (Consistency check"),
        (TimeoutError("no answer within 5 s"), False, "cannot be reached for the hub model 'a/b'"),
        (ValueError(f"Illegal header value b'Bearer {TOKEN}'"), False, "value b'Bearer …')"),
    ],
)
def test_errors_of_the_disk_and_the_connection_are_explained(error, begun, words):
    sentence = str(explained(error, HubModel("a/b"), begun=begun))
    assert words in sentence
    assert TOKEN not in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("owner/name", HubModel("owner/name")),
        ("owner/name@v1.0", HubModel("owner/name", "v1.0")),
        ("owner/na.me@refs/pr/1", HubModel("owner/na.me", "refs/pr/1")),
        ("owner/name/a/b.safetensors", HubModel("owner/name", file="a/b.safetensors")),
        ("owner/name/b.safetensors@v1", HubModel("owner/name", "v1", "b.safetensors")),
        ("name", None),
        ("", None),
        ("owner/name@", None),
        ("owner/name@../../x", None),
        ("owner/name/../x.safetensors", None),
        ("../name", None),
        ("/owner/name", None),
        ("owner/name@a b", None),
    ],
)
def test_names_of_hub_models(text, model):
    assert parse_hub_model(text) == model
    assert model is None or str(model) == text.removesuffix("@main")


def test_the_bar_of_a_download_is_in_bytes_on_standard_error(capsys):
    for quiet in (False, True):
        with Reporter(as_json=False, quiet=quiet).loading("somebody/tiny") as tell:
            tell(0, 3_000_000)
            tell(3_000_000, 3_000_000)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("somebody/tiny" in captured.err) is not quiet
        assert ("3.0/3.0 MB" in captured.err) is not quiet


def test_the_command_line_edits_with_a_model_of_the_hub_and_again_without_the_hub(
    folders, tmp_path, photo
):
    """Quietly: the libraries say nothing either."""
    photo.save(tmp_path / "photo.png")
    line = ["edit", "photo.png", "--source", "a cat", "--target", "a dog", "-q"]
    line += ["--steps", "2", "--method", "direct", "--model"]

    def edited(model, out, **environment):
        own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        own |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"} | environment
        command = [sys.executable, "-m", "nulltext.cli.entry", *line, str(model), "-o", out]
        done = subprocess.run(
            command, env=own, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return np.asarray(Image.open(tmp_path / out))

    with standin_hub() as hub:
        hub.add("somebody/half", folders / "half")
        fetched = edited("somebody/half", "fetched.png", HF_ENDPOINT=hub.address)
    again = edited("somebody/half", "again.png", HF_ENDPOINT=hub.address)  # which is closed now
    assert np.array_equal(fetched, again)
    assert np.array_equal(fetched, edited(folders / "half", "folder.png"))
