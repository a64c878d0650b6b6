"""What an evaluation measures: a row of metrics.csv. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(kw_only=True, slots=True)
class Row:
    """One evaluation. Errors in percent, losses in nats, None where not measured.

    Errors are of images, or where masks are learnt of their labelled pixels.
    """

    step: int  # optimizer steps done
    epoch: float  # passes over the training set done
    lr: float  # of the last step
    train_loss: float  # running mean since the last row: augmented, training mode
    train_error: float
    clean_train_loss: float | None  # the whole training set, not augmented, evaluation mode
    clean_train_error: float | None
    test_loss: float
    test_error: float
    images_per_second: float  # while training, evaluation left out
    seconds: float  # since the run began, pauses between resumed parts left out
    clean_train_iou: float | None = None  # of masks: mean intersection over union, percent
    test_iou: float | None = None


IOU_COLUMNS = ("clean_train_iou", "test_iou")
COLUMNS = tuple(field.name for field in fields(Row) if field.name not in IOU_COLUMNS)
HEADERS = (COLUMNS, (*COLUMNS, *IOU_COLUMNS))  # of images with a class each, and with masks
TIME_COLUMNS = ("images_per_second", "seconds")
