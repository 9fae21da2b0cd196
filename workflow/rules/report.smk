# Builds the report from finished stores and results; its settings change no number.


rule report:
    input:
        restored=restored_volumes,
        alignments=alignments,
        truths=truths,
        histories=training_histories,
        evaluations=evaluations,
    output:
        report(
            multiext("results/report", html=".html", csv=".csv", json=".json"),
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        "logs/report.log",
    conda:
        "../envs/emdiffuse.yaml"
    threads: 1
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        settings=report_settings,
    shell:
        "emdiffuse --log {log:q} --threads {threads} report results experiments {output.html:q}"
        " --settings {params.settings:q}"
