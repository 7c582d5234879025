"""What clients send into the store: the stock routes' contract, checked first, run in threads, nothing left behind."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, File, Form, HTTPException, UploadFile
from fastapi.responses import FileResponse
from monailabel.endpoints import datastore
from monailabel.interfaces.app import MONAILabelApp

from lib.infers.task import user_of
from lib.server.names import NAME
from lib.server.pacs.datastore import PacsDatastore
from lib.trajectories.matching import label_names

SUFFIX = re.compile(r"\.(nii\.gz|[A-Za-z0-9]{1,5})$", re.IGNORECASE)
"""What a file name ends with when it says what is in the file."""


@contextmanager
def received(file: UploadFile) -> Iterator[Path]:
    """The upload as a temporary file with its own suffix, until the block ends."""
    found = SUFFIX.search(file.filename or "")
    handle, name = tempfile.mkstemp(prefix="ibis-upload-", suffix=found[0] if found else "")
    try:
        with os.fdopen(handle, "wb") as target:
            shutil.copyfileobj(file.file, target)
        yield Path(name)
    finally:
        os.unlink(name)


def json_object(text: str, field: str = "params", depth: int = 6) -> dict[str, Any]:
    """A form field that holds a JSON object. Raises 422 naming the field."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"{field}: not valid JSON ({str(error)[:200]})") from error
    if not isinstance(value, dict):
        raise HTTPException(422, f"{field}: must be a JSON object")
    if _deeper(value, depth):
        raise HTTPException(422, f"{field}: nested deeper than {depth} levels")
    return value


def _deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth < 0 or any(_deeper(item, depth - 1) for item in inner if isinstance(item, dict | list))


def upload_routes(app: MONAILabelApp) -> APIRouter:
    """The stock paths, as ordinary functions: FastAPI runs those in threads, so that none of them stops the server."""
    router = APIRouter()

    @router.put("/datastore/", include_in_schema=False)
    @router.put("/datastore/image", tags=["Datastore"], summary="Upload a new image")
    def add_image(
        file: Annotated[UploadFile, File()], params: Annotated[str, Form()] = "{}", image: str = ""
    ) -> dict[str, Any]:
        info = json_object(params)
        with received(file) as path:
            name = image or SUFFIX.sub("", Path(file.filename or "").name)
            if not NAME.fullmatch(name):
                raise HTTPException(422, f"image: {name!r} cannot be a name: use letters, digits, '.', '_' and '-'")
            if not path.stat().st_size:
                raise HTTPException(422, "file: the upload is empty")
            return {"image": app.datastore().add_image(name, str(path), info)}

    @router.put("/datastore/label", tags=["Datastore"], summary="Store a finished label")
    def save_label(
        image: str, label: Annotated[UploadFile, File()], params: Annotated[str, Form()] = "{}", tag: str = "final"
    ) -> dict[str, Any]:
        info = json_object(params)
        label_names(info.get("label_info") or [])
        user_of(info)
        with received(label) as path:
            if not path.stat().st_size:
                raise HTTPException(422, "label: the upload is empty")
            store = app.datastore()
            stored = store.save_label(image, str(path), tag or "final", info)
        answer = {**(app.on_save_label(image, stored) or {}), "image": image, "label": stored}
        if isinstance(store, PacsDatastore) and (tag or "final") == "final":
            answer["pacs"] = store.delivery(image)
        return answer

    @router.put("/session/", tags=["Session"], summary="Upload an image for a while, without storing it")
    def create_session(files: Annotated[list[UploadFile], File()], expiry: int = 0) -> dict[str, Any]:
        sessions = app.sessions()
        if sessions is None:
            raise HTTPException(406, "sessions are switched off on this server")
        with tempfile.TemporaryDirectory(prefix="ibis-session-") as scratch:
            folder = Path(scratch, "image")
            folder.mkdir()
            for file in files:
                name = Path(file.filename or "image").name
                if not NAME.fullmatch(name):
                    raise HTTPException(422, f"files: {name!r} cannot be a name: use letters, digits, '.', '_' and '-'")
                with open(folder / name, "wb") as target:
                    shutil.copyfileobj(file.file, target)
            source = folder if len(files) > 1 else next(folder.iterdir())
            key, session = sessions.add_session(str(source), expiry, False)
        return {"session_id": key, "session_info": session.to_json()}

    @router.get("/datastore/dataset", tags=["Datastore"], summary="All images with final labels as a ZIP archive")
    def dataset(background: BackgroundTasks, limit_cases: int | None = None) -> FileResponse:
        if not app.datastore().get_labeled_images():
            raise HTTPException(404, "no image has a final label yet")
        path = app.datastore().get_dataset_archive(limit_cases)
        background.add_task(os.unlink, path)
        return FileResponse(path, media_type="application/zip", filename="dataset.zip", background=background)

    @router.head("/datastore/image", tags=["Datastore"], summary="Whether an image exists")
    def has_image(image: str, check_sum: str | None = None) -> Any:
        return datastore.download_image(image, check_only=True, check_sum=check_sum)

    router.add_api_route("/datastore/image", datastore.download_image, methods=["GET"], tags=["Datastore"])
    router.add_api_route("/datastore/label", datastore.download_label, methods=["GET"], tags=["Datastore"])
    return router
