"""The page that says how good a detector is, and why: HTML and SVG, written by hand."""

from jaxdet.report.page import Facts, write_page

__all__ = ["Facts", "write_page"]
