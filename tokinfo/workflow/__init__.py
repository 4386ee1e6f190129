"""The study as Snakemake sees it."""
