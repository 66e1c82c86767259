"""A model from a folder or the Hub in one line, whichever form its weights have."""

from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from ..choices import check_choice
from ..files.folder import INDEX, WEIGHTS, CheckpointError, find_file, weight_files
from ..files.forms import COMPACT, COMPACT_INDEX, VARIANT, CompactError, compact_files, has_compact, has_dense
from ..speed import speed_up
from .folders import QUANT_METHOD, read_config

_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_FILES = {"compact": (COMPACT, COMPACT_INDEX), "dense": (WEIGHTS, INDEX)}


def load(
    name_or_path: str | Path,
    prefer: str = "compact",
    model_class: Any = None,
    fast: bool = False,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """
    Load a pruned model; only the files of one form are downloaded.

    Where the preferred form is missing, the other one is taken: both give the same weights. Nothing is ever initialised at
    random: a weight that the file does not hold is an error.

    Args:
        name_or_path (`str`): A folder, or the name of a repository of the Hub.
        prefer (`str`, *optional*, defaults to `"compact"`): `"compact"` or `"dense"`.
        model_class (`type`, *optional*): For example `T5EncoderModel`. Default: the class that `config.json` names.
        fast (`bool`, *optional*, defaults to `False`): In evaluation mode and with [`speed_up`]: for inference.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code of the repository may run.
        kwargs: Those of `from_pretrained`: `dtype`, `device_map`, `revision`, `token`, ...

    Returns:
        `PreTrainedModel`: An ordinary model with zeros in place.

    Raises:
        CompactError: If the compact file is damaged or does not fit the model.
        CheckpointError: If the file does not hold every weight of the model.
        OSError: If there is no such folder or repository, as `from_pretrained` says it.
        ValueError: For a `fast` model that [`speed_up`] does not take.
    """
    check_choice("prefer", prefer, _FILES)
    hub = {key: kwargs[key] for key in _OF_THE_HUB if key in kwargs}
    _check_folder(Path(name_or_path) / kwargs.get("subfolder", ""))
    # False is said, because otherwise transformers asks on the terminal.
    config: Any = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **hub)
    other = "dense" if prefer == "compact" else "compact"
    form = prefer if _has(name_or_path, prefer, hub) or not _has(name_or_path, other, hub) else other
    expected = model_class or _class_of(config, name_or_path)
    if form == "compact":
        config.quantization_config = {"quant_method": QUANT_METHOD, "dequantize": True}
    elif hasattr(config, "quantization_config"):
        del config.quantization_config
    options = {"config": config, "variant": VARIANT if form == "compact" else None, "output_loading_info": True}
    try:
        model, info = expected.from_pretrained(name_or_path, **kwargs, **options)
    except SafetensorError as error:
        broken = CompactError if form == "compact" else CheckpointError
        raise broken(f"The {form} weights of {name_or_path} are damaged: {error}. Fetch or write them anew.") from error
    wrong = {key: sorted(str(k) for k in info[key]) for key in ("missing_keys", "mismatched_keys") if info[key]}
    if model_class is None and info["unexpected_keys"]:
        wrong["unexpected_keys"] = sorted(info["unexpected_keys"])
    if wrong:
        found = "; ".join(f"{key.removesuffix('_keys')}: {', '.join(names[:3])}" for key, names in wrong.items())
        raise CheckpointError(
            f"{name_or_path} must hold the weights of {expected.__name__}, and nothing else; {found}. Pass the class of the "
            "model as model_class, or use from_pretrained for a model that is to get new layers."
        )
    return speed_up(model.eval()) if fast else model


def _check_folder(folder: Path) -> None:
    """Raise for a folder whose names lead elsewhere, before transformers opens them; those on the Hub have none."""
    if not folder.is_dir():
        return
    read_config(folder)
    find_file(folder, GENERATION_CONFIG_NAME)
    if has_compact(folder):
        compact_files(folder)
    if has_dense(folder):
        weight_files(folder)


def _has(name: str | Path, form: str, hub: dict[str, Any]) -> bool:
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")}
    return any(cached_file(name, file, **hub, **quiet) is not None for file in _FILES[form])


def _class_of(config: Any, name: str | Path) -> Any:
    names = getattr(config, "architectures", None) or [""]
    found = getattr(transformers, names[0], None)
    if found is None:
        raise CheckpointError(
            f"config.json of {name} must name a class of transformers in `architectures`, got {names[0]!r}. Pass model_class."
        )
    return found
