# From the cells to what a reader sees: tables, figures, token strips.


# Only the study's own cells are read: files of cells that a study no longer has stay unread.
rule collect:
    input:
        cells=expand("<results>/{path}", path=PLAN.cells),
    output:
        recovery="<results>/tables/recovery.parquet",
        recovery_csv="<results>/tables/recovery.csv",
    log:
        "<logs>/collect.log",
    benchmark:
        "<benchmarks>/collect.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        code=plans.code("collect"),
    message:
        "Collecting the cells into one table"
    script:
        "scripts/collect.py"


rule summarise:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        summary="<results>/tables/summary.parquet",
        summary_csv=report(
            "<results>/tables/summary.csv",
            caption="../report/summary.rst",
            category="Tables",
            labels={"table": "recovery by cell, hidden and visible positions apart"},
        ),
    log:
        "<logs>/summarise.log",
    benchmark:
        "<benchmarks>/summarise.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        code=plans.code("summarise"),
    message:
        "Summarising recovery"
    script:
        "scripts/summarise.py"


rule figure:
    input:
        summary="<results>/tables/summary.parquet",
    output:
        svg=report(
            "<results>/figures/{figure}.svg",
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}", "format": "SVG"},
        ),
        png=report(
            "<results>/figures/{figure}.png",
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}", "format": "PNG"},
        ),
    log:
        "<logs>/figures/{figure}.log",
    benchmark:
        "<benchmarks>/figures/{figure}.tsv"
    wildcard_constraints:
        figure=plans.pattern(plans.FIGURES),
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        code=plans.code("figure"),
    message:
        "Drawing {wildcards.figure}"
    script:
        "scripts/figure.py"


rule training_curves:
    input:
        histories=expand("<results>/training/{source}.csv", source=sorted(PLAN.trained)),
    output:
        svg=report(
            "<results>/figures/training_curves.svg",
            caption="../report/training_curves.rst",
            category="Figures",
            labels={"figure": "training_curves", "format": "SVG"},
        ),
        png=report(
            "<results>/figures/training_curves.png",
            caption="../report/training_curves.rst",
            category="Figures",
            labels={"figure": "training_curves", "format": "PNG"},
        ),
    log:
        "<logs>/figures/training_curves.log",
    benchmark:
        "<benchmarks>/figures/training_curves.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        settings=PLAN.families(),
        code=plans.code("training_curves"),
    message:
        "Drawing the training curves"
    script:
        "scripts/training_curves.py"


rule loss_curves:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        svg=report(
            "<results>/figures/loss_curves.svg",
            caption="../report/loss_curves.rst",
            category="Figures",
            labels={"figure": "loss_curves", "format": "SVG"},
        ),
        png=report(
            "<results>/figures/loss_curves.png",
            caption="../report/loss_curves.rst",
            category="Figures",
            labels={"figure": "loss_curves", "format": "PNG"},
        ),
    log:
        "<logs>/figures/loss_curves.log",
    benchmark:
        "<benchmarks>/figures/loss_curves.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        code=plans.code("loss_curves"),
    message:
        "Drawing the loss curves of the descents"
    script:
        "scripts/loss_curves.py"


rule strips:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        page=report(
            "<results>/pages/strips.html",
            caption="../report/strips.rst",
            category="Prompts",
            labels={"page": "what came back, token by token"},
        ),
    log:
        "<logs>/strips.log",
    benchmark:
        "<benchmarks>/strips.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        settings=PLAN.labels(),
        code=plans.code("strips"),
    message:
        "Writing the page of token strips"
    script:
        "scripts/strips.py"


rule identifiability_figure:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        svg=report(
            "<results>/figures/{figure}.svg",
            caption="../report/identifiability_figures.rst",
            category="Identifiability",
            labels={"figure": "{figure}", "format": "SVG"},
        ),
        png=report(
            "<results>/figures/{figure}.png",
            caption="../report/identifiability_figures.rst",
            category="Identifiability",
            labels={"figure": "{figure}", "format": "PNG"},
        ),
    log:
        "<logs>/figures/{figure}.log",
    benchmark:
        "<benchmarks>/figures/{figure}.tsv"
    wildcard_constraints:
        figure=plans.pattern(plans.IDENTIFIABILITY),
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        code=plans.code("identifiability_figure"),
    message:
        "Drawing {wildcards.figure}"
    script:
        "scripts/identifiability_figure.py"


# Only along the axes on which the study has enough values for a line.
rule scaling:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        svg=report(
            "<results>/figures/scaling_{axis}.svg",
            caption="../report/scaling.rst",
            category="Scaling",
            labels={"figure": "scaling_{axis}", "format": "SVG"},
        ),
        png=report(
            "<results>/figures/scaling_{axis}.png",
            caption="../report/scaling.rst",
            category="Scaling",
            labels={"figure": "scaling_{axis}", "format": "PNG"},
        ),
        table=report(
            "<results>/tables/scaling_{axis}.csv",
            caption="../report/scaling.rst",
            category="Scaling",
            labels={"figure": "scaling_{axis}", "format": "CSV"},
        ),
    log:
        "<logs>/scaling/{axis}.log",
    benchmark:
        "<benchmarks>/scaling/{axis}.tsv"
    wildcard_constraints:
        axis=plans.pattern(PLAN.scaling),
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        code=plans.code("scaling"),
    message:
        "Drawing what depends on {wildcards.axis}"
    script:
        "scripts/scaling.py"


rule noise_table:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        table=report(
            "<results>/tables/noise.csv",
            caption="../report/noise.rst",
            category="Identifiability",
            labels={"table": "noise that hidden tokens survive"},
        ),
    log:
        "<logs>/noise_table.log",
    benchmark:
        "<benchmarks>/noise_table.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        code=plans.code("noise_table"),
    message:
        "Tabulating the noise that hidden tokens survive"
    script:
        "scripts/noise_table.py"


rule identifiability:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        page=report(
            "<results>/pages/identifiability.html",
            caption="../report/identifiability.rst",
            category="Identifiability",
            labels={"page": "not found, or not there?"},
        ),
    log:
        "<logs>/identifiability.log",
    benchmark:
        "<benchmarks>/identifiability.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        settings=PLAN.labels(),
        code=plans.code("identifiability"),
    message:
        "Writing the page on what is identifiable"
    script:
        "scripts/identifiability.py"
