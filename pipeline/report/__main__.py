"""Stage `report`: reads what every stage wrote, writes reports/index.html."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import run_reporting_errors
from pipeline.params import load_params
from pipeline.report import gather, render_report
from pipeline.store import write_text

OUTPUT = Path("reports/index.html")


def main() -> None:
    """Command line of the stage."""
    page = render_report(gather(Path(), load_params()))
    write_text(OUTPUT, page)
    print(f"report: {OUTPUT} ({len(page.encode()) / 1e6:.1f} MB)", flush=True)


if __name__ == "__main__":
    run_reporting_errors(main)
