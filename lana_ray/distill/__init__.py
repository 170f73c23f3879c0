"""Layer-wise distillation of candidates and their scores (LANA, arXiv 2107.10624, sections 3.2 and 3.3)."""
