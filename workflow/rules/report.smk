# The report reads finished stores and numbers; what it is told changes no number.
rule report:
    input:
        reported("results/restored/{dataset}/{model}/restored.ome.zarr/zarr.json"),
        registered("results/registered/{dataset}.quality.json"),
        registered("results/registered/{dataset}.quality.png"),
        truths(),
        training_histories(),
        evaluations(),
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
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        settings=CONFIG.canonical(),
    shell:
        "emdiffuse --log {log} report results experiments {output.html} --settings {params.settings:q}"
