# The front door: the study, its validation, the stages, and what a complete run leaves behind.
#
#   snakemake --cores all                                    the study of config.yaml
#   snakemake --cores all --configfile studies/smoke.yaml    another study, which stands alone
#   snakemake --cores all --config threads=2 device=cpu      values that override the study's
#
# Nothing here may import torch, transformers or polars: every cluster job reads this file again.
import os
import shlex
import sys
from pathlib import Path

# The package beside this file is the one that runs, whatever is installed.
sys.path.insert(0, str(workflow.basedir))

from tokinfo.io.errors import TokinfoError
from tokinfo.workflow import downloads, memory, running, runtime, submissions
from tokinfo.workflow.answers import answers
from tokinfo.workflow.jobs import check_times, lend_package
from tokinfo.workflow.plan import Plan, embedded
from tokinfo.workflow.rules import (
    BENCHMARKS,
    FIGURES,
    LOGS,
    OUTPUTS,
    PAGES,
    as_text,
    code,
    pattern,
)
from tokinfo.study.files import beyond
from tokinfo.study.load import load_study

# `--configfile` names a whole study. Merging it into the default one would mix their models.
if not workflow.configfiles:

    configfile: f"{workflow.basedir}/config.yaml"


STUDY_FILES = [os.path.relpath(file) for file in workflow.configfiles]
try:
    lend_package(workflow.basedir)
    STUDY = load_study(config, files=STUDY_FILES)
except TokinfoError as error:
    sys.exit(str(error))

PLAN = Plan(STUDY)

# A run that was killed leaves Snakemake's lock behind. What may be unlocked is unlocked here. For the
# rest the command that does it is printed, and Snakemake refuses.
if workflow.is_main_process:
    unlock = shlex.join(["snakemake", *sys.argv[1:], "--unlock"])
    if (found := running.look(Path.cwd(), unlock)) is not None:
        print(f"tokinfo: {found}", file=sys.stderr)


onstart:
    try:
        jobs = list(workflow.dag.needrun_jobs())
        check_times(
            [str(file) for job in jobs for file in job.input],
            [str(file) for job in jobs for file in job.output],
        )
    except TokinfoError as error:
        sys.exit(str(error))
    # Without the names of its locks they would be taken for another run's and stay, if it is killed.
    locks = getattr(workflow.persistence, "_lockfile", {}).values()
    running.begin(Path.cwd(), locks, elsewhere=workflow.non_local_exec)


# Models are large: what will be fetched and held is printed first, above all in a dry run.
if workflow.is_main_process and any(downloads.total(STUDY)):
    print(downloads.table(STUDY), file=sys.stderr)


pathvars:
    results=STUDY.results,
    logs=f"{STUDY.results}/logs",
    benchmarks=f"{STUDY.results}/benchmarks",


wildcard_constraints:
    **PLAN.wildcard_patterns(),


# A submission has one `cell` to give, however many it holds: they run in turn.
resource_scopes:
    cell="local",


localrules:
    all,


report: "report/workflow.rst"


rule all:
    default_target: True
    input:
        expand("<results>/prompts/{source}.json", source=PLAN.sources),
        "<results>/tables/recovery.parquet",
        # Of a large table the text is made on request: `snakemake results/tables/recovery.csv`.
        expand("<results>/tables/{made}", made=["recovery.csv"] if as_text(STUDY) else ()),
        "<results>/tables/summary.parquet",
        "<results>/tables/summary.csv",
        expand(
            "<results>/figures/{figure}.{form}",
            figure=FIGURES,
            form=("svg", "png"),
        ),
        expand("<results>/figures/scaling_{axis}.svg", axis=PLAN.scaling),
        "<results>/tables/noise.csv",
        "<results>/pages/strips.html",
        "<results>/pages/identifiability.html",
        # Of a study with `claims`: the rows of the source chapter that it tests.
        expand(
            "<results>/{made}",
            made=(
                (
                    "tables/replication.parquet",
                    "tables/replication.csv",
                    "tables/replication_summary.csv",
                    "pages/replication.html",
                )
                if STUDY.claims
                else ()
            ),
        ),


include: "rules/corpus.smk"
include: "rules/models.smk"
include: "rules/invert.smk"
include: "rules/report.smk"
