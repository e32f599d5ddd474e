"""The config that revector gets in the sandbox: the corpus's three tables, the embedded model, quick pulses."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from sandbox.stack import Sandbox

# Of the embedded model, within its package: a Hugging Face tokenizer.json. It counts what sandbox/embeddings.py bills.
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"

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
class Gen:
    """One [[generation]]. None: the sandbox's provider and its key. limits: keys of [generation.limits]; extra: any
    other key of [[generation]], such as chunk_tokens; `tokenizer` is the model's own unless it is given."""

    name: str = "v2"
    model: str = "wordllama-256"
    dimensions: int = 256
    base_url: str | None = None
    api_key_file: Path | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, str | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Ways:
    """Where the config says that broker, Connect and the sandbox's provider are. None: where they are.
    kafka_properties: more of [kafka.properties]."""

    kafka: str | None = None
    connect_url: str | None = None
    embeddings_url: str | None = None
    kafka_properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What differs from migration to migration. None: the sandbox's own. limits: keys of [limits]."""

    name: str = "articles"
    prefix: str = "shop"
    publication: str = "revector"
    source_dsn: str | None = None
    target_dsn: str | None = None
    tables: str = CORPUS
    generations: tuple[Gen, ...] = (Gen(),)
    limits: Mapping[str, int] = field(default_factory=dict)
    ways: Ways = Ways()


def tokenizer_file() -> Path:
    """The tokenizer of the embedded model, as its wheel carries it."""
    spec = find_spec("wordllama")  # found without being imported, which takes a second
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / TOKENIZER


def render(sandbox: Sandbox, choice: Choice | None = None) -> str:
    """A config file (TOML) for the running sandbox."""
    c = choice or Choice()
    quoted = json.dumps  # a JSON string is a TOML basic string
    limits = f"[limits]\n{_keys(c.limits)}\n" if c.limits else ""
    return f"""\
name = {quoted(c.name)}

[source]
dsn = {quoted(c.source_dsn or sandbox.source_dsn)}
slot = {quoted(c.prefix)}
publication = {quoted(c.publication)}

[kafka]
topic_prefix = {quoted(c.prefix)}

[kafka.properties]
"bootstrap.servers" = {quoted(c.ways.kafka or sandbox.kafka)}
{"".join(f"{quoted(name)} = {quoted(value)}{chr(10)}" for name, value in c.ways.kafka_properties.items())}
[connect]
url = {quoted(c.ways.connect_url or sandbox.connect_url)}
connector = {quoted(c.prefix)}

[target]
dsn = {quoted(c.target_dsn or sandbox.target_dsn)}

{c.tables}
{"".join(_generation(sandbox, generation, c.ways) for generation in c.generations)}{limits}[pulse]
interval_s = 1

[http]
listen = "127.0.0.1:0"
"""


def _generation(sandbox: Sandbox, generation: Gen, ways: Ways) -> str:
    keys: dict[str, str | float | bool] = {
        "name": generation.name,
        "model": generation.model,
        "dimensions": generation.dimensions,
        "tokenizer": str(tokenizer_file()),
        **generation.extra,
    }
    key = ""
    if generation.extra.get("provider") != "local":  # which has neither address nor key
        keys["base_url"] = generation.base_url or ways.embeddings_url or sandbox.embeddings_url
        key = f"api_key = {{ file = {json.dumps(str(generation.api_key_file or sandbox.embeddings_key_file))} }}\n"
    limits = f"\n[generation.limits]\n{_keys(generation.limits)}" if generation.limits else ""
    return f"[[generation]]\n{_keys(keys)}{key}{limits}\n"


def _keys(values: Mapping[str, str | float | bool]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
