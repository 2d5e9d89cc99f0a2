"""The annotation page and its server: a Starlette application, behind the token of the rating page.

| request | response |
|---|---|
| `GET /` | the page, without anything of a row |
| `GET /case/<n>` | the n-th row of the rater's queue as JSON, with its image as a PNG without metadata |
| `GET /case/<n>/image?centre=<c>&width=<w>` | its DICOM image in that window, of the values in the file |
| `POST /case/<n>` | saves a change, and returns what has become of the annotation |

The browser knows a row by its place in the queue. It is told to load nothing from any other host, and texts are set as
text, never as HTML.
"""

import io
import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rarl.annotating.session import NAMES, Session, Stale, tags
from rarl.data.dicom import to_image, values_of
from rarl.errors import UserError
from rarl.rating import access
from rarl.rating.page import SIDE, png_of
from rarl.records import Sample, image_file
from rarl.reporting.page import template

HERE = Path(__file__).parent
#: The paths of `access.is_served`.
PATHS = ("/", "/page.js", "/case/")
STALE = "This row was changed in another window."
#: Usual windows of CT images, in Hounsfield units.
CT = {"Lung": (-600, 1500), "Soft tissue": (40, 400), "Bone": (400, 1800), "Brain": (40, 80)}
#: A CT image whose lowest value is below this has Hounsfield units: it shows some air.
AIR = -500


class Page:
    """The application of one rater's session.

    Args:
        session: the rater's rows.
        root: the folder that the images' paths start from.
        about: a sentence about the rows.
        dicom: image -> the DICOM file that it was made of (`rarl.annotating.sources`).
    """

    def __init__(self, session: Session, root: str | Path, about: str = "", dicom: Mapping[str, Path] | None = None):
        self.session, self.root, self.about, self.template = session, root, about, template("page.html", HERE)
        self.dicom = dicom or {}

    def html(self) -> str:
        """The page, which opens the first unfinished row."""
        return self.template.render(session=self.session, terms=NAMES, about=self.about)

    def application(self, middleware: Sequence = ()):
        """The Starlette application."""
        from starlette.applications import Starlette
        from starlette.responses import FileResponse, HTMLResponse
        from starlette.routing import Route

        routes = [
            Route("/", lambda request: HTMLResponse(self.html())),
            Route("/page.js", lambda request: FileResponse(HERE / "page.js", media_type="text/javascript")),
            Route("/case/{position:int}", self.show),
            Route("/case/{position:int}/image", self.windowed),
            Route("/case/{position:int}", self.save, methods=["POST"]),
        ]
        return Starlette(routes=routes, middleware=list(middleware))

    async def show(self, request):
        """One row with its image."""
        from starlette.responses import JSONResponse

        position = request.path_params["position"]
        if position >= len(self.session.items):
            return JSONResponse({"error": "There is no such row; reload the page."}, 404)
        sample = self.session.items[position].sample
        image, problem = png_of(image_file(self.root, sample.image))
        row = {
            "sample": sample.model_dump(include={"question", "choices", "answers"}),
            "window": self.window_of(sample),
        }
        return JSONResponse(self.state(position) | row | {"image": image, "problem": problem})

    def window_of(self, sample: Sample) -> dict | None:
        """The range of a DICOM image's values and its windows, by name; None where there is nothing to window."""
        try:
            values = values_of(self.dicom[sample.image])
        except (KeyError, ValueError):  # no DICOM image, or changed since `curate` has read it
            return None
        if values is None or values.high - values.low < 1:
            return None
        *header, whole = values.windows
        presets = {f"Header {number}": window for number, window in enumerate(header, 1)}
        usual = CT if sample.modality == "ct" and values.low < AIR else {}
        presets |= {name: window for name, window in usual.items() if window not in header}
        presets |= {"All": whole}
        return {"low": values.low, "high": values.high, "inverted": values.inverted, "presets": [*presets.items()]}

    def windowed(self, request):
        """A DICOM image in a window; 404 if there is none, 422 if the window is not possible."""
        from starlette.responses import PlainTextResponse, Response

        try:
            image = self.session.items[request.path_params["position"]].sample.image
            centre, width = (float(request.query_params[name]) for name in ("centre", "width"))
            if not (math.isfinite(centre) and math.isfinite(width)):
                raise ValueError("no number")
            shown = to_image(self.dicom[image], (centre, max(width, 1.0)))
        except (KeyError, IndexError):
            return PlainTextResponse("No DICOM image.\n", 404)
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", 422)
        shown.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        shown.save(buffer, format="PNG", compress_level=1)
        return Response(buffer.getvalue(), media_type="image/png", headers={"Cache-Control": "no-store"})

    async def save(self, request):
        """Save a change; 409 if the row was changed elsewhere, 422 if it is not possible, 507 if it is not written."""
        from starlette.responses import JSONResponse

        position = request.path_params["position"]
        try:
            changes = await request.json()
            self.session.save(position, changes.pop("revision"), changes, changes.pop("seconds", 0.0))
        except Stale:
            return JSONResponse(self.state(position) | {"error": STALE}, 409)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            return JSONResponse({"error": f"Not saved: {error}."}, 422)
        except OSError as error:
            return JSONResponse({"error": f"NOT SAVED: {error.strerror or error}."}, 507)
        return JSONResponse(self.state(position))

    def state(self, position: int) -> dict:
        """What a change of a row can change, and what is proposed for it."""
        session = self.session
        item, annotation = session.items[position], session.annotation(position)
        proposals = [asdict(proposal) for proposal in item.proposals]
        for number, proposal in enumerate(proposals):
            by = proposal.pop("by")  # of a reader, not even the pseudonym
            reader = f"Reader {'ABCDEFGH'[number % 8]}"
            proposal["title"] = reader if item.adjudicates else f"Draft by {by}: nobody has checked it"
        return {
            "position": position,
            "total": len(session.items),
            "done": session.done,
            "open": session.next_open(position),
            "content": item.content,
            "annotation": annotation.model_dump(include={"text", "findings", "verdict", "origin", "revision"}),
            "in_text": [tag for tag in tags(annotation.text) if tag not in annotation.findings],
            "proposals": proposals,
        }


class Served:
    """The server of a page: `address` to open, `run` until Ctrl-C or `stop`.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, page: Page, port: int):
        import uvicorn

        try:
            self.socket = socket.create_server((access.LOCAL[0], port))
        except OSError:
            found, fix = "the port is taken", "name another with --port"
            raise UserError(f"--port {port}", found, "a free port of this machine", fix) from None
        port = self.socket.getsockname()[1]
        token = access.new_token()
        guard = access.middleware(access.LOCAL[0], port, token, command="annotate", served=PATHS)
        config = uvicorn.Config(page.application(guard), log_level="warning", timeout_graceful_shutdown=1)
        self.server, self.address = uvicorn.Server(config), access.address(access.LOCAL[0], port, token)

    def run(self) -> None:
        """Serve."""
        self.server.run(sockets=[self.socket])

    def stop(self) -> None:
        """End `run`."""
        self.server.should_exit = True
