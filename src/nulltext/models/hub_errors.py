"""What the hub's client says, as one sentence with what to do; tokens and passwords never in it."""

from __future__ import annotations

import errno
import re
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from nulltext.errors import ModelError, reason_of
from nulltext.models.hub_client import HubModel

LOGIN = "log in with `hf auth login` or set HF_TOKEN"
SECRETS = re.compile(r"hf_\w+|(?<=Bearer )[^\s'\"]+|(?<=://)[^/@\s]+(?=@)")
"""Tokens, and names with passwords in addresses."""

RATE_LIMIT = 429


def explained(error: BaseException, name: HubModel) -> ModelError:
    """The error to raise for one of the client's."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return explained(error.__cause__, name)
    return error if isinstance(error, ModelError) else ModelError(_sentence(error, name))


def endpoint() -> str:
    """The hub's address, without a name and a password that it may have."""
    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _sentence(error: BaseException, name: HubModel) -> str:
    repository, revision = name.repository, name.revision
    model, page = f"the hub model '{repository}'", f"{endpoint()}/{repository}"
    if isinstance(error, GatedRepoError):
        if error.response.status_code == 403:
            return (
                f"Your account may not read {model}, which is gated: accept its licence at {page} "
                "with the account that your token belongs to, and wait until access is granted."
            )
        return f"{_upper(model)} is gated: accept its licence at {page}, then {LOGIN}."
    if isinstance(error, DisabledRepoError):
        return f"The hub has disabled {model} (see {page}); use another one."
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{_upper(model)} has no branch, tag or commit '{revision}'; "
            f"see {page}/commits/main for those that it has."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no folder '{repository}', and the hub shows no model of that name: check "
            f"the spelling, or, if it is private, {LOGIN}."
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{_upper(model)} lacks a file that its list names; try again, or see {page}."
    if isinstance(error, HfHubHTTPError):
        return _of_status(error, model, page)
    return _of_system(error, model)


def _of_status(error: HfHubHTTPError, model: str, page: str) -> str:
    status = error.response.status_code
    if status == 401:
        if get_token() is None:
            return f"The hub wants to know who asks for {model}; {LOGIN}."
        return (
            f"The hub refuses your token for {model}; log in again with `hf auth login`, "
            "or unset HF_TOKEN."
        )
    if status == 403:
        return (
            f"Your token may not read {model}; give it the right to read this model in the "
            f"settings of your account, and see {page}."
        )
    if status == RATE_LIMIT:
        return f"The hub takes no more requests for a while; wait a few minutes, or {LOGIN}."
    return (
        f"The hub {endpoint()} answers {status} when asked for {model}; try again later, or pass "
        "a local folder."
    )


def _of_system(error: BaseException, model: str) -> str:
    """Of the disk or the connection."""
    number, said = getattr(error, "errno", None), _without_secrets(reason_of(error))
    cache = constants.HF_HUB_CACHE
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
    if "Consistency check failed" in said:
        return (
            f"A file of {model} came incomplete; repeat the command, which keeps the files that "
            "are complete."
        )
    if isinstance(error, FileMetadataError):
        return (
            f"{endpoint()} does not answer as a hub does when asked for {model}; check "
            "HF_ENDPOINT and the settings of a proxy."
        )
    return (
        f"The hub {endpoint()} cannot be reached for {model} ({said}), and neither a folder nor "
        "the cache holds all of it; check the connection (HF_HUB_ETAG_TIMEOUT=30 waits longer), or "
        "pass a local folder."
    )


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _without_secrets(text: str) -> str:
    return SECRETS.sub("…", text)
