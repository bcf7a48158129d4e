"""Stage `report`: one HTML page that opens offline, from the figures of every stage (see pipeline/report_page)."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import run_reporting_errors
from pipeline.params import load_params
from pipeline.report_page.data import ReportData, gather
from pipeline.report_page.page import render_report
from pipeline.store import write_text

__all__ = ["ReportData", "gather", "main", "render_report"]

OUTPUT = Path("reports/index.html")


def main() -> None:
    """Command line of the stage: read what the stages wrote, write reports/index.html."""
    page = render_report(gather(Path(), load_params()))
    write_text(OUTPUT, page)
    print(f"report: {OUTPUT} ({len(page.encode()) / 1e6:.1f} MB)", flush=True)


if __name__ == "__main__":
    run_reporting_errors(main)
