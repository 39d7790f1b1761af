"""A chat on the page: answers come, stop, branch and are kept, whatever the server does meanwhile."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import address_of, free_port
from tests.browser.pages import Browser, Page
from tests.server.process import ServerProcess, wait_for

LAST = "#messages > li:last-child"
SECRET = "schlüssel-of-the-server"


def counted(page: Page) -> list[str]:
    """Waits until an answer has counted to ten, and returns what it has counted."""
    page.until(f"document.querySelector('{LAST} .assistant .body')?.innerText.includes('10')")
    return page.last_answer().split()


def told_settings(page: Page) -> Any:
    """Returns the settings of a request, which the answer tells."""
    page.ask("settings")
    return json.loads(page.text(f"{LAST} pre"))


def test_an_answer_is_shown_while_it_comes_and_stops_with_escape(page: Page, server: ServerProcess) -> None:
    page.send("count")
    seen = counted(page)
    assert page.count("[aria-busy=true]") == 1
    assert page.text("#status") == "Answering…"
    page.until(f"document.querySelector('{LAST} .body').innerText.split(' ').length > {len(seen) + 10}")
    page.press("Escape")
    page.wait_until_still()
    wait_for(lambda: server.metric("mistralrs_requests_running") == 0)
    assert page.text(f"{LAST} .fault") == "Stopped."
    words = page.last_answer().split()
    assert words == [str(number) for number in range(1, len(words) + 1)]
    page.click(f"{LAST} >> text=Continue")
    page.wait_until_still()
    assert page.last_answer().split() == [*words, "and", "on"]
    assert page.count(f"{LAST} .fault:not([hidden])") == 0


def test_the_button_stops_too_and_the_keyboard_goes_on(page: Page) -> None:
    page.send("count")
    counted(page)
    page.click("#stop")
    page.wait_until_still()
    assert page.evaluate("document.activeElement.id") == "message"
    assert page.ask("hello").startswith("Answer")


def test_enter_sends_and_shift_enter_begins_a_line(page: Page) -> None:
    page.do("focus", "#message")
    for key in ("s", "a", "y", " ", "a", "Shift+Enter", "Shift+Enter", "b"):
        page.press("Space" if key == " " else key)
    assert page.do("inputValue", "#message") == "say a\n\nb"
    page.press("Enter")
    page.until(f"document.querySelector('{LAST} .assistant p + p')")
    assert page.messages() == ["say a\n\nb", "a\n\nb"]
    page.fill("#message", "  \n ")
    page.press("Enter")
    assert page.do("inputValue", "#message") == "  \n "


def test_a_message_that_is_typed_meanwhile_waits(page: Page) -> None:
    page.send("count")
    counted(page)
    page.send("hello")
    assert page.text("#status") == "An answer is coming: Esc stops it."
    page.press("Escape")
    page.wait_until_still()
    assert page.do("inputValue", "#message") == "hello"
    assert page.count("#messages > li") == 2


def test_retried_answers_are_branches(page: Page) -> None:
    first = page.ask("hello")
    page.click(f"{LAST} >> text=Retry")
    page.wait_until_still()
    second = page.last_answer()
    assert first != second
    assert page.text(f"{LAST} .branches") == "2/2"
    page.click(f"{LAST} [aria-label='Previous answer']")
    assert page.messages() == ["hello", first]
    assert page.evaluate("document.activeElement.title") == "Next answer"  # as there is none before
    page.ask("more")
    page.click("#messages > li:nth-child(2) [aria-label='Next answer']")
    assert page.messages() == ["hello", second]
    page.press("Enter")
    assert page.messages()[:3] == ["hello", first, "more"]


def test_answers_stand_beside_each_other(page: Page) -> None:
    first = page.ask("hello")
    page.click(f"{LAST} >> text=Retry")
    page.wait_until_still()
    second = page.last_answer()
    page.click(f"{LAST} >> text=Beside each other")
    page.click(f"{LAST} .taken >> text=Retry")
    page.wait_until_still()
    shown = page.evaluate(f"[...document.querySelectorAll('{LAST} .body')].map(each => each.innerText)")
    assert [shown[0], shown[1], len(shown)] == [first, second, 3]
    tops = page.evaluate(
        f"[...document.querySelectorAll('{LAST} .message')].map(each => each.getBoundingClientRect().y)"
    )
    assert len(set(tops)) == 1
    page.click(f"{LAST} .message:first-child >> text=Go on with this one")
    page.click(f"{LAST} >> text=One at a time")
    assert page.messages() == ["hello", first]


def test_an_edited_message_is_a_branch(page: Page) -> None:
    page.ask("say one")
    page.ask("say two")
    page.do("hover", "#messages > li:first-child")
    page.click("#messages > li:first-child >> text=Edit")
    page.fill(".edit textarea", "say three")
    page.press("Enter")
    page.until("document.querySelectorAll('#messages > li').length === 2")
    page.wait_until_still()
    assert page.messages() == ["say three", "three"]
    page.click("[aria-label='Previous message']")
    assert page.messages() == ["say one", "one", "say two", "two"]


def test_an_edit_can_be_given_up(page: Page) -> None:
    page.ask("say one")
    page.click(f"{LAST} >> text=Edit")
    page.fill(".edit textarea", "another")
    page.press("Escape")
    assert page.messages() == ["say one", "one"]
    assert page.count(".edit") + page.count(".branches") == 0


def test_the_models_own_message_can_be_edited(page: Page) -> None:
    page.ask("say one")
    page.click(f"{LAST} >> text=Edit")
    page.fill(".edit textarea", "eins")
    page.click(".edit >> text=Save")
    assert page.messages() == ["say one", "eins"]
    told = told_settings(page)
    assert "say one\nassistant\neins\nuser\nsettings" in told["prompt"]


def test_chats_outlive_the_page(page: Page, address: str) -> None:
    first = page.ask("hello")
    page.click(f"{LAST} >> text=Retry")
    page.wait_until_still()
    shown = page.messages()
    page.do("reload")
    page.wait(".branches")
    assert page.messages() == shown
    assert page.text("#title") == "hello"
    page.click(".branches [aria-label='Previous answer']")
    assert page.messages() == ["hello", first]
    page.click("#new-chat")
    page.ask("other")
    other = page.tab(address)
    other.wait("#chats li")
    assert other.evaluate("[...document.querySelectorAll('.chat')].map(each => each.innerText)") == ["other", "hello"]
    other.fill("#filter", "HEL")
    assert other.count("#chats li") == 1
    other.click("#chats .chat")
    other.wait(".branches")
    assert other.messages() == ["hello", first]


def test_two_tabs_in_one_chat_make_branches(page: Page) -> None:
    page.ask("say one")
    other = page.tab(page.evaluate("location.href"))
    other.wait(LAST)
    page.ask("say left")
    other.ask("say right")
    page.do("reload")
    page.wait("#messages > li:nth-child(3) .branches")
    assert page.messages() == ["say one", "one", "say right", "right"]
    page.click("[aria-label='Previous message']")
    assert page.messages() == ["say one", "one", "say left", "left"]


def test_chats_are_renamed_and_deleted(page: Page) -> None:
    page.ask("hello")
    page.do("hover", "#chats li")
    page.click("#chats [title^=Rename]")
    page.fill("#question-text", "A better name")
    page.press("Enter")
    page.until("document.querySelector('#title').innerText === 'A better name'")
    page.do("reload")
    page.wait(LAST)
    assert page.text("#title") == "A better name"
    page.do("hover", "#chats li")
    page.click("#chats [title^=Delete]")
    page.click("#question >> text=Cancel")
    assert page.count("#chats li") == 1
    page.click("#chats [title^=Delete]")
    page.click("#question button[type=submit]")
    page.until("!document.querySelector('#chats li')")
    assert page.count("#messages > li") == 0
    page.do("reload")
    page.wait("#welcome")
    assert page.count("#chats li") == 0


def test_an_answer_goes_on_in_a_chat_that_is_left(page: Page) -> None:
    page.send("count")
    seen = counted(page)
    page.click("#new-chat")
    assert page.count("#messages > li") == 0
    page.click("#chats .chat")
    page.until(f"document.querySelector('{LAST} .body')?.innerText.split(' ').length > {len(seen) + 10}")
    page.press("Escape")
    page.wait_until_still()
    words = page.last_answer().split()
    assert words == [str(number) for number in range(1, len(words) + 1)]


def test_settings_arrive_and_stay_with_the_chat(page: Page) -> None:
    page.click("#open-settings")
    page.fill("#set-system", "Be short.")
    page.fill("#set-temperature", "0.25")
    page.fill("#set-topP", "0.5")
    page.fill("#set-maxTokens", "77")
    page.press("Enter")
    told = told_settings(page)
    assert (told["temperature"], told["top_p"], told["max_tokens"]) == (0.25, 0.5, 77)
    assert told["prompt"].startswith("system\nBe short.\nuser\n")
    page.do("reload")
    page.wait(LAST)
    page.click("#open-settings")
    assert page.do("inputValue", "#set-temperature") == "0.25"
    for field in ("system", "temperature", "topP", "maxTokens"):
        page.fill(f"#set-{field}", "")
    page.click("#settings button[type=submit]")
    told = told_settings(page)
    assert (told["temperature"], told["top_p"], told["max_tokens"]) == (1.0, 1.0, None)
    assert told["prompt"].startswith("user\n")


def test_settings_that_make_no_sense_are_not_taken(page: Page) -> None:
    page.click("#open-settings")
    page.fill("#set-topP", "3")
    page.click("#settings button[type=submit]")
    assert page.count("#settings[open] #set-topP:invalid") == 1
    page.press("Escape")
    assert told_settings(page)["top_p"] == 1.0


def test_an_adapter_is_chosen(page: Page) -> None:
    names = []
    for index in (0, 2, 1):
        page.click("#open-settings")
        page.do("selectOption", "#set-model", {"index": index})
        page.click("#settings button[type=submit]")
        names.append(told_settings(page)["adapters"])
    assert names == [None, {"style": 1.0}, {}]
    assert page.text("#model-name") == "tiny · without adapters"


def test_thinking_is_dim_and_folds(page: Page) -> None:
    page.ask("think")
    assert page.last_answer() == "Done."
    assert page.text(f"{LAST} summary").startswith("Thought")
    assert page.evaluate(f"document.querySelector('{LAST} details').open") is False
    page.do("focus", f"{LAST} summary")
    page.press("Enter")
    assert page.text(f"{LAST} .thought") == "I look at it from both sides."
    color = "getComputedStyle(document.querySelector('{}')).color"
    assert page.evaluate(color.format(".thought")) != page.evaluate(color.format(".body"))


def test_an_answer_that_a_limit_cuts_says_so(page: Page) -> None:
    page.ask("limit")
    assert page.text(f"{LAST} .fault") == "Cut at the limit of tokens."
    page.click(f"{LAST} >> text=Continue")
    page.wait_until_still()
    assert page.last_answer().endswith(" and on")


def test_an_error_is_shown_in_the_servers_words(page: Page) -> None:
    page.ask("fail")
    assert page.last_answer() == "Hel"
    assert page.text(f"{LAST} .fault.failed") == "the model failed"
    page.do("reload")
    page.wait(f"{LAST} .fault.failed")
    page.click(f"{LAST} >> text=Retry")
    page.wait_until_still()
    assert page.text(f"{LAST} .branches") == "2/2"


def test_a_request_that_is_refused_keeps_the_message_and_the_hint(
    browser: Browser, serve: Callable[..., ServerProcess]
) -> None:
    with serve(max_body_bytes=5000) as server:
        page = browser.open(address_of(server))
        page.send("x" * 6000)
        page.wait(f"{LAST} .fault.failed")
        assert page.text(f"{LAST} .fault") == "the body is larger than 5000 bytes (send less at once)"
        assert page.messages()[0] == "x" * 6000
        page.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_is_started_again_in_the_middle_of_an_answer(
    browser: Browser, serve: Callable[..., ServerProcess], number: signal.Signals
) -> None:
    settings: dict[str, Any] = {"port": free_port(), "drain_seconds": 0}
    with serve(**settings) as server:
        page = browser.open(address_of(server))
        page.ask("say before")
        page.send("count")
        counted(page)
        server.tell(number)
        server.wait()
    page.wait_until_still()
    words = page.last_answer().split()
    assert words[:10] == [str(number) for number in range(1, 11)]
    assert page.text(f"{LAST} .fault.failed")
    page.send("say too early")
    page.until("document.querySelectorAll('#messages > li').length === 6")
    page.wait_until_still()
    assert "cannot be reached" in page.text(f"{LAST} .fault.failed")
    page.wait("#banner")
    assert page.text("#banner") == "The server cannot be reached. Start it again, or check the connection."
    with serve(**settings) as server:
        assert server.port == settings["port"]
        page.wait("#banner", state="hidden")
        page.click("#messages > li:last-child >> text=Retry")
        page.wait_until_still()
        assert page.messages()[:2] == ["say before", "before"]
        assert page.messages()[-1] == "too early"
        page.do("reload")
        page.wait(LAST)
        assert page.messages()[3].split()[: len(words)] == words
        page.close()


def test_a_model_that_is_still_loaded_is_waited_for(browser: Browser, serve: Callable[..., ServerProcess]) -> None:
    port = free_port()
    with serve(loading="never", port=port):
        wait_for(lambda: can_connect(port))
        page = browser.open(f"http://127.0.0.1:{port}/ui")
        page.wait("#banner")
        assert page.text("#banner") == "the model is being loaded (ask again in a moment)"
    with serve(port=port) as server:
        assert server.port == port
        page.wait("#banner", state="hidden")
        assert page.ask("hello").startswith("Answer")
        page.close()


def test_a_server_with_keys_asks_for_one(browser: Browser, serve: Callable[..., ServerProcess]) -> None:
    with serve(api_keys=[SECRET]) as server:
        page = browser.open(address_of(server))
        page.wait("#key-text")
        assert page.evaluate("document.querySelector('#key-text').type") == "password"
        page.fill("#key-text", "wrong")
        page.press("Enter")
        page.until("document.querySelector('#key')?.innerText.includes('refused')")
        page.fill("#key-text", SECRET)
        page.press("Enter")
        page.until("document.querySelector('#model-name').innerText === 'tiny'")
        assert page.ask("hello").startswith("Answer")
        page.do("reload")
        page.wait(LAST)
        assert page.count("dialog[open]") == 0
        assert page.evaluate("sessionStorage.getItem('mistralrs.key')") == SECRET
        assert page.evaluate("JSON.stringify({...localStorage})").count(SECRET) == 0
        other = page.tab(address_of(server))
        other.wait("#key-text")  # another tab has no key
        page.click("#open-settings")
        page.click("text=Forget the API key")
        page.press("Escape")
        page.send("hello")
        page.wait("#key-text")
        page.close()


def test_a_browser_that_keeps_nothing_still_chats(page: Page) -> None:
    refusal = "indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); };"
    page.do("addInitScript", {"content": refusal})
    page.do("reload")
    page.wait("#storage-note")
    page.ask("say one")
    page.click("#new-chat")
    page.click("#chats .chat")
    assert page.messages() == ["say one", "one"]


def can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
