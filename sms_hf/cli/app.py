"""What all commands share: the program, its errors, and what they take and say alike."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import launching

HELP = """
Sparse model soups: train them, and what can be done with their folders, on disk and on the Hub.

\b
    sms-hf train wmt16_t5 --demo --num_processes 2

Every command tells its options with --help.
"""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run one command. What a user can mend is one line on stderr and the exit code 1."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # `sms-hf inspect X | head`: nobody reads on. Python would complain once more when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:
            if not isinstance(error, (ValueError, OSError, ImportError)) and not _is_from_the_network(error):
                raise
            where = "the Hub: " if _is_from_the_network(error) else ""
            print(f"sms-hf: {where}{error}", file=sys.stderr)
            raise typer.Exit(1) from None


def _is_from_the_network(error: Exception) -> bool:
    errors = sys.modules.get("huggingface_hub.errors")
    return errors is not None and isinstance(error, errors.HTTPError)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


app = typer.Typer(
    cls=_Commands,
    help=HELP,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"sms-hf {sys.modules['sms_hf'].__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None: ...


def command(example: str, **settings: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Offer a function as the command of its name. Its docstring is the help, `example` stands below."""

    def offer(function: Callable[..., None]) -> Callable[..., None]:
        # The list of commands would cut a help that is not called short.
        return app.command(short_help=function.__doc__, epilog=f"Example: sms-hf {example}", **settings)(function)

    return offer


def _tasks(incomplete: str) -> list[str]:
    return [name for name in launching.tasks() if name.startswith(incomplete)]


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, or the name of a repository of the Hub.")]
Task = Annotated[
    str, typer.Argument(metavar="TASK", help="The name of a recipe.", autocompletion=_tasks, show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def show(what: Any) -> None:
    """Print a text as it is, facts as JSON."""
    print(what if isinstance(what, str) else json.dumps(what, indent=1, default=str))


def quiet() -> None:
    """No progress bars and warnings of transformers between the lines of a command."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def find_folder(name: str) -> Path:
    """The folder of a model, downloaded where the name is not one here."""
    if Path(name).exists():
        return Path(name)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise ValueError(f"Expected a model folder or a repository USER/NAME, found no folder {name}.")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.md"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)) and not _is_from_the_network(error):
            raise
        raise ValueError(
            f"Found no folder {name}, and got no repository {name} from the Hub: {_first_line(error)}"
        ) from error
