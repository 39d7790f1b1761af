"""Worker processes: limits are enforced, cancelled calls end, and no worker outlives its parent."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import NoReturn

import pytest

from mistralrs.errors import LoadError, RequestError
from mistralrs.text import chat_template
from mistralrs.text.chat_template import MAX_SOURCE, ChatTemplate
from mistralrs.text.worker import Cancellation, CancelledError, Workers, workers

HI = [{"role": "user", "content": "hi there"}]
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
ENDLESS = "{% for i in range(9999) %}{{ range(99999) | sum }}{% endfor %}"
PATIENCE_S = 60.0
"""Longer limits, because other work on the machine may take most of the time."""


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="", eos="")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renderings may take half a second."""
    monkeypatch.setattr(chat_template, "RENDERING", replace(chat_template.RENDERING, cpu_s=0.5))


def doubling(step: str) -> str:
    return "{% set n = namespace(t='0123456789abcdef') %}{% for i in range(60) %}" + step + "{% endfor %}{{ n.t }}"


@pytest.mark.parametrize(
    "source",
    [
        doubling("{% set n.t = n.t ~ n.t %}"),
        doubling("{% set n.t = n.t + n.t %}"),
        doubling("{% set t %}{{ n.t }}{{ n.t }}{% endset %}{% set n.t = t %}"),
        "{% macro twice(t) %}{{ t }}{{ t }}{% endmacro %}" + doubling("{% set n.t = twice(n.t) %}"),
        doubling("{% set t %}{% filter replace('0', n.t) %}{{ n.t ~ 0 }}{% endfilter %}{% endset %}{% set n.t = t %}"),
        doubling("{% set n.t = [n.t, n.t] | join %}"),
        "{{ '%10000000000d' % 1 }}",
        "{{ 'a'.ljust(10 ** 10) }}{{ 'a'.rjust(10 ** 10) }}",
        "{{ 'a'.zfill(10 ** 10) }}",
        "{{ 'a'.center(10 ** 10) }}{{ 'a' | center(10 ** 10) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ 'a'.expandtabs(10 ** 9) }}{{ 'a\tb' * 1000 }}{{ ('\t' * 1000).expandtabs(10 ** 9) }}",
        "{{ ('a' * 9999999) | urlize | escape | wordwrap(1) | list | length }}",
        "{{ strftime_now('%c' * 10 ** 7) }}",
        "{{ ('a' * 9999) .replace('', 'b' * 99999) }}",
        ENDLESS,
    ],
)  # fmt: skip
def test_a_template_that_explodes_is_stopped_and_the_limit_is_named(source: str, hurried: None) -> None:
    with pytest.raises(RequestError, match=r"the chat template took more than (0\.5 s|256 MiB)") as caught:
        template(source).render_any(HI)
    assert caught.value.param == "messages"
    assert template(PLAIN).render_any(HI) == "hi there"


def test_a_template_may_not_be_long() -> None:
    with pytest.raises(LoadError, match="4000000 characters; more than"):
        template("{{a}}" * 800_000)
    with pytest.raises(LoadError, match=r"compiling the chat template took more than|does not compile"):
        template("{% if a %}{{ [" + "[1]," * (MAX_SOURCE // 4 - 20) + "] }}{% endif %}{% for")


def test_a_long_prompt_is_not_written(hurried: None) -> None:
    with pytest.raises(RequestError, match="wrote 30000008 characters"):
        template("{{ 'x' * 30000000 }}" + PLAIN).render_any(HI)


def test_a_failure_has_the_templates_message() -> None:
    chat = template("{{ messages[0].content + 1 }}")
    for render in (chat.render, chat.render_any):
        with pytest.raises(RequestError, match="failed on the messages: can only concatenate str"):
            render(HI)


def test_values_arrive_unchanged() -> None:
    shown = template("{{ v | tojson }}{{ messages[0].content }}").render(
        [{"role": "user", "content": "\ud800\x00é🦙"}], v={"a": [1, 2.5, None, True, 10**30]}
    )
    assert shown == '{"a": [1, 2.5, null, true, 1000000000000000000000000000000]}\ud800\x00é🦙'
    with pytest.raises(RequestError, match="a value that JSON cannot say"):
        template(PLAIN).render([{"role": "user", "content": {1, 2}}])
    assert template(PLAIN).render(HI) == "hi there"


def test_in_another_process_a_template_is_compiled_on_first_use() -> None:
    chat = pickle.loads(pickle.dumps(ChatTemplate(PLAIN + "{{ eos_token }}", bos="", eos="</s>")))
    assert chat.render(HI) == "hi there</s>"


def test_a_dropped_resource_is_loaded_again() -> None:
    chats = [template(PLAIN + str(number)) for number in range(40)]
    for _ in range(2):
        assert [chat.render(HI) for chat in chats] == [f"hi there{number}" for number in range(40)]


def ids() -> set[int]:
    """The ids of this process's children."""
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))


def is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def no_workers() -> Iterator[None]:
    """Ends the workers that other tests started."""
    workers.close()
    yield
    workers.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def cpu_ticks(process: int) -> int:
    """Returns the time that a process has computed, in the system's ticks."""
    with open(f"/proc/{process}/stat") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))


def until_busy(process: int) -> None:
    """Waits until a process has computed for a while."""
    before = cpu_ticks(process)
    until(lambda: cpu_ticks(process) > before + 5)


@linux
def test_a_worker_inherits_no_keys(no_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("TZ", "UTC")
    before = ids()
    template(PLAIN)
    [child] = ids() - before
    with open(f"/proc/{child}/environ") as file:
        names = {entry.partition("=")[0] for entry in file.read().split("\0")}
    assert "TZ" in names
    assert "HF_TOKEN" not in names
    assert set(os.listdir(f"/proc/{child}/fd")) == {"0", "1", "2"}


@linux
def test_a_cancel_does_not_wait(no_workers: None) -> None:
    before = ids()
    chat = template(ENDLESS)
    [child] = ids() - before
    cancellation = Cancellation()
    raised: list[Exception] = []

    def render() -> None:
        with cancellation.entered():
            try:
                chat.render(HI)
            except CancelledError as error:
                raised.append(error)

    thread = threading.Thread(target=render)
    thread.start()
    until_busy(child)
    cancellation.cancel()
    thread.join()
    assert len(raised) == 1  # the template would run until its limit, which is another error
    assert not is_alive(child)
    assert template(PLAIN).render(HI) == "hi there"


@linux
def test_ctrl_c_ends_it(no_workers: None) -> None:
    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = ids()
    chat = template(ENDLESS)
    [child] = ids() - before
    assert os.getpgid(child) != os.getpgid(0)  # a terminal's Ctrl-C would end it first
    previous = signal.signal(signal.SIGALRM, interrupt)

    def press() -> None:
        until_busy(child)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    presser = threading.Thread(target=press)
    try:
        presser.start()
        with pytest.raises(KeyboardInterrupt):
            chat.render(HI)
    finally:
        presser.join()
        signal.signal(signal.SIGALRM, previous)
    assert not is_alive(child)
    assert template(PLAIN).render(HI) == "hi there"


@linux
@pytest.mark.parametrize("source", [PLAIN, ENDLESS])
def test_it_dies_with_its_parent(source: str) -> None:
    program = (
        "import dataclasses, threading, time\n"
        "from mistralrs.text import chat_template\n"
        "from tests.text.test_worker import HI, ids, template\n"
        "chat_template.RENDERING = dataclasses.replace(chat_template.RENDERING, cpu_s=600.0)\n"
        f"chat = template({source!r})\n"
        "threading.Thread(target=lambda: chat.render(HI), daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "print(*ids(), flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        children = set(map(int, parent.stdout.readline().split()))
        assert children
        parent.kill()
    until(lambda: not any(map(is_alive, children)))


@linux
def test_a_busy_process_gets_a_second_and_no_third(no_workers: None) -> None:
    before = ids()
    chats = [template(PLAIN + "{% for i in range(300) %}{% if range(99999) | sum %}{% endif %}{% endfor %}")] * 6
    threads = [threading.Thread(target=chat.render, args=(HI,)) for chat in chats]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(ids() - before))
        time.sleep(0.005)
    assert most == 2


@linux
def test_a_fork_has_its_own(no_workers: None) -> None:
    chat = template(PLAIN)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, chat.render(HI).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"hi there"
    assert chat.render(HI) == "hi there"
    os.close(read)
    os.close(write)


@linux
def test_a_cancel_that_comes_when_the_call_has_ended_costs_no_other_call() -> None:
    own, late = Workers(), Cancellation()
    with late.entered(), own._process():
        late.cancel()
    with own._process() as process:
        assert not process.is_killed
    own.close()


def test_an_idle_process_that_somebody_killed_costs_no_call() -> None:
    own = Workers()
    with own._process() as first:
        pass
    os.kill(first._id, signal.SIGKILL)
    until(first.has_ended)
    with own._process() as second:
        assert second is not first
    own.close()


def test_closing_ends_the_idle_ones() -> None:
    own = Workers()
    before = ids()
    own.start()
    own.start()
    started = ids() - before
    assert len(started) == 1
    own.close()
    assert not any(map(is_alive, started))
