"""Where the image of a request is: in the store, in a session, or sent along."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException, UploadFile
from monailabel.interfaces.app import MONAILabelApp

from lib.errors import InputError
from lib.infers.task import http_error
from lib.server.pacs.datastore import PacsDatastore
from lib.server.store import StudiesDatastore
from lib.server.uploads import received


@contextmanager
def uploaded(file: UploadFile) -> Iterator[dict[str, str]]:
    """The request keys of an image that was sent along; it is kept until the block ends."""
    with received(file) as path:
        yield {"image": str(path), "image_id": file.filename or "upload"}


def located(app: MONAILabelApp, image: str, session_id: str) -> dict[str, str]:
    """The request keys that say where an image is: `image` (a path), `image_id`, and `series` for a DICOM series of a folder.

    May convert or fetch the image. Raises HTTPException: 404 for what does not exist, 422 when neither is named; PacsError when
    it cannot be fetched.
    """
    if session_id:
        sessions = app.sessions()
        found = sessions.get_session(session_id) if sessions else None
        if found is None:
            raise HTTPException(404, f"session {session_id!r} does not exist or has expired")
        return {"image": found.image, "image_id": f"session {session_id}"}
    if not image:
        raise HTTPException(422, "image: name an image of the store, a session, or send a file")
    store = app.datastore()
    series = store.series(image) if isinstance(store, StudiesDatastore | PacsDatastore) else None
    if series is not None:
        return {"image": str(series.folder), "series": series.uid, "image_id": image}
    if isinstance(store, PacsDatastore):
        raise HTTPException(404, f"image {image!r} does not exist in the PACS, or is hidden by its search filter")
    try:
        path = store.get_image_uri(image)
    except InputError as error:
        raise http_error(error) from error
    if not path or not os.path.exists(path):
        raise HTTPException(404, f"image {image!r} does not exist in this server's store")
    return {"image": path, "image_id": image}
