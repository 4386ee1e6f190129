# From a source to what cells load: training or fetching, then the blocks that a site needs.
# Long chains start first: fetching and training before anything that only one cell waits for.


rule train:
    input:
        tokenizer=lambda w: PLAN.tokenizer_path(w.source),
        tokens=lambda w: f"<results>/tokens/{PLAN.tokenizer_of(w.source)}.safetensors",
    output:
        model=directory(OUTPUTS["train"]["model"]),
        history=OUTPUTS["train"]["history"],
    log:
        LOGS["train"],
    benchmark:
        BENCHMARKS["train"]
    wildcard_constraints:
        source=pattern(PLAN.trained),
    priority: 50
    conda:
        "../envs/tokinfo.yaml"
    threads: STUDY.threads
    resources:
        gpu=memory.gpus(STUDY),
        mem_mb=lambda w, attempt: memory.training_mb(STUDY, w.source, attempt),
        runtime=lambda w, attempt: runtime.training_minutes(STUDY, w.source, attempt),
    params:
        settings=lambda w: PLAN.training_settings(w.source),
        code=code("train"),
        state=PLAN.state,
    message:
        "Training {wildcards.source}"
    script:
        "scripts/train.py"


# What is read of a model from elsewhere: its configuration and tokenizer, or as many blocks as
# some cell reads, each in its own directory for the reason below. Blocks already fetched for
# one of them are not fetched again for another.
rule fetch:
    input:
        files=lambda w: PLAN.fetch_files(w.source, w.part),
    output:
        directory(OUTPUTS["fetch"]["model"]),
    log:
        LOGS["fetch"],
    benchmark:
        BENCHMARKS["fetch"]
    wildcard_constraints:
        source=pattern(PLAN.fetched),
    priority: 70
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=lambda w, attempt: memory.fetch_mb(STUDY, w.source, w.part, attempt),
        disk_mb=lambda w: memory.part_mb(STUDY, w.source, w.part),
        runtime=lambda w, attempt: runtime.fetch_minutes(STUDY, w.source, w.part, attempt),
    params:
        settings=lambda w: PLAN.fetch_settings(w.source, w.part),
        code=code("fetch"),
        state=PLAN.state,
    message:
        "Fetching {wildcards.source}, {wildcards.part} ({resources.disk_mb} MB on the disk)"
    script:
        "scripts/fetch.py"


# One checkpoint for each depth that some cell reads, not one cut at the study's deepest site: a
# deeper site then adds a checkpoint and leaves alone those that other cells were made from. (One
# shared checkpoint marked `ancient()` for its cells does not do: as soon as it must be rebuilt,
# Snakemake 9.27 stops looking for any other reason to run the jobs below it, so that the very
# cells that asked for more blocks, or whose settings changed too, are left out of that run.)
# Cells of a shallow site load less for it.
rule prepare:
    input:
        origin=lambda w: PLAN.origin(w.model, int(w.blocks)),
    output:
        checkpoint=directory(OUTPUTS["prepare"]["checkpoint"]),
    log:
        LOGS["prepare"],
    benchmark:
        BENCHMARKS["prepare"]
    priority: 40
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=lambda w, attempt: memory.prepare_mb(STUDY, w.model, int(w.blocks), attempt),
        disk_mb=lambda w: memory.checkpoint_mb(STUDY, w.model, int(w.blocks)),
        runtime=lambda w, attempt: runtime.prepare_minutes(STUDY, w.model, int(w.blocks), attempt),
    params:
        settings=lambda w: PLAN.prepare_settings(w.model, int(w.blocks)),
        code=code("prepare"),
    message:
        "Cutting {wildcards.model} to its embedding and {wildcards.blocks} blocks"
    script:
        "scripts/prepare.py"


# The embedding alone, and what decoding by its pseudo-inverse needs, once for each model.
rule embedding:
    input:
        origin=lambda w: PLAN.origin(w.model, 0),
    output:
        checkpoint=directory(OUTPUTS["embedding"]["checkpoint"]),
        decoder=OUTPUTS["embedding"]["decoder"],
    log:
        LOGS["embedding"],
    benchmark:
        BENCHMARKS["embedding"]
    priority: 40
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=lambda w, attempt: memory.prepare_mb(STUDY, w.model, 0, attempt),
        disk_mb=lambda w: memory.checkpoint_mb(STUDY, w.model, 0),
        runtime=lambda w, attempt: runtime.prepare_minutes(STUDY, w.model, 0, attempt),
    params:
        settings=lambda w: PLAN.prepare_settings(w.model, 0),
        code=code("embedding"),
    message:
        "Taking the embedding of {wildcards.model}"
    script:
        "scripts/embedding.py"
