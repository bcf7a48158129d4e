"""The report: a summary, then a page for each of eight questions, in one file.

blocks     what a page is made of, and how numbers read
names      names from data, made safe to show
colours    names and colours of detectors, palettes
data       ReportData, and how it is gathered from the stages' outputs
judgement  what the figures say: winners, where a baseline wins, what to beware of
charts, score_charts, packing, summaries    plotly JSON, long series in few bytes, each chart as a table
inputs, model (spectra), codes, thresholds, comparison, failures (failure_evidence), crew, next_steps    the pages
sections   their order, the summary, notes and limits
page       the HTML (templates/)
"""
