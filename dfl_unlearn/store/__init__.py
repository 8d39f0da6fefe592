"""Run folders and tables: arrays, JSON and rows on disk, nothing above that."""
