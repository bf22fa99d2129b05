"""The page in a browser: ask, stream, stop, another chip, side by side, reload, a server that goes and comes back.

TAYGETA_PICTURES=docs/images writes the pictures of the documents.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

import pytest

pytest.importorskip("websockets")
from browser import CHROMIUM, PHONE, WIDE, Browser, Page
from page_server import NAME, PageServer, free_port
from running import wait_for

from taygeta.endpoint.synthetic import split
from taygeta.serving.live import live_fleet

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

TEXT = ".turn:last-child .answer .text"
IDLE = "document.querySelector('#stop').hidden && document.querySelectorAll('.turn').length"
OSL = 60


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with PageServer(osl=OSL, others=["h100"]) as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    found = browser.page()
    found.prefer("light")
    yield found
    complaints, addresses = found.complaints(), found.addresses()
    found.close()
    assert not complaints
    assert not {a for a in addresses if not re.match(r"http://127\.0\.0\.1:\d+/(v1/|page/|$|#)|about:blank", a)}


def ask(page: Page, text: str = "one two three") -> None:
    page.click("#question")
    page.type(text)
    page.press("Enter")


def shown(page: Page, selector: str) -> dict[str, str]:
    """Return the numbers of a list of terms."""
    every = f"[...document.querySelectorAll({json.dumps(selector + ' div')})]"
    return dict(page.js(f"{every}.map(d => [...d.children].map(c => c.innerText))"))


def of_all(page: Page, selector: str, expression: str) -> list[Any]:
    """Return an expression of each element e."""
    return page.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {expression})")


def row(page: Page, name: str) -> str:
    """Return the row of a table of the catalogue."""
    return next(text for text in of_all(page, "#entries tr", "e.innerText") if text.startswith(name))


def test_an_answer_streams_at_the_pace_of_the_chip(page: Page, server: PageServer) -> None:
    page.goto(server.root)
    ask(page)
    page.wait("document.querySelectorAll('.answer.streaming').length === 1")
    some = page.wait(f"document.querySelector('{TEXT}').textContent.split(' ').length > 5 && "
                     f"document.querySelector('{TEXT}').textContent")  # fmt: skip
    assert page.js("document.querySelector('#send').disabled")
    page.wait(IDLE)
    whole = page.text(TEXT)
    assert whole.startswith(some[:20])
    assert len(split(some)) < len(split(whole)) == OSL

    # The same request by a fleet of its own: what the page says is what the simulator says.
    live = live_fleet(server.service.live.setup.fleet, server.service.bounds.context)
    prompt = len(server.service.source.encode_chat([("user", "one two three")]))
    live.submit(0.0, prompt, OSL)
    times = [d.at for d in live.advance_until(100.0)]
    gap = median_low(sorted(b - a for a, b in pairwise(times)))
    found = shown(page, ".answer .timing")
    assert found["tokens"] == str(OSL)
    assert float(found["TTFT"].removesuffix(" ms")) == pytest.approx(times[0] * 1e3, rel=0.02)
    assert float(found["ITL"].removesuffix(" ms")) == pytest.approx(gap * 1e3, rel=0.02)
    assert float(found["tokens/s"]) == pytest.approx((OSL - 1) / (times[-1] - times[0]), rel=0.02)
    page.wait("[...document.querySelectorAll('.panel .numbers div')].some(d => d.innerText.match(/batch\\s+0/))")
    panel = shown(page, ".panel .numbers")
    assert (panel["queue"], panel["TTFT"], panel["ITL"]) == ("0", found["TTFT"], found["ITL"])


def test_the_chip_beside_it(page: Page, server: PageServer) -> None:
    page.goto(server.root)
    ask(page)
    page.wait("[...document.querySelectorAll('.panel .numbers div')].some(d => d.innerText.match(/batch\\s+1/))")
    page.wait(IDLE)
    text = page.text(".panel")
    assert "1 × Microsoft Maia 100" in text
    assert re.search(r"Last step 1\d\.\d+ ms", text)
    assert re.search(r"1 sequence decodes at \d\d tokens", text)
    assert re.search(r"attention\s+[\d.]+ ms", text)
    assert re.search(r"main memory\s+[\d.]+ ms", text)
    assert page.js("document.querySelector('.panel .bar i').getBoundingClientRect().width") > 10


def test_stop(page: Page, server: PageServer) -> None:
    before = server.service.metrics.finished["abort"]
    page.goto(server.root)
    ask(page)
    page.wait(f"document.querySelector('{TEXT}')?.textContent.split(' ').length > 3")
    page.click("#stop")
    page.wait(IDLE)
    assert page.text(".ended") == "Stopped."
    assert 3 <= len(split(page.text(TEXT))) < OSL
    assert page.js("document.activeElement.id") == "question"
    wait_for(lambda: server.service.live.use().running == 0)
    assert server.service.metrics.finished["abort"] == before + 1
    ask(page, "again")
    page.wait(f"{IDLE} === 2")
    assert len(split(page.text(TEXT))) == OSL


def test_clear_while_an_answer_streams(page: Page, server: PageServer) -> None:
    """Nothing stays behind, nothing breaks, and the next question is answered."""
    page.goto(server.root)
    ask(page)
    page.wait(f"document.querySelector('{TEXT}')?.innerText.length > 0")
    page.click("#clear")
    page.wait("document.querySelector('#stop').hidden && !document.querySelectorAll('.turn').length")
    ask(page)
    page.wait(f"{IDLE} === 1")
    assert len(split(page.text(TEXT))) == OSL


def test_another_chip_is_asked_again(page: Page, server: PageServer) -> None:
    page.goto(server.root)
    ask(page)
    page.wait(IDLE)
    first = page.text(TEXT)
    page.choose("#first", "Llama-3.1-8B@h100")
    assert "H100" in page.text(".panel summary")
    page.click("#again")
    page.wait(f"{IDLE} === 2")
    assert page.text(TEXT) == first  # the same request: the same prompt, the same seed
    labels = of_all(page, ".answer h3", "e.innerText")
    assert ["Maia" in labels[0], "H100" in labels[1]] == [True, True]
    gaps = of_all(page, ".answer .timing", "parseFloat(e.innerText.match(/ITL\\s+([\\d.]+)/)[1])")
    assert gaps[1] < gaps[0]


def test_two_chips_side_by_side_one_of_them_new(page: Page) -> None:
    with PageServer(osl=OSL) as server:
        page.goto(server.root)
        page.click("#adding summary")
        page.choose("#add select[name=chip]", "h100")
        page.js("document.querySelector('#add [name=count]').value = 7")
        page.choose("#add select[name=weights]", "fp8")
        page.click("#add button")
        page.wait("!document.querySelector('#add .problem').hidden || document.querySelector('#second').value")
        assert page.js("document.querySelector('#second').value") == "Llama-3.1-8B@h100:7,weights=fp8"
        ask(page)
        page.wait("document.querySelectorAll('.answer.streaming').length === 2")
        page.wait(IDLE)
        texts = of_all(page, ".answer .text", "e.innerText")
        assert len(texts) == 2
        assert texts[0] == texts[1]
        left, right = of_all(page, ".answer", "e.getBoundingClientRect().toJSON()")
        assert left["right"] <= right["left"]
        assert left["top"] == right["top"]
        assert page.js("document.querySelectorAll('.panel').length") == 2
        page.click("#adding summary")
        page.js("document.querySelector('#add [name=count]').value = 7")
        page.click("#add button")
        message = page.wait("document.querySelector('#add .problem').innerText")
        assert message == "Llama-3.1-8B@h100:7,weights=fp8 is served already."


def test_reload_keeps_the_conversation_and_the_chips(page: Page, server: PageServer) -> None:
    page.goto(server.root)
    page.choose("#second", "Llama-3.1-8B@h100")
    ask(page, "<img src=x onerror=alert(1)> & <b>bold</b>")
    page.wait(IDLE)
    before = page.text("#turns")
    assert "<img src=x onerror=alert(1)> & <b>bold</b>" in before  # text is text
    ask(page, "more")
    page.wait(f"document.querySelector('{TEXT}')?.textContent.split(' ').length > 3")
    page.reload()
    assert page.text("#turns").startswith(before)
    assert page.js("document.querySelector('#second').value") == "Llama-3.1-8B@h100"
    assert page.text(".turn:last-child .ended") == "Cut off by a reload."
    wait_for(lambda: not any(service.live.use().running for service in server.fleets))  # nobody waits for it
    page.click("#again")
    page.wait(f"{IDLE} === 3")
    assert len(split(page.text(TEXT))) == OSL
    page.click("#clear")
    assert page.js("document.querySelectorAll('.turn').length") == 0
    page.reload()
    assert page.text("#turns").startswith("Talk to a chip")


@pytest.mark.parametrize("how", ["in good order", "at once"])
def test_a_lost_connection(page: Page, how: str) -> None:
    port = free_port()
    with PageServer(osl=4000, port=port, grace=0.1) as first:
        page.goto(first.root)
        ask(page)
        page.wait(f"document.querySelector('{TEXT}')?.textContent.split(' ').length > 3")
        if how == "at once":
            first.vanish()
        else:
            first.stop()
            first.thread.join(20)
            first.listening.close()
        page.wait("!document.querySelector('#connection').hidden")
        assert page.text("#connection") == ("The connection to the server is lost. The page tries again every second.")
        page.wait(IDLE)
        expected = "The server has stopped." if how == "in good order" else "The connection was lost."
        assert page.text(".ended") == expected
        assert page.js("document.querySelector('#send').disabled && document.querySelector('#again').disabled")
    with PageServer(osl=5, port=port):
        page.wait("document.querySelector('#connection').innerText === 'Connected again.'")
        page.click("#again")
        page.wait(f"{IDLE} === 2")
        wait_for(lambda: len(split(page.text(TEXT))) == 5)  # drawn a frame later
        if how == "at once":
            page.wait("document.querySelector('#connection').hidden")


def test_by_keyboard_and_for_a_screen_reader(page: Page, server: PageServer) -> None:
    page.goto(server.root)
    said = page.js("""(() => { globalThis.heard = [];
        new MutationObserver(() => heard.push(document.querySelector('#said').textContent))
            .observe(document.querySelector('#said'), {childList: true, characterData: true, subtree: true});
        return document.querySelector('#said').getAttribute('aria-live'); })()""")
    assert said == "polite"
    order = []
    for _ in range(12):
        page.press("Tab")
        name = "(e => e.id || e.getAttribute('href') || `${e.tagName}.${e.parentElement.id}`)(document.activeElement)"
        order.append(page.js(name))
        if order[-1] == "question":
            break
    assert order == [
        "skip", "#chat", "#chat", "#results", "#catalogue", "theme", "first", "second", "SUMMARY.adding", "SUMMARY.",
        "turns", "question",
    ]  # fmt: skip
    page.type("one two three")
    page.press("Enter")
    page.wait(IDLE)
    heard = page.js("heard")
    assert len(heard) > 2  # as sentences end, not all at the end
    assert " ".join(heard) == page.text(TEXT)
    page.press("Tab")
    page.press("Tab")
    assert page.js("document.activeElement.id") == "again"
    page.press(" ")
    page.wait(f"{IDLE} === 2")
    for role in ("button", "combobox", "textbox", "link", "complementary", "log", "navigation"):
        names = page.names(role)
        assert names, role
        assert all(names), (role, names)
    page.js("location.hash = '#results'")
    page.wait("!document.querySelector('#results').hidden")
    for role in ("button", "combobox", "textbox", "spinbutton"):
        assert all(page.names(role)), role
    assert page.js("[...document.querySelectorAll('h1')].filter(h => h.checkVisibility()).length") == 1
    page.js("document.querySelector('#skip').focus()")
    page.press("Enter")
    assert page.js("document.activeElement.id") == "main"


def test_on_a_phone(page: Page, server: PageServer) -> None:
    page.goto(server.root)
    for size in (PHONE, (320, 640)):
        page.resize(size)
        page.reload()
        assert not page.js("document.querySelector('.panel').open")  # a line each, until it is opened
        page.choose("#second", "Llama-3.1-8B@h100")
        ask(page)
        page.wait(IDLE)
        page.click(".panel summary")
        page.wait("document.querySelector('.panel').open")
        for view in ("#chat", "#results", "#catalogue", "#catalogue/chip/maia-100"):
            page.js(f"location.hash = '{view}'")
            page.wait("document.querySelector('.view:not([hidden])').id === location.hash.slice(1).split('/')[0]")
            if view.startswith("#catalogue"):
                title = "maia" if "chip" in view else "Cat"
                page.wait(f"document.querySelector('#entries h1')?.innerText.startsWith('{title}')")
            wide = page.js("[document.documentElement.scrollWidth, innerWidth]")
            assert wide[0] <= wide[1], (size, view)
        page.js("location.hash = '#chat'")
        one, other = of_all(page, ".turn:last-child .answer", "e.getBoundingClientRect().toJSON()")
        assert one["bottom"] <= other["top"]
        small = page.js(
            "[...document.querySelectorAll('button, select, input, textarea')].filter(e => e.checkVisibility())"
            ".filter(e => e.getBoundingClientRect().height < 24).map(e => e.id || e.name)"
        )
        assert not small  # WCAG 2.2, 2.5.8


def test_light_and_dark(page: Page, server: PageServer) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(20, 24, 28)"
    page.goto(server.root)
    assert page.js(paper) == light
    page.prefer("dark")
    assert page.js(paper) == dark
    page.choose("#theme", "light")
    assert page.js(paper) == light
    page.reload()
    assert (page.js(paper), page.js("document.querySelector('#theme').value")) == (light, "light")
    page.choose("#theme", "dark")
    page.prefer("light")
    assert page.js(paper) == dark
    page.choose("#theme", "auto")
    assert page.js(paper) == light


def test_results(page: Page, server: PageServer) -> None:
    page.goto(f"{server.root}#results")
    assert page.js("document.querySelector('#compare [name=model]').value") == NAME
    page.js("document.querySelector('#compare [name=chips]').value = 'h100:1, nothing'")
    page.click("#compare button")
    message = page.wait("document.querySelector('#refused').innerText")
    assert message == "There is no chip 'nothing' in the catalogue: write CHIP:COUNT such as h100:8."
    page.js("document.querySelector('#compare [name=chips]').value = 'h100:1, maia-100:1'")
    page.click("#compare button")
    page.wait("document.querySelectorAll('#result figure svg').length === 4", 60)
    assert page.js("document.querySelector('#refused').hidden")
    assert page.text("#result h2") == f"{NAME} on 2 kinds of chip"
    assert page.js("document.activeElement.id") == "result"
    fills = set(of_all(page, "#result svg path", "getComputedStyle(e).fill"))
    assert "rgb(42, 120, 184)" in fills
    page.prefer("dark")  # the plots follow the page
    assert "rgb(98, 169, 226)" in of_all(page, "#result svg path", "getComputedStyle(e).fill")
    page.js("document.querySelector('#simulate [name=fleet]').value = 'h100:1'")
    page.click("#simulate button")
    page.wait("document.querySelectorAll('#result figure svg').length === 3", 60)
    assert page.text("#result h2") == f"{NAME} on h100:1"


def test_catalogue(page: Page, server: PageServer) -> None:
    page.goto(f"{server.root}#catalogue")
    page.wait("document.querySelectorAll('#entries table').length === 2")
    page.click("a[href='#catalogue/chip/maia-100']")
    page.wait("document.querySelector('#entries h1').innerText.startsWith('maia-100')")
    assert re.match(r"hbm.bandwidth\s+1.8 TB/s\s.*Hot Chips 2024", row(page, "hbm.bandwidth"))
    assert re.match(r"sram.per_core\s+4 MB\s+3 MB to 5 MB\s+assumed: ", row(page, "sram.per_core"))
    page.js("history.back()")
    page.wait("document.querySelector('#entries h1').innerText === 'Catalogue'")
    page.js("location.hash = '#catalogue/model/openai/gpt-oss-120b'")
    page.wait("document.querySelector('#entries h1').innerText.startsWith('openai/gpt-oss-120b')")
    page.js("location.hash = '#catalogue/chip/nothing'")
    page.wait("document.querySelector('#entries .problem')?.innerText.startsWith('The catalogue has nothing')")


def test_a_key_is_asked_for(page: Page) -> None:
    with PageServer("a-key-for-tests", osl=5) as server:
        page.call("Page.navigate", url=server.root)
        page.wait("document.querySelector('#keys').open")
        page.type("wrong-key")
        page.press("Enter")
        page.wait("document.querySelector('#keys').open && !document.querySelector('#key').value")
        page.type("a-key-for-tests")
        page.press("Enter")
        page.ready()
        ask(page)
        page.wait(IDLE)
        assert len(split(page.text(TEXT))) == 5
        page.reload()  # it is kept for this tab
        assert not page.js("document.querySelector('#keys').open")


def test_pictures(page: Page, tmp_path: Path) -> None:
    """GPT-OSS 120B on eight Maia 100 and on eight H100, as the documents show it."""
    folder = Path(os.environ.get("TAYGETA_PICTURES") or tmp_path)
    with PageServer(osl=76, others=["h100:8"], model="openai/gpt-oss-120b", chip="maia-100:8") as server:
        page.goto(server.root)
        page.picture(folder / "page-start.png")
        page.choose("#second", "gpt-oss-120b@h100")
        ask(page, "What does each chip do while it answers?")
        page.wait(IDLE)
        time.sleep(0.5)  # the last look at the fleets is drawn
        page.js("document.activeElement.blur()")
        page.picture(folder / "page-chat.png")
        page.resize(PHONE, 2.0)
        page.prefer("dark")
        page.js("document.querySelectorAll('.panel').forEach(p => p.open = false); scrollTo(0, 0)")
        page.picture(folder / "page-phone.png")
        page.resize(WIDE)
        page.prefer("light")
        page.js("location.hash = '#results'")
        page.js("document.querySelector('#compare [name=concurrency]').value = 64")
        page.click("#compare button")
        page.wait("document.querySelectorAll('#result figure svg').length === 4", 60)
        page.resize((1280, 1500))
        page.js("scrollTo(0, 0)")
        page.picture(folder / "page-results.png")
        page.resize(WIDE)
        page.js("location.hash = '#catalogue/chip/maia-100'")
        page.wait("document.querySelector('#entries h1')?.innerText.startsWith('maia-100')")
        page.js("document.querySelector('#entries .scroll').closest('section').scrollIntoView()")
        page.picture(folder / "page-catalogue.png")
    for name in ("start", "chat", "phone", "results", "catalogue"):
        assert (folder / f"page-{name}.png").stat().st_size > 10_000


def test_picture_of_a_report(browser: Browser, tmp_path: Path) -> None:
    """The report of `make demo`, as README shows it: its command is README's first. It asks for nothing but itself."""
    folder = Path(os.environ.get("TAYGETA_PICTURES") or tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    line = next(line for line in readme.splitlines() if line.startswith("$ taygeta compare"))
    report = tmp_path / "report.html"
    words = line.removeprefix("$ taygeta ").split()
    subprocess.run([sys.executable, "-m", "taygeta", *words, "--html", str(report)], check=True, capture_output=True)
    page = browser.page()
    page.prefer("light")
    page.call("Page.navigate", url=report.as_uri())
    page.wait("document.readyState === 'complete' && document.querySelectorAll('svg').length > 1")
    page.resize((860, 1320))
    page.picture(folder / "compare.png")
    assert not page.complaints()
    assert page.addresses() == {report.as_uri()}
    page.close()
    assert (folder / "compare.png").stat().st_size > 10_000
