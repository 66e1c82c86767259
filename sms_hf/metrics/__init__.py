"""What a score is: corpus BLEU, chrF and TER with their signatures, accuracy, intersection over union, calibration."""

from .bleu import bleu_metrics, sacrebleu_signature
from .calibration import expected_calibration_error, worst_class_accuracy
from .classification import class_maps, classification_metrics, segmentation_metrics

__all__ = [
    "bleu_metrics",
    "class_maps",
    "classification_metrics",
    "expected_calibration_error",
    "sacrebleu_signature",
    "segmentation_metrics",
    "worst_class_accuracy",
]
