"""The plugin by which `from_pretrained` reads compact files: importing `sms_hf` registers it."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightTransform
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..files.forms import CompactError
from .compact_file import PARTS, VERSION, CompactFile, is_compact, unpack_tensor
from .folders import QUANT_METHOD

END = "$"
"""Patterns are searched in names: without an end `weight` would also take `weight_mask`."""


@register_quantization_config(QUANT_METHOD)
class CompactConfig(QuantizationConfigMixin):
    """
    What `config.json` says of a model that has a compact file: that it is unpacked when it is loaded.

    transformers takes formats of weights for quantizations. Nothing is quantized here: all weights are exact.
    """

    def __init__(self, **_):
        self.quant_method: Any = QUANT_METHOD
        self.dequantize = True


class Unpack(ConversionOps):
    """Values, mask and exponents -> weight; a tensor that is stored as it is passes through."""

    def __init__(self, quantizer: Any):
        # Not as `hf_quantizer`: transformers would leave the cast of the values to `dtype` to this operation then.
        self.quantizer = quantizer

    def __deepcopy__(self, memo) -> "Unpack":
        return Unpack(self.quantizer)  # Every parameter gets an operation of its own, of one quantizer.

    def convert(self, input_dict: dict[str, Any], source_patterns, target_patterns, full_layer_name="", **kwargs):
        weights = {}
        self.quantizer.missing = kwargs["missing_keys"]
        for pattern, tensors in input_dict.items():
            if pattern.endswith(tuple(part + END for part in PARTS[VERSION])):
                continue
            values, name = _listed(tensors), pattern.removesuffix(END)
            # The operations of a model's converter find their tensors by the patterns, END included.
            target = name if target_patterns == [name] else pattern
            beside = {part: _listed(input_dict.get(name + part + END, [])) for part in PARTS[VERSION]}
            beside = {part: rows for part, rows in beside.items() if rows}
            if not beside:
                weights[target] = values
            elif getattr(kwargs.get("model"), "_tp_size", None) is not None:
                raise CompactError(
                    f"{full_layer_name}: expected no tensor parallelism, which cuts packed tensors. Load the dense form (no "
                    "variant), or make it first: sms-hf unpack."
                )
            elif all(len(rows) == len(values) for rows in beside.values()):
                weights[target] = [
                    unpack_tensor({"": v.cpu(), **{part: rows[i].cpu() for part, rows in beside.items()}}).to(v.device)
                    for i, v in enumerate(values)
                ]
            else:
                counts = ", ".join(f"{len(rows)} {part.removeprefix('_')}s" for part, rows in beside.items())
                raise CompactError(f"{full_layer_name}: {len(values)} tensors, but {counts}.")
        return weights


def _listed(tensors: Any) -> list[Any]:
    return tensors if isinstance(tensors, list) else [tensors]


def _sources(leaf: str) -> list[str]:
    """Patterns of a tensor and of what may stand beside it."""
    return [leaf + part + END for part in ("", *PARTS[VERSION])]


def _unpack_first(converter: Any, quantizer: Any, leaves: set[str]) -> Any:
    """A converter of the model (which fuses experts, say) that also collects masks and exponents, and unpacks before all else."""
    sources = converter._original_source_patterns if isinstance(converter, WeightConverter) else []
    if not sources or any(source.rpartition(".")[2] not in leaves for source in sources):
        return converter
    both = [pattern for source in sources for pattern in _sources(source)]
    wrapped = WeightConverter.__new__(WeightConverter)
    # Not WeightConverter's own: there, converters to several targets (matrices that are split) have one source only.
    WeightTransform.__init__(wrapped, both, converter._original_target_patterns)
    wrapped.scope_prefix, wrapped.base_model_prefix = converter.scope_prefix, converter.base_model_prefix
    wrapped.operations = [Unpack(quantizer), *converter.operations]
    if hasattr(converter, "force_cpu"):  # Since transformers 5.16.
        wrapped.force_cpu = converter.force_cpu
    return wrapped


def _layer_weights(model: nn.Module) -> list[str]:
    """
    Weights of linear layers in the numbered blocks of a model.

    A new head or pooler may be missing in a file, as everywhere in transformers. A layer of a block never is.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    tied = getattr(model, "all_tied_weights_keys", {})
    weights = [f"{name}.weight" for name in linear if any(part.isdigit() for part in name.split("."))]
    return [name for name in weights if name not in tied]


@register_quantizer(QUANT_METHOD)
class CompactQuantizer(HfQuantizer):
    """Reads dense and compact files alike, and leaves an ordinary model behind."""

    requires_calibration = True  # Only reads.

    def __init__(self, quantization_config, **kwargs):
        super().__init__(quantization_config, **kwargs)
        self.packed: set[str] = set()
        self.expected: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self.missing: set[str] | None = None  # transformers' own, which shrinks while it loads.

    def _process_model_before_weight_loading(self, model: PreTrainedModel, checkpoint_files=(), **kwargs):
        """Check the files before anything is read from them."""
        for path in checkpoint_files or ():
            if not is_compact(path):
                continue
            with CompactFile(path) as file:
                # The class's: an instance takes over whatever config.json says.
                model_type = type(model.config).model_type
                if file.model_type != model_type:
                    raise CompactError(
                        f"{path} holds a model of type {file.model_type!r}, got {type(model).__name__}, which is of type "
                        f"{model_type!r}. Load it with the class that its config.json names."
                    )
                self.packed |= {name for name, stored in file.tensors.items() if stored.parts}
        self.expected = {name: (p.shape, p.dtype) for name, p in model.named_parameters()}

    def update_weight_conversions(self, weight_conversions, model=None):
        """`model`: newer transformers (5.23) give it. The same converters serve all."""
        leaves = sorted({name.rpartition(".")[2] for name in self.packed})
        known = [_unpack_first(converter, self, set(leaves)) for converter in weight_conversions]
        return known + [WeightConverter(_sources(leaf), leaf, [Unpack(self)]) for leaf in leaves]

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs):
        weights = _layer_weights(model)
        missing = weights if self.missing is None else [name for name in weights if name in self.missing]
        if missing and self.packed:
            raise CompactError(
                f"The compact file has no {', '.join(missing[:3])} ({len(missing)} missing): its model has other layers than "
                f"this {type(model).__name__}. Load it with the configuration that lies beside it."
            )
        # Older transformers (5.17) check no shapes here, and tensors whose names they convert keep the dtype of the file.
        for name, parameter in model.named_parameters():
            shape, dtype = self.expected.get(name, (parameter.shape, parameter.dtype))
            if self.packed and parameter.shape != shape:  # Dense ones may be cut by tensor parallelism.
                raise CompactError(
                    f"The compact file holds {name} of shape {tuple(parameter.shape)}, but in this {type(model).__name__} it is "
                    f"{tuple(shape)}. Load it with the configuration that lies beside it."
                )
            if parameter.dtype != dtype and parameter.device.type != "meta":
                parameter.data = parameter.data.to(dtype)
        for module in model.modules():
            # Or the next save_pretrained would rename the dense weights as if they were packed.
            if hasattr(module, "_weight_conversions"):
                del module._weight_conversions
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True
