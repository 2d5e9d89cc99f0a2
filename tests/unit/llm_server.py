"""A local server that speaks the chat-completions protocol, judges by comparing strings, and misbehaves on purpose.

What goes wrong with which question is a function of the question alone, so that two runs of a test see
the same: `Plan.faults` gives the share of questions whose first call meets each fault (the next call
goes well), `Plan.always` the share that meets it at every call. It notes every call.

By hand, for measuring (prints its address, `GET /log` tells what happened):

    python tests/unit/llm_server.py --per-second 10
"""

import argparse
import contextlib
import gzip
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Faults that the client may mend by asking again, and what a call then costs the server: nothing.
TRANSPORT = (
    "limited_seconds", "limited_date", "limited_plain", "error_500", "hang", "cut", "half_envelope", "wrong_envelope",
)  # fmt: skip
#: Faults of the model's words.
CONTENT = ("prose", "half_json", "refusal", "wrong_types", "code_fence", "cut_off")
#: A body that never ends; the same packed by gzip; what gzip makes of 100 MB; a body that is not the gzip it says.
HOSTILE = ("endless", "endless_gzip", "bomb", "no_gzip")
BOMB = gzip.compress(bytes(100_000_000))
HANG_S = 30.0


@dataclass
class Plan:
    faults: dict[str, float] = field(default_factory=dict)
    always: dict[str, float] = field(default_factory=dict)
    per_second: float | None = None
    """Calls that are let through; more get 429."""
    latency_s: float = 0.0
    formats: tuple[str, ...] = ("json_schema", "json_object", "text")
    """Values of response_format that are known; others get 400."""
    reasoning: bool = False
    """As OpenAI's o-series: no `temperature`, and `max_completion_tokens` in place of `max_tokens`."""
    model: str | None = None
    """The name that it answers by; None for the one that was asked."""
    reply: object = None
    """A function (material, request) -> content, instead of the honest judge."""
    hostile_status: int = 200
    status: tuple[int, object] | None = None
    """Answer every call with this status and body."""
    retry_after: str = "1"
    gzip: bool = False
    """Compress what goes well."""


def material_of(messages: list[dict]) -> dict:
    """The JSON object at the end of the first user turn."""
    return json.loads(messages[0]["content"].rsplit("\n\n", 1)[1])


def honest(material: dict) -> dict:
    truth, given = material["ground_truth"], material["prediction"]
    fold = lambda text: " ".join((text or "").casefold().split())  # noqa: E731
    return {
        "evaluation": f"The answer is {given['answer']!r}.",
        "reasoning_score": int(fold(given["reasoning"]) == fold(truth["reasoning"])),
        "prediction_score": int(fold(given["answer"]) in map(fold, truth["answers"])),
    }


def share_of(text: str) -> float:
    """A number in [0, 1) that only depends on the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def fault_for(plan: Plan, question: str, nth: int) -> str:
    """What the nth call (from 0) about a question meets: a fault's name or `fine`."""
    place = share_of(question)
    for fault, share in plan.always.items():
        if place < share:
            return fault
        place -= share
    for fault, share in plan.faults.items():
        if place < share:
            return fault if nth == 0 else "fine"
        place -= share
    return "fine"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        with self.server.lock:
            calls = json.dumps(self.server.calls)
        self._send(200, calls)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, plan = self.server, self.server.plan
        now = time.monotonic()
        question = json.dumps(material_of(request["messages"]), sort_keys=True)
        with server.lock:
            limited = not server.let_in(now)
            nth = server.seen.get(question, 0)
            fault = "over_limit" if limited else fault_for(plan, question, nth)
            if not limited:
                server.seen[question] = nth + 1
            note = {
                "at": now, "fault": fault, "question": question, "messages": request["messages"],
                "format": request.get("response_format", {}).get("type", "text"), "delivered": False,
                "headers": {name.title(): value for name, value in self.headers.items()},
                "path": self.path, "body": request,
            }  # fmt: skip
            server.calls.append(note)
        if not limited:
            time.sleep(plan.latency_s)
        with contextlib.suppress(OSError):
            self._answer(request, fault, plan)
            note["delivered"] = True

    def _answer(self, request: dict, fault: str, plan: Plan) -> None:  # noqa: C901, PLR0912 - one case per fault
        error = json.dumps({"error": {"message": fault, "type": "server"}})
        if plan.status is not None:
            status, body = plan.status
            if callable(body):
                body = body(self.headers)
            headers = {"Location": "http://127.0.0.1:9/"} if 300 <= status < 400 else {}
            self._send(status, body if isinstance(body, str) else json.dumps(body), headers)
        elif fault in ("limited_seconds", "over_limit"):
            self._send(429, error, {"Retry-After": plan.retry_after})
        elif fault == "limited_date":
            self._send(429, error, {"Retry-After": formatdate(time.time() + 1.5, usegmt=True)})
        elif fault == "limited_plain":
            self._send(429, error)
        elif fault == "error_500":
            self._send(500, "<html>Internal Server Error</html>")
        elif fault == "hang":
            self.server.closing.wait(HANG_S)
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.close_connection = True
        elif fault in HOSTILE:
            self.send_response(plan.hostile_status)
            self.close_connection = True
            if fault != "endless":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            piece = {"bomb": BOMB, "no_gzip": b"no gzip", "endless_gzip": BOMB}.get(fault, bytes(1 << 16))
            while not self.server.closing.is_set():
                self.wfile.write(piece)
                if not fault.startswith("endless"):
                    break
        elif fault == "half_envelope":
            self._send(200, '{"choices": [{"message": {"content": "{\\"evalua')
        elif fault == "wrong_envelope":
            self._send(200, json.dumps({"choices": [], "error": {"message": "upstream"}}))
        else:
            asked = request.get("response_format", {}).get("type", "text")
            if asked not in plan.formats:
                message = f"response_format {asked} is not supported"
                self._send(400, json.dumps({"error": {"message": message}}))
                return
            if plan.reasoning and "max_tokens" in request:
                message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
                self._send(400, json.dumps({"error": {"message": message}}))
                return
            if plan.reasoning and "temperature" in request:
                message = "Unsupported value: 'temperature' does not support 0.0 with this model."
                self._send(400, json.dumps({"error": {"message": message}}))
                return
            body = json.dumps(self._completion(request, fault, plan))
            if plan.gzip and self.headers["Accept-Encoding"] == "gzip":
                self._send(200, gzip.compress(body.encode()), {"Content-Encoding": "gzip"})
            else:
                self._send(200, body)

    def _completion(self, request: dict, fault: str, plan: Plan) -> dict:
        material = material_of(request["messages"])
        verdict = honest(material)
        content = json.dumps(verdict)
        if plan.reply is not None:
            content = plan.reply(material, request)
        message, finish = {"role": "assistant", "content": content}, "stop"
        if fault == "prose":
            message["content"] = "I would say that the prediction is right."
        elif fault == "half_json":
            message["content"] = content[: len(content) // 2]
        elif fault == "refusal":
            message = {"role": "assistant", "content": None, "refusal": "I cannot judge patients."}
        elif fault == "wrong_types":
            message["content"] = json.dumps(verdict | {"prediction_score": "yes"})
        elif fault == "code_fence":
            message["content"] = f"Here you are:\n```json\n{json.dumps(verdict, indent=1)}\n```"
        elif fault == "cut_off":
            message["content"], finish = content[:20], "length"
        return {
            "object": "chat.completion",
            "model": plan.model or request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 300, "completion_tokens": 60},
        }

    def _send(self, status: int, body: str | bytes, headers: dict | None = None) -> None:
        data = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """Serves on a free port of this machine, in threads, until the `with` block ends."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, plan: Plan | None = None, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.plan, self.lock, self.calls, self.seen = plan or Plan(), threading.Lock(), [], {}
        self.closing = threading.Event()
        self.tokens, self.filled = 1.0, time.monotonic()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def let_in(self, now: float) -> bool:
        """A token bucket of half a second's calls."""
        rate = self.plan.per_second
        if rate is None:
            return True
        self.tokens = min(max(1.0, rate / 2), self.tokens + (now - self.filled) * rate)
        self.filled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def handle_error(self, *_):
        pass

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()


#: Everything that may go wrong, each for some of the questions: 30 % of first calls, 4 % for ever.
EVERYTHING = Plan(
    faults=dict.fromkeys((*TRANSPORT, *CONTENT), 0.02) | {"hang": 0.01, "cut": 0.03},
    always={"refusal": 0.01, "half_json": 0.01, "error_500": 0.01, "hang": 0.005, "wrong_types": 0.005},
)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--per-second", type=float)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--well-behaved", action="store_true")
    arguments = parser.parse_args()
    chosen = Plan() if arguments.well_behaved else EVERYTHING
    chosen.per_second, chosen.latency_s = arguments.per_second, arguments.latency
    with Server(chosen, arguments.port) as running:
        print(running.url, flush=True)
        threading.Event().wait()
