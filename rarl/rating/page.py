"""The rating page, in Gradio: an image, a question, the reference and one answer without a name.

The browser gets nothing that tells models apart: it knows an answer by its position in the rater's queue. Images are
embedded in the page, so that no copies of them are left in Gradio's folders, and the browser is told to load nothing
from any other host.
"""

import base64
import io
import itertools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rarl.errors import UserError
from rarl.images import open_rgb
from rarl.judges.human import LABELS, RATER
from rarl.rating import access
from rarl.rating.session import Session
from rarl.rating.worklist import Item
from rarl.records import image_file
from rarl.reporting.page import NOT_CLINICAL, template

HERE = Path(__file__).parent
PARTS = template("page.html", HERE).module
#: Longest side of an image in the browser, in pixels.
SIDE = 1600
#: `$` and `{` would be read by Gradio's own templates.
MARKS = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;"})
#: Handlers run one at a time and in the order of the clicks: "1, Enter" must not become "Enter, 1".
ONE_AT_A_TIME = {
    "concurrency_id": "rating",
    "concurrency_limit": 1,
    "show_progress": "hidden",
    "api_visibility": "private",
}


def gradio():
    """Import the package, with its telemetry disabled first.

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
    raise UserError("gradio", found, "Gradio 6 for the rating page", "pip install -c constraints.txt -e '.[rate]'")


class RatingPage:
    """The page as Gradio blocks, and what each event shows: component -> its new value.

    Args:
        queue: rater -> what they are to rate, in their order.
        root: folder that the images' paths start from (`data.root`).
        rater: whose page it is; None to ask for a name.
        title: what is rated, for the head of the page.
    """

    def __init__(
        self, queue: Callable[[str], list[Item]], root: str | Path, rater: str | None = None, title: str = ""
    ):
        self.gr = gradio()
        self.queue, self.root, self.rater, self.title = queue, root, rater, title
        self.sessions: dict[str, Session] = {}
        #: Numbers the answers that are shown, which tells `page.js` that another one is there.
        self.shown = itertools.count(1)
        with self.gr.Blocks(title="Human evaluation", analytics_enabled=False) as self.blocks:
            self._add_entrance()
            self._add_work()
            self._connect()

    def _add_entrance(self) -> None:
        gr = self.gr
        self.who = gr.State(None)
        self.place = gr.Number(visible="hidden", elem_id="place", precision=0)
        with gr.Column(visible=self.rater is None, elem_id="door") as self.entrance:
            self.greeting = gr.HTML(html_of("greeting", self.title, ""))
            self.name = gr.Textbox(label="Your name", placeholder="a to z, 0 to 9 and _", elem_id="name")
            self.begin = gr.Button("Start, or go on", variant="primary", elem_id="begin")

    def _add_work(self) -> None:
        gr = self.gr
        with gr.Column(visible=False, elem_id="work") as self.work:
            self.top = gr.HTML(elem_id="top")
            with gr.Row(elem_id="columns"):
                with gr.Column(elem_id="left", min_width=260):
                    self.image = gr.HTML(elem_id="image")
                with gr.Column(elem_id="right", min_width=320):
                    self.case = gr.HTML(elem_id="case")
            with gr.Column(elem_id="controls"):
                with gr.Row(elem_classes="scores"):
                    self.scores = {}
                    with gr.Row(elem_classes="score") as self.reasoning_row:
                        self._add_score("reasoning", "Reasoning")
                    with gr.Row(elem_classes="score"):
                        self._add_score("final", "Final answer")
                self.comment = gr.Textbox(placeholder="Comment", show_label=False, container=False, elem_id="comment")
                with gr.Row(elem_id="moves"):
                    self.moves = {
                        slug: gr.Button(text, elem_id=f"go-{slug}", min_width=60)
                        for slug, text in {"previous": "Previous", "unrated": "Next unrated", "next": "Next"}.items()
                    }
            gr.HTML(html_of("how_to", self.title))

    def _add_score(self, score: str, text: str) -> None:
        self.gr.HTML(text, elem_classes="what")
        for value in (1, 0):
            self.scores[score, value] = self.gr.Button(label(score, value), elem_id=f"{score}-{value}", min_width=60)

    def _connect(self) -> None:
        """Connect each event with its handler."""
        rated = [self.top, *self.scores.values()]
        everything = [*rated, self.place, self.comment, self.image, self.case, self.reasoning_row]
        inputs = [self.who, self.place, self.comment]
        for (score, value), button in self.scores.items():
            button.click(partial(self.rate, score=score, value=value), inputs, rated, **ONE_AT_A_TIME)
        for slug, button in self.moves.items():
            button.click(partial(self.move, where=slug), inputs, everything, **ONE_AT_A_TIME)
        self.comment.blur(self.note, inputs, rated, **ONE_AT_A_TIME)
        opened = [self.who, self.entrance, self.work, self.greeting, *everything]
        if self.rater is None:
            events = [self.begin.click, self.name.submit]
            self.gr.on(events, self.start, [self.name], opened, **ONE_AT_A_TIME)
        else:
            self.blocks.load(lambda: self.start(self.rater), None, opened, **ONE_AT_A_TIME)

    def start(self, name: str) -> dict:
        """Open a rater's first unrated answer, or say why that is not possible."""
        name = name.strip().lower()
        if not RATER.fullmatch(name):
            return {self.greeting: html_of("greeting", self.title, "Please take 1 to 40 of a to z, 0 to 9 and _.")}
        try:
            session = Session(name, self.queue(name))
        except UserError as error:
            return {self.greeting: html_of("greeting", self.title, error.message)}
        if not session.items:
            return {self.greeting: html_of("greeting", self.title, "There is nothing to rate here.")}
        # Two windows of one rater share a session: what one saves, the other shows.
        session = self.sessions.setdefault(name, session)
        return {
            self.who: name,
            self.entrance: self.gr.update(visible=False),
            self.work: self.gr.update(visible=True),
            **self._answer(session, session.next_open() or 0),
        }

    def rate(self, name: str, position: int, comment: str, score: str, value: int) -> dict:
        """Save a score."""
        session = self._session(name)
        self._save(session, position, comment=comment, **{score: value})
        return self._ratings(session, int(position))

    def note(self, name: str, position: int, comment: str) -> dict:
        """Save a comment that was changed."""
        session = self._session(name)
        if comment != session.rating(int(position)).comment:
            self._save(session, position, comment=comment)
        return self._ratings(session, int(position))

    def move(self, name: str, position: int, comment: str, where: str) -> dict:
        """Go to the `previous`, the `next` or the next `unrated` answer."""
        session, position = self._session(name), int(position)
        # What needs no click is saved by moving on, and so is what was scored as another model's answer.
        settled = session.items[position].is_scored(session.rating(position))
        if settled or comment != session.rating(position).comment:
            self._save(session, position, comment=comment)
        if where == "unrated":
            following = session.next_open(position)
            return self._answer(session, position if following is None else following)
        to, last = position + (1 if where == "next" else -1), len(session.items) - 1
        note = {-1: "This is the first answer.", last + 1: "This was the last answer."}.get(to, "")
        return self._answer(session, min(max(to, 0), last), note)

    def _session(self, name: str | None) -> Session:
        if name not in self.sessions:
            raise self.gr.Error("This page is no longer connected to its work. Reload it.", duration=None)
        return self.sessions[name]

    def _save(self, session: Session, position: int, **changes) -> None:
        try:
            session.save(int(position), **changes)
        except OSError as error:
            raise self.gr.Error(f"NOT SAVED: {error}", duration=None) from None

    def _ratings(self, session: Session, position: int, note: str = "") -> dict:
        """The progress and the buttons of one answer."""
        rating, fault = session.rating(position), session.items[position].fault
        state = {self.top: html_of("top", session, position, note)}
        for (score, value), button in self.scores.items():
            pressed = getattr(rating, score) == value
            state[button] = self.gr.update(
                value=label(score, value, pressed),
                variant="primary" if pressed else "secondary",
                interactive=not (score == "final" and fault),
            )
        return state

    def _answer(self, session: Session, position: int, note: str = "") -> dict:
        """Everything that the page shows of one answer."""
        item = session.items[position]
        return self._ratings(session, position, note) | {
            self.place: position,
            self.comment: session.rating(position).comment,
            self.image: image_html(image_file(self.root, item.sample.image)),
            self.case: html_of("case", item, next(self.shown)),
            self.reasoning_row: self.gr.update(visible=item.asks_reasoning),
        }


def label(score: str, value: int, pressed: bool = False) -> str:
    """The text of a score's button; a pressed one is recognisable without colours too."""
    return ("✓ " if pressed else "") + LABELS[score][value].capitalize()


def serve(page, host: str, port: int, auth: list[tuple[str, str]] | None, names: tuple[str, ...] = ()) -> str:
    """Start serving the blocks, and return the address to open, token included.

    `auth` are users and their passwords (None to ask for none), `names` further host names (`access.hosts_of`).

    Raises:
        UserError: the port is taken or the address is not this machine's.
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


def html_of(part: str, *values: object) -> str:
    """Render a macro of `page.html`; texts are escaped for the browser and for Gradio's own templates."""
    return str(getattr(PARTS, part)(*values)).strip().translate(MARKS)


def image_html(path: Path) -> str:
    """The image, or why it cannot be shown."""
    return html_of("image", *png_of(path))


def png_of(path: Path) -> tuple[str, str]:
    """The image as PNG in base64, lossless and without the file's metadata; or "" and why it cannot be shown."""
    try:
        shown = open_rgb(path)
    except OSError as error:
        return "", error.strerror or "not a readable image"
    shown.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii"), ""
