"""Pages with a part that a command writes, between two markers."""

from ccdlib.base.registry import CcdError


def with_table(text: str, content: str, begin: str, end: str) -> str:
    """`text` with `content` between the markers `begin` and `end`. Errors: CcdError where one of them is missing."""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise CcdError(f"the markers `{begin}` and `{end}` are missing; put them where the table belongs")
    return f"{before}{begin}\n{content}\n{end}{after}"
