"""The report: one HTML page that opens offline, from the figures of every stage.

blocks     what a page is made of, and how numbers read
data       ReportData, and how it is gathered from the stages' outputs
judgement  what the figures say: winners, where a baseline wins, what to beware of
charts     plotly JSON: training curves, score distributions, receiver operating characteristic
inputs, results, failures, spectra    the sections
sections   their order, the headline, notes and limits
page       the HTML (templates/)
"""

from pipeline.report.data import ReportData, gather
from pipeline.report.page import render_report

__all__ = ["ReportData", "gather", "render_report"]
