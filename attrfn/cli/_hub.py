"""Folders of Hugging Face models: a configuration, weights as safetensors, no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrfn.cli._need import need

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def transformers(what: str) -> Any:
    """The library, quiet: what matters is raised."""
    found = need("transformers", what, "transformers")
    logging = need("transformers.utils.logging", what, "transformers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return found


def folder_model(path: Path) -> Any:
    """The model of a folder, in evaluation mode.

    Raises:
        ValueError: The folder is of another kind, its weights are pickles or do not fit.
    """
    name = _architecture(path)
    if not list(path.glob("*.safetensors")):
        others = [p.name for pattern in _PICKLES for p in sorted(path.glob(pattern))]
        raise ValueError(
            f"MODEL is {str(path)!r}, which holds {others[0] if others else 'no weights'} and no "
            ".safetensors, and nothing else is read, since pickles can run any code: write them "
            "with model.save_pretrained(folder)"
        )
    kind = getattr(transformers("a folder of a Hugging Face model"), name, None)
    if kind is None:
        raise ValueError(
            f"MODEL is {str(path)!r}, a {name}, which transformers does not have, and code beside "
            "the weights is not run: build the model in a function and give module:function"
        )
    try:
        model, info = kind.from_pretrained(
            str(path), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        text = " ".join(str(error).split())[:150]
        raise ValueError(f"MODEL is {str(path)!r}, which cannot be read: {text}") from error
    if lacks := sorted(info["missing_keys"]):
        raise ValueError(
            f"MODEL is {str(path)!r}, which lacks {len(lacks)} of its weights, such as {lacks[0]}: "
            "they would be random, so save the model that was trained"
        )
    return model.eval()


def _architecture(path: Path) -> str:
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(
            f"MODEL is {str(path)!r}, a folder without a config.json, expected that of a Hugging "
            "Face model, as model.save_pretrained writes it"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("architectures")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error}: write it again") from error
    if not found:
        raise ValueError(f"{file} names no architectures: save the model with save_pretrained")
    return str(found[0])


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        ValueError: There is none, or it has no token for padding.
    """
    auto = transformers("a tokenizer").AutoTokenizer
    try:
        found = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        text = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{folder} has no tokenizer that can be read ({text}): save it there with "
            "tokenizer.save_pretrained"
        ) from error
    # Without its files transformers makes up a tokenizer that knows no words.
    names = getattr(found, "vocab_files_names", None) or {}
    if not any((folder / name).is_file() for name in names.values()):
        raise ValueError(
            f"{folder} has no tokenizer ({', '.join(names.values())}): save it there with "
            "tokenizer.save_pretrained"
        )
    if found.pad_token_id is None:
        raise ValueError(
            f"the tokenizer of {folder} has no token for padding: set tokenizer.pad_token and "
            "model.config.pad_token_id, and save both"
        )
    return found


def image_processor(folder: Path | None) -> Any:
    """What prepares images for the model of a folder; None without a file that says how."""
    if folder is None or not (folder / "preprocessor_config.json").is_file():
        return None
    auto = transformers("preprocessor_config.json").AutoImageProcessor
    try:
        return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        text = " ".join(str(error).split())[:150]
        raise ValueError(
            f"{folder / 'preprocessor_config.json'} cannot be used: {text}: repair it, or remove "
            "it and give --image-size, --image-mean and --image-std"
        ) from error
