"""Results on disk: a run is a folder of JSON files, one per scenario and repeat.

    results/NAME/run.json                   what was planned: scenarios, plan
    results/NAME/SCENARIO_ID.r0.json        one result, written at once when it was measured
    results/NAME/profiles/SCENARIO_ID.json  one profile; its traces lie beside it
    results/NAME/trainings/SCENARIO_ID.json one training, written after every epoch; its history as
                                            CSV and its checkpoints lie beside it

Every file is written beside its final name and renamed, so a reader, or a run that was killed,
finds whole files only. A pytest-benchmark file saved by this suite is read as a run too.
"""

from stepmark.store.files import SCHEMA, write_text
from stepmark.store.folder import RunFolder
from stepmark.store.foreign import pack, unpack
from stepmark.store.names import check_name, free_name, new_name, unused_path
from stepmark.store.reading import latest_run, open_run, run_names
from stepmark.store.run import RUN_FILE, TRAININGS, Run, RunPlan, table

__all__ = [
    "RUN_FILE",
    "SCHEMA",
    "TRAININGS",
    "Run",
    "RunFolder",
    "RunPlan",
    "check_name",
    "free_name",
    "latest_run",
    "new_name",
    "open_run",
    "pack",
    "run_names",
    "table",
    "unpack",
    "unused_path",
    "write_text",
]
