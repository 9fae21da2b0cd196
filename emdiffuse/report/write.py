"""The report: one self-contained HTML file with images, tables, curves and parameters.

Conventions
-----------
* Nothing here changes a number: `evaluation`, `registration` and `training` measured what is shown; missing
  results are omitted.
* The first screen is one table of all restorations (`overview`); details follow for each restoration.
* The file needs no network, and its content security policy forbids using one. It stays below 15 MB.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emdiffuse.config import Config
from emdiffuse.evaluation.methods import label
from emdiffuse.report.files import read_evaluation, read_json
from emdiffuse.report.overview import summary
from emdiffuse.report.preparation import alignment, training
from emdiffuse.report.references import references
from emdiffuse.report.restorations import gather
from emdiffuse.report.settings import datasets_of, models_of, parameters, subjects_of, versions
from emdiffuse.report.tables import as_csv, heading
from emdiffuse.report.times import stage_times
from emdiffuse.runtime.atomic import write_atomically
from emdiffuse.runtime.json_files import finite, write_json
from emdiffuse.runtime.outputs import PROGRAM, require_free

if TYPE_CHECKING:
    import jinja2

SIZE, LEAST = 14_000_000, 4_000_000
"""Maximum number of characters of all images together, and the share reserved for restorations."""


def write_report(config: Config, results: Path, experiments: Path, out: Path) -> None:
    """Write the report as HTML, with its numbers as ``.json`` and its tables as ``.csv`` beside it.

    Parameters
    ----------
    config : Config
        The configuration of the run.
    results, experiments : Path
        Folders that the stages wrote to.
    out : Path
        HTML file to write.

    Raises
    ------
    OutputError
        If a file that emdiffuse did not write is in the way.
    StoreError
        If a restored volume or its ground truth is missing, or a result file is damaged.
    """
    require_free(out, overwrite=None)
    for ending in (".html", ".csv", ".json"):
        require_free(out.with_suffix(ending), overwrite=None)
    alignments = [found for name in datasets_of(config) if (found := alignment(results, name))]
    histories = {name: read_json(experiments / name / "best" / "metrics.json") for name in models_of(config)}
    trainings = {name: found for name, found in histories.items() if found}
    trained = [training(experiments / name, name, found) for name, found in trainings.items()]
    embedded = sum(len(found["image"] or "") for found in alignments)
    embedded += sum(len(found["batch"] or "") for found in trained)
    restorations = gather(config, results, max(SIZE - embedded, LEAST) * 3 // 4)
    evaluations = [found for item in config.restorations if (found := read_evaluation(results, item))]
    seconds = {name: found["seconds"] for name, found in trainings.items() if "seconds" in found}
    times = stage_times(results, subjects_of(config), seconds)
    numbers = {
        "program": PROGRAM,
        "title": config.title,
        "evaluations": evaluations,
        "trainings": trainings,
        "times": [{key: value for key, value in row.items() if key != "texts"} for row in times],
        "versions": versions(),
    }
    rows = [item["overview"] for item in restorations]
    page = _template().render(
        title=config.title,
        overview=rows,
        summary=summary(rows),
        restorations=restorations,
        alignments=alignments,
        trainings=trained,
        times=times,
        parameters=parameters(config),
        versions=numbers["versions"],
        references=references(config, evaluations),
    )
    write_json(out.with_suffix(".json"), numbers)
    write_atomically(out.with_suffix(".csv"), as_csv(evaluations))
    write_atomically(out, page)


def _template() -> jinja2.Template:
    import jinja2  # only once everything reported has been read

    loader = jinja2.PackageLoader("emdiffuse.report")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"label": label, "heading": heading, "finite": finite}
    return environment.get_template("report.html.j2")
