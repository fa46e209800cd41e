"""Metrics of attributions: functions that return a frozen result, and thin classes that gather it over batches."""

from captum_iba.metrics._result import MetricResult
from captum_iba.metrics.bounding_box import BoundingBox, BoundingBoxResult, bounding_box_ratio, boxes_to_mask

__all__ = ["BoundingBox", "BoundingBoxResult", "MetricResult", "bounding_box_ratio", "boxes_to_mask"]
