"""The page for everybody: axe-core's rules in light, dark and on a phone, the keyboard, and the width of a phone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.pages import Browser, Page

LAST = "#messages > li:last-child"
EVERYTHING = (
    "say # Rome\n\nThe **capital** of *Italy*, see [the page](https://example.org/rome) or `rome.txt`.\n\n"
    "- one\n  - two\n\n1. first\n\n"
    "```python\ndef f(x):  # a line that is so long that it has to be scrolled on every screen there is, or nearly so\n"
    "    return x\n```\n\n"
    "| City | People | A column that is wide | And another one | And more |\n| --- | ---: | --- | --- | --- |\n"
    "| Rome | 2,800,000 | x | y | z |\n\n> A quotation\n\n- [x] done\n\n"
    "Awordthatissolongthatitfitsonnoscreenofaphoneatallandmustbebroken"
)
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"colorScheme": "light"},
    "dark": {"colorScheme": "dark"},
    "phone": {"colorScheme": "light", "viewport": {"width": 360, "height": 740}, "hasTouch": True, "isMobile": True},
    "dark phone": {
        "colorScheme": "dark",
        "viewport": {"width": 360, "height": 740},
        "hasTouch": True,
        "isMobile": True,
    },
}


def check(page: Page) -> None:
    """Checks axe-core's rules, and that nothing is wider than the screen."""
    serious = [each for each in page.do("axe") if each["impact"] in ("serious", "critical")]
    assert serious == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = page.evaluate(
        "[...document.querySelectorAll('main > *, #thread > *, .single, .beside, .single .foot, .box')]"
        ".filter(each => each.getBoundingClientRect().right > innerWidth + 1).map(each => each.className || each.id)"
    )
    assert wide == []


@pytest.mark.parametrize("look", LOOKS)
def test_axe_finds_no_serious_fault(browser: Browser, address: str, look: str) -> None:
    page = browser.open(address, **LOOKS[look])
    page.wait("#message")
    check(page)
    page.ask(EVERYTHING)
    check(page)
    page.ask("think")
    page.click(f"{LAST} summary")
    page.ask("fail")
    page.click(f"{LAST} >> text=Retry")
    page.wait_until_still()
    check(page)
    page.click(f"{LAST} >> text=Beside each other")
    check(page)
    page.send("count")
    page.until(f"document.querySelector('{LAST} .assistant .body')?.innerText.includes('3')")
    check(page)
    page.press("Escape")
    page.wait_until_still()
    page.click(f"{LAST} >> text=Edit")
    check(page)
    page.press("Escape")
    page.click("#open-settings")
    check(page)
    page.press("Escape")
    if "phone" in look:
        assert page.evaluate("getComputedStyle(document.querySelector('#side')).visibility") == "hidden"
        page.click("#open-side")
        check(page)
        page.press("Escape")
        page.wait("#side", state="hidden")
    page.close()


def test_every_control_is_reached_by_tab_and_shows_it(page: Page) -> None:
    page.ask("hello")
    page.click(f"{LAST} >> text=Retry")
    page.wait_until_still()
    page.do("focus", ".skip")
    reached, unseen = set(), []
    for _ in range(40):
        where, width, opacity = page.evaluate(
            "(() => { const each = document.activeElement, box = each.id === 'message' ? each.parentElement : each;"
            " const style = getComputedStyle(box); return [each.id || each.textContent || each.title,"
            " box === each ? style.outlineWidth : style.boxShadow, style.opacity]; })()"
        )
        reached.add(where)
        if width in ("0px", "none") or opacity == "0":
            unseen.append(where)
        page.press("Tab")
    wanted = {"new-chat", "filter", "open-side", "theme", "open-settings", "message", "send", "Copy", "Retry", "Edit"}
    assert wanted <= reached
    assert unseen == []


def test_the_answer_is_announced_when_it_is_complete(page: Page) -> None:
    page.send("count")
    page.until(f"document.querySelector('{LAST} .assistant .body')?.innerText.includes('3')")
    assert page.count(f"{LAST} [aria-busy=true] [aria-live=polite]") == 1
    assert page.text("[role=status]") == "Answering…"
    page.press("Escape")
    page.wait_until_still()
    assert page.count("[aria-busy=true]") == 0
    assert page.text("[role=status]") == "Stopped."


def test_the_theme_is_the_systems_until_another_is_chosen(browser: Browser, address: str) -> None:
    page = browser.open(address, colorScheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.click("#theme")
    light = page.evaluate(ground)
    assert light != dark
    assert page.evaluate("document.querySelector('#theme').title") == "Theme: light"
    page.do("reload")
    page.wait("#message")
    assert page.evaluate(ground) == light
    page.click("#theme")
    assert page.evaluate(ground) == dark
    page.do("emulateMedia", {"colorScheme": "light"})
    assert page.evaluate(ground) == dark
    page.click("#theme")
    assert page.evaluate(ground) == light
    page.close()
