"""File, environment and flags become settings, or every problem at once; no secret is ever printed."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from psycopg.conninfo import conninfo_to_dict

from daemon import config, conninfo, toml_places
from daemon.config import is_variable, leaves, load, parse, variable
from daemon.config_problems import header, section_at, sections, show_key
from daemon.config_reference import schema_json
from daemon.core.contract import SPLITTER, Chunker, from_json
from daemon.errors import ConfigError, Problem
from daemon.settings import QuietHours, Settings
from daemon.settings_checks import OWNED_PROPERTIES, SECRET_PROPERTIES, Secret

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.toml"

BASE = """\
name = "articles"
[source]
dsn = "host=127.0.0.1 dbname=app"
slot = "articles"
publication = "articles"
[kafka]
topic_prefix = "articles"
[kafka.properties]
"bootstrap.servers" = "127.0.0.1:9092"
[connect]
url = "http://127.0.0.1:8083"
connector = "articles"
[target]
dsn = "host=/run/postgresql dbname=search"
[[table]]
source = "app.article"
text = "{title}"
[[generation]]
name = "v2"
model = "m"
dimensions = 256
base_url = "http://127.0.0.1:8000/v1"
"""


QUIET = "[[quiet_hours]]\n{}\n[[generation]]"


def made(text: str = BASE, environ: Mapping[str, str] | None = None, **flags: Any) -> config.Loaded:
    return parse(text, Path("r.toml"), environ or {}, {k.replace("__", "."): v for k, v in flags.items()})


def problems(text: str, environ: Mapping[str, str] | None = None, **flags: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        made(text, environ, **flags)
    return caught.value.problems


def changed(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


# --- every setting is written down


def example_with_defaults() -> dict[str, Any]:
    """The example with every commented-out setting set to what the comment shows; nothing for those without value."""
    return tomllib.loads(uncommented())


def uncommented() -> str:
    return re.sub(r"^# ([a-z_]+ = .+|\[\[[a-z_]+\]\])$", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)


def test_example_is_sound_and_its_defaults_are_the_classes_defaults() -> None:
    plain = load(EXAMPLE, {}, {}).settings
    with_defaults = Settings.model_validate(example_with_defaults())
    (quiet,) = with_defaults.quiet_hours
    assert quiet == QuietHours(start=quiet.start, end=quiet.end)
    assert plain == with_defaults.model_copy(update={"quiet_hours": ()}), "nobody who copies it is paused at work"


def test_example_names_every_setting_and_no_other() -> None:
    text = uncommented()
    for section in re.split(r"^(?=\[)", text, flags=re.MULTILINE):
        head = re.match(r"\[+([a-z_.]+)\]+", section)
        key = tuple(head[1].split(".")) if head else ()
        if key == ("kafka", "properties"):
            continue
        model = section_at(key)
        assert model is not None
        shown = set(re.findall(r"^(?:# )?([a-z_]+) =", section, flags=re.MULTILINE))
        assert shown == {n for n in model.model_fields if section_at((*key, n)) in {None, Secret}} - {"properties"}, key
    assert {header(at) for at, _ in sections()} <= set(re.findall(r"^(\[+[a-z_.]+\]+)", text, re.M))


def test_example_satisfies_the_json_schema() -> None:
    schema = json.loads(schema_json())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(EXAMPLE.read_text()), schema)
    jsonschema.validate(example_with_defaults(), schema)
    jsonschema.validate(tomllib.loads(BASE), schema)


@pytest.mark.parametrize(
    "old, new",
    [
        ('name = "articles"', "nam = 1"),
        ('"bootstrap.servers"', '"group.id"'),
        ("[[generation]]", "[generation]"),
        ('name = "v2"', 'name = "v2"\nlimits.in_fligth = 1'),
        ("[[generation]]", "[[quiet_hours]]\nstart = '08:00'\nend = '18:00'\ndays = ['monday']\n[[generation]]"),
    ],
)
def test_json_schema_refuses_what_the_classes_refuse(old: str, new: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(changed(old, new)), json.loads(schema_json()))


# --- problems


def test_all_problems_are_reported_at_once_in_the_order_of_lines() -> None:
    text = """\
nam = "x"
[source]
dsn = "host=127.0.0.1 password='open"
slot = "BAD"
page_rows = 1
[kafka]
topic_prefix = "x"
[kafka.properties]
"group.id" = "x"
"bootstrap.servers" = "broker:9092"
"sasl.password" = "pasted"
[connect]
url = "ftp://x"
connector = 3
[[table]]
source = "article"
text = "{a"
[[table]]
source = "app.a"
text = "{x}"
fliters = []
[[generation]]
name = "v2"
model = "m"
dimensions = "pasted"
metric = "cosin"
api_key = "pasted"
base_url = "http://provider.example"
[generation.limits]
in_fligth = 1
[[generation]]
name = "v3"
model = "m"
[generation.limits]
request_inputs = 0
[limits]
page_rows = -1
embed_batch = 1
"""
    found = problems(text)
    assert [(p.id, p.where) for p in found] == [
        ("missing-key", "r.toml name"),
        ("missing-key", "r.toml target"),
        ("unknown-key", "r.toml:1 nam"),
        ("missing-key", "r.toml:2 source.publication"),
        ("dsn-invalid", "r.toml:3 source.dsn"),
        ("wrong-form", "r.toml:4 source.slot"),
        ("unknown-key", "r.toml:5 source.page_rows"),
        ("kafka-property-owned", 'r.toml:9 kafka.properties."group.id"'),
        ("kafka-in-clear", 'r.toml:10 kafka.properties."bootstrap.servers"'),
        ("secret-in-file", 'r.toml:11 kafka.properties."sasl.password"'),
        ("url-invalid", "r.toml:13 connect.url"),
        ("wrong-type", "r.toml:14 connect.connector"),
        ("table-invalid", "r.toml:16 table[0].source"),
        ("template-invalid", "r.toml:17 table[0].text"),
        ("unknown-key", "r.toml:21 table[1].fliters"),
        ("wrong-type", "r.toml:25 generation[0].dimensions"),
        ("not-a-choice", "r.toml:26 generation[0].metric"),
        ("wrong-type", "r.toml:27 generation[0].api_key"),
        ("provider-in-clear", "r.toml:28 generation[0].base_url"),
        ("unknown-key", "r.toml:30 generation[0].limits.in_fligth"),
        ("missing-key", "r.toml:31 generation[1].dimensions"),
        ("out-of-range", "r.toml:35 generation[1].limits.request_inputs"),
        ("out-of-range", "r.toml:37 limits.page_rows"),
        ("unknown-key", "r.toml:38 limits.embed_batch"),
    ]
    assert all(p.message and p.hint and p.severity == "error" for p in found)
    assert "pasted" not in repr(found)
    assert "open" not in repr(found)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("nmae", "did you mean `name`?"),
        ("sourc", "did you mean `source`?"),
        ("xyzzy", "known: name, source,"),
    ],
)
def test_unknown_top_level_key_names_the_nearest(key: str, hint: str) -> None:
    (found,) = problems(f"{key} = 1\n{BASE}")
    assert (found.id, found.where) == ("unknown-key", f"r.toml:1 {key}")
    assert found.hint.startswith(hint)


def test_unknown_key_of_a_secret_reference_names_the_nearest() -> None:
    (found,) = problems(BASE + 'api_key = { environ = "X" }\n')
    assert found.id == "unknown-key"
    assert found.where == "r.toml:23 generation[0].api_key.environ"
    assert found.hint == "did you mean `env`?"


def test_key_of_another_section_is_sent_there() -> None:
    (found,) = problems(changed("[connect]", "[connect]\npage_rows = 1"))
    assert found.hint == "it belongs in [limits]"
    (found,) = problems(changed("[connect]", "[connect]\nin_flight = 1"))
    assert found.hint == "it belongs in [generation.limits]"


def test_unknown_key_of_a_generations_limits_names_the_nearest_and_its_line() -> None:
    text = f'{BASE}[generation.limits]\n[[generation]]\nname = "v3"\n[generation.limits]\nin_fligth = 1\n'
    found = problems(text)
    assert [(p.id, p.where) for p in found][-1] == ("unknown-key", "r.toml:27 generation[1].limits.in_fligth")
    assert found[-1].hint == "did you mean `in_flight`?"
    assert found[-1].message == "no such key in [generation.limits]"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("embed_workers", "write in_flight in [generation.limits]"),
        ("embed_batch", "write request_inputs in [generation.limits]"),
        ("request_timeout_s", "write request_timeout_s in [generation.limits]"),
    ],
)
def test_limits_of_requests_are_sent_to_the_generation(key: str, hint: str) -> None:
    (found,) = problems(f"{BASE}[limits]\n{key} = 1\n")
    assert (found.id, found.where, found.hint) == ("unknown-key", f"r.toml:24 limits.{key}", hint)
    name = f"REVECTOR_LIMITS_{key.upper()}"
    (warning,) = made(BASE, {name: "1"}).warnings
    assert (warning.where, warning.hint) == (name, f"write REVECTOR_GENERATION_LIMITS_{hint.split()[1].upper()}")


@pytest.mark.parametrize("name", ["table", "generation", "quiet_hours"])
def test_a_single_table_where_a_list_is_wanted_is_one_error(name: str) -> None:
    start = "" if f"[[{name}]]" in BASE else f"[{name}]\nstart = 'x'\n"
    (found,) = problems(BASE.replace(f"[[{name}]]", f"[{name}]") + start + f"[{name}.limits]\nanything = 1\n")
    assert (found.id, found.message, found.hint) == ("wrong-type", "must be a list of tables", f"write [[{name}]]")
    assert re.fullmatch(rf"r.toml:\d+ {name}", found.where)


def test_a_single_generation_is_one_error_whatever_variables_and_flags_say() -> None:
    text = changed("[[generation]]", "[generation]")
    (found,) = problems(text, {"REVECTOR_GENERATION_MODEL": "x"}, generation__limits__in_flight="2")
    assert (found.id, found.where) == ("wrong-type", "r.toml:18 generation")


@pytest.mark.parametrize(
    ("text", "line"), [("a = 1\nb = = 2\n", 2), ('a = "x\n', 1), ('a = 1\nb = """x\n', 3), ("a = 1\na = 2\n", 2)]
)
def test_what_is_not_toml_is_refused_with_its_line(text: str, line: int) -> None:
    (found,) = problems(text)
    assert (found.id, found.where) == ("config-syntax", f"r.toml:{line}")


def test_missing_and_unreadable_files_are_problems(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.toml", {}, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, {}, {})
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "latin.toml", {}, {})


@pytest.mark.parametrize(
    ("old", "new", "id"),
    [
        ('name = "articles"\n[s', 'name = "public"\n[s', "name-reserved"),
        ('name = "articles"\n[s', 'name = "revector"\n[s', "name-reserved"),
        ('name = "articles"\n[s', 'name = "Articles"\n[s', "wrong-form"),
        ('"app.article"', '"app.article.x"', "table-invalid"),
        ('"app.article"\n', '"app.article"\nalias = "x y"\n', "wrong-form"),
        ("dimensions = 256", "dimensions = 2001", "too-many-dimensions"),
        ("dimensions = 256", "dimensions = 4001\nvector_type = 'halfvec'", "out-of-range"),
        ("dimensions = 256", "dimensions = true", "wrong-type"),
        ("dimensions = 256", "dimensions = '256'", "wrong-type"),
        ('base_url = "http://127.0.0.1:8000/v1"', "", "api-key-missing"),
        ('"http://127.0.0.1:8000/v1"', '"http://user:pw@127.0.0.1/v1"', "url-invalid"),
        ('"http://127.0.0.1:8083"', '"http://127.0.0.1:99999"', "url-invalid"),
        ('connector = "articles"', 'connector = "articles"\nusername = "u"', "connect-credentials"),
        ('connector = "articles"', 'connector = ""', "empty"),
        ('"bootstrap.servers" = "127.0.0.1:9092"', "", "kafka-servers-missing"),
        ('"bootstrap.servers" =', '"sasl.password" = { envv = "X" }\n"bootstrap.servers" =', "secret-reference"),
        ('"bootstrap.servers" =', '"linger.ms" = [1]\n"bootstrap.servers" =', "wrong-type"),
        ('base_url = "http', 'api_key = { env = "X", file = "y" }\nbase_url = "http', "secret-reference"),
        ("[[generation]]", "[http]\nlisten = '9464'\n[[generation]]", "listen-invalid"),
        ('base_url = "http://127.0.0.1:8000/v1"', "provider = 'azure'\napi_key = { env = 'K' }", "base-url-missing"),
        ('base_url = "http', 'provider = "azure"\nbase_url = "http', "api-key-missing"),
        ('base_url = "http', 'provider = "local"\nbase_url = "http', "local-without-server"),
        ('base_url = "http://127.0.0.1:8000/v1"', "provider = 'local'\napi_key.env = 'K'", "local-without-server"),
        ('base_url = "http', 'chunk_tokens = 100\nchunk_overlap = 51\nbase_url = "http', "overlap-too-large"),
        ('base_url = "http', 'chunk_overlap = 5\nbase_url = "http', "overlap-alone"),
        ('base_url = "http', 'chunk_tokens = 100\nlimits.input_tokens = 99\nbase_url = "http', "chunk-too-long"),
        ('base_url = "http', 'price = -0.1\nbase_url = "http', "out-of-range"),
        (
            "[[generation]]",
            '[[generation]]\nname = "v2"\nmodel = "n"\nprovider = "local"\ndimensions = 1\n[[generation]]',
            "generation-twice",
        ),
        ("[[generation]]", QUIET.format("start = '8:00'\nend = '18:00'"), "wrong-form"),
        ("[[generation]]", QUIET.format("start = '08:00'\nend = '24:00'"), "wrong-form"),
        ("[[generation]]", QUIET.format("start = '08:00'\nend = '08:00'"), "quiet-hours-empty"),
        ("[[generation]]", QUIET.format("start = '08:00'\nend = '18:00'\ndays = []"), "empty"),
        ("[[generation]]", QUIET.format("start = '08:00'\nend = '18:00'\ndays = ['mon', 'Tue']"), "not-a-choice"),
        ("[[generation]]", QUIET.format("start = '08:00'\nend = '18:00'\ntimezone = 'Berlin'"), "timezone-unknown"),
        ("[[generation]]", QUIET.format("start = '08:00'\nend = '18:00'\nbackfill_share = 1.5"), "out-of-range"),
    ],
)
def test_a_value_that_cannot_work_is_refused(old: str, new: str, id: str) -> None:
    (found,) = problems(changed(old, new))
    assert found.id == id
    assert "pw" not in repr(found)


@pytest.mark.parametrize("key", OWNED_PROPERTIES)
def test_kafka_keys_that_decide_about_delivery_are_refused_with_the_reason(key: str) -> None:
    (found,) = problems(changed("[connect]", f'"{key}" = "x"\n[connect]'))
    assert found.id == "kafka-property-owned"
    assert OWNED_PROPERTIES[key] in found.message


@pytest.mark.parametrize("key", sorted(SECRET_PROPERTIES))
def test_kafka_secrets_must_be_references(key: str) -> None:
    (found,) = problems(changed("[connect]", f'"{key}" = "pasted"\n[connect]'))
    assert found.id == "secret-in-file"
    assert "pasted" not in repr(found)
    sound = made(changed("[connect]", f'"{key}" = {{ file = "x" }}\n[connect]')).settings
    assert sound.kafka.properties[key] == Secret(file="x")


def test_tables_whose_relations_would_collide_are_refused() -> None:
    again = '[[table]]\nsource = "app.other"\ntext = "{x}"\nalias = "article_v2"\n[[generation]]'
    (found,) = problems(changed("[[generation]]", again))
    assert (found.id, found.where) == ("alias-taken", "r.toml:21 table[1].alias")
    twice = '[[table]]\nsource = "app.ARTICLE"\ntext = "{x}"\nalias = "other"\n[[generation]]'
    (found,) = problems(changed("[[generation]]", twice))
    assert (found.id, found.where) == ("table-twice", "r.toml:19 table[1].source")


# --- precedence and origins


def test_flag_beats_environment_beats_file_beats_default() -> None:
    text = BASE + "[limits]\npage_rows = 10\n"
    environ = {"REVECTOR_LIMITS_PAGE_ROWS": "20"}
    key = "limits.page_rows"
    for loaded, value, origin in [
        (made(), 2000, "default"),
        (made(text), 10, "r.toml:24"),
        (made(text, environ), 20, "environment REVECTOR_LIMITS_PAGE_ROWS"),
        (made(text, environ, limits__page_rows="30"), 30, "flag"),
    ]:
        assert (loaded.settings.limits.page_rows, loaded.origins[key]) == (value, origin)


def test_every_setting_has_an_origin_and_every_variable_works() -> None:
    loaded = load(EXAMPLE, {}, {})
    assert set(loaded.origins) == {show_key(key) for key, _ in leaves(loaded.settings)}
    environ = {}
    for key, value in leaves(loaded.settings):
        if not is_variable(key) or key[:2] == ("kafka", "properties") or value in {None, ""}:
            continue
        text = value.reveal() if isinstance(value, conninfo.Conninfo) else str(value)
        environ[variable(key)] = text.lower() if isinstance(value, bool) else text
    from_environment = load(EXAMPLE, environ, {})
    assert not from_environment.warnings
    assert {o for o in from_environment.origins.values() if o.startswith("environment")} == {
        f"environment {name}" for name in environ
    }
    candidate = from_environment.settings.candidate
    assert candidate.api_key == Secret(env="REVECTOR_GENERATION_API_KEY")
    generation = (candidate.model_copy(update={"api_key": loaded.settings.candidate.api_key}),)
    assert from_environment.settings.model_copy(update={"generation": generation}) == loaded.settings


LATER = """[generation.limits]
in_flight = 2
[[generation]]
name = "v3"
model = "m3"
dimensions = 64
provider = "local"
[generation.limits]
in_flight = 3
"""


def test_variables_and_flags_of_generation_set_the_last_one() -> None:
    environ = {"REVECTOR_GENERATION_MODEL": "e", "REVECTOR_GENERATION_LIMITS_IN_FLIGHT": "5"}
    flags = {"generation__limits__request_inputs": "7", "generation__price": "0.02"}
    loaded = made(BASE + LATER, environ, **flags)
    first, last = loaded.settings.generation
    assert (first, last) == (made(BASE + LATER).settings.generation[0], loaded.settings.candidate)
    assert (last.model, last.price, last.limits.in_flight, last.limits.request_inputs) == ("e", 0.02, 5, 7)
    origins = {key: origin for key, origin in loaded.origins.items() if origin != "default" and "gen" in key}
    assert origins == {
        "generation[0].name": "r.toml:19",
        "generation[0].model": "r.toml:20",
        "generation[0].dimensions": "r.toml:21",
        "generation[0].base_url": "r.toml:22",
        "generation[0].limits.in_flight": "r.toml:24",
        "generation[1].name": "r.toml:26",
        "generation[1].provider": "r.toml:29",
        "generation[1].model": "environment REVECTOR_GENERATION_MODEL",
        "generation[1].dimensions": "r.toml:28",
        "generation[1].price": "flag",
        "generation[1].limits.request_inputs": "flag",
        "generation[1].limits.in_flight": "environment REVECTOR_GENERATION_LIMITS_IN_FLIGHT",
    }


def test_a_generation_may_come_from_the_environment_alone() -> None:
    text = BASE[: BASE.index("[[generation]]")]
    environ = {"NAME": "v9", "MODEL": "m", "DIMENSIONS": "8", "PROVIDER": "local", "PRICE": "0.5"}
    (only,) = made(text, {f"REVECTOR_GENERATION_{key}": value for key, value in environ.items()}).settings.generation
    assert (only.name, only.dimensions, only.price) == ("v9", 8, 0.5)


@pytest.mark.parametrize("flag", [{"table__text": "x"}, {"quiet_hours__start": "x"}])
def test_flags_of_other_lists_are_refused(flag: dict[str, Any]) -> None:
    (found,) = problems(BASE, **flag)
    assert (found.id, found.where) == ("unknown-key", f"flag {'.'.join(next(iter(flag)).split('__'))}")


def test_quiet_hours_name_days_and_zone() -> None:
    keys = "days = ['sat', 'sun']\nstart = '22:00'\nend = '06:30'\ntimezone = 'Europe/Berlin'\nbackfill_share = 1"
    (quiet,) = made(changed("[[generation]]", QUIET.format(keys))).settings.quiet_hours
    assert (quiet.days, quiet.start, quiet.end) == (("sat", "sun"), "22:00", "06:30")
    assert (quiet.timezone, quiet.backfill_share) == ("Europe/Berlin", 1.0)
    (found,) = problems(changed("[[generation]]", QUIET.format(keys.replace("Berlin", "Berlim"))))
    assert (found.where, found.hint) == ("r.toml:22 quiet_hours[0].timezone", "did you mean `Europe/Berlin`?")
    (found,) = problems(changed("[[generation]]", QUIET.format(keys.replace("'sun'", "'su'"))))
    assert (found.where, found.hint) == ("r.toml:19 quiet_hours[0].days[1]", "did you mean `sun`?")


@pytest.mark.parametrize("name", ["", "/etc/localtime", "../etc/passwd", "Europe", "utc\0"])
def test_a_timezone_that_is_a_path_or_a_folder_is_refused(name: str) -> None:
    keys = f"start = '06:00'\nend = '08:00'\ntimezone = {json.dumps(name)}"
    (found,) = problems(changed("[[generation]]", QUIET.format(keys)))
    assert found.id == "timezone-unknown"


def test_librdkafka_settings_come_from_the_environment_too() -> None:
    prefix = "REVECTOR_KAFKA_PROPERTIES_"
    environ = {f"{prefix}BOOTSTRAP_SERVERS": "localhost:1", f"{prefix}SASL_PASSWORD": "hush"}
    loaded = made(BASE, environ)
    assert loaded.settings.kafka.properties["bootstrap.servers"] == "localhost:1"
    assert loaded.settings.kafka.properties["sasl.password"] == Secret(env=f"{prefix}SASL_PASSWORD")
    assert "hush" not in repr(loaded)
    (found,) = problems(BASE, {f"{prefix}GROUP_ID": "x"})
    assert found.where == f'environment {prefix}GROUP_ID kafka.properties."group.id"'


def test_a_problem_of_a_variable_or_flag_names_it() -> None:
    (found,) = problems(BASE, {"REVECTOR_LIMITS_PAGE_ROWS": "many"})
    assert (found.id, found.where) == ("wrong-type", "environment REVECTOR_LIMITS_PAGE_ROWS limits.page_rows")
    (found,) = problems(BASE, limits__page_rowz="1")
    assert (found.where, found.hint) == ("flag limits.page_rowz", "did you mean `page_rows`?")


def test_unknown_variables_warn_only_where_they_look_like_ours() -> None:
    environ = {"REVECTOR_LIMITS_PAGE_ROW": "1", "REVECTOR_CONFIG": "x", "REVECTOR_PORT": "tcp://1", "PAGE_ROWS": "1"}
    (warning,) = made(BASE, environ).warnings
    assert (warning.where, warning.severity) == ("REVECTOR_LIMITS_PAGE_ROW", "warning")
    assert warning.hint == "did you mean `REVECTOR_LIMITS_PAGE_ROWS`?"


def test_empty_variable_counts_as_not_set() -> None:
    assert made(BASE, {"REVECTOR_NAME": ""}).settings.name == "articles"


def test_which_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.locate(None, "articles", {}) == Path("revector.toml")
    (tmp_path / "articles.toml").touch()
    assert config.locate(None, "articles", {}) == Path("articles.toml")
    assert config.locate(None, "articles", {"REVECTOR_CONFIG": "e.toml"}) == Path("e.toml")
    assert config.locate(Path("f.toml"), "articles", {"REVECTOR_CONFIG": "e.toml"}) == Path("f.toml")


# --- secrets


def test_secrets_are_read_from_their_places_when_asked(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from file\n")
    (tmp_path / "cred").write_text("from credential")
    environ = {"KEY": "from env", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    loaded = parse(BASE, tmp_path / "r.toml", environ, {})
    assert loaded.reveal(Secret(env="KEY"), "x") == "from env"
    assert loaded.reveal(Secret(file="key"), "x") == "from file"
    assert loaded.reveal(Secret(credential="cred"), "x") == "from credential"
    (tmp_path / "key").write_text("rotated\n")
    assert loaded.reveal(Secret(file="key"), "x") == "rotated"


@pytest.mark.parametrize("secret", [Secret(env="NONE"), Secret(file="none"), Secret(credential="none")])
def test_a_secret_that_is_not_there_is_a_problem_with_its_place(secret: Secret) -> None:
    with pytest.raises(ConfigError, match=f"nothing to read at {secret}") as caught:
        made().reveal(secret, "generation[0].base_url")
    assert caught.value.problems[0].where == "r.toml:22 generation[0].base_url"


def test_passwords_of_connection_strings_are_shown_nowhere() -> None:
    text = changed("host=127.0.0.1 dbname=app", "host=127.0.0.1 password='hush hush' dbname=app")
    text = text.replace("host=/run/postgresql dbname=search", "postgresql://u:hush@127.0.0.1/search")
    loaded = made(text, {"KEY": "hush"})
    assert "hush" not in repr(loaded)
    assert "hush" not in f"{loaded.settings.source.dsn} {loaded.settings.target.dsn}"
    assert "password='hush hush'" in loaded.settings.source.dsn.reveal()


# --- connection strings

USER = {"user": "u@x", "password": "p/w"}


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("", {}),
        (r"host = db  password = 'a\'b \\' user=u", {"host": "db", "password": r"a'b \ ".rstrip(), "user": "u"}),
        (r"options=-c\ work_mem=1", {"options": "-c work_mem=1"}),
        ("postgresql://", {}),
        ("postgres://u%40x:p%2Fw@h/db?sslmode=require", {**USER, "host": "h", "dbname": "db", "sslmode": "require"}),
        ("postgresql://a:1,[::1]:2/", {"host": "a,::1", "port": "1,2"}),
        ("postgresql:///db?host=/run/pg", {"dbname": "db", "host": "/run/pg"}),
    ],
)  # fmt: skip
def test_connection_strings_are_read_as_libpq_reads_them(text: str, parameters: dict[str, str]) -> None:
    parsed = conninfo.parse(text)
    assert dict(parsed.parameters) == parameters
    assert conninfo_to_dict(parsed.reveal()) == parameters
    assert conninfo_to_dict(text) == parameters


@pytest.mark.parametrize(
    "text", ["host", "host=a b", "host='a", "=x", "postgresql://u:p@w@h:pw/db", "postgresql://[::1"]
)
def test_broken_connection_strings_are_refused_without_quoting_them(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-zA-Z ,;`@/:%=?-]+$"):
        conninfo.parse(text)


@pytest.mark.parametrize(
    ("text", "environ", "mode"),
    [
        ("host=db.example", {}, "verify-full"),
        ("host=127.0.0.1,db.example", {}, "verify-full"),
        ("hostaddr=10.0.0.1 host=localhost", {}, "verify-full"),
        ("dbname=app", {"PGHOST": "db.example"}, "verify-full"),
        ("postgresql://u@db.example/app", {}, "verify-full"),
        ("host=db.example sslmode=disable", {}, "disable"),
        ("host=db.example", {"PGSSLMODE": "require"}, None),
        ("host=db.example service=x", {}, None),
        ("dbname=app", {}, None),
        ("host=/run/postgresql", {}, None),
        ("host=localhost", {}, None),
        ("host=::1", {}, None),
        ("host=127.9.9.9 hostaddr=127.0.0.1", {}, None),
    ],
)
def test_connections_off_this_machine_are_verified_by_default(
    text: str, environ: dict[str, str], mode: str | None
) -> None:
    assert conninfo.secured(conninfo.parse(text), environ).get("sslmode") == mode


def test_tls_decided_by_a_service_is_said() -> None:
    text = changed("host=127.0.0.1 dbname=app", "service=app")
    (warning,) = made(text).warnings
    assert (warning.id, warning.where) == ("tls-by-service", "r.toml:3 source.dsn")
    assert not made(text, {"PGSSLMODE": "verify-full"}).warnings


@pytest.mark.parametrize("protocol", ["SASL_SSL", "SSL", "PLAINTEXT"])
def test_brokers_off_this_machine_need_a_chosen_protocol(protocol: str) -> None:
    remote = changed("127.0.0.1:9092", "127.0.0.1:9092,broker.example:9093")
    (found,) = problems(remote)
    assert found.id == "kafka-in-clear"
    made(remote.replace("[connect]", f'"security.protocol" = "{protocol}"\n[connect]'))


# --- what settings say


def test_names_of_group_client_and_application_follow_the_migration() -> None:
    settings = made().settings
    assert settings.group_id == "revector.articles"
    assert settings.client_id("stream") == "revector-articles-stream"
    assert settings.application_name("stream") == "revector:articles:stream"


def test_contract_holds_every_contract_setting() -> None:
    settings = made(BASE + 'document_prefix = "p: "\nrevision = "3"\nmetric = "ip"\n').settings
    generation = settings.candidate
    contract = settings.contract_of(generation, "t")
    shared = set(type(generation).model_fields) & set(contract.as_json())
    cut = {"chunk_tokens", "chunk_overlap", "tokenizer"}
    assert shared == set(type(generation).model_fields) - cut - {"name", "base_url", "api_key", "price", "limits"}
    assert {k: getattr(contract, k) for k in shared} == {k: getattr(generation, k) for k in shared}
    assert contract.templates == {"article": "{title}"}
    assert contract.chunker == Chunker()
    assert from_json(contract.as_json()) == contract


def test_contract_of_cut_documents_names_what_cuts_them() -> None:
    text = BASE + "chunk_tokens = 100\nchunk_overlap = 10\ntokenizer = 'path.json'\n"
    settings = made(text).settings
    contract = settings.contract_of(settings.candidate, "sha256:1")
    assert contract.chunker == Chunker("tokens", SPLITTER, {"tokens": 100, "overlap": 10}, "sha256:1")
    assert from_json(contract.as_json()) == contract


def test_alias_is_the_tables_name_and_quoted_names_are_kept() -> None:
    (table,) = made(changed('"app.article"', "'App.\"Odd.Name\"'\nalias = 'odd'")).settings.table
    assert (table.alias, table.relation) == ("odd", ("app", "Odd.Name"))
    assert made().settings.table[0].alias == "article"


def test_listen_address_is_host_and_port() -> None:
    assert made().settings.http.address == ("127.0.0.1", 9464)
    assert made(BASE, {"REVECTOR_HTTP_LISTEN": "[::1]:0"}).settings.http.address == ("::1", 0)


def test_lines_of_keys_are_found_through_arrays_strings_and_inline_tables() -> None:
    text = '''a = """
b = 1
"""
[x."y.z"]
list = [
  # [not.a.header]
  { k = 1 },
]
[[t]]
q = 1
[[t]]
[t.sub]
q.r = { s = 2 }
'''
    found = toml_places.lines(text)
    assert {show_key(k): v for k, v in found.items()} == {
        "a": 1,
        'x."y.z"': 4,
        'x."y.z".list': 5,
        'x."y.z".list[0]': 5,
        'x."y.z".list[0].k': 5,
        "t[0]": 9,
        "t[0].q": 10,
        "t[1]": 11,
        "t[1].sub": 12,
        "t[1].sub.q": 13,
        "t[1].sub.q.r": 13,
        "t[1].sub.q.r.s": 13,
    }
