"""The report as one HTML file for a browser: tables, charts and the evidence behind each point, without any network.

text      escaping, tables, lists: what the pages of `report/` call with output "html"
model     the runs as data for the page's script
page      the file: text, data, style and scripts in one, and a policy that lets the browser run nothing else
page.css  its looks, light and dark, narrow and wide, on screen and in print
chart.js  scatter and lines as SVG            page.js   toggles, tables, the panel with the evidence
"""
