"""The paper's study: variants, data, measures, statistics, and the report."""
