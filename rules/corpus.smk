# From a text to tokens: corpora, the tokenizers trained on them, and the check of the prompts.


rule corpus:
    input:
        files=lambda w: PLAN.corpus_files(w.corpus),
    output:
        train=OUTPUTS["corpus"]["train"],
        held_out=OUTPUTS["corpus"]["held_out"],
    log:
        LOGS["corpus"],
    benchmark:
        BENCHMARKS["corpus"]
    priority: 60
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        settings=lambda w: PLAN.corpus_settings(w.corpus),
        code=code("corpus"),
        state=PLAN.state,
    message:
        "Writing the corpus {wildcards.corpus}"
    script:
        "scripts/corpus.py"


rule tokenizer:
    input:
        corpus=lambda w: f"<results>/corpora/{STUDY.tokenizers[w.tokenizer].corpus}.txt",
    output:
        directory(OUTPUTS["tokenizer"]["tokenizer"]),
    log:
        LOGS["tokenizer"],
    benchmark:
        BENCHMARKS["tokenizer"]
    priority: 60
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        settings=lambda w: PLAN.tokenizer_settings(w.tokenizer),
        code=code("tokenizer"),
    message:
        "Training the tokenizer {wildcards.tokenizer}"
    script:
        "scripts/tokenizer.py"


rule tokens:
    input:
        tokenizer=OUTPUTS["tokenizer"]["tokenizer"],
        train=lambda w: f"<results>/corpora/{STUDY.tokenizers[w.tokenizer].corpus}.txt",
        held_out=lambda w: f"<results>/corpora/{STUDY.tokenizers[w.tokenizer].corpus}.held-out.txt",
    output:
        OUTPUTS["tokens"]["tokens"],
    log:
        LOGS["tokens"],
    benchmark:
        BENCHMARKS["tokens"]
    priority: 60
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        code=code("tokens"),
    message:
        "Encoding the corpus with the tokenizer {wildcards.tokenizer}"
    script:
        "scripts/tokens.py"


# Prompts from the part of a text that nothing is trained on.
rule passages:
    input:
        tokenizer=lambda w: f"<results>/tokenizers/{STUDY.passages[w.passages].tokenizer}",
        held_out=lambda w: f"<results>/corpora/{STUDY.passages[w.passages].corpus}.held-out.txt",
    output:
        OUTPUTS["passages"]["passages"],
    log:
        LOGS["passages"],
    benchmark:
        BENCHMARKS["passages"]
    priority: 100
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=10,
    params:
        settings=lambda w: PLAN.passages_settings(w.passages),
        code=code("passages"),
    message:
        "Drawing the passages {wildcards.passages}"
    script:
        "scripts/passages.py"


# Nothing waits for this check in the graph: a training run that did would be repeated whenever
# a prompt changes. Its priority starts it as soon as the tokenizer exists, before the training
# and the cells that become ready at the same time; when it fails, nothing further is started.
rule prompts:
    input:
        tokenizer=lambda w: PLAN.tokenizer_path(w.source),
        passages=lambda w: PLAN.passages_of(w.source),
    output:
        OUTPUTS["prompts"]["prompts"],
    log:
        LOGS["prompts"],
    benchmark:
        BENCHMARKS["prompts"]
    priority: 100
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=500,
        runtime=10,
    params:
        settings=lambda w: PLAN.prompt_settings(w.source),
        code=code("prompts"),
    message:
        "Checking the prompts with the tokenizer of {wildcards.source}"
    script:
        "scripts/prompts.py"
