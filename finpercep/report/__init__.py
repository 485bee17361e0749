"""Plots and the self-contained HTML report. Draws what it is handed; computes nothing."""
