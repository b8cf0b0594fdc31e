"""What a page can ask for, by name, and the border where errors become sentences."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from nulltext.errors import NulltextError
from nulltext.studio import edits, intake, inverting
from nulltext.studio.forms import Asked
from nulltext.studio.house import Studio
from nulltext.studio.session import Session
from nulltext.studio.view import View, view_of
from nulltext.studio.worker import CancelledError, ReplacedError

LOG = logging.getLogger(__name__)

OURS = "Something went wrong here, not with you; the terminal that runs the studio says what."


def cancel(session: Session, asked: Asked) -> Iterator[None]:  # noqa: ARG001
    """Call off what is being made."""
    session.cancel()
    yield


VERBS: dict[str, Callable[[Session, Asked], Iterator[None]]] = {
    "open": intake.open_photo,
    "example": intake.open_example,
    "propose": intake.propose,
    "bring": intake.open_inversion,
    "invert": inverting.invert,
    "look": inverting.look,
    "edit": edits.edit,
    "strip": edits.strip,
    "choose": edits.choose,
    "restore": edits.restore,
    "cancel": cancel,
}
"""Verb to handler; each takes a session and JSON, and yields when there is something to show."""


def handle(studio: Studio, key: str, verb: str, asked: Any) -> Iterator[View]:
    """Do what a page asks, and say how the session looks now, again and again until it is done.

    Args:
        key: whose page it is.
        asked: JSON; whoever can reach the port can send anything.
    """
    session = studio.session(key)
    fields = asked if isinstance(asked, dict) else {}
    session.problem = session.notice = None
    try:
        with session.working():
            for _ in VERBS[verb](session, fields):
                yield view_of(session)
    except ReplacedError:
        pass
    except CancelledError:
        session.notice = "Cancelled."
    except NulltextError as error:
        session.problem = str(error)
    except Exception:
        LOG.exception("The verb %s failed", verb)
        session.problem = OURS
    yield view_of(session)
