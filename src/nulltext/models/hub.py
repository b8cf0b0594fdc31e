"""Models of the hub: the files that are needed, downloaded into the hub client's own cache.

    owner/name                          the branch main
    owner/name@revision                 a branch, a tag or a commit
    owner/name/path/file.safetensors    one single-file checkpoint

The hub is asked once, for the commit and its files; a model that the cache holds is then used even
if no answer comes. No request is made where the revision is a full commit hash and the wanted
weights are in the cache, or where HF_HUB_OFFLINE is set. Every file is of the one commit. The
client continues a file after a broken connection; a repeated command keeps the files that are
complete. What the client fails with becomes one sentence, without tokens and passwords.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nulltext.errors import ModelError, OutputError, reason_of, shorten
from nulltext.models.checkpoint import quiet_libraries
from nulltext.models.families import Family
from nulltext.models.pipelines import family_of
from nulltext.models.variants import INDEX, choose_weights, files_of, needed_files
from nulltext.storage.files import replace_file
from nulltext.storage.untrusted import MEGABYTE, read_object

logger = logging.getLogger(__name__)

OnBytes = Callable[[int, int], None]
"""Is told how many bytes of how many have come; may be called from another thread."""

MODEL = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)"
    r"(/(?P<file>[^@\\]+\.\w+))?"
    r"(@(?P<revision>[\w.+-]+(/[\w.+-]+)*))?"
)
COMMIT = re.compile("[0-9a-f]{40}")

PATIENCE = 4.0, 5.0
"""Seconds that the hub has to answer, try by try; HF_HUB_ETAG_TIMEOUT stands in for them."""

MAX_INDEX_BYTES = 4 * MEGABYTE
MOST_NAMED = 8

LOGIN = "log in with `hf auth login` or set HF_TOKEN"
SECRETS = re.compile(r"hf_\w+|(?<=Bearer )[^\s'\"]+|(?<=://)[^/@\s]+(?=@)")
"""Tokens, and names with passwords in addresses."""


@dataclass(frozen=True)
class HubModel:
    """A repository of the hub at a revision, and a file of it where one is meant."""

    repository: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        name = f"{self.repository}/{self.file}" if self.file else self.repository
        return name if self.revision == "main" else f"{name}@{self.revision}"

    @property
    def cache(self) -> Path:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        name = repo_folder_name(repo_id=self.repository, repo_type="model")
        return Path(constants.HF_HUB_CACHE) / name

    @property
    def snapshot(self) -> Path | None:
        """The folder of the commit that the revision was when the hub was last asked."""
        commit = self.revision
        if not COMMIT.fullmatch(commit):
            try:
                commit = (self.cache / "refs" / commit).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                return None
        folder = self.cache / "snapshots" / commit
        return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


def parse_hub_model(text: str) -> HubModel | None:
    from huggingface_hub.errors import HFValidationError

    found = MODEL.fullmatch(text)
    if found is None or any(part in ("", ".", "..") for part in re.split("[/@]", text)):
        return None
    name = HubModel(found["repository"], found["revision"] or "main", found["file"])
    try:
        _ = name.cache  # the client has rules of its own
    except HFValidationError:
        return None
    return name


class Cached(NamedTuple):
    """What the cache has of a model: nothing is missing."""

    place: Path
    """A folder, or the one file that the name means."""
    final: bool
    """Whether nothing that the commit may also have would be read instead."""


def fetch(name: HubModel, *, variant: str | None = None, on_bytes: OnBytes | None = None) -> Path:
    """Download what a model is loaded from; returns its folder, which may hold other files too.

    Where the name means a file, that file alone is downloaded, and its path returned.

    Args:
        variant: see `variants.choose_weights`.
        on_bytes: is called only if something has to be downloaded.

    Raises:
        ModelError: there is no such model, revision or file, it is gated, of a kind that is not
            supported or without safetensors, the hub is out of reach, or the disk is full.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import RevisionNotFoundError

    if name.file is not None and not name.file.endswith(".safetensors"):
        raise ModelError(f"'{name}' is no safetensors file, and nothing else is read; pass one.")
    with quiet_libraries(), warnings.catch_warnings(action="ignore"):
        cached, pinned = _cached(name, variant), COMMIT.fullmatch(name.revision)
        if cached and (constants.HF_HUB_OFFLINE or (pinned and cached.final)):
            return cached.place
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"There is no folder '{name}', and the cache {constants.HF_HUB_CACHE} does not "
                "hold all of the hub model of that name; unset HF_HUB_OFFLINE to download it, or "
                "pass a local folder."
            )
        try:
            commit = ask(name, PATIENCE[:1] if cached else PATIENCE)
        except Exception as error:  # of the client, and of the library that speaks HTTP for it
            if cached and not isinstance(error, RevisionNotFoundError):
                logger.info("load: %s as it is in the cache (%s)", name, type(error).__name__)
                return cached.place
            raise explained(error, name) from error
        try:
            commit.download_all(_needed(commit, variant), on_bytes)
        except ModelError:
            raise
        except Exception as error:
            raise explained(error, name, begun=True) from error
    return commit.folder / (name.file or "")


def _cached(name: HubModel, variant: str | None) -> Cached | None:
    folder, needed = name.snapshot, name.file or INDEX
    if folder is None or not (folder / needed).is_file():
        return None
    if name.file is not None:
        return Cached(folder / name.file, final=True)
    try:
        family, names = _family(folder / INDEX, name), files_of(folder)
        needed_files(names, family.modules, family.tokenizers, str(name), variant)
        chosen = choose_weights(names, family.modules, str(name), variant)
    except ModelError:
        return None
    return Cached(folder, final=all(weights.variant == variant for weights in chosen.values()))


def _needed(commit: Commit, variant: str | None) -> list[str]:
    name = commit.name
    if name.file is not None:
        if name.file not in commit.files:
            raise ModelError(
                f"The hub model '{name.repository}' has no {name.file}, it has "
                f"{_listed(commit.files)}; pass one file as owner/name/file.safetensors."
            )
        return [name.file]
    if INDEX not in commit.files:
        raise ModelError(
            f"The hub model '{name}' is no pipeline: it has no {INDEX}, but "
            f"{_listed(commit.files)}; pass one in diffusers format, or one file of it as "
            "owner/name/file.safetensors."
        )
    family = _family(commit.download(INDEX), name)
    return needed_files(commit.files, family.modules, family.tokenizers, str(name), variant)


def _family(index: Path, name: HubModel) -> Family:
    try:
        config = read_object(index, MAX_INDEX_BYTES)
    except ValueError as error:
        raise ModelError(
            f"{INDEX} of the hub model '{name}' cannot be read ({shorten(str(error))}); "
            "pass another revision or model."
        ) from error
    family = family_of(config.get("_class_name"), str(name), config)
    family.check_index(config, str(name))
    return family


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names, key=lambda n: (not n.endswith(".safetensors"), n.startswith("."), n))
    listed = ", ".join(shorten(name) for name in ordered[:MOST_NAMED])
    return (listed + ", …" if len(ordered) > MOST_NAMED else listed) or "no files"


class HubFile(NamedTuple):
    """A file of a commit."""

    size: int
    blob: str
    """Name of its content in the cache."""


@dataclass(frozen=True)
class Commit:
    """A commit of a repository, and the files that it has."""

    name: HubModel
    sha: str
    files: Mapping[str, HubFile]

    @property
    def folder(self) -> Path:
        return self.name.cache / "snapshots" / self.sha

    def download(self, file: str, on_size: Callable[[int], None] = lambda _: None) -> Path:
        from huggingface_hub import hf_hub_download

        bar: Any = _counter(on_size)
        path = hf_hub_download(self.name.repository, file, revision=self.sha, tqdm_class=bar)
        return Path(path)

    def download_all(self, files: Sequence[str], on_bytes: OnBytes | None) -> None:
        """Download files; then note in the cache that the revision is this commit."""
        missing = [file for file in files if not (self.folder / file).is_file()]
        blobs = self.name.cache / "blobs"
        sizes = {
            file: 0 if (blobs / self.files[file].blob).is_file() else self.files[file].size
            for file in missing
        }
        total, done = sum(sizes.values()), 0
        self._check_room(total)
        tell = on_bytes if on_bytes and total else lambda _done, _total: None
        tell(0, total)
        for file, size in sizes.items():

            def count(come: int, before: int = done, most: int = size) -> None:
                tell(before + min(come, most), total)

            self.download(file, count)
            done += size
            tell(done, total)
        # Only once all files are here: what the revision was before may be complete.
        if self.name.snapshot != self.folder:
            ref = self.name.cache / "refs" / self.name.revision
            with contextlib.suppress(OSError, OutputError):  # the cache may be read-only
                ref.parent.mkdir(parents=True, exist_ok=True)
                replace_file(ref, self.sha.encode())

    def _check_room(self, size: int) -> None:
        cache = self.name.cache.parent
        place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
        free = shutil.disk_usage(place).free
        if free < size:
            needs, has = (
                f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" for n in (size, free)
            )
            raise ModelError(
                f"The hub model '{self.name}' needs {needs} more in the cache {cache}, whose "
                f"disk has {has} free; make room, or set HF_HOME to a folder on another disk."
            )


def ask(name: HubModel, patience: Sequence[float]) -> Commit:
    """Ask the hub which commit a revision is, and for its files.

    Raises:
        ModelError: the answer is no hub's.
        Exception: of the hub's client.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_ETAG_TIMEOUT != constants.DEFAULT_ETAG_TIMEOUT:
        patience = [constants.HF_HUB_ETAG_TIMEOUT] * len(patience)

    def info(seconds: float) -> Any:
        return HfApi().model_info(
            name.repository, revision=name.revision, files_metadata=True, timeout=seconds
        )

    for seconds in patience[:-1]:
        try:
            return _commit(name, _within(seconds, info))
        except (HfHubHTTPError, ModelError):
            raise
        except Exception as error:  # of the library that speaks HTTP for the client
            logger.info("load: the hub does not answer (%s); once more", type(error).__name__)
    return _commit(name, _within(patience[-1], info))


def _commit(name: HubModel, info: Any) -> Commit:
    if not COMMIT.fullmatch(str(info.sha)):
        raise ModelError(f"The hub names no commit of '{name}'; check HF_ENDPOINT.")
    files = {}
    for file in info.siblings or []:
        blob = file.lfs.sha256 if file.lfs else file.blob_id
        files[file.rfilename] = HubFile(file.size or 0, str(blob))
    return Commit(name, info.sha, files)


def _within(seconds: float, call: Callable[[float], Any]) -> Any:
    """Call a function that may take longer than it is told; TimeoutError leaves its thread behind.

    The client gives that time to each address of a host, and no limit to looking up its name.
    """
    outcome: list[tuple[Any, Exception | None]] = []

    def work() -> None:
        try:
            outcome.append((call(seconds + 1), None))  # the limit below says it in one way
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    answer, error = outcome[0]
    if error is not None:
        raise error
    return answer


def _counter(on_size: Callable[[int], None]) -> type:
    """Make a class that takes the place of the client's progress bar for one file."""

    class Counter:
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self.n = initial

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            on_size(self.n)

        def __enter__(self) -> Counter:
            return self

        def ignore(self, *_: object, **__: object) -> None:
            """Show nothing of what else the client calls."""

        update_transfer = set_postfix_str = set_transfer_postfix_str = ignore
        set_description = set_description_str = refresh = close = __exit__ = ignore

    return Counter


def explained(error: BaseException, name: HubModel, *, begun: bool = False) -> ModelError:
    """Make the error to raise for one of the client's, with what to do.

    Args:
        begun: whether the hub had answered, and files were being downloaded.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    # The hub's address without a name and a password that it may have.
    parts = urlsplit(constants.ENDPOINT)
    endpoint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    sentence = _of_answer(error, name, endpoint) or _of_system(error, name, endpoint, begun)
    return ModelError(sentence)


def _of_answer(error: BaseException, name: HubModel, endpoint: str) -> str | None:
    """Explain an answer of the hub; None where the error is of the disk or the connection."""
    from huggingface_hub import errors, get_token

    model, page = f"hub model '{name.repository}'", f"{endpoint}/{name.repository}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    gated = f"The {model} is gated: accept its licence at {page}, then {LOGIN}."
    if status == 403:
        gated = (
            f"Your account may not read the {model}, which is gated: accept its licence at {page} "
            "with the account that your token belongs to, and wait until access is granted."
        )
    login = f"The hub wants to know who asks for the {model}; {LOGIN}."
    if get_token() is not None:
        login = (
            f"The hub refuses your token for the {model}; log in again with `hf auth login`, "
            "or unset HF_TOKEN."
        )
    by_status = {
        401: login,
        403: f"Your token may not read the {model}; give it the right to read this model in the "
        f"settings of your account, and see {page}.",
        429: f"The hub takes no more requests for a while; wait a few minutes, or {LOGIN}.",
    }
    other = (
        f"The hub {endpoint} answers {status} when asked for the {model}; try again later, or "
        "pass a local folder."
    )
    by_class: dict[type, str | None] = {
        errors.GatedRepoError: gated,
        errors.DisabledRepoError: f"The hub has disabled the {model} (see {page}); use another "
        "one.",
        errors.RevisionNotFoundError: f"The {model} has no branch, tag or commit "
        f"'{name.revision}'; see {page}/commits/main for those that it has.",
        errors.RepositoryNotFoundError: f"There is no folder '{name.repository}', and the hub "
        f"shows no model of that name: check the spelling, or, if it is private, {LOGIN}.",
        errors.LocalEntryNotFoundError: None,
        errors.EntryNotFoundError: f"The {model} lacks a file that its list names; try again, or "
        f"see {page}.",
        errors.HfHubHTTPError: by_status.get(status or 0, other),
    }
    return next((said for kind, said in by_class.items() if isinstance(error, kind)), None)


def _of_system(error: BaseException, name: HubModel, endpoint: str, begun: bool) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import FileMetadataError

    number, said = getattr(error, "errno", None), SECRETS.sub("…", reason_of(error))
    model, cache = f"the hub model '{name.repository}'", constants.HF_HUB_CACHE
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in said:
        return (
            f"The disk with the cache {cache} is full; make room and repeat the command (what is "
            "complete is kept), or set HF_HOME to a folder on another disk."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"The cache {cache} cannot be written ({said}); set HF_HOME to a folder that can, "
            f"or pass {model} as a local folder."
        )
    if isinstance(error, FileMetadataError):
        return (
            f"{endpoint} does not answer as a hub does when asked for {model}; check "
            "HF_ENDPOINT and the settings of a proxy."
        )
    if begun:
        return (
            f"The download of {model} broke off ({said}); repeat the command, which keeps the "
            "files that are complete."
        )
    return (
        f"The hub {endpoint} cannot be reached for {model} ({said}), and neither a folder nor "
        "the cache holds all of it; check the connection (HF_HUB_ETAG_TIMEOUT=30 waits longer), or "
        "pass a local folder."
    )
