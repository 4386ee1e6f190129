# One job for each cell: all its prompts and restarts, solved as one batch.


rule invert:
    input:
        checkpoint=lambda w: PLAN.checkpoint(PLAN.cell(w)),
        decoder="<results>/decoders/{model}.safetensors",
    output:
        f"<results>/{CELL_PATH}",
    log:
        f"<logs>/{CELL_PATH.replace('.parquet', '.log')}",
    benchmark:
        f"<benchmarks>/{CELL_PATH.replace('.parquet', '.tsv')}"
    priority: 20
    conda:
        "../envs/tokinfo.yaml"
    threads: STUDY.threads
    resources:
        gpu=needs.gpus(STUDY),
        mem_mb=lambda w, attempt: needs.cell_mb(STUDY, PLAN.cell(w), attempt),
        runtime=lambda w, attempt: 60 * attempt,
    params:
        settings=lambda w: PLAN.cell_settings(PLAN.cell(w)),
        code=plans.code("invert"),
    message:
        "{wildcards.model} at {wildcards.site}, {wildcards.mask}: {wildcards.metric} by {wildcards.solver}"
    script:
        "scripts/invert.py"
