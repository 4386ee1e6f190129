# What the source chapter states, row by row, beside what came out here.


rule replication:
    input:
        recovery="<results>/tables/recovery.parquet",
        histories=expand("<results>/training/{source}.csv", source=sorted(PLAN.trained)),
    output:
        table="<results>/tables/replication.parquet",
        csv=report(
            "<results>/tables/replication.csv",
            caption="../report/replication.rst",
            category="Replication",
            labels={"table": "the chapter, row by row"},
        ),
        summary=report(
            "<results>/tables/replication_summary.csv",
            caption="../report/replication.rst",
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
        settings=lambda w: plans.canonical(
            {"answers": answers(STUDY, STUDY_FILES, beyond(config, STUDY_FILES))}
        ),
        code=plans.code("replication"),
    message:
        "Comparing with the chapter, row by row"
    script:
        "scripts/replication.py"


rule replication_page:
    input:
        table="<results>/tables/replication.parquet",
    output:
        page=report(
            "<results>/pages/replication.html",
            caption="../report/replication.rst",
            category="Replication",
            labels={"page": "does it agree?"},
        ),
    log:
        "<logs>/replication_page.log",
    benchmark:
        "<benchmarks>/replication_page.tsv"
    conda:
        "../envs/tokinfo.yaml"
    resources:
        gpu=0,
        mem_mb=1000,
        runtime=30,
    params:
        settings=PLAN.labels(),
        code=plans.code("replication_page"),
    message:
        "Writing the page on the chapter, row by row"
    script:
        "scripts/replication_page.py"
