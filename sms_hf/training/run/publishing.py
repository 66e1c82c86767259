"""The last files of a run, and the way to the Hub."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi

from ...compact.folders import convert, model_digest
from ...files.folder import CARD, FIGURE, LINEAGE, CheckpointError
from ...files.forms import VARIANT, has_compact, has_dense, run_sizes, tells_form, weight_sizes
from ...files.records import check_files, write_record
from ...files.writing import write_json, write_text
from ...hub.lineage import cached_revision, make_lineage
from ...hub.model_card import make_card, merge_cards
from ...hub.push import push_to_hub
from ...report.facts import Run
from ...report.loading import load_lines
from ...report.page import PAGE, make_page
from ...report.phases import draw_phases
from ...report.schema import Comparison, Report, read_lineage
from ...sparsity.masks import Masks, check_fingerprint
from ..masked.checkpoints import no_progress_bars
from ..processes.say import say
from ..run_directory import RunDirectory, model_files, read_or_discard, remove_unfinished
from .bench import Bench

CARD_METADATA = {
    "language": "language",
    "license": "license",
    "tags": "tags",
    "tasks": "pipeline_tag",
    "finetuned_from": "base_model",
    "dataset_tags": "datasets",
}
"""Arguments of `Trainer.create_model_card` -> the Hub's metadata. Its others are in the card already, or have no place there."""


class Publisher:
    """
    Writes the final model with its lineage and its card, and pushes it. For the main process.

    Args:
        bench ([`Bench`]): Of a trainer that holds the final soup.
        directory ([`RunDirectory`]): Of the run.
    """

    def __init__(self, bench: Bench, directory: RunDirectory):
        self._bench, self._directory = bench, directory
        self._trainer, self._args = bench.trainer, bench.args

    def save_final(self, report: Report) -> None:
        """Write the model, the report and what describes them, or see that they are there."""
        directory, masks = self._directory, self._masks
        if read_or_discard(directory.final_record, as_good=self._has_other_form) is not None:
            self._check_lineage(report)
            return
        remove_unfinished(directory.root)
        self._save_weights()
        check_fingerprint(Masks.of(directory.root), masks.fingerprint(), str(directory.root))
        write_json(directory.report, report)
        self.describe(report)
        self._seal({"mask_fingerprint": masks.fingerprint(), "model": model_digest(directory.root)})

    def describe(
        self, report: Report, test: Mapping[str, float] | None = None, comparisons: Sequence[Comparison] = ()
    ) -> None:
        """
        Write lineage, figure, card and page.

        Args:
            report (`Mapping`): What `report.json` holds.
            test (`Mapping`, *optional*): Row of the table -> test score.
            comparisons (`Sequence`, *optional*): Of these scores.
        """
        folder = self._directory.root
        parent = getattr(self._trainer.model.config, "_name_or_path", None)
        revision = cached_revision(parent)
        lineage = make_lineage(report, self._masks, parent, revision, test, self._measured, comparisons)
        write_json(folder / LINEAGE, lineage)
        try:
            draw_phases(lineage).savefig(folder / FIGURE, dpi=150)
        except ImportError:
            say("no figure for the model card: it needs matplotlib, pip install sms_hf[report]")
        card = make_card(
            lineage,
            self.repo_name,
            weight_sizes(folder),
            (folder / FIGURE).is_file(),
            _as_given(str(self._args.output_dir)),
            **card_metadata(self._trainer.card),
        )
        there = folder / CARD
        write_text(there, merge_cards(card, there.read_text("utf-8") if there.is_file() else None))
        self._write_page(report, lineage)

    def push(
        self,
        message: str,
        blocking: bool,
        token: str | None,
        revision: str | None,
        private: bool | None,
        candidates: Mapping[str, Path],
        card: Mapping[str, Any],
    ) -> Any:
        """
        Push the soup, and each of the last phase's candidates (name -> folder) to a branch of its own.

        The other arguments are those of `SparseSoupTrainer.push_to_hub`; `card`: what it takes by name besides.
        """
        folder, args, token = self._directory.root, self._args, token or self._args.hub_token
        options = {"private": args.hub_private_repo if private is None else private, "token": token}
        metadata = card_metadata({**self._trainer.card, **card})
        self._save_weights()

        def push() -> Any:
            commit = push_to_hub(
                folder,
                self.repo_name,
                commit_message=message,
                revision=revision or args.hub_revision,
                **options,
                **metadata,
            )
            for name, path in candidates.items():
                branch = f"{path.parent.name}-{name}"
                push_to_hub(path, self.repo_name, commit_message=message, revision=branch, **options)
            return commit

        return push() if blocking else HfApi(token=token).run_as_future(push)

    def _write_page(self, report: Report, lineage: Mapping[str, Any]) -> None:
        folder = self._directory.root
        try:
            sizes, model_class = run_sizes(folder), report["settings"]["model"]["class"]
            name = folder.absolute().name
            load = load_lines(_as_given(str(self._args.output_dir)) or name, model_class, sizes)
            # As they will be read: `sms-hf report` makes the same page.
            run = Run(name, json.loads(json.dumps(report)), json.loads(json.dumps(lineage)), sizes, load)
            write_text(folder / PAGE, make_page(run))
        except ImportError:
            say(f"no {PAGE}: it needs matplotlib, pip install sms_hf[report]")
        except Exception as error:  # Hours of training must not be lost to a page.
            say(f"no {PAGE}: {type(error).__name__}: {error}")

    @property
    def repo_name(self) -> str:
        return self._args.hub_model_id or self._directory.root.absolute().name

    @property
    def _masks(self) -> Masks:
        return self._trainer.masks

    def _check_lineage(self, report: Report) -> None:
        """Of a finished run: test scores and measurements in it may be new, all else follows from the report."""
        path = self._directory.root / LINEAGE
        try:
            there = read_lineage(path.parent)
            known = there["test"], there["measured"], there.get("comparisons", ())
            lineage = make_lineage(report, self._masks, None, None, *known)
            made = json.loads(json.dumps(lineage))
            whole = all(there[key] == value for key, value in made.items() if key not in ("parent", "versions"))
        except (CheckpointError, KeyError):
            whole = False
        if not whole:
            say(f"damaged, to be made again: {path} is not what the run wrote")
            self.describe(report)

    def _seal(self, value: dict[str, Any]) -> None:
        """Say that the final model is whole."""
        directory = self._directory
        # Not the card and what is made for it, nor what lies here besides: those may change.
        saved = {path.name for path in model_files(directory.phase(self._args.make_plan()[-1].number).soup)}
        files = [p for p in model_files(directory.root) if p.name in saved or p.suffix == ".safetensors"]
        write_record(directory.final_record, value, [*files, directory.report])

    def _has_other_form(self, sealed: dict[str, Any]) -> bool:
        """Of a finished run: whether `pack` or `unpack` stored its model in another form, which is sealed then."""
        directory = self._directory
        try:
            check_files(directory.final_record, besides=tells_form)
            model = model_digest(directory.root)
        except (ValueError, OSError):  # A file or a form that is damaged.
            return False
        if model is None or model != sealed.get("model"):
            return False
        self._seal(sealed)
        return True

    def _save_weights(self) -> None:
        """The final weights, in the form asked for."""
        folder, form = self._directory.root, self._args.sparse_format
        with no_progress_bars():
            self._trainer.save_model(str(folder), _internal_call=True)
        if form != "dense" or has_compact(folder):  # Or one of an earlier run in this folder.
            convert(folder, form)

    @cached_property
    def _measured(self) -> dict[str, Any] | None:
        """Seconds to load the model, and examples a second on the first batch of the evaluation data; best of three."""
        folder, bench, args = self._directory.root, self._bench, self._args
        forms = {"dense": None} if has_dense(folder) else {}
        forms |= {"compact": VARIANT} if has_compact(folder) else {}
        model_class = cast("Any", type(self._trainer.model))
        try:
            with no_progress_bars():
                load_seconds = {
                    form: _best_of_three(lambda v=variant: model_class.from_pretrained(folder, variant=v))
                    for form, variant in forms.items()
                }
            judge = bench.judge(bench.copy())
            batch = judge._prepare_inputs(bench.first_batch())
            judge.model.eval()
            with torch.no_grad(), judge.compute_loss_context_manager():
                seconds = _best_of_three(lambda: float(judge.compute_loss(judge.model, dict(batch))))
        except Exception as error:  # Hours of training must not be lost to a measurement.
            say(f"no measurement for the model card: {type(error).__name__}: {error}")
            return None
        return {
            "machine": torch.cuda.get_device_name()
            if args.device.type == "cuda"
            else f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
            "load_seconds": load_seconds,
            "batch_size": args.eval_batch_size,
            "samples_per_second": args.eval_batch_size / seconds,
        }


def _as_given(folder: str) -> str | None:
    """What loads the folder where the run was started; an absolute path would tell strangers of this machine."""
    return None if os.path.isabs(folder) else folder


def card_metadata(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Trainer.create_model_card` as the Hub's metadata."""
    return {CARD_METADATA[key]: value for key, value in kwargs.items() if value and key in CARD_METADATA}


def _best_of_three(action: Any) -> float:
    """Seconds of the fastest of three runs."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
