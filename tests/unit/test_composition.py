"""The composition root makes every part from settings, connects to nothing, and reads secrets when they are needed."""

from pathlib import Path

import pytest

from daemon import config
from daemon.__main__ import ConnectorParts
from daemon.errors import ConfigError
from daemon.parts import Parts

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
SECRETS = {"KAFKA_PASSWORD": "hush", "OPENAI_API_KEY": "hush", "REVECTOR_CONNECT_PASSWORD": "hush"}


def parts(environ: dict[str, str]) -> Parts:
    overrides = {"connect.username": "revector", "connect.password": '{ env = "REVECTOR_CONNECT_PASSWORD" }'}
    return ConnectorParts(config.load(EXAMPLE, environ, overrides))


async def test_every_part_is_made_without_a_connection() -> None:
    made = parts(SECRETS)
    assert made.settings.name == "articles"
    indexes = made.indexes("test")
    assert indexes is not None
    assert made.decoder([], 0) is not None
    for part in (
        made.source("test"),
        made.target("test"),
        made.feed("test"),
        made.capture("test"),
        made.embedder(made.settings.candidate),
    ):
        await part.close()


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("feed", 'kafka.properties."sasl.password"'),
        ("capture", "connect.password"),
        ("embedder", "generation[0].api_key"),
    ],
)
def test_a_missing_secret_is_found_by_the_part_that_needs_it(part: str, key: str) -> None:
    made = parts({})
    wanted = made.settings.candidate if part == "embedder" else "test"
    with pytest.raises(ConfigError, match="nothing to read at env") as caught:
        getattr(made, part)(wanted)
    assert caught.value.problems[0].where.endswith(key)
