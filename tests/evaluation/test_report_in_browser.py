"""The report in a real browser: Debian's Chromium, without a screen."""

import struct

import pytest

from browser import Browser, missing_programs
from made_evaluation import save_evaluation
from mimi_bridge.evaluation.report.page import write_report

MISSING = ", ".join(missing_programs())
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not on the PATH: apt-get install chromium-driver")
CONTRAST = """
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, style")) continue;
    const layers = []; let opacity = 1;
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e); layers.push(rgba(style.backgroundColor)); opacity *= style.opacity;
    }
    const below = layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
    const ink = rgba(getComputedStyle(element).color); ink[3] *= opacity;
    const [light, dark] = [luminance(over(ink, below)), luminance(below)].sort((a, b) => b - a);
    found.push([(light + 0.05) / (dark + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def opened(browser, made):
    """The browser, in which the report has just been opened; its logs hold nothing from before."""
    browser.open(made[0])  # leaves the page before
    for kind in ("browser", "performance"):
        browser.log(kind)
    browser.show_as(1280, 900, dark=False)
    browser.open(made[0] / "report.html")
    return browser


def element(selector, number, player=0):
    return f"document.querySelectorAll('.player')[{player}].querySelectorAll('{selector}')[{number}]"


def press(opened, number, player=0):
    opened.run(f"{element('button', number, player)}.click()")


def at_once(opened, condition, then="true"):
    """As soon as a condition holds in the page, and before the sound goes on: the value of an expression there."""
    return opened.run(
        "return new Promise((resolve) => { const look = setInterval(() => {"
        f"if ({condition}) {{ clearInterval(look); resolve((() => {{ return {then}; }})()); }} }}, 5); }});"
    )


def test_page_opens_without_a_complaint_and_asks_for_nothing_else(opened, made):
    press(opened, 0)
    at_once(opened, f"{element('audio', 0)}.currentTime > 0")
    assert opened.log("browser") == []
    requests = [address for address in opened.requests() if not address.startswith("data:")]
    assert requests == [(made[0] / "report.html").as_uri()]


def test_sound_really_plays_to_its_end(opened, made):
    audio, button = element("audio", 0), element("button", 0)
    press(opened, 0)
    label, duration, height = at_once(
        opened,
        f"{audio}.currentTime > 0.3",
        f"[{button}.ariaLabel, {audio}.duration, document.querySelector('.playhead').clientHeight]",
    )
    assert label.startswith("Pause original") and height > 100
    assert duration == pytest.approx(made[1]["examples"][0]["seconds"], abs=0.06)
    assert at_once(opened, f"{button}.ariaLabel.startsWith('Play original')", f"{audio}.paused") is True


def test_every_sound_can_be_decoded(opened):
    opened.run("for (const sound of document.querySelectorAll('audio')) { sound.preload = 'auto'; sound.load(); }")
    durations = "[...document.querySelectorAll('audio')].map((sound) => sound.duration || 0)"
    at_once(opened, f"{durations}.every((seconds) => seconds > 0.9)")
    assert len(opened.run(f"return {durations}")) == 3 * 5 + 2


def test_one_sound_stops_another_and_goes_on_from_its_place(opened):
    press(opened, 0)
    at_once(opened, f"{element('audio', 0)}.currentTime > 0.4", f"{element('button', 2)}.click()")
    started = at_once(opened, f"{element('audio', 2)}.currentTime > 0", f"{element('audio', 2)}.currentTime")
    assert started >= 0.4
    assert opened.run(f"return {element('audio', 0)}.paused")


def test_sound_of_another_example_starts_at_its_beginning(opened):
    press(opened, 0)
    other = element("audio", 1, player=1)
    at_once(opened, f"{element('audio', 0)}.currentTime > 0.5", f"{element('button', 1, player=1)}.click()")
    playing = "[...document.querySelectorAll('audio')].filter((sound) => !sound.paused)"
    count, seconds = at_once(opened, f"{other}.currentTime > 0", f"[{playing}.length, {other}.currentTime]")
    assert count == 1 and seconds < 0.5


def test_button_pressed_twice_at_once_is_no_error(opened):
    for _ in range(3):
        opened.run(f"const button = {element('button', 1)}; button.click(); button.click();")
    at_once(opened, f"{element('audio', 1)}.paused")
    assert opened.log("browser") == []


def test_click_into_a_spectrogram_plays_from_there(opened, made):
    audio, box = element("audio", 1), f"{element('.spectrogram', 1)}.getBoundingClientRect()"
    opened.run(f"{audio}.addEventListener('playing', () => {{ window.startedAt = {audio}.currentTime; }})")
    opened.run(f"scrollTo(0, {box}.top - 300)")
    x, y, width = opened.run(f"const {{left, top, width}} = {box}; return [left, top + 20, width]")
    for kind in ("mousePressed", "mouseReleased"):
        opened.devtools("Input.dispatchMouseEvent", type=kind, x=x + width / 2, y=y, button="left", clickCount=1)
    started = at_once(opened, "window.startedAt !== undefined", "window.startedAt")
    assert started == pytest.approx(made[1]["examples"][0]["seconds"] / 2, abs=0.05)
    assert opened.run(f"return {element('audio', 0)}.currentTime") == 0


def test_arrow_keys_move_by_half_a_second(opened):
    press(opened, 0)
    key = "dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', cancelable: true}))"
    audio, button = element("audio", 0), element("button", 0)
    after = at_once(
        opened, f"{audio}.currentTime > 0.6", f"[{audio}.currentTime, {button}.{key}, {audio}.currentTime]"
    )
    assert after[1] is False  # the page does not scroll
    assert after[0] - after[2] == pytest.approx(0.5, abs=0.02)


def test_other_probe_is_shown_at_a_click(opened):
    shown = "return [...document.querySelectorAll('.matrix')].map((table) => table.checkVisibility())"
    assert opened.run(shown) == [True, False]
    opened.run("document.querySelector('label[for=show-2]').click()")
    assert opened.run(shown) == [False, True]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_page_never_scrolls_sideways_but_wide_tables_do(opened, width):
    opened.show_as(width, 800, dark=False)
    assert opened.run("return document.documentElement.scrollWidth") <= width
    wide = opened.run(
        "return [...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
    )
    assert bool(wide) == (width < 1000)


def test_names_of_rows_stay_in_view_when_a_table_scrolls(opened):
    opened.show_as(390, 800, dark=False)
    seen = opened.run(
        "const box = document.querySelector('.scroll'); box.scrollIntoView(); box.scrollLeft = 150;"
        "const name = box.querySelector('tbody th'); const {left, top, width, height} = name.getBoundingClientRect();"
        "const at = (x) => document.elementFromPoint(left + x, top + height / 2);"
        "return [box.scrollLeft, [1, 20, width - 5].map((x) => at(x) === name)];"
    )
    assert seen == [150, [True, True, True]]


def test_page_with_endless_words_never_scrolls_sideways(browser, short):
    folder, evaluation = short
    word = "Donaudampfschifffahrtsgesellschaft" * 10
    evaluation |= {"model": word, "reference": word, "command": word, "not_run": {word: word}}
    evaluation["systems"][0]["label"] = evaluation["systems"][1]["label"] = word
    evaluation["examples"][0] |= {"id": word, "speaker": word, "text": word}
    evaluation["examples"] *= 2
    evaluation["swaps"] = [{"content_of": word, "voice_of": word, "audio": word[:200], "numbers": {word: word}}]
    evaluation["swap_summary"] = {word: 1.0}
    evaluation["probes"]["attributes"][word] = {"kind": word, "chance": 0.1, "count": 1, "what": word}
    evaluation["codes"]["bridge"][0]["head"] = word
    save_evaluation(folder, evaluation)
    browser.show_as(390, 800, dark=False)
    browser.open(write_report(folder, max_megabytes=0.1))
    assert browser.run("return document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_has_enough_contrast(opened, dark):
    opened.show_as(1280, 900, dark=dark)
    contrasts = opened.run(CONTRAST)
    assert len(contrasts) > 400
    assert contrasts[0][0] >= 4.5, contrasts[:5]


def test_every_control_and_picture_has_a_name(opened):
    nameless = (
        "img:not([alt]), button:not([aria-label]), audio:not([aria-label]), svg:not([aria-label], [aria-hidden])"
    )
    assert opened.run(f"return document.querySelectorAll('{nameless}').length") == 0
    assert opened.run("return [...document.querySelectorAll('th')].every((th) => th.scope && th.textContent.trim())")
    labels = opened.run("return [...document.querySelectorAll('button')].map((button) => button.ariaLabel)")
    assert len(labels) == len(set(labels)) == 3 * 5 + 2


def test_without_its_script_the_page_has_the_browsers_own_players(browser, made):
    browser.devtools("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(made[0] / "report.html")
        count = "[...document.querySelectorAll('audio')].filter((s) => s.controls && s.clientHeight > 20).length"
        answer = browser.devtools("Runtime.evaluate", expression=count, returnByValue=True)
        assert answer["result"]["value"] == 3 * 5 + 2
    finally:
        browser.devtools("Emulation.setScriptExecutionDisabled", value=False)


def test_text_of_the_json_runs_no_script(browser, short):
    folder, evaluation = short
    nasty = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
    evaluation["examples"][0] |= {"id": nasty, "text": nasty}
    save_evaluation(folder, evaluation)
    browser.open(write_report(folder))
    assert browser.run("return window.hit ?? null") is None
    assert nasty in browser.run("return document.querySelector('blockquote').innerText")


@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_picture_of_the_page_shows_something(opened, width, dark, tmp_path):
    opened.show_as(width, 900, dark=dark)
    (tmp_path / "page.png").write_bytes(opened.picture())
    picture = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (width, 900)
    assert len(picture) > 20_000  # of one colour: 4,000
