"""The datastore of a PACS from the settings of MONAI Label and of this app."""

import logging
import warnings
from pathlib import Path

from monailabel.config import settings

from lib.errors import InputError
from lib.imaging.cache import VolumeCache
from lib.server.pacs.datastore import PacsDatastore
from lib.server.pacs.settings import PacsSettings, check_address
from lib.server.pacs.web import DicomWeb

_FILTER = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"


def build_store(url: str, pacs: PacsSettings, folder: Path, volumes: VolumeCache) -> PacsDatastore:
    """The store for the DICOMweb root `url`, kept below MONAI_LABEL_DICOMWEB_CACHE_PATH or else `folder`.

    Does not ask the PACS. Login, prefixes and search filter come from the environment variables of MONAI Label. Raises
    InputError for a bad filter, and for an address that holds a login.
    """
    check_address(url)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # their INFO lines hold addresses, and those name patients
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)(\..*)?")  # so do their warnings
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    web = DicomWeb(
        url.strip(),
        (user, password) if user and password else None,
        {
            "qido": settings.MONAI_LABEL_QIDO_PREFIX,
            "wado": settings.MONAI_LABEL_WADO_PREFIX,
            "stow": settings.MONAI_LABEL_STOW_PREFIX,
        },
        pacs.timeout_s,
        pacs.page,
    )
    filters: dict[str, object] = {}
    if _FILTER in settings.model_fields_set:
        filters = dict(settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)
    modality = filters.pop("Modality", None)
    if modality is not None:
        names = modality if isinstance(modality, list) else str(modality).split(",")
        pacs = pacs.model_copy(update={"modalities": tuple(str(name).strip() for name in names)})
    if not all(isinstance(value, str | int) for value in filters.values()):
        raise InputError(f'{_FILTER}: values must be text, as in \'{{"Modality": "CT"}}\'', "studies")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    cache = Path(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or folder)
    return PacsDatastore(web, cache, pacs, {key: str(value) for key, value in filters.items()}, volumes)


class WithoutQuery(logging.Filter):
    """Takes the query out of the access log's lines: OHIF searches for patients with it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, version, status = record.args
            record.args = (client, method, str(path).partition("?")[0], version, status)
        return True
