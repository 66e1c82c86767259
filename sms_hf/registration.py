"""transformers learns to read compact files when it is imported, and `import sms_hf` does not import it for that."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

READER = "sms_hf.compact.quantizer"
MODELS = "transformers.modeling_utils"
"""Where `from_pretrained` is: before it nobody can ask for a reader."""


class _Watch(MetaPathFinder):
    """Waits for [`MODELS`], once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODELS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(READER)

            spec.loader.exec_module = execute_and_register
        return spec


def register_reader() -> None:
    """Import the reader of compact files as soon as transformers has models: now, or when somebody imports it."""
    if MODELS in sys.modules:
        importlib.import_module(READER)
    else:
        sys.meta_path.insert(0, _Watch())
