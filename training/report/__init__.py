"""The page of plots that tells how a run went."""

from training.report.page import write_report

__all__ = ["write_report"]
