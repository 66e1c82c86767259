"""The last files of a run, and the way to the Hub."""

import json
import os
import platform
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi

from ..files.folder import CARD, FIGURE, LINEAGE, MASKS, CheckpointError, read_json
from ..hub.folders import VARIANT, convert, has_compact, has_dense
from ..hub.lineage import cached_revision, make_lineage
from ..hub.model_card import make_card, merge_cards
from ..hub.push import push_to_hub, weight_sizes
from ..report.phases import draw_phases
from ..sparsity.masks import Masks, check_fingerprint
from .retraining import RetrainingMixin
from .run_directory import RunDirectory, model_files, remove_unfinished, write_json, write_record
from .say import say
from .weights import no_progress_bars

CARD_METADATA = {
    "language": "language",
    "license": "license",
    "tags": "tags",
    "tasks": "pipeline_tag",
    "finetuned_from": "base_model",
    "dataset_tags": "datasets",
}
"""Arguments of `Trainer.create_model_card` -> the Hub's metadata. Its others are in the card already, or have no place there."""


class PublishingMixin(RetrainingMixin):
    """Writes the final model with its lineage and its card, and pushes it."""

    report: dict[str, Any] | None
    card: dict[str, Any]

    def _save_final(self, run: RunDirectory, report: dict[str, Any]) -> None:
        assert self.masks is not None
        if run.whole(run.final_record) is not None:
            self._check_lineage(run.root, report)
            return
        remove_unfinished(run.root)
        self._save_weights(run.root)
        check_fingerprint(Masks.load(run.root / MASKS), self.masks.fingerprint(), str(run.root))
        write_json(run.report, report)
        self._describe(run.root, report)
        # Not the card and what is made for it, nor what lies here besides: those may change.
        saved = {path.name for path in model_files(run.soup(len(report["phases"])))}
        files = [path for path in model_files(run.root) if path.name in saved or path.suffix == ".safetensors"]
        write_record(run.final_record, {"mask_fingerprint": self.masks.fingerprint()}, [*files, run.report])

    def _check_lineage(self, folder: Path, report: dict[str, Any]) -> None:
        """Of a finished run: test scores and measurements in it may be new, all else follows from the report."""
        try:
            there = read_json(folder / LINEAGE)
            made = json.loads(
                json.dumps(make_lineage(report, self._masks_held(), None, None, there["test"], there["measured"]))
            )
            whole = all(there[key] == value for key, value in made.items() if key not in ("parent", "versions"))
        except (CheckpointError, KeyError):
            whole = False
        if not whole:
            self._say(f"damaged, to be made again: {folder / LINEAGE} is not what the run wrote")
            self._describe(folder, report)

    def _masks_held(self) -> Masks:
        assert self.masks is not None
        return self.masks

    def _save_weights(self, folder: Path) -> None:
        """The final weights, in the form asked for."""
        with no_progress_bars():
            self.save_model(str(folder), _internal_call=True)
        if self.args.sparse_format != "dense" or has_compact(folder):  # Or one of an earlier run in this folder.
            convert(folder, self.args.sparse_format)

    def _describe(self, folder: Path, report: dict[str, Any], test: dict[str, float] | None = None) -> None:
        """Write lineage, figure and card."""
        assert self.masks is not None
        parent = getattr(self.model.config, "_name_or_path", None)
        lineage = make_lineage(report, self.masks, parent, cached_revision(parent), test, self._measured)
        write_json(folder / LINEAGE, lineage)
        try:
            draw_phases(lineage).savefig(folder / FIGURE, dpi=150)
        except ImportError:
            self._say("no figure for the model card: it needs matplotlib, pip install sms_hf[report]")
        card = make_card(
            lineage,
            self._repo_name,
            weight_sizes(folder),
            (folder / FIGURE).is_file(),
            _as_given(str(self.args.output_dir)),
            **_metadata(self.card),
        )
        there = folder / CARD
        there.write_text(merge_cards(card, there.read_text("utf-8") if there.is_file() else None), encoding="utf-8")

    @cached_property
    def _measured(self) -> dict[str, Any] | None:
        """Seconds to load the model, and examples a second on the first batch of the evaluation data; best of three."""
        folder = self._run.root
        forms = {"dense": None} if has_dense(folder) else {}
        forms |= {"compact": VARIANT} if has_compact(folder) else {}
        try:
            with no_progress_bars():
                load_seconds = {
                    form: _best_of_three(
                        lambda v=variant: cast("Any", type(self.model)).from_pretrained(folder, variant=v)
                    )
                    for form, variant in forms.items()
                }
            judge = self._judge(self._copy())
            batch = judge._prepare_inputs(next(iter(judge.get_eval_dataloader())))
            judge.model.eval()
            with torch.no_grad(), judge.compute_loss_context_manager():
                seconds = _best_of_three(lambda: float(judge.compute_loss(judge.model, dict(batch))))
        except Exception as error:  # Hours of training must not be lost to a measurement.
            self._say(f"no measurement for the model card: {type(error).__name__}: {error}")
            return None
        size = self.args.eval_batch_size
        return {
            "machine": torch.cuda.get_device_name()
            if self.args.device.type == "cuda"
            else f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
            "load_seconds": load_seconds,
            "batch_size": size,
            "samples_per_second": size / seconds,
        }

    # ---- The Hub -----------------------------------------------------------------------------------------------------

    def evaluate_run(self, dataset, dense=None) -> dict[str, float]:
        scores = super().evaluate_run(dataset, dense)
        if self.args.processes.is_main and self.report is not None:
            self._describe(self._run.root, self.report, scores)
        return scores

    evaluate_run.__doc__ = RetrainingMixin.evaluate_run.__doc__

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        candidates: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Push the soup, as [`sms_hf.push_to_hub`] does: once, by the main process. The others return at once.

        Args:
            commit_message, blocking, token, revision, private: As in `Trainer.push_to_hub`.
            candidates (`bool`, *optional*, defaults to `False`): Also push the candidates of the last phase, each to a branch
                `phase-2-candidate-1`. They are there with `keep_candidates=True`.
            kwargs: Those of `Trainer.create_model_card`: `language`, `license`, `tags`, `dataset_tags`, ...

        Returns:
            `CommitInfo` of the soup, or a `Future` of it with `blocking=False`; None on other processes.

        Raises:
            ValueError: If the candidates' weights were not kept.
        """
        if self._is_candidate or self.report is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        if not self.args.processes.is_main:
            return None
        folder, token = self._run.root, token or self.args.hub_token
        options = {"private": self.args.hub_private_repo if private is None else private, "token": token}
        metadata = _metadata(self.card | kwargs)
        self._save_weights(folder)
        kept = self._kept_candidates(None) if candidates else {}
        message = commit_message or "End of training"

        def push() -> Any:
            branch = revision or self.args.hub_revision
            commit = push_to_hub(
                folder, self._repo_name, commit_message=message, revision=branch, **options, **metadata
            )
            for name, path in kept.items():
                number = len(self.args.make_plan())
                push_to_hub(path, self._repo_name, commit_message=message, revision=f"phase-{number}-{name}", **options)
            return commit

        return push() if blocking else HfApi(token=token).run_as_future(push)

    @property
    def _repo_name(self) -> str:
        return self.args.hub_model_id or self._run.root.absolute().name

    def _say(self, line: str) -> None:
        if self.args.processes.is_main:
            say(line)


def _as_given(folder: str) -> str | None:
    """What loads the folder where the run was started; an absolute path would tell strangers of this machine."""
    return None if os.path.isabs(folder) else folder


def _metadata(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {CARD_METADATA[key]: value for key, value in kwargs.items() if value and key in CARD_METADATA}


def _best_of_three(action: Any) -> float:
    """Seconds of the fastest of three runs."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
