"""Refuses settings and teachers that cannot work before anything is measured or trained."""
