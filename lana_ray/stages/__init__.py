"""The stages of a run: teacher, sample, distill, score, select, finetune, profile, register, report.

Each reads earlier results from the run directory, keeps its own that are still valid, and writes the rest.
"""
