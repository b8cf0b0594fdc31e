"""The command line: one thin file per verb."""

EXIT_OURS, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130
"""What a command ends with: 0 done, 2 the user's mistake, 1 failed otherwise, 130 interrupted.

Verbs that make rows (batch, study, benchmarks) end with 0 where all rows that were asked for are
done, in whichever run; with 2 where some failed, all of them for input that can be mended; with 1
where some failed for another reason.
"""
