"""What a weights file or folder is, for people: verified first, by the code that engines load it with."""

from pathlib import Path

from lib.errors import InputError


def describe(path: str | Path, model: str = "") -> dict[str, str]:
    """Verify a language model (folder or hub id), a LoRA adapter or a SAM2 checkpoint, and say what it is: term -> value.

    `model` is the language model that an adapter is for; by default the one that its own configuration names.
    Raises InputError.
    """
    folder = Path(path).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return _adapter(folder, model)
    if folder.is_file() or (folder.is_dir() and not (folder / "config.json").is_file() and _checkpoints(folder)):
        return _segmenter(folder)
    return _language_model(path)


def _checkpoints(folder: Path) -> bool:
    """Whether the folder has a checkpoint that is not a language model's."""
    return any(folder.glob("*.pt")) or any("model" not in path.name for path in folder.glob("*.safetensors"))


def _language_model(path: str | Path) -> dict[str, str]:
    from lib.engines.verify import verify_language_model

    facts = verify_language_model(path)
    return {
        "language model": str(facts.folder),
        "architecture": facts.architecture,
        "parameters": f"{facts.parameters:,}",
        "tensors": f"{facts.dtype}, {facts.size_bytes / 1e9:.2f} GB in {facts.shards} file{'s' * (facts.shards > 1)}",
        "pictures": f"{facts.min_pixels:,} to {facts.max_pixels:,} pixels, a token for {facts.patch * facts.merge} x "
        f"{facts.patch * facts.merge} px",
        "vocabulary": f"{facts.vocabulary:,} tokens, {facts.embeddings:,} embeddings",
        "special tokens": " ".join(facts.special_tokens),
        "chat template": facts.chat_template,
    }


def _adapter(folder: Path, model: str) -> dict[str, str]:
    from lib.engines.verify import adapter_base, verify_adapter

    base = model or adapter_base(folder)
    if not base:
        raise InputError(f"{folder} does not say which model it adapts: name it", "model")
    facts = verify_adapter(folder, base)
    return {
        "LoRA adapter": str(facts.folder),
        "fits": base,
        "trained on": facts.base,
        "rank": str(facts.rank),
        "modules": str(facts.modules),
        "parameters": f"{facts.parameters:,}",
    }


def _segmenter(path: Path) -> dict[str, str]:
    import torch

    from lib.segmenters.sam2_load import load_sam2

    loaded = load_sam2(path, device=torch.device("cpu"))
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in loaded.model.parameters()}
    return {
        "segmenter": str(path),
        "architecture": loaded.name,
        "parameters": f"{loaded.parameters:,}",
        "tensors": ", ".join(sorted(dtypes)),
        "image size": f"{loaded.image_size} px",
    }
