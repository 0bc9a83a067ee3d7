"""The report: plots, tables and the HTML page."""
