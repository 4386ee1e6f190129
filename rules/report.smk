# From the cells to what a reader sees: tables, figures, pages.


# Only the study's cells are read: files of cells that a study no longer has stay unread.
rule collect:
    input:
        cells=expand("<results>/{path}", path=PLAN.cells),
    output:
        recovery="<results>/tables/recovery.parquet",
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
        code=code("collect"),
    message:
        "Collecting the cells into one table"
    script:
        "scripts/collect.py"


# Of a large table only on request: the text is many times as large.
rule recovery_csv:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        table="<results>/tables/recovery.csv",
    log:
        "<logs>/recovery_csv.log",
    benchmark:
        "<benchmarks>/recovery_csv.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=60,
    params:
        code=code("recovery_csv"),
    message:
        "Writing the long table as text"
    script:
        "scripts/recovery_csv.py"


rule summarise:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        summary="<results>/tables/summary.parquet",
        summary_csv=report(
            "<results>/tables/summary.csv",
            caption="../report/summary.rst",
            category="Tables",
            labels={"table": "tokens found by cell, hidden and visible positions apart"},
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
        code=code("summarise"),
    message:
        "Summarising what was found"
    script:
        "scripts/summarise.py"


rule noise_table:
    input:
        recovery="<results>/tables/recovery.parquet",
    output:
        table=report(
            "<results>/tables/noise.csv",
            caption="../report/noise.rst",
            category="Identifiability",
            labels={"table": "noise at which hidden tokens are lost"},
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
        code=code("noise_table"),
    message:
        "Tabulating the noise at which hidden tokens are lost"
    script:
        "scripts/noise_table.py"


# What the source chapter states, row by row, beside what was found here.
rule replication:
    input:
        recovery="<results>/tables/recovery.parquet",
        histories=PLAN.histories,
    output:
        table="<results>/tables/replication.parquet",
        csv=report(
            "<results>/tables/replication.csv",
            caption="../report/pages.rst",
            category="Replication",
            labels={"table": "the chapter, row by row"},
        ),
        summary=report(
            "<results>/tables/replication_summary.csv",
            caption="../report/pages.rst",
            category="Replication",
            labels={"table": "how many rows agree"},
        ),
    log:
        "<logs>/replication.log",
    benchmark:
        "<benchmarks>/replication.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=30,
    params:
        settings=lambda w: embedded(
            {
                "answers": [
                    row.model_dump(mode="json")
                    for row in answers(STUDY, STUDY_FILES, beyond(config, STUDY_FILES))
                ]
            }
        ),
        code=code("replication"),
    message:
        "Comparing with the chapter, row by row"
    script:
        "scripts/replication.py"


rule figure:
    input:
        lambda w: PLAN.tables(FIGURES[w.figure].table),
    output:
        svg=report(
            "<results>/figures/{figure}.svg",
            caption="../report/figures.rst",
            category=lambda w: FIGURES[w.figure].category,
            labels={"figure": "{figure}", "format": "SVG"},
        ),
        png=report(
            "<results>/figures/{figure}.png",
            caption="../report/figures.rst",
            category=lambda w: FIGURES[w.figure].category,
            labels={"figure": "{figure}", "format": "PNG"},
        ),
    log:
        "<logs>/figures/{figure}.log",
    benchmark:
        "<benchmarks>/figures/{figure}.tsv"
    wildcard_constraints:
        figure=pattern(FIGURES),
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        function=lambda w: FIGURES[w.figure].function,
        settings=lambda w: embedded(PLAN.figure_settings(w.figure)),
        code=lambda w: code("figure", FIGURES[w.figure].function),
    message:
        "Drawing {wildcards.figure}"
    script:
        "scripts/figure.py"


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
        axis=pattern(PLAN.scaling),
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        code=code("scaling"),
    message:
        "Drawing what depends on {wildcards.axis}"
    script:
        "scripts/scaling.py"


rule page:
    input:
        lambda w: PLAN.tables(PAGES[w.page].table),
    output:
        page=report(
            "<results>/pages/{page}.html",
            caption="../report/pages.rst",
            category=lambda w: PAGES[w.page].category,
            labels=lambda w: {"page": PAGES[w.page].label},
        ),
    log:
        "<logs>/pages/{page}.log",
    benchmark:
        "<benchmarks>/pages/{page}.tsv"
    wildcard_constraints:
        page=pattern(PAGES),
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        function=lambda w: PAGES[w.page].function,
        settings=embedded(PLAN.labels()),
        code=lambda w: code("page", PAGES[w.page].function),
    message:
        "Writing the page {wildcards.page}"
    script:
        "scripts/page.py"
