"""`configs/pacs.yaml`: how the server talks to a PACS."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.config import load_config
from lib.errors import InputError


class PacsSettings(BaseModel):
    """Times are in seconds; `configs/pacs.yaml` says what each is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    modalities: tuple[str, ...] = Field(min_length=1)
    poll_s: float = Field(gt=0)
    expiry_s: float = Field(ge=0)
    page: int = Field(ge=1)
    timeout_s: float = Field(gt=0)
    parallel: int = Field(ge=1)
    retry_s: float = Field(gt=0)
    retry_most_s: float = Field(gt=0)


def pacs_settings(conf: Mapping[str, str]) -> PacsSettings:
    """The settings that hold for `--conf` of a server: `pacs` (a YAML file with some of the keys) and `modalities`
    (comma-separated) go before `configs/pacs.yaml`.

    Raises InputError naming the file or key.
    """
    settings = load_config("pacs", PacsSettings)
    changes: dict[str, object] = {}
    if conf.get("pacs"):
        changes |= _read(Path(conf["pacs"]))
    if conf.get("modalities"):
        changes["modalities"] = [name.strip().upper() for name in conf["modalities"].split(",") if name.strip()]
    try:
        return PacsSettings.model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        raise InputError(f"the settings of the PACS are not valid: {error}", "pacs") from error


def check_address(url: str) -> None:
    """Raises InputError for the address of a PACS that holds a login: addresses are logged and shown."""
    if "@" in url:
        raise InputError(
            "the PACS's address must not hold a login: set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD "
            "('@' elsewhere in it is written %40)",
            "studies",
        )


def _read(path: Path) -> dict[str, object]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"the settings of the PACS cannot be read from {path}: {error}", "pacs") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold keys of configs/pacs.yaml", "pacs")
    return found
