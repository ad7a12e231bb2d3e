"""Codes on disk: one recording's file, folders of recordings, and data sets of codes."""
