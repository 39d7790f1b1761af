"""The page as it is served: its files and their headers, who gets them, and that they are complete."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mistralrs.server.settings import ServerSettings
from mistralrs.server.ui_routes import CONTENT_TYPES, FILES
from tests.server.fake import FakeEngine
from tests.server.harness import Served, fault
from tests.serving import ROOT

pytestmark = pytest.mark.anyio

FOLDER = ROOT / "mistralrs" / "server" / "ui"
KEYS = ServerSettings(api_keys=("secret of the server",))
TEXTS = {name: (FOLDER / name).read_text() for name in ("index.html", *FILES)}
OWN = {name: text for name, text in TEXTS.items() if not name.startswith("vendor/")}
IN_HEADER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def policy_of(header: str) -> dict[str, str]:
    pairs = (directive.strip().partition(" ") for directive in header.split(";"))
    return {name: sources for name, _, sources in pairs}


@pytest.mark.parametrize("name", ["", *FILES])
async def test_each_file_is_served_as_it_is(server: Served, name: str) -> None:
    response = await server.get(f"/ui/{name}" if name else "/ui")
    assert response.status_code == 200
    file = FOLDER / (name or "index.html")
    assert response.content == file.read_bytes()
    assert response.headers["content-type"] == CONTENT_TYPES[file.suffix]
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["", "main.js", "vendor/marked.esm.js"])
async def test_a_policy_forbids_all_that_is_not_the_servers(server: Served, name: str) -> None:
    headers = (await server.get(f"/ui/{name}" if name else "/ui")).headers
    policy = policy_of(headers["content-security-policy"])
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert not re.search(r"unsafe|https?:|data:|\*", headers["content-security-policy"])
    assert headers["referrer-policy"] == "no-referrer"


async def test_a_file_that_a_browser_has_is_not_sent_again(server: Served) -> None:
    first = await server.get("/ui/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await server.get("/ui/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert (await server.get("/ui/style.css")).headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize("address", ["/ui/", "/ui//", "/ui///"])
async def test_an_address_with_slashes_at_its_end_leads_to_the_one_without(server: Served, address: str) -> None:
    moved = await server.get(address)
    assert moved.status_code == 308
    assert (await server.client.get(address, follow_redirects=True)).text == TEXTS["index.html"]


@pytest.mark.parametrize(
    "address",
    ["/ui/index.html", "/ui/README.md", "/ui/vendor/README.md", "/ui/../ui_routes.py", "/ui/%2e%2e/ui_routes.py",
     "/ui/..%2Fui_routes.py", "/ui/vendor", "/ui/main.js/x", "/v1/ui"],
)  # fmt: skip
async def test_nothing_else_is_served(server: Served, address: str) -> None:
    response = await server.get(address)
    assert (response.status_code, fault(response)["code"]) == (404, "unknown_url")


async def test_the_page_is_public_and_its_requests_need_the_key(engine: FakeEngine) -> None:
    server = Served(engine, KEYS)
    for name in ("", *(f"/{name}" for name in FILES)):
        response = await server.get(f"/ui{name}")
        assert response.status_code == 200
        assert KEYS.api_keys[0] not in f"{response.headers} {response.text}"
    for address in ("/v1/models", "/ui/../v1/models", "/ui/nowhere"):
        assert (await server.get(address)).status_code == 401
    assert (await server.chat()).status_code == 401


async def test_the_page_is_there_while_the_model_is_loaded() -> None:
    assert (await Served(None).get("/ui")).status_code == 200


async def test_it_obeys_the_rule_about_hosts(server: Served) -> None:
    response = await server.get("/ui", headers={"host": "evil.example"})
    assert (response.status_code, fault(response)["code"]) == (403, "forbidden_host")


@pytest.mark.parametrize("settings", [ServerSettings(ui=False), ServerSettings(ui=False, api_keys=("key",))])
async def test_it_can_be_left_out(engine: FakeEngine, settings: ServerSettings) -> None:
    server = Served(engine, settings)
    headers = {"authorization": "Bearer key", **IN_HEADER}
    for path in ("/ui", "/ui/main.js"):
        assert (await server.get(path, headers=headers)).status_code == 404
        assert (await server.get(path)).status_code == (401 if settings.api_keys else 404)
    assert (await server.get("/", headers=headers)).text == "OK"


async def test_the_root_leads_browsers_to_it_and_says_ok_to_others(server: Served) -> None:
    browser = await server.get("/", headers=IN_HEADER)
    assert (browser.status_code, browser.headers["location"]) == (307, "ui")
    for accepted in ("*/*", "application/json", ""):
        assert (await server.get("/", headers={"accept": accepted})).text == "OK"


def test_the_list_of_files_is_the_folder() -> None:
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    beside = {"index.html", "vendor/README.md", "vendor/LICENSE-marked.txt", "vendor/LICENSE-dompurify.txt"}
    assert there == {*FILES, *beside}


def test_the_page_asks_for_nothing_from_elsewhere_and_has_no_script_in_itself() -> None:
    allowed = {"http://www.w3.org/2000/svg"}
    for name, text in OWN.items():
        assert set(re.findall(r"https?://[\w./-]+", text)) <= allowed, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
    html = TEXTS["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", html)
    named = set(re.findall(r'(?:src|href)="ui/([^"]+)"', html))
    imported = {path for text in OWN.values() for path in re.findall(r'from "\./([^"]+)"', text)}
    assert named | imported == set(FILES)


def test_files_stay_short() -> None:
    long = {name for name, text in OWN.items() if text.count("\n") > (600 if name.endswith(".css") else 400)}
    assert long == set()


def test_libraries_are_as_their_authors_published_them() -> None:
    table = (FOLDER / "vendor" / "README.md").read_text()
    recorded = dict(re.findall(r"^\| `([\w.-]+)` .* `([0-9a-f]{64})` \|$", table, re.MULTILINE))
    files = [path for path in (FOLDER / "vendor").iterdir() if path.name != "README.md"]
    assert recorded == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert len(recorded) == 4


def test_the_wheel_has_all_of_it(tmp_path: Path) -> None:
    program = f"import scikit_build_core.build as b; b.build_wheel({str(tmp_path)!r}, {{'wheel.cmake': 'false'}})"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        for path in FOLDER.rglob("*"):
            if path.is_file():
                assert packed.read(str(path.relative_to(ROOT))) == path.read_bytes()
