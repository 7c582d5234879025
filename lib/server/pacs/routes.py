"""`/ibis/pacs`: how the PACS is, and where the labels are."""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lib.server.pacs.datastore import PacsDatastore
from lib.server.pacs.outbox import Delivery
from lib.server.pacs.poller import Poller
from lib.server.pacs.web import PacsError, PacsRefused


def pacs_routes(store: PacsDatastore, poller: Poller) -> APIRouter:
    """Read the state, look again now, send a label again. The state is read on the event loop: it is there when all threads
    wait for the PACS."""
    router = APIRouter(prefix="/ibis/pacs", tags=["IBIS"])

    @router.get("", summary="Whether the PACS answers, what is being fetched, and which labels are on their way to it")
    async def shown(limit: Annotated[int, Query(ge=0)] = 100) -> dict[str, Any]:
        state, items = store.web.state, store.outbox.items
        return {
            "url": store.name(),
            "reachable": state.reachable,
            "since": state.since,
            "error": state.error,
            "looked": store.catalogue.looked or None,
            "images": len(store.catalogue.images),
            "segmentations": len(store.catalogue.segs),
            "unusable": [{"instance": s.uid, "reason": s.unusable} for s in store.catalogue.segs.values() if s.unusable],
            "undescribed": [{"series": uid, "reason": reason} for uid, reason in store.catalogue.undescribed.items()],
            "waiting": [{"instance": uid, "reason": reason} for uid, reason in poller.waiting.items()],
            "downloads": [
                {"image": uid, "done": done, "total": total} for uid, (done, total) in store.downloads.progress.items()
            ],
            "outbox": {
                **{str(kind): sum(item.state is kind for item in items) for kind in Delivery},
                "items": [store.outbox.shown(item.key) for item in items[::-1][:limit]],
            },
        }

    @router.post("/look", summary="Look now what is new in the PACS", status_code=202)
    async def look() -> dict[str, Any]:
        poller.wake()
        return {}

    @router.post("/outbox/{key}/retry", summary="Send a waiting or refused label again", status_code=202)
    def retry(key: str) -> dict[str, Any]:
        if store.outbox.get(key) is None:
            raise HTTPException(404, f"{key!r} is no label of the outbox")
        store.outbox.retry(key)
        return store.outbox.shown(key) or {}

    return router


def answer_pacs(request: Request, error: Exception) -> Response:
    """502 for a refusal, 503 while the PACS is away, with a sentence."""
    assert isinstance(error, PacsError)
    return JSONResponse({"detail": str(error)}, status_code=502 if isinstance(error, PacsRefused) else 503)
