"""Ways to compute `x W^T + b`, and which of them is fastest for how many rows."""

import hashlib
import json
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from .kernel import MOST_COLUMNS, ByteMatrix, SparseMatrix, cache_folder, cached_file, load_kernel, processor

Multiply = Callable[[Tensor, Tensor | None], Tensor]
"""(contiguous `(rows, columns)` in the weight's dtype, bias) -> `(rows, outputs)`."""
Make = Callable[[Tensor], Multiply | None]
"""Weight of `(outputs, columns)` -> how to multiply with it; `None` where it does not go."""

GAIN = 1.05
"""What is not faster than dense by this factor is not used."""
COST = 5e-6
"""Seconds that finding the way takes, besides."""
DENSE = "dense"
DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float16, torch.bfloat16)}
"""Device -> dtypes in which there is a way that can be faster and is exact."""
SPARSE_ENOUGH = 0.3
"""Sparsity below which no sparse way is tried."""
_lock = threading.Lock()


# ---- Ways --------------------------------------------------------------------------------------------------------------


def _onednn(weight: Tensor) -> Multiply | None:
    """Dense, with the weights in the order that oneDNN likes: what `torch.compile` does with them."""
    if weight.dtype != torch.float32:
        return None  # In bfloat16 torch goes to oneDNN by itself.
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        multiply = torch.ops.mkldnn._linear_pointwise
        multiply(weight.new_zeros(1, weight.shape[1]), packed, None, "none", [], "")
    except (AttributeError, RuntimeError):  # Private operations: another torch, or one without oneDNN.
        return None
    return lambda x, bias: multiply(x, packed, bias, "none", [], "")


def _kernel(weight: Tensor) -> Multiply | None:
    """Sparse, by our kernel."""
    if not _is_sparse(weight) or weight.shape[1] > MOST_COLUMNS or load_kernel() is None:
        return None
    return _in_float32(SparseMatrix(weight.float()).multiply, weight.dtype)


def _csr(weight: Tensor) -> Multiply | None:
    """Sparse, by torch: where there is no compiler for the kernel."""
    if not _is_sparse(weight) or weight.dtype != torch.float32 or load_kernel() is not None:
        return None
    with warnings.catch_warnings():  # That CSR is in beta is not the user's affair.
        warnings.simplefilter("ignore", UserWarning)
        matrix = weight.to_sparse_csr()

    def multiply(x: Tensor, bias: Tensor | None) -> Tensor:
        # Of the two orientations the other one is slower than dense.
        y = (matrix @ x.t()).t().contiguous()
        return y if bias is None else y.add_(bias)

    return multiply


def _int8(weight: Tensor) -> Multiply | None:
    """Dense, of 8 bits, by our kernel. Not exact."""
    return None if load_kernel() is None else _in_float32(ByteMatrix(weight.float()).multiply, weight.dtype)


def _semi_structured(weight: Tensor) -> Multiply | None:
    """Two of every four weights are zero, and the GPU's own units skip them (Mishra et al. 2021)."""
    if weight.dtype not in DTYPES["cuda"] or not is_two_of_four(weight):
        return None
    try:
        with warnings.catch_warnings():
            # That it is a prototype is not the user's affair: it is measured before it is used.
            warnings.simplefilter("ignore", UserWarning)
            packed = to_sparse_semi_structured(weight)
    except (RuntimeError, ValueError):  # A GPU without such units, or a shape that they do not take.
        return None
    return lambda x, bias: nn.functional.linear(x, packed, bias)


def _in_float32(multiply: Multiply, dtype: torch.dtype) -> Multiply:
    """The same for what comes in another dtype."""
    if dtype == torch.float32:
        return multiply
    return lambda x, bias: multiply(x.float(), None if bias is None else bias.float()).to(dtype)


PATHS: dict[str, dict[str, Make]] = {
    "cpu": {"oneDNN": _onednn, "kernel": _kernel, "CSR": _csr},
    "cuda": {"2:4": _semi_structured},
}
"""Device -> name -> way."""
INEXACT: dict[str, dict[str, Make]] = {"cpu": {"int8": _int8}}
"""The same for ways that round the weights: only where they are asked for."""
NAMES = {DENSE} | {name for ways in (*PATHS.values(), *INEXACT.values()) for name in ways}


def _is_sparse(weight: Tensor) -> bool:
    return sparsity_of(weight) >= SPARSE_ENOUGH


def is_two_of_four(weight: Tensor) -> bool:
    """Whether of every four weights of a row at most two are kept."""
    return weight.shape[1] % 4 == 0 and int((weight.reshape(-1, 4) != 0).sum(1).max()) <= 2


def sparsity_of(weight: Tensor) -> float:
    return 1 - float(weight.count_nonzero()) / weight.numel()


# ---- Choice ------------------------------------------------------------------------------------------------------------


class Fast:
    """
    What is known of one weight: the ways it can be multiplied with, and which is fastest for how many rows.

    Everything is made when it is first needed, and made anew when the weight has changed. A copy of a layer starts anew.

    Args:
        inexact (`bool`): Whether [`INEXACT`] ways may be taken.
    """

    def __init__(self, inexact: bool = False):
        self.inexact = inexact
        self.seen: tuple[int, int] | None = None
        self._forget()

    def _forget(self) -> None:
        self.paths: dict[str, Multiply] = {}
        self.choices: dict[int, str] = {}
        self.ratios: dict[int, float] = {}
        self.sparsity = 0.0

    def __deepcopy__(self, memo: object) -> "Fast":
        return Fast(self.inexact)

    def __reduce__(self):
        raise TypeError(
            "Expected a model to pickle that was not sped up: what a layer computes with belongs to this machine. Call "
            "slow_down(model) first, or save_pretrained, which writes ordinary weights."
        )

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x W^T + b`, for any shape of `x`."""
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            raise RuntimeError(
                "speed_up is for inference: its layers compute no gradients. Use torch.inference_mode() or torch.no_grad(), "
                "or slow_down(model) before training."
            )
        columns = x.shape[-1]
        size = 1 << (x.numel() // (columns or 1) - 1).bit_length()
        # Before all else: where dense stays, nothing may be added to its time.
        if self.choices.get(size) == DENSE or not x.numel() or not _is_plain(x, weight):
            return nn.functional.linear(x, weight, bias)
        rows = (x if x.dim() == 2 else x.reshape(-1, columns)).contiguous()
        path = self._path(size, rows, weight, bias)
        if path is None:
            return nn.functional.linear(x, weight, bias)
        y = path(rows, bias)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)

    def _path(self, size: int, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Multiply | None:
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if state != self.seen or size not in self.choices:
            with _lock, torch.no_grad():
                if state != self.seen:
                    self._forget()
                    self.sparsity, self.seen = sparsity_of(weight), state
                if size not in self.choices:
                    self._choose(size, rows, weight.detach().contiguous(), bias)
        name = self.choices[size]
        return None if name == DENSE else self.paths[name]

    def _choose(self, size: int, rows: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        known, device = Measurements.load(), weight.device
        ways = PATHS[device.type] | (INEXACT.get(device.type, {}) if self.inexact else {})
        key = f"{tuple(weight.shape)} {weight.dtype} {size} {self.sparsity:.2f}" + (" int8" if self.inexact else "")
        if device.type == "cuda":
            key += f" {torch.cuda.get_device_name(device)}"
        name, ratio = known.get(key, (None, 1.0))
        if name is None:
            paths = {label: path for label in ways if (path := self._make(label, ways, weight)) is not None}
            name, ratio = measure(paths, rows, weight, bias)
            known.add(key, name, ratio)
        elif name != DENSE and self._make(name, ways, weight) is None:
            name, ratio = DENSE, 1.0
        self.choices[size], self.ratios[size] = name, ratio
        self.paths = {label: path for label, path in self.paths.items() if label in self.choices.values()}

    def _make(self, name: str, ways: dict[str, Make], weight: Tensor) -> Multiply | None:
        if name not in self.paths:
            path = ways[name](weight) if name in ways else None
            if path is None:
                return None
            self.paths[name] = path
        return self.paths[name]


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a product of two matrices on one device that nobody records: into the kernel none can see."""
    device = weight.device
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or device.type not in PATHS:
        return False
    return x.dtype == weight.dtype and x.device == device and not torch.is_autocast_enabled(device.type)


def measure(paths: dict[str, Multiply], rows: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[str, float]:
    """The fastest way, and how many times as fast as dense, [`COST`] included; dense where none is faster by [`GAIN`]."""
    peers: dict[str, Callable[[], Tensor]] = {DENSE: lambda: nn.functional.linear(rows, weight, bias)}
    peers |= {name: (lambda path=path: path(rows, bias)) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in peers}
    wait = torch.cuda.synchronize if rows.is_cuda else lambda: None
    for turn in range(8):
        for name, call in peers.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if turn:  # The first is a warm-up.
                times[name].append(time.perf_counter() - start)
    least = {name: min(values) for name, values in times.items()}  # Other work on the machine only ever adds.
    best = min(least, key=least.__getitem__)
    ratio = least[DENSE] / (least[best] + COST)
    return (best, ratio) if ratio >= GAIN else (DENSE, 1.0)


class Measurements:
    """What was measured on this machine, with this torch and as many threads: shape, dtype, rows and sparsity -> way, ratio."""

    _loaded: dict[Path, "Measurements"] = {}  # noqa: RUF012

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, tuple[str, float]] = {}
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            self.known = {k: (str(name), float(ratio)) for k, (name, ratio) in found.items() if name in NAMES}

    @classmethod
    def load(cls) -> "Measurements":
        what = f"{processor()} {torch.__version__} {torch.get_num_threads()} {load_kernel() is not None}"
        path = cache_folder() / f"speed-{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
        if path not in cls._loaded:
            cls._loaded[path] = cls(path)
        return cls._loaded[path]

    def get(self, key: str, default: tuple[None, float]) -> tuple[str | None, float]:
        return self.known.get(key, default)

    def add(self, key: str, name: str, ratio: float) -> None:
        self.known[key] = (name, round(ratio, 2))
        # Where a home cannot be written it is measured again next time.
        with suppress(OSError), cached_file(self.path) as partial:
            partial.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
