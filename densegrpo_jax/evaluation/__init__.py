"""Scoring policies: evaluator, panel, records, tables, KL, diversity."""
