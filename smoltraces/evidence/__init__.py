"""Statistics, claims, tables, figures, and the report"""
from .statistics import accuracy_interval, comparisons, difference, equivalence, holm, summarise
from .claims import Claim, CLAIMS, judge, published_claims
from .tables import save_table, tables
from .figures import (
    adoption,
    FIGURES,
    plot_accuracy,
    plot_adoption,
    plot_claims,
    plot_differences,
    plot_teacher,
    save_figure,
)
from .publish import publish, reload
from .report import report

__all__ = [
    "CLAIMS", "Claim", "FIGURES", "accuracy_interval", "adoption", "comparisons", "difference", "equivalence",
    "holm", "judge", "plot_accuracy", "plot_adoption", "plot_claims", "plot_differences", "plot_teacher", "publish",
    "published_claims", "reload", "report", "save_figure", "save_table", "summarise", "tables",
]
