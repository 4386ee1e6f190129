# One job for each cell: all its prompts and restarts, solved as one batch.


# How often each of a model's tokens occurs in the study's prior, for the cells that count bits.
rule unigram:
    input:
        checkpoint=OUTPUTS["embedding"]["checkpoint"],
        text=f"<results>/corpora/{STUDY.prior}.txt",
    output:
        OUTPUTS["unigram"]["unigrams"],
    log:
        LOGS["unigram"],
    benchmark:
        BENCHMARKS["unigram"]
    priority: 30
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        code=code("unigram"),
    message:
        "Counting the tokens of {wildcards.model} in the prior"
    script:
        "scripts/unigram.py"


# `target`, `prior` and `passages` are there for the cells that need them (a control's other model,
# a solver that counts bits, prompts that are drawn from a text), so that a control or a prior added
# to a study leaves the other cells alone.
rule invert:
    input:
        checkpoint=lambda w: PLAN.checkpoint(PLAN.cell(w)),
        decoder=OUTPUTS["embedding"]["decoder"],
        target=lambda w: PLAN.target(PLAN.cell(w)),
        prior=lambda w: PLAN.prior(PLAN.cell(w)),
        passages=lambda w: PLAN.passages([PLAN.cell(w).prompts]),
    output:
        OUTPUTS["invert"]["cell"],
    log:
        LOGS["invert"],
    benchmark:
        BENCHMARKS["invert"]
    priority: 20
    group:
        submissions.group(workflow, STUDY.cells_per_submission)
    conda:
        "../envs/tokinfo.yaml"
    threads: STUDY.threads
    resources:
        gpu=memory.gpus(STUDY),
        cell=lambda w: submissions.slots(workflow),
        mem_mb=lambda w, attempt: memory.cell_mb(STUDY, PLAN.cell(w), attempt),
        runtime=lambda w, attempt: runtime.cell_minutes(STUDY, PLAN.cell(w), attempt),
    params:
        settings=lambda w: PLAN.cell_settings(PLAN.cell(w)),
        code=lambda w: PLAN.cell_code(PLAN.cell(w)),
    message:
        "{wildcards.model} at {wildcards.site}, {wildcards.mask}: {wildcards.metric} by {wildcards.solver}"
    script:
        "scripts/invert.py"
