"""What stands between the network and the rating page: who is let in, and what of Gradio's server is served (ASGI).

| request | answer |
|---|---|
| the `Host` header names none of the page's hosts, as after DNS rebinding | 400 |
| neither token nor cookie, or wrong ones | 403 and one sentence |
| the token in the address, as the console printed it | a cookie, and the address without the token |
| a path that the page does not use: uploads, files, recordings, documentation of the interface | 404 |

The token is new at each start. The cookie is of this port and this start, is not sent along by other sites, and scripts
cannot read it.
"""

import secrets
import socket
from ipaddress import ip_address
from urllib.parse import urlencode

#: Gradio's page needs inline scripts and `eval`; nothing may come from or go to another host.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'self'"
)
NO_TOKEN = "Open the rating page by the whole address, token included, that `rarl rate` printed.\n"
LOCAL = ("127.0.0.1", "localhost", "::1")
#: What the page uses of Gradio's server; a name that ends in / stands for all below it.
SERVED = (
    "/", "/config", "/theme.css", "/favicon.ico", "/login", "/login/", "/assets/", "/static/",
    "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/heartbeat/", "/gradio_api/app_id",
)  # fmt: skip
#: Gradio itself asks for these while it starts. They show nothing.
STARTING = {("GET", "/gradio_api/startup-events"), ("HEAD", "/")}


def new_token() -> str:
    return secrets.token_urlsafe(24)


def middleware(host: str, port: int, token: str, names: tuple[str, ...] = ()) -> list:
    """What `gradio.Blocks.launch` takes as `app_kwargs["middleware"]`.

    Args:
        host: the address that the page listens on.
        names: further names by which it is reached, such as that of a proxy.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    hosts = hosts_of(host, names)
    return [
        Middleware(Sealed),
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        Middleware(Door, token=token, cookie=f"rarl_rate_{port}"),
    ]


def hosts_of(host: str, names: tuple[str, ...] = ()) -> list[str]:
    """The `Host` headers that are answered.

    A page that listens on every address (`0.0.0.0`, `::`) is reached by each address and each name of this machine.
    """
    found = {*LOCAL, host, *names}
    if host in ("0.0.0.0", "::"):
        import psutil

        found |= {socket.gethostname(), socket.getfqdn()}
        for addresses in psutil.net_if_addrs().values():
            found |= {address.address for address in addresses if _is_ip(address.address)}
    return sorted(f"[{name}]" if ":" in name else name for name in found)


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def address(host: str, port: int, token: str) -> str:
    """The page's address for the browser."""
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://{shown}:{port}/?{urlencode({'token': token})}"


class Door:
    """Lets in who brings the token or its cookie, and serves the page's paths only."""

    def __init__(self, app, token: str, cookie: str):
        self.app, self.token, self.cookie = app, token, cookie

    async def __call__(self, scope, receive, send):
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
            response = PlainTextResponse(NO_TOKEN, status_code=403)
        elif not is_served(scope["path"]):
            response = PlainTextResponse("The rating page does not use this.\n", status_code=404)
        else:
            response = self.app
        await response(scope, receive, send)

    def is_token(self, given: str | None) -> bool:
        return secrets.compare_digest((given or "").encode(), self.token.encode())


def is_served(path: str) -> bool:
    return any(path == name or (len(name) > 1 and name.endswith("/") and path.startswith(name)) for name in SERVED)


class Sealed:
    """Adds the headers by which the browser loads nothing from elsewhere and tells nobody this address."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def sealed(message):
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, sealed if scope["type"] == "http" else send)
