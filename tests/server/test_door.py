"""Who may enter, seen from this machine and from others."""

import base64

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from lib.server.door import Door

TOKEN = "a secret é"


def ask(
    path="/info/", client="10.1.2.3", token="", open_to_all=False, method="GET", host="127.0.0.1:8000", **headers
) -> httpx.Response:
    async def answer(request):
        return PlainTextResponse("in")

    inner = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "PUT", "POST", "DELETE"])])
    transport = httpx.ASGITransport(
        Door(inner, token, open_to_all, frozenset({"ibis.hospital.example"})), client=(client, 1234)
    )

    async def send():
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as session:
            return await session.request(method, path, headers=headers)

    import asyncio

    return asyncio.run(send())


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_may_enter(client):
    assert ask(client=client, token=TOKEN).status_code == 200


def test_strangers_may_not_without_a_token_to_show():
    answer = ask()
    assert answer.status_code == 403
    assert "IBIS_TOKEN" in answer.json()["detail"]


@pytest.mark.parametrize("shown", [None, "Bearer wrong", "Bearer ", "Basic !!!", basic("wrong"), "Digest x"])
def test_strangers_must_show_the_token(shown):
    answer = ask(token=TOKEN, **({"Authorization": shown} if shown else {}))
    assert answer.status_code == 401
    assert "Basic" in answer.headers["www-authenticate"]


def test_the_token_lets_in():
    assert ask(token="secret", Authorization="Bearer secret").status_code == 200
    assert ask(token=TOKEN, Authorization=basic(TOKEN)).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("[::1]:8000", 200), ("10.0.0.7", 200), ("ibis.hospital.example", 200), ("evil.example", 403)],
)
def test_a_name_that_somebody_else_pointed_here_is_no_way_in(host, status):
    assert ask(client="127.0.0.1", host=host).status_code == status


def test_open_to_all():
    assert ask(open_to_all=True).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/reload", 404),
        ("GET", "/logs/", 404),
        ("GET", "/model/", 200),
        ("DELETE", "/model/x", 404),
        ("GET", "/datastore/image?image=..%2Fx", 422),
        ("GET", "/datastore/image?image=a%00b", 422),
        ("GET", "/datastore/image?image=CT 1.2.840", 200),
        ("GET", "/session/%2e%2e%2fx", 422),
        ("GET", "/proxy/dicom/wado/..%2F..%2Finstances", 422),
        ("GET", "/proxy/dicom/wado/..%252F..%252Finstances", 422),
        ("GET", "/proxy/dicom/wado/studies/1.2/metadata", 200),
        ("POST", "/proxy/dicom/wado/studies", 200),
        ("POST", "/proxy/dicom/wado/tools/find", 405),
        ("DELETE", "/proxy/dicom/wado/studies", 405),
        ("POST", "/infer/wsi/ibis_agent", 404),
        ("POST", "/infer/wsi_v2/ibis_agent", 404),
        ("PUT", "/datastore/image?image=CT_1.nii", 200),
        ("PUT", "/datastore/image?image=CT 1", 422),
        ("PUT", "/datastore/label?image=CT 1&tag=final", 200),
        ("PUT", "/datastore/label?image=x&tag=../y", 422),
        ("PUT", "/datastore/?image=.x", 422),
        ("PUT", "/session/?uncompress=True", 422),
        ("PUT", "/session/?uncompress=false", 200),
    ],
)
def test_what_is_refused_to_anybody(method, path, status):
    assert ask(path, client="127.0.0.1", method=method).status_code == status


def test_uploads_have_a_limit():
    assert ask(client="127.0.0.1", method="PUT", **{"Content-Length": str(2**50)}).status_code == 413
