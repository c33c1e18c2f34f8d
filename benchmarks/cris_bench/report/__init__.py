"""Records to read: tables, documents, plots, comparisons."""
