"""ASGI middleware of the rating and the annotation page: who may open it, and which paths are served.

| request | response |
|---|---|
| the `Host` header names none of the page's hosts, as after DNS rebinding | 400 |
| no token and no cookie, or wrong ones | 403 and one sentence |
| the token in the address, as printed on the console | a cookie, and a redirect to the address without the token |
| a path that the page does not use: uploads, files, recordings, the API's documentation | 404 |

The token is new at each start. The cookie belongs to this port and this start; other sites cannot send it, and scripts
cannot read it.
"""

import secrets
import socket
from urllib.parse import urlencode

#: Gradio's page needs inline scripts and `eval`; nothing may come from or go to another host.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'self'"
)
LOCAL = ("127.0.0.1", "localhost", "::1")
#: The paths of Gradio's server that the rating page uses; a name that ends in / includes all below it.
SERVED = (
    "/", "/config", "/theme.css", "/favicon.ico", "/login", "/login/", "/assets/", "/static/",
    "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/heartbeat/", "/gradio_api/app_id",
)  # fmt: skip
#: Gradio itself requests these while it starts. They reveal nothing.
STARTING = {("GET", "/gradio_api/startup-events"), ("HEAD", "/")}


def new_token() -> str:
    """A random token of 192 bits."""
    return secrets.token_urlsafe(24)


def middleware(
    host: str,
    port: int,
    token: str,
    names: tuple[str, ...] = (),
    command: str = "rate",
    served: tuple[str, ...] = SERVED,
) -> list:
    """The middleware of a Starlette application, which Gradio's is too.

    `names` are as for `hosts_of`, `served` the paths that the page of `rarl <command>` uses.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return [
        Middleware(SecurityHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts_of(host, names), www_redirect=False),
        Middleware(TokenRequired, token=token, port=port, command=command, served=served),
    ]


def hosts_of(host: str, names: tuple[str, ...] = ()) -> list[str]:
    """The `Host` headers that the page answers to; `names` are further ones, such as a proxy's.

    A page that listens on every address (`0.0.0.0`, `::`) answers to each address and each name of this machine.
    """
    found = {*LOCAL, host, *names}
    if host in ("0.0.0.0", "::"):
        import psutil

        found |= {socket.gethostname(), socket.getfqdn()}
        for addresses in psutil.net_if_addrs().values():
            found |= {known.address for known in addresses if known.family in (socket.AF_INET, socket.AF_INET6)}
    return sorted(f"[{name}]" if ":" in name else name for name in found)


def address(host: str, port: int, token: str) -> str:
    """The page's address for the browser."""
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://{shown}:{port}/?{urlencode({'token': token})}"


class TokenRequired:
    """Requires the token or its cookie, and serves the page's paths only."""

    def __init__(self, app, token: str, port: int, command: str, served: tuple[str, ...]):
        self.app, self.token, self.served = app, token, served
        self.cookie = f"rarl_{command}_{port}"
        self.refusal = f"Open the page by the whole address, token included, that `rarl {command}` printed.\n"

    async def __call__(self, scope, receive, send):
        """Handle one ASGI connection."""
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse, RedirectResponse

        if scope["type"] == "lifespan" or (scope.get("method"), scope["path"]) in STARTING:
            await self.app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        if self.is_token(request.query_params.get("token")):
            response = RedirectResponse("./", status_code=303)
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
        elif not self.is_token(request.cookies.get(self.cookie)):
            response = PlainTextResponse(self.refusal, status_code=403)
        elif not is_served(scope["path"], self.served):
            response = PlainTextResponse("The page does not use this.\n", status_code=404)
        else:
            response = self.app
        await response(scope, receive, send)

    def is_token(self, given: str | None) -> bool:
        """Compare in constant time."""
        return secrets.compare_digest((given or "").encode(), self.token.encode())


def is_served(path: str, served: tuple[str, ...] = SERVED) -> bool:
    """Whether the page uses a path.

    >>> is_served("/config"), is_served("/assets/index.js"), is_served("/gradio_api/upload")
    (True, True, False)
    """
    return any(path == name or (len(name) > 1 and name.endswith("/") and path.startswith(name)) for name in served)


class SecurityHeaders:
    """Adds headers that keep the browser from loading anything from elsewhere and from revealing this address."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Handle one ASGI connection."""

        async def with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
