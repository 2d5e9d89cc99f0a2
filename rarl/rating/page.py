"""The rating page, in Gradio: a picture, a question, the reference and one answer without a name.

The browser gets nothing that tells models apart: an answer is known to the page by its place in the
rater's queue. Pictures travel inside the page, so that no copies of them are left in Gradio's
folders, and the browser is told to load nothing from any other host.
"""

import base64
import html
import io
import itertools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rarl.errors import UserError
from rarl.images import open_rgb
from rarl.judges.human import RATER, SAID
from rarl.model_card import NOT_CLINICAL
from rarl.rating import access
from rarl.rating.desk import Desk
from rarl.rating.worklist import Item
from rarl.records import image_file

HERE = Path(__file__).parent
#: Longest side of a picture in the browser, in pixels.
SIDE = 1600
HOW_TO = """
<details class="how"><summary>How to rate, and the keys</summary>
<p><b>Final answer</b>: right if it says what the reference answer says, in whatever words.
<b>Reasoning</b>: sound if it says what the annotated reasoning says: the same findings, leading to the same
conclusion. Each is judged by itself. What you press is saved at once; press the other to correct it.</p>
<p><kbd>1</kbd> right <kbd>0</kbd> wrong &ensp; <kbd>Q</kbd> sound <kbd>W</kbd> not sound &ensp; <kbd>C</kbd> comment
(<kbd>Esc</kbd> leaves it) &ensp; <kbd>Enter</kbd> next <kbd>Backspace</kbd> previous <kbd>U</kbd> next unrated &ensp;
<kbd>Z</kbd> or a click enlarges the picture.</p></details>
"""


def gradio():
    """The package, told before its import to report to nobody.

    Raises:
        UserError: it is not installed, or too old.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError:
        found = "the package is not installed"
    else:
        if int(gradio.__version__.split(".")[0]) >= 6:
            return gradio
        found = f"version {gradio.__version__}"
    raise UserError(
        "gradio", found, "Gradio 6, which the rating page is made with", "pip install -c constraints.txt -e '.[rate]'"
    )


def build(queue: Callable[[str], list[Item]], root: str | Path, rater: str | None = None, title: str = ""):
    """The page as Gradio blocks.

    Args:
        queue: rater -> what they are to rate, in their order.
        root: folder that the pictures' paths start from (`data.root`).
        rater: whose page it is; None to ask for a name.
        title: what is rated, for the head of the page.
    """
    gr = gradio()
    desks: dict[str, Desk] = {}
    turns = itertools.count(1)

    def draw(desk: Desk, position: int, note: str = "", moved: bool = True) -> dict:
        """What the page shows of one answer; without picture, texts and comment where they stay.

        `data-turn` tells `page.js` that another answer is there.
        """
        rating = desk.rating(position)
        item = desk.items[position]
        state = {top: top_html(desk, position, note)}
        for score, buttons in (("final", finals), ("reasoning", reasonings)):
            for value, button in buttons.items():
                pressed = getattr(rating, score) == value
                state[button] = gr.update(
                    value=label(score, value, pressed),
                    variant="primary" if pressed else "secondary",
                    interactive=not (score == "final" and item.fault),
                )
        if moved:
            state |= {
                place: position,
                comment: rating.comment,
                picture: picture_html(image_file(root, item.sample.image)),
                case: f"<div data-turn='{next(turns)}'>{case_html(item)}</div>",
                reasoning_row: gr.update(visible=item.asks_reasoning),
            }
        return state

    def start(name: str) -> dict:
        name = name.strip().lower()
        if not RATER.fullmatch(name):
            return {greeting: greeting_html(title, "Please take 1 to 40 of a to z, 0 to 9 and _.")}
        try:
            desk = Desk(name, queue(name))
        except UserError as error:
            return {greeting: greeting_html(title, error.message)}
        if not desk.items:
            return {greeting: greeting_html(title, "There is nothing to rate here.")}
        # Two windows of one rater share a desk: what one saves, the other shows.
        desk = desks.setdefault(name, desk)
        at = desk.next_open()
        return {
            who: name,
            entrance: gr.update(visible=False),
            work: gr.update(visible=True),
            **draw(desk, 0 if at is None else at),
        }

    def desk_of(name: str | None) -> Desk:
        if name not in desks:
            raise gr.Error("This page is no longer connected to its work. Reload it.", duration=None)
        return desks[name]

    def score(name: str, position: int, said: str, what: str, value: int) -> dict:
        desk = desk_of(name)
        saved(desk, position, comment=said, **{what: value})
        return draw(desk, int(position), moved=False)

    def noted(name: str, position: int, said: str) -> dict:
        desk = desk_of(name)
        if said != desk.rating(int(position)).comment:
            saved(desk, position, comment=said)
        return draw(desk, int(position), moved=False)

    def move(name: str, position: int, said: str, where: str) -> dict:
        desk, position = desk_of(name), int(position)
        # What needs no click is saved by going on, and so is what was scored as another model's answer.
        settled = desk.items[position].is_scored(desk.rating(position))
        if settled or said != desk.rating(position).comment:
            saved(desk, position, comment=said)
        last = len(desk.items) - 1
        if where == "unrated":
            at = desk.next_open(position)
            return draw(desk, position if at is None else at)
        to = position + (1 if where == "next" else -1)
        note = {-1: "This is the first answer.", last + 1: "This was the last answer."}.get(to, "")
        return draw(desk, min(max(to, 0), last), note)

    def saved(desk: Desk, position: int, **changes) -> None:
        try:
            desk.save(int(position), **changes)
        except OSError as error:
            raise gr.Error(f"NOT SAVED: {error}", duration=None) from None

    with gr.Blocks(title="Human evaluation", analytics_enabled=False) as page:
        who = gr.State(None)
        place = gr.Number(visible="hidden", elem_id="place", precision=0)
        with gr.Column(visible=rater is None, elem_id="door") as entrance:
            greeting = gr.HTML(greeting_html(title))
            name = gr.Textbox(label="Your name", placeholder="a to z, 0 to 9 and _", elem_id="name")
            begin = gr.Button("Start, or go on", variant="primary", elem_id="begin")
        with gr.Column(visible=False, elem_id="work") as work:
            top = gr.HTML(elem_id="top")
            with gr.Row(elem_id="desk"):
                with gr.Column(elem_id="left", min_width=260):
                    picture = gr.HTML(elem_id="picture")
                with gr.Column(elem_id="right", min_width=320):
                    case = gr.HTML(elem_id="case")
            with gr.Column(elem_id="controls"):
                with gr.Row(elem_classes="scores"):
                    with gr.Row(elem_classes="score") as reasoning_row:
                        gr.HTML("Reasoning", elem_classes="what")
                        reasonings = _pair(gr, "reasoning")
                    with gr.Row(elem_classes="score"):
                        gr.HTML("Final answer", elem_classes="what")
                        finals = _pair(gr, "final")
                comment = gr.Textbox(placeholder="Comment", show_label=False, container=False, elem_id="comment")
                with gr.Row(elem_id="moves"):
                    moves = {
                        slug: gr.Button(text, elem_id=f"go-{slug}", min_width=60)
                        for slug, text in {"previous": "Previous", "unrated": "Next unrated", "next": "Next"}.items()
                    }
            gr.HTML(HOW_TO + f"<p class='small'>{escaped(title)}</p>")

        buttons = [*finals.values(), *reasonings.values()]
        shown = [top, *buttons]
        all_shown = [*shown, place, comment, picture, case, reasoning_row]
        # One at a time and in the order of the clicks: "1, Enter" must not become "Enter, 1".
        one = {
            "concurrency_id": "rating",
            "concurrency_limit": 1,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        said = [who, place, comment]
        for what, pair in (("final", finals), ("reasoning", reasonings)):
            for value, button in pair.items():
                button.click(partial(score, what=what, value=value), said, shown, **one)
        for slug, button in moves.items():
            button.click(partial(move, where=slug), said, all_shown, **one)
        comment.blur(noted, said, shown, **one)
        opened = [who, entrance, work, greeting, *all_shown]
        if rater is None:
            gr.on([begin.click, name.submit], start, [name], opened, **one)
        else:
            page.load(lambda: start(rater), None, opened, **one)
    return page


def _pair(gr, score: str) -> dict:
    """The two buttons of a score, by value."""
    return {value: gr.Button(label(score, value), elem_id=f"{score}-{value}", min_width=60) for value in (1, 0)}


def label(score: str, value: int, pressed: bool = False) -> str:
    """The words on a score's button; that it is pressed is to be seen without colours too."""
    return ("✓ " if pressed else "") + SAID[score][value].capitalize()


def serve(page, host: str, port: int, auth: list[tuple[str, str]] | None, names: tuple[str, ...] = ()) -> str:
    """Start serving the page.

    Args:
        names: names by which the page is reached besides this machine's own (`access.hosts_of`).

    Returns:
        the address to open, token included.

    Raises:
        UserError: the port is taken or the address is none of this machine's.
    """
    gr = gradio()
    token = access.new_token()
    system = ["system-ui", "sans-serif"]
    theme = gr.themes.Soft(primary_hue="teal", font=system, font_mono=["ui-monospace", "monospace"], radius_size="md")
    try:
        page.launch(
            server_name=host,
            server_port=port,
            auth=auth,
            auth_message=NOT_CLINICAL,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            inbrowser=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            allowed_paths=[],
            footer_links=[],
            theme=theme,
            css=(HERE / "page.css").read_text(encoding="utf-8"),
            head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
            app_kwargs={"middleware": access.middleware(host, port, token, names)},
        )
    except OSError:
        raise UserError(
            f"--host {host} --port {port}",
            "cannot listen there: the port is taken, or the address is not this machine's",
            "a free port at an address of this machine",
            "name another with --port, or leave out --host",
        ) from None
    return access.address(host, port, token)


# What the page shows ---------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Text that is nothing but text, for the browser and for Gradio's own templates.

    >>> escaped("<b>${x}")
    '&lt;b&gt;&#36;&#123;x&#125;'
    """
    marks = {"$": "&#36;", "{": "&#123;", "}": "&#125;"}
    return html.escape(text).translate(str.maketrans(marks))


def greeting_html(title: str, problem: str = "") -> str:
    trouble = f"<p class='trouble' role='alert'>{escaped(problem)}</p>" if problem else ""
    return (
        "<h1>Human evaluation</h1><p>You will see pictures with a question, the reference answer, and the "
        "answer of a model whose name is hidden. Say for each whether it is right. Come back under the same "
        f"name to go on where you stopped.</p><p class='small'>{escaped(title)} {NOT_CLINICAL}</p>{trouble}"
    )


def top_html(desk: Desk, position: int, note: str = "") -> str:
    """The progress, and a note below it."""
    total, done = len(desk.items), desk.done
    if done == total:
        note = f"All {total} answers are rated. Thank you! You can still go back and correct."
    return (
        f"<div class='bar'><h1>Answer {position + 1} of {total}</h1>"
        f"<span>{done} rated</span><span class='rater'>{desk.rater}</span>"
        f"<span class='notice'>{NOT_CLINICAL}</span></div>"
        f"<progress max='{total}' value='{done}' aria-label='rated'></progress>"
        f"<p class='note' role='status'>{escaped(note)}</p>"
    )


def picture_html(path: Path) -> str:
    """The picture itself, as PNG: without loss, and without what the file says besides."""
    try:
        shown = open_rgb(path)
    except OSError as error:
        reason = error.strerror or "not a readable picture"
        return f"<p class='trouble'>The picture cannot be shown: {escaped(reason)}.</p>"
    shown.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<img alt='The picture that is asked about' src='data:image/png;base64,{data}'>"


def case_html(item: Item) -> str:
    """Question, reference and answer."""
    sample, prediction = item.sample, item.prediction
    # CV-Bench's questions name their options themselves.
    named = all(choice in sample.question for choice in sample.choices)
    choices = "".join(
        f"<li>({chr(ord('A') + number)}) {escaped(choice)}</li>"
        for number, choice in enumerate([] if named else sample.choices)
    )
    answer = _text(prediction.answer)
    if item.fault:
        answer += f"<p class='fault'>Counts as wrong: {escaped(item.fault)}.</p>"
    # A completion that was not read as reasoning and answer is shown as it is.
    strange = prediction.think is None and prediction.completion.strip() != prediction.answer
    return (
        f"<section><h2>Question</h2>{_text(sample.question)}{f'<ul>{choices}</ul>' if choices else ''}</section>"
        f"<section class='reference'><h2>Reference answer</h2>{_text(' / '.join(sample.answers))}"
        f"{f'<h3>Annotated reasoning</h3>{_text(sample.reasoning)}' if sample.reasoning else ''}</section>"
        "<section class='model'><h2>Model's answer</h2>"
        f"<h3>Reasoning</h3>{_text(prediction.think or '')}<h3>Final answer</h3>{answer}"
        f"{f'<h3>The whole text</h3>{_text(prediction.completion)}' if strange else ''}</section>"
    )


def _text(text: str) -> str:
    text = text.strip()
    return f"<p class='text'>{escaped(text)}</p>" if text else "<p class='none'>(none)</p>"
