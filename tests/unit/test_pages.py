"""The pages as people use them: markup for screen readers, and, where Chromium is installed, in a real browser.

Debian and Ubuntu: `chromium`. The browser runs without a window and reaches nothing but this machine.
"""

import io
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageStat
from sample_images import draw_bars
from test_annotating import HOSTILE, a_ct, a_sample, annotated, scans
from test_audit import project as releases
from test_audit import run as run_audit
from test_rating import empty_folder, served

from rarl.annotating import sources
from rarl.annotating.session import Item, Session, annotations_file, read_annotations
from rarl.records import write_records

__all__ = ["annotated", "empty_folder", "releases", "scans", "served"]  # the fixtures

ROOT = Path(__file__).parents[2]

#: What axe-core finds at these levels fails a test.
GRAVE = ("serious", "critical")
LOOKS = [("light", 1280), ("dark", 390)]


class Tables(HTMLParser):
    """The header cells (scope, text) and captions of a page's tables, and whether each scrolls by keyboard."""

    def __init__(self, html: str):
        super().__init__()
        self.tables, self.text, self.scroll = [], None, {}
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "div":
            self.scroll = attributes
        if tag == "table":
            self.tables.append({"caption": "", "headers": [], "scroll": self.scroll})
        if tag in ("caption", "th"):
            self.text = ""
        if tag == "th":
            self.tables[-1]["headers"].append([attributes.get("scope"), ""])

    def handle_data(self, data):
        if self.text is not None:
            self.text += data

    def handle_endtag(self, tag):
        if tag == "caption":
            self.tables[-1]["caption"] = self.text
        if tag == "th":
            self.tables[-1]["headers"][-1][1] = self.text.strip()
        if tag in ("caption", "th"):
            self.text = None


def check_tables(html: str, least: int) -> None:
    tables = Tables(html).tables
    assert len(tables) >= least
    for table in tables:
        assert table["caption"], table
        scopes = {scope for scope, _ in table["headers"]}
        assert {"col", "row"} <= scopes <= {"col", "row", "colgroup", "rowgroup"}, table
        assert all(text for _, text in table["headers"]), table
        assert table["scroll"]["tabindex"] == "0" and table["scroll"]["aria-label"] == table["caption"]  # fmt: skip


def test_every_table_of_the_report_has_a_caption_and_named_headers(full):
    _, html, _ = full
    check_tables(html, 30)


def test_every_table_of_the_data_card_has_a_caption_and_named_headers(releases):
    assert run_audit().exit_code == 0
    check_tables(Path("data/audit/data_card.html").read_text(encoding="utf-8"), 4)


def test_nothing_is_said_by_a_tooltip_alone(full):
    root, *_ = full
    own = Path(__file__).parents[2] / "rarl"
    for path in (root / "data/report/report.html", own / "reporting/cases.html", own / "data/data_card.html"):
        assert not re.search(r"<[a-z]+[^>]*\stitle=", path.read_text(encoding="utf-8")), path
    assert ".title" not in (own / "reporting/cases.js").read_text(encoding="utf-8")


# In a browser ---------------------------------------------------------------------------------------


@pytest.fixture
def opened(chromium):
    """Opens a file or an address in a window of its own; an error in a file's script fails the test."""
    contexts, errors = [], []

    def open_page(address: str | Path, theme: str = "light", width: int = 1280, **options):
        context = chromium.new_context(color_scheme=theme, viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        if isinstance(address, Path):
            page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address if isinstance(address, str) else address.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def faults(page) -> list[str]:
    """What axe-core finds serious or critical: the rule, how many elements, and the first of them."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{fault['id']} ({len(fault['nodes'])}): {fault['nodes'][0]['html'][:200]}"
        for fault in found
        if fault["impact"] in GRAVE
    ]


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_axe_finds_nothing_grave_in_report_and_cases(full, opened, theme, width):
    folder = full[0] / "data/report"
    page = opened(folder / "report.html", theme, width)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no scrolling sidewards"  # fmt: skip
    page = opened(folder / "cases.html", theme, width)
    page.wait_for_selector("#list .row")
    assert faults(page) == []


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_axe_finds_nothing_grave_in_the_data_card(releases, opened, theme, width):
    assert run_audit().exit_code == 0
    assert faults(opened(releases / "data/audit/data_card.html", theme, width)) == []


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_axe_finds_nothing_grave_on_the_rating_page(served, opened, theme, width):
    page = opened(served[0], theme, width)
    page.wait_for_selector("#case [data-shown]")
    page.keyboard.press("1")
    page.wait_for_selector("#final-1.primary")
    assert faults(page) == []


def test_the_rating_page_saves_and_goes_on_by_keys_alone(served, opened, empty_folder):
    """Behind its token, with only those of Gradio's paths that are served."""
    page = opened(served[0])
    refused = []
    page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    page.wait_for_selector("#case [data-shown]")
    assert "token" not in page.url
    page.keyboard.press("1")
    page.wait_for_selector("#final-1.primary")
    page.keyboard.press("q")
    page.wait_for_selector("#reasoning-1.primary")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#top h1')?.textContent.startsWith('Answer 2 of')")
    page.reload()
    page.wait_for_function("() => document.querySelector('#top')?.textContent.includes('1 rated')")
    assert len((empty_folder / "data/ratings/anna.jsonl").read_text().splitlines()) == 2
    assert not refused


def shows_row(page, number: int) -> None:
    page.wait_for_function(f"() => document.querySelector('#place').textContent.startsWith('{number} of')")


def is_saved(page) -> None:
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('Saved.')")


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_axe_finds_nothing_grave_on_the_annotation_page(annotated, opened, theme, width):
    page = opened(annotated[1], theme, width)
    shows_row(page, 1)
    page.keyboard.press("e")
    page.keyboard.type(" No effusion.")
    page.wait_for_selector("#in-text:not([hidden])")
    page.evaluate("document.querySelector('details').open = true")
    assert faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no scrolling sidewards"
    landmarks = page.evaluate(
        "[...document.querySelectorAll('header, main, section, form')].map((one) => one.ariaLabel)"
    )
    assert {"Image", "Your annotation", "Draft by sft: nobody has checked it"} <= {*landmarks}
    assert page.get_by_role("textbox", name="Your reasoning").count() == 1
    assert page.get_by_role("combobox", name="Findings").count() == 1


def test_rows_are_annotated_by_keys_alone(annotated, opened):
    own, address = annotated
    page = opened(address)
    shows_row(page, 1)
    assert "token" not in page.url
    keys = page.keyboard
    for number, press in enumerate(("1", "v", "w"), 1):
        shows_row(page, number)
        keys.press(press)
    shows_row(page, 4)
    keys.press("r")
    page.wait_for_function("() => document.activeElement.id === 'text'")
    long = HOSTILE + " x" * 25_000
    keys.insert_text(long)
    is_saved(page)
    page.reload()
    shows_row(page, 4)
    assert page.input_value("#text") == long and page.locator("script").count() == 1
    for key in ("Escape", "f"):
        keys.press(key)
    keys.type("no pleural effusion")
    keys.press("Enter")
    page.wait_for_selector("#findings button")
    for key in ("Escape", "z", "z", "Enter"):
        keys.press(key)
    shows_row(page, 5)
    keys.press("Enter")
    page.wait_for_selector("#alert:not([hidden])")
    assert "no text" in page.inner_text("#alert")
    keys.press("Backspace")
    shows_row(page, 4)
    keys.press("u")
    shows_row(page, 5)
    own.reload()
    found = [own.annotation(number) for number in range(6)]
    verdicts = ["explained", "not_visible", "wrong_question", "explained", None, None]
    assert [one.verdict for one in found] == verdicts
    assert [one.origin for one in found] == ["accepted", "own", "own", "rejected", "own", "own"]
    assert (found[3].text, found[3].findings) == (long, ("no effusion",)) and found[3].seconds > 0
    lines = own.path.read_text().splitlines()
    assert len(lines) == len({*lines}) == sum(one.revision for one in found), "nothing twice"


def test_what_cannot_be_saved_stays_and_is_saved_later(annotated, opened):
    own, address = annotated
    page = opened(address)
    shows_row(page, 1)
    page.on("dialog", lambda dialog: dialog.accept())
    page.route("**/case/*", lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    page.keyboard.press("t")
    page.keyboard.type("Typed while the server was away.")
    page.wait_for_selector("#alert:not([hidden])")
    assert "NOT SAVED" in page.inner_text("#alert")
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.reload()
    shows_row(page, 1)
    assert page.input_value("#text") == "Typed while the server was away.", "not left, and not lost"
    page.unroute_all()
    is_saved(page)
    own.reload()
    assert own.annotation(0).text == "Typed while the server was away."


def test_an_answer_that_was_lost_is_no_conflict(annotated, opened):
    """The server saves and is killed before it answers; meanwhile the rater goes on typing."""
    own, address = annotated
    page = opened(address)
    shows_row(page, 1)

    def lose(route):
        if route.request.method == "POST":
            route.fetch()
            return route.abort()
        return route.continue_()

    page.route("**/case/*", lose)
    page.keyboard.press("t")
    page.keyboard.type("First. ")
    page.wait_for_selector("#alert:not([hidden])")
    page.keyboard.type("Second.")
    page.unroute_all()
    page.wait_for_function("() => document.querySelector('#alert').hidden")
    is_saved(page)
    own.reload()
    assert own.annotation(0).text == "First. Second."


@pytest.fixture
def started():
    """Starts `rarl annotate` as people do, and returns its process and the address that it prints."""
    processes = []

    def start(*arguments: str, port: int = 0):
        command = [sys.executable, "-u", "-m", "rarl", "annotate", "--port", str(port), *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        lines = []
        for line in processes[-1].stdout:
            lines.append(line)
            if "Annotate at " in line:
                return processes[-1], line.split()[-1]
        raise AssertionError("".join(lines))

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_two_raters_annotate_by_keys_alone_while_pages_are_reloaded_and_the_server_is_killed(
    started, opened, empty_folder
):
    """Twenty rows each: nothing is lost, and nothing is there twice."""
    (empty_folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (empty_folder / "data/phantom").mkdir(parents=True)
    for number in range(20):
        draw_bars(empty_folder / f"data/phantom/{number}.png", number)
    write_records("data/curated/train.jsonl", [a_sample(number) for number in range(20)])

    def text_of(rater: str, number: int) -> str:
        return f"{rater}, row {number}: a nodule. {HOSTILE if number == 3 else ''}"

    for rater in ("anna", "ben"):
        process, address = started("--rater", rater, "--raters", "anna,ben", "--overlap", "1")
        page = opened(address)
        page.on("dialog", lambda dialog: dialog.accept())
        keys = page.keyboard
        for number in range(1, 21):
            shows_row(page, number)
            if number % 7 == 5:
                keys.press("w" if number % 2 else "v")
                continue
            keys.press("t")
            keys.insert_text(text_of(rater, number))
            if number == 4:
                page.reload()
                shows_row(page, 4)
                assert page.input_value("#text") == text_of(rater, number)
                keys.press("t")
            if number == 8:
                process.kill()
                process.wait()
                keys.type(" Typed meanwhile.")
                page.wait_for_selector("#alert:not([hidden])")
                process, address = started("--rater", rater, port=int(re.search(r":(\d+)/", address)[1]))
                page.context.new_page().goto(address)  # as the page asks for
                page.wait_for_function("() => document.querySelector('#alert').hidden")
                is_saved(page)
            keys.press("Control+Enter")
        page.wait_for_function("() => document.querySelector('#said').textContent.includes('last row')")
        assert "All 20 rows are finished" in page.inner_text("#status")
        process.kill()
    for rater, own in read_annotations().items():
        assert len(own) == 20 and all(one.verdict for one in own.values())
        lines = annotations_file(rater).read_text().splitlines()
        assert len(lines) == len({*lines}) == sum(one.revision for one in own.values()), "nothing twice"
        texts = sorted(one.text for one in own.values() if one.verdict == "explained")
        typed = [number for number in range(1, 21) if number % 7 != 5]
        meanwhile = {8: " Typed meanwhile."}
        assert texts == sorted(text_of(rater, number) + meanwhile.get(number, "") for number in typed)
    assert {*read_annotations()} == {"anna", "ben"}


def test_a_dicom_image_is_windowed_by_keys_by_the_mouse_and_by_sliders(scans, opened):
    from rarl.annotating.page import Page, Served

    dicom = sources.dicom_files("raw", {sample.image for sample in scans})
    served = Served(Page(Session("anna", [*map(Item, scans)]), "raw", dicom=dicom), 0)
    thread = threading.Thread(target=served.run)
    thread.start()
    try:
        page = opened(served.address)
        shows_row(page, 1)
        assert page.locator("#brightness").is_hidden()

        def image() -> str:
            return page.get_attribute("#frame img", "src")

        def window() -> tuple[float, float]:
            return tuple(float(page.input_value(f"#{name}")) for name in ("centre", "width"))

        assert image().startswith("data:") and window() == (40, 80), "as the model sees it"
        page.keyboard.press("p")
        page.wait_for_function("() => document.querySelector('#frame img').src.includes('centre=400&width=1800')")
        assert window() == (400, 1800)
        page.keyboard.press("b")
        assert window() == (310, 1800)
        page.keyboard.press("k")
        page.wait_for_function("() => document.querySelector('#frame img').src.includes('centre=310&width=1620')")
        frame = page.locator("#frame").bounding_box()
        page.mouse.move(frame["x"] + 100, frame["y"] + 100)
        page.mouse.down()
        page.mouse.move(frame["x"] + 200, frame["y"] + 60)
        page.mouse.up()
        page.mouse.move(frame["x"] + 5, frame["y"] + 5)
        centre, width = window()
        assert centre < 310 and width > 1620
        page.get_by_label("Window centre").fill("500")
        page.wait_for_function("() => document.querySelector('#frame img').src.includes('centre=500&')")
        page.get_by_role("button", name="Lung").click()
        page.wait_for_function("() => document.querySelector('#frame img').src.includes('centre=-600&width=1500')")
        assert page.evaluate("document.querySelector('#frame img').naturalWidth") == 64
        assert faults(page) == []
        page.keyboard.press("n")
        shows_row(page, 2)
        assert page.locator("#centre").is_hidden() and image().startswith("data:")
        page.keyboard.press("b")
        assert page.input_value("#brightness") == "1.1"
        page.keyboard.press("p")
        assert page.input_value("#brightness") == "1"
    finally:
        served.stop()
        thread.join()


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_b_makes_a_dicom_image_brighter_also_where_low_values_are_white(interpretation, empty_folder, opened):
    from rarl.annotating.page import Page, Served

    a_ct(empty_folder / "a.dcm", interpretation)
    draw_bars(empty_folder / "0.png", 0)
    served = Served(Page(Session("anna", [Item(a_sample())]), ".", dicom={"0.png": empty_folder / "a.dcm"}), 0)
    thread = threading.Thread(target=served.run)
    thread.start()
    try:
        page = opened(served.address)
        shows_row(page, 1)
        means = []
        for key in "pb":
            before = page.get_attribute("#frame img", "src")
            page.keyboard.press(key)
            page.wait_for_function(f"() => document.querySelector('#frame img').src !== {before!r}")
            with Image.open(io.BytesIO(page.locator("#frame img").screenshot())) as shown:
                means.append(ImageStat.Stat(shown.convert("L")).mean[0])
        assert means[1] > means[0] + 1
    finally:
        served.stop()
        thread.join()


@pytest.mark.parametrize(("choice", "text"), [("Keep what is here", "Here."), ("Show the other", "Other.")])
def test_two_windows_of_one_row_are_reported(annotated, opened, choice, text):
    own, address = annotated
    page = opened(address)
    shows_row(page, 1)
    own.save(0, 0, {"text": "Other."})
    page.keyboard.press("t")
    page.keyboard.type("Here.")
    page.click(f"#alert button:has-text('{choice}')", delay=300)  # leaving the text saves nothing before the choice
    is_saved(page)
    assert page.input_value("#text") == text and page.locator("#alert").is_hidden()
    own.reload()
    assert own.annotation(0).text == text


def test_the_page_says_where_it_was_made_only_where_that_is_known(full, opened, tmp_path):
    root, html, _ = full
    assert "UTC" in opened(root / "data/report/report.html").inner_text("#origin")
    # The same page elsewhere, and another page beside the record of this one.
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    other = root / "data/report/other.html"
    other.write_text(re.sub('data-page="[0-9a-f]{4}', 'data-page="0000', html), encoding="utf-8")
    for path in (tmp_path / "report.html", other):
        assert "not in this copy" in opened(path).inner_text("#origin")


@pytest.fixture
def cases(full, opened):
    page = opened(full[0] / "data/report/cases.html")
    page.wait_for_selector("#list .row")
    return page


def focused(page) -> str:
    return page.evaluate("document.activeElement.className + ' ' + (document.activeElement.dataset.step ?? '')")


def test_the_focus_stays_in_the_list_of_cases(cases):
    rows = cases.locator("#list .row")
    rows.nth(2).focus()
    cases.keyboard.press("Enter")
    assert focused(cases).strip() == "row here"
    assert rows.nth(2).get_attribute("aria-current") == "true"
    cases.keyboard.press("Tab")
    cases.keyboard.press("Enter")
    assert rows.nth(3).evaluate("(row) => row === document.activeElement && row.matches('.here')")


def test_the_focus_stays_on_next_and_leaves_it_at_the_last_case(cases):
    cases.focus("[data-step='1']")
    first = cases.inner_text("#case code")
    cases.keyboard.press("Enter")
    assert cases.inner_text("#case code") != first and focused(cases).strip() == "1"
    cases.fill("#text", cases.inner_text("#case code"))  # the only one
    cases.fill("#text", "")
    last = cases.evaluate("found.length - 2")
    cases.evaluate(f"open(found[{last}].id)")
    cases.focus("[data-step='1']")
    cases.keyboard.press("Enter")
    assert focused(cases).strip() == "-1", "there is no next one"


@pytest.fixture
def in_parts(full, opened, monkeypatch, tmp_path):
    """The page of cases with ten cases in a part."""
    from rarl.params import load_params
    from rarl.reporting import cases, page
    from rarl.reporting.inputs import Run

    monkeypatch.chdir(full[0])
    monkeypatch.setattr(cases, "PART", 10)
    file = tmp_path / "cases.html"
    file.write_text(page.render_cases(Run(load_params())), encoding="utf-8")

    def go(state: str = ""):
        tab = opened(file)
        tab.goto(file.as_uri() + state)
        tab.wait_for_selector("#list .row")
        return tab

    return go


def test_parts_are_unpacked_as_they_are_needed(in_parts):
    tab = in_parts("#set=slake")  # 80 cases, of which the list shows 60
    assert tab.evaluate("[parts, found.length, document.querySelectorAll('#list .row').length]") == [7, 70, 60]
    assert "70 of the first 70 questions (80 in all)" in tab.inner_text("#count")
    tab.click("#more")
    tab.wait_for_function("() => parts === 8")
    assert tab.locator("#list .row").count() == 80 and tab.locator("#more").is_hidden()
    assert "80 of 80 questions" in tab.inner_text("#count")


def test_a_link_opens_a_case_of_a_later_part(in_parts):
    tab = in_parts("#set=vqa_rad&id=vqa_rad/test/55")
    assert tab.inner_text("#case code") == "vqa_rad/test/55"
    assert tab.locator("#list .row.here").count() == 1


def test_a_search_reads_the_parts_until_it_has_found_enough(in_parts):
    tab = in_parts("#set=vqa_rad")
    tab.fill("#text", "vqa_rad/test/57")
    tab.wait_for_function("() => found.length === 1 && !part()")
    assert tab.inner_text("#case code") == "vqa_rad/test/57" and "1 of 60" in tab.inner_text("#count")


def test_marks_name_their_model(cases):
    text = cases.locator(".marks").first.text_content()
    marks = re.findall(r"(Base|SFT|RL \+ LoRA|RARL) ([✓✗?]) (right|wrong|unscored)", text)
    assert [model for model, *_ in marks] == ["Base", "SFT", "RL + LoRA", "RARL"]
    assert all({"✓": "right", "✗": "wrong", "?": "unscored"}[mark] == word for _, mark, word in marks)


def test_images_are_enlarged_and_windowed_and_stay_so(cases):
    image, frame = cases.locator(".frame img"), cases.locator(".frame")
    size = image.bounding_box()["width"]
    sliders = cases.locator(".controls input")
    sliders.nth(0).fill("3")
    assert image.bounding_box()["width"] == pytest.approx(3 * size, rel=0.1)
    assert frame.evaluate("(frame) => frame.scrollLeft") > 0, "its middle stays in the middle"
    sliders.nth(1).fill("1.5")
    sliders.nth(2).fill("2")
    shown = "brightness(1.5) contrast(2)"
    assert image.evaluate("(image) => image.style.filter") == shown
    before = cases.inner_text("#case code")
    frame.focus()
    cases.keyboard.press("ArrowRight")
    assert cases.inner_text("#case code") == before, "arrows move the enlarged image"
    cases.click("[data-step='1']")
    assert cases.inner_text("#case code") != before
    assert cases.locator(".frame img").evaluate("(image) => image.style.filter") == shown
    cases.click(".controls button")
    assert cases.locator(".frame img").evaluate("(image) => image.style.filter") == "brightness(1) contrast(1)"
