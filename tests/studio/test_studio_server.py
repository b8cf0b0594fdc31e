"""The studio's server, asked directly: who is let in, what is taken, and what is kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

import nulltext
from nulltext.errors import OptionError, OutputError
from nulltext.studio.addresses import Place, check_password
from nulltext.studio.guard import SECURITY
from nulltext.studio.page import HEARTBEAT
from nulltext.studio.resources import MEGABYTE, Limits
from nulltext.studio.server import TEMPORARY, kept_folder, private_folder, running, state_folder
from support.studios import STEPS, studio_on

PATIENCE = 60
PASSWORD = "Ünsafe & long"


@pytest.fixture(scope="module")
def studio(model):
    with studio_on(nulltext.load(model), model) as made:
        yield made


@pytest.fixture(scope="module")
def address(studio):
    with running(studio, "127.0.0.1", 0) as url:
        yield url


class Client(httpx.Client):
    """What a page sends for one session."""

    def __init__(self, address, session=None, **more):
        self.session = session or secrets.token_hex(16)
        headers = {"session": self.session}
        super().__init__(
            base_url=address, headers=headers, timeout=PATIENCE, trust_env=False, **more
        )
        self.asked = 0

    def ask(self, verb, **fields):
        """Ask and wait; gives the view."""
        self.asked += 1
        fields = {"page": "p", "ask": self.asked, **fields}
        return self.post(f"/ask/{verb}?wait=1", json=fields).json()

    def upload(self, path, name=None):
        answer = self.post("/files", params={"name": name or path.name}, content=path.read_bytes())
        assert answer.status_code == 200, answer.text
        return answer.json()["file"]

    def edit(self, path):
        """Open, invert and edit a photo; gives the last view."""
        self.ask("open", file=self.upload(path))
        self.ask("invert", source="a red cat", method="ddim", steps=STEPS)
        return self.ask("edit", target="a red dog")


@pytest.fixture
def client(address):
    with Client(address) as made:
        yield made


def test_a_script_can_do_what_the_page_does(client, file):
    view = client.edit(file)
    assert (view["problem"], view["running"], len(view["history"])) == (None, [], 1)
    picture = client.get(view["result"]["download"])
    assert picture.headers["content-type"] == "image/png"
    assert "immutable" in picture.headers["cache-control"]
    kept = client.get(view["inversion"]["url"])
    assert kept.headers["content-disposition"].startswith("attachment")
    assert client.post("/recent", json={"ids": [client.session, "0" * 32, 3]}).json() == {
        "photos": [
            {"id": client.session, "name": file.name, "url": view["result"]["url"], "edits": 1}
        ]
    }
    client.post("/forget")
    assert client.get(view["result"]["download"]).status_code == 404
    assert client.post("/recent", json={"ids": [client.session]}).json() == {"photos": []}


def test_a_request_that_comes_again_is_not_done_again(client, file):
    client.edit(file)
    fields = {"target": "a black dog", "page": "q", "ask": 1}
    with contextlib.suppress(httpx.ReadTimeout):
        client.post("/ask/edit?wait=1", json=fields, timeout=0.01)
    first, second = (client.post("/ask/edit?wait=1", json=fields).json() for _ in range(2))
    assert first == second
    assert len(second["history"]) == 2
    assert len(client.ask("edit", target="a black dog", page="other")["history"]) == 3


def test_views_come_as_lines_with_signs_of_life(client, file):
    client.ask("open", file=client.upload(file))
    with client.stream("GET", "/events") as stream:
        lines = stream.iter_lines()
        first = json.loads(next(lines))
        assert first["photo"]["name"] == file.name
        asked = client.post("/ask/invert", json={"source": "a red cat", "steps": STEPS}).json()
        assert asked["running"] == ["invert"]
        views = []
        while not views or views[-1]["running"]:
            line = next(lines)
            views += [json.loads(line)] if line else []
        assert views[-1]["inversion"]
        serials = [view["serial"] for view in views]
        assert serials == sorted(serials)
        before = time.monotonic()
        assert next(lines) == ""
        assert time.monotonic() - before > HEARTBEAT / 2


@pytest.mark.parametrize(
    ("request_of", "status", "said"),
    [
        (lambda c: c.post("/ask/magic", json={}), 404, "There is no verb 'magic'."),
        (lambda c: c.post("/ask/edit", content=b"{"), 400, "cannot be read"),
        (lambda c: c.post("/ask/edit", content=b"[" * 100_000), 400, "cannot be read"),
        (lambda c: c.post("/ask/edit", content=bytes(13 * MEGABYTE)), 413, "too large"),
        (lambda c: c.post("/ask/edit", json={}, headers={"session": "../.."}), 400, "no session"),
        (lambda c: c.get("/events", headers={"session": "x"}), 400, "no session"),
        (lambda c: c.post("/files", content=bytes(81 * MEGABYTE)), 413, "more than 80 MB"),
        (lambda c: c.post("/files", content=iter([b"x"])), 411, "how long"),
        (lambda c: c.get(f"/files/{c.session}/1/session.json"), 404, "not kept"),
        (lambda c: c.get(f"/files/{c.session}/1/..%2fsession.json"), 404, ""),
        (lambda c: c.get("/files/incoming/1/x"), 404, "not kept"),
        (lambda c: c.get("/front/..%2fhandlers.py"), 404, ""),
    ],
)
def test_what_is_refused(client, file, request_of, status, said):
    client.ask("open", file=client.upload(file))
    answer = request_of(client)
    assert answer.status_code == status
    assert said in answer.text


def test_whatever_a_file_holds_no_browser_runs_it(client, studio, tmp_path):
    page = tmp_path / "photo.html"
    Image.effect_noise((64, 64), 50).save(page, "PNG")
    client.ask("open", file=client.upload(page))
    (photo,) = client.post("/recent", json={"ids": [client.session]}).json()["photos"]
    assert photo["name"] == "photo.html"
    (path,) = (studio.folder / client.session).glob("*/photo.html")
    answer = client.get(f"/files/{client.session}/{path.parent.name}/photo.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_every_answer_binds_the_browser(client):
    answers = [
        client.get("/"),
        client.get("/front/page.css"),
        client.get("/nothing"),
        client.post("/ask/edit", json={}),
        client.get("/", headers={"host": "evil.example"}),
        client.post("/ask/edit", headers={"origin": "https://evil.example"}),
        client.options("/ask/edit", headers={"origin": "https://evil.example"}),
    ]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY
        assert not [name for name in answer.headers if name.startswith("access-control")]
    policy = SECURITY["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "LOCALHOST."}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "192.168.0.7"}, 421),
        ({"host": "127.0.0.1@evil.example"}, 421),
        ({"host": "evil.example", "x-forwarded-host": "127.0.0.1"}, 421),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"origin": "https://evil.example", "x-forwarded-host": "evil.example"}, 403),
    ],
)
def test_foreign_pages_and_names_are_refused(client, headers, status):
    assert client.post("/ask/cancel", json={}, headers=headers).status_code == status


def test_a_link_from_elsewhere_opens_the_page_alone(client):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers={**link, "sec-fetch-dest": "document"}).status_code == 200
    assert client.get("/", headers={**link, "sec-fetch-dest": "iframe"}).status_code == 403
    elsewhere = {**link, "sec-fetch-dest": "document"}
    assert client.get("/files/x/1/y", headers=elsewhere).status_code == 403
    assert client.post("/ask/cancel", json={}, headers=elsewhere).status_code == 403


@pytest.mark.parametrize(
    ("place", "name", "served"),
    [
        (Place("127.0.0.1"), "localhost", True),
        (Place("127.0.0.1"), "10.0.0.1", False),
        (Place("0.0.0.0"), "10.0.0.1", True),
        (Place("0.0.0.0"), "evil.example", False),
        (Place("127.0.0.1", "https://example.org/editor"), "example.org", True),
        (Place("127.0.0.1", "/editor"), "example.org", False),
        (Place("studio.lan"), "studio.lan", True),
    ],
)
def test_the_names_that_a_studio_is_served_under(place, name, served):
    assert place.serves(name) is served


def test_others_are_let_in_with_a_password_alone(run):
    code, out, err = run("studio", "--host", "0.0.0.0", "--port", 0, "--no-browser", "--forget")
    assert (code, out) == (2, "")
    assert err.startswith("Error: --host 0.0.0.0 lets others in: give --password")
    assert check_password("0.0.0.0", "", is_open=True) == ""
    assert check_password("0.0.0.0", "x", is_open=False) == "x"
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert check_password(host, "", is_open=False) == ""
    with pytest.raises(OptionError, match="exclude each other"):
        check_password("::", "x", is_open=True)


def test_a_password_is_asked_for_once(model, file, tmp_path):
    loaded = nulltext.load(model)

    def serve():
        stack = contextlib.ExitStack()
        studio = stack.enter_context(studio_on(loaded, model, folder=tmp_path))
        return stack, stack.enter_context(running(studio, "127.0.0.1", 0, "/editor", PASSWORD))

    stack, address = serve()
    with stack, Client(address) as client:
        assert 'type="password"' in client.get("/").text
        assert client.get("/front/page.css").status_code == 200
        for path in ("/front/page.js", "/events", "/files/x/1/y"):
            assert client.get(path).status_code == 401
        assert client.post("/ask/edit", json={}).status_code == 401
        assert client.post("/files", content=b"x").status_code == 401
        wrong = client.post("/login", data={"password": "guess"})
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (403, False)
        assert "That is not the password." in wrong.text
        assert client.post("/login", content=b"password=" + b"x" * 10_000).status_code == 403
        proxied = {"x-forwarded-proto": "https"}
        right = client.post("/login", data={"password": PASSWORD}, headers=proxied)
        assert (right.status_code, right.headers["location"]) == (303, "./")
        attributes = right.headers["set-cookie"].lower()
        for one in ("httponly", "samesite=strict", "path=/editor", "secure"):
            assert one in attributes
        cookie = right.headers["set-cookie"].partition(";")[0]
        assert PASSWORD not in cookie
        client.headers["cookie"] = cookie
        assert client.get("/front/page.js").status_code == 200
        assert client.edit(file)["result"]
        session = client.session
        assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    stack, address = serve()
    name = f"nulltext-{address.rpartition(':')[2]}"
    with stack, Client(address, session) as client:
        client.headers["cookie"] = f"{name}={cookie.partition('=')[2]}"
        assert len(client.ask("cancel")["history"]) == 1


def test_a_flood_of_uploads_fills_no_disk(model, file):
    limits = Limits(upload_bytes=MEGABYTE, total_bytes=5 * MEGABYTE)
    with (
        studio_on(nulltext.load(model), model, limits=limits) as studio,
        running(studio, "127.0.0.1", 0) as address,
    ):
        owner = Client(address)
        assert owner.edit(file)["result"]
        stop, most = threading.Event(), [0]

        def watch():
            while not stop.wait(0.01):
                most[0] = max(most[0], size_of(studio.resources.folder))

        watching = threading.Thread(target=watch)
        watching.start()
        for _ in range(12):
            with Client(address) as stranger:
                for _ in range(3):
                    assert stranger.post("/files", content=bytes(MEGABYTE)).status_code == 200
        stop.set()
        watching.join()
        assert 2 * MEGABYTE < most[0] <= limits.total_bytes + MEGABYTE
        assert len(owner.ask("cancel")["history"]) == 1, "what was never opened goes first"
        owner.close()


def size_of(folder):
    """Bytes of the files in a folder that changes."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
    return total


def test_the_oldest_session_makes_room_but_none_that_is_shown(model, file):
    with studio_on(nulltext.load(model), model) as studio, running(studio, "127.0.0.1", 0) as url:
        clients = [Client(url) for _ in range(3)]
        for client in clients:
            client.edit(file)
        each = size_of(studio.folder) // 3
        with clients[0].stream("GET", "/events") as stream:
            lines = stream.iter_lines()  # the stream ends with it
            next(lines)
            studio.resources.limits = Limits(total_bytes=round(3.5 * each))
            fourth = Client(url)
            fourth.edit(file)
            ids = [client.session for client in (*clients, fourth)]
            photos = fourth.post("/recent", json={"ids": ids}).json()["photos"]
            assert [one["id"] for one in photos] == [ids[0], ids[2], ids[3]]
        studio.resources.limits = Limits(total_bytes=each // 2)
        refused = fourth.post("/files", content=bytes(each))
        assert refused.status_code == 507
        assert "no space left" in refused.json()["problem"]


def test_a_session_within_its_bytes_drops_its_oldest_edits(model, file):
    with studio_on(nulltext.load(model), model) as studio, running(studio, "127.0.0.1", 0) as url:
        client = Client(url)
        client.edit(file)
        bound = size_of(studio.folder / client.session)
        studio.resources.limits = Limits(session_bytes=round(1.4 * bound))
        for target in ("a black dog", "a bright dog", "a blue dog"):
            view = client.ask("edit", target=target)
        view = client.ask("cancel")
        assert 1 <= len(view["history"]) < 4
        assert view["history"][0]["target"] == "a blue dog"
        assert size_of(studio.folder / client.session) <= round(1.4 * bound)


def test_what_is_old_is_removed_at_the_next_start(model, file, tmp_path):
    loaded = nulltext.load(model)
    with (
        studio_on(loaded, model, folder=tmp_path) as studio,
        running(studio, "127.0.0.1", 0) as url,
    ):
        old, new, damaged = (Client(url) for _ in range(3))
        for client in (old, new, damaged):
            client.edit(file)
    month = 31 * 24 * 60 * 60
    os.utime(studio.folder / old.session / "session.json", (time.time() - month,) * 2)
    (studio.folder / damaged.session / "session.json").write_text("{")
    (studio.folder / ("0" * 32)).mkdir()
    with (
        studio_on(loaded, model, folder=tmp_path) as studio,
        running(studio, "127.0.0.1", 0) as url,
    ):
        assert not (studio.folder / old.session).exists()
        assert not (studio.folder / ("0" * 32)).exists()
        for session, kept in ((old.session, 0), (new.session, 1), (damaged.session, 0)):
            with Client(url, session) as client:
                assert len(client.ask("cancel")["history"]) == kept
        assert (studio.folder / f"{damaged.session}-damaged").is_dir()


def test_two_studios_do_not_share_a_folder(tmp_path):
    folder = tmp_path / "new" / "studio"
    with kept_folder(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with pytest.raises(OutputError, match="Another studio keeps its photos in"):
            kept_folder(folder).__enter__()
    with kept_folder(folder):
        pass


def test_folders_of_killed_studios_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hold = (
        "import sys, time; from nulltext.studio.server import private_folder\n"
        "with private_folder() as folder:\n"
        "    (folder / 'photo').touch(); print(folder, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def start():
        command = [sys.executable, "-c", hold]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        return process, Path(process.stdout.readline().strip())

    (killed, left), (living, used) = start(), start()
    killed.kill()
    killed.wait()
    other = tmp_path / f"{TEMPORARY}not-locked"
    other.mkdir()
    with private_folder():
        assert (left.exists(), used.exists(), other.exists()) == (False, True, True)
    living.terminate()
    living.wait()


def test_the_folder_is_where_the_system_keeps_states(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert re.search(r"nulltext/studio$", state_folder().as_posix())
    if sys.platform == "linux":
        assert state_folder() == tmp_path / "nulltext" / "studio"
