"""What a notebook would train, and how long that takes, as text."""

from collections.abc import Sequence

from ccdlib.base.devices import jobs
from ccdlib.kit import recorded
from ccdlib.kit.parameters import DEFAULT, asked_for, present
from ccdlib.training.forecast import gpu_hours
from ccdlib.training.schedule import unfinished


def plan(
    name: str, profile: str = DEFAULT, files: Sequence[str] = (), given: Sequence[tuple[str, str]] = (), timed: bool = False
) -> str:
    """The runs that a notebook asks for (see asked_for), as text: an arm a line, each run counted once.

    timed: see forecast.expected_seconds. Errors: CcdError for parameters that cannot be.
    """
    path, values = asked_for(name, profile, files, given, elsewhere=True)
    planned = recorded.experiment(path.stem, values, profile)
    if "data" in values and not present(values["data"]):
        arms = "\n".join(f"  {arm}" for arm in planned.arms)
        title = f"{path.stem}, profile {profile}, {values['seeds']} seeds; {values['data']} is not on this machine"
        return f"{title}, so no run was looked up\n{arms}\n{gpu_hours(planned.configs)}"
    rows = planned.plan(timed)
    width = max(len(row["arm"]) for row in rows)
    total = {key: sum(row[key] for row in rows) for key in ("runs", "done", "recorded", "begun", "seconds", "expected")}
    lines = [f"{path.stem}, profile {profile}, {values['seeds']} seeds"]
    lines.append(f"  {'':{width}}  runs  done  recorded  begun  missing  seconds")
    for row in [*rows, total | {"arm": "all", "missing": []}]:
        took = f"{row['seconds']:.0f} spent" if row["done"] else ""
        missing = row["runs"] - row["done"] - row["recorded"]
        will = f"{row['expected']:.0f} expected" if missing else ""
        which = f"(seeds {' '.join(map(str, row['missing']))})" if row["missing"] else "" if row["runs"] else "(as above)"
        counts = f"{row['runs']:4}  {row['done']:4}  {row['recorded']:8}  {row['begun']:5}  {missing:7}"
        said = ", ".join(filter(None, (took, will)))
        lines.append(f"  {row['arm']:{width}}  {counts}  {said} {which}".rstrip())
    if total["expected"]:
        lines.append(f"about {total['expected'] / jobs():.0f} s of training to go, {jobs()} at once")
        lacking = [folder.config for folder in unfinished(folder for _, folder in planned.runs.values())]
        lines[-1:-1] = [said] if (said := gpu_hours(lacking)) else []
    return "\n".join(lines)
