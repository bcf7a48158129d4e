"""The report's page.

blocks     what a page is made of, and how numbers read
colours    names and colours of detectors, palettes
data       ReportData, and how it is gathered from the stages' outputs
judgement  what the figures say: winners, where a baseline wins, what to beware of
charts     plotly JSON: training curves, score distributions, receiver operating characteristic
inputs, results, failures, spectra    the sections
sections   their order, the headline, notes and limits
page       the HTML (templates/)
"""
