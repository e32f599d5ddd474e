"""The config that revector gets in the sandbox: the corpus's three tables, the embedded model, quick pulses."""

import json
from dataclasses import dataclass, field

from sandbox.stack import Sandbox

CORPUS = """\
[[table]]
source = "app.article"
text = "{title}\\n\\n{body}"
columns = ["lang", "tags", "is_public", "views", "price", "updated_at"]
filters = ["tenant_id"]
where = "is_public"

[[table]]
source = "app.page"
text = "{title}\\n\\n{body}"
columns = ["meta", "updated_at"]

[[table]]
source = "app.note"
text = "{body}"
columns = ["author", "pinned", "written_on"]
"""


@dataclass(frozen=True)
class Choice:
    """What differs from migration to migration. None: the sandbox's own. limits: keys of [limits]."""

    name: str = "articles"
    prefix: str = "shop"
    publication: str = "revector"
    source_dsn: str | None = None
    target_dsn: str | None = None
    tables: str = CORPUS
    dimensions: int = 256
    model: str = "wordllama-256"
    limits: dict[str, int] = field(default_factory=dict)


def render(sandbox: Sandbox, choice: Choice | None = None) -> str:
    """A config file (TOML) for the running sandbox."""
    c = choice or Choice()
    quoted = json.dumps  # a JSON string is a TOML basic string
    limits = "\n".join(["[limits]", *(f"{key} = {value}" for key, value in c.limits.items()), "", ""])
    limits = limits if c.limits else ""
    return f"""\
name = {quoted(c.name)}

[source]
dsn = {quoted(c.source_dsn or sandbox.source_dsn)}
slot = {quoted(c.prefix)}
publication = {quoted(c.publication)}

[kafka]
topic_prefix = {quoted(c.prefix)}

[kafka.properties]
"bootstrap.servers" = {quoted(sandbox.kafka)}

[connect]
url = {quoted(sandbox.connect_url)}
connector = {quoted(c.prefix)}

[target]
dsn = {quoted(c.target_dsn or sandbox.target_dsn)}

{c.tables}
[generation]
name = "v2"
model = {quoted(c.model)}
dimensions = {c.dimensions}
base_url = {quoted(sandbox.embeddings_url)}
api_key = {{ file = {quoted(str(sandbox.embeddings_key_file))} }}

{limits}[pulse]
interval_s = 1

[http]
listen = "127.0.0.1:0"
"""
