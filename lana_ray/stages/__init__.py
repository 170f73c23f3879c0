"""The stages of a run, in order: teacher, sample, distill, score, select, finetune, register, report.

Each reads what the earlier ones left in the run directory, keeps what still fits, and writes its own.
"""
