"""Reads the YAML files under `configs/` into validated models."""

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lib.errors import InputError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
Model = TypeVar("Model", bound=BaseModel)


def load_config(name: str, model: type[Model]) -> Model:
    """Read `configs/<name>.yaml` and validate it as `model`.

    Raises InputError naming the file and every offending key.
    """
    path = CONFIGS / f"{name}.yaml"
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(f"configuration file {path} is missing") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(f"configuration file {path} is not valid: {error}") from error
