"""What judging is made of: ranking of rows, outcomes of alerts, curves, differences in pairs, rates over time."""
