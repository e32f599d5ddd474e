"""`docs/howto/providers.md`: every configuration on it can be used, and has the limits that its server needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.local_embedder import LocalEmbedder
from connectors.openai_embedder import AzureEmbedder, OpenAIEmbedder
from daemon import config
from daemon.__main__ import ConnectorParts
from daemon.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "providers.md"
EXAMPLE = (ROOT / "config.example.toml").read_text(encoding="utf-8")
CUTS_OFF = {"Ollama", "Text Embeddings Inference", "LM Studio"}
SERVERS = {"OpenAI", "Azure OpenAI", "vLLM", "llama.cpp", "local", *CUTS_OFF}


def sections() -> Iterator[tuple[str, str]]:
    """(title, text) of the page's parts."""
    for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        yield title, text


def blocks() -> list[tuple[str, str]]:
    """(title, TOML) of every block."""
    return [(title, block) for title, text in sections() for block in re.findall(r"```toml\n(.*?)```", text, re.S)]


def loaded(block: str) -> config.Loaded:
    """The example configuration with this generation instead of its own."""
    before, _, after = EXAMPLE.partition("[[generation]]")
    rest = after[after.index("\n[limits]") :]
    environ = dict.fromkeys(re.findall(r'env = "(\w+)"', block), "sk-test")
    return config.parse(f"{before}{block}\n{rest}", PAGE, environ, {})


every_block = pytest.mark.parametrize(
    ("title", "block"), blocks(), ids=[f"{title}-{n}" for n, (title, _) in enumerate(blocks())]
)


def test_every_server_has_a_configuration() -> None:
    assert {title for title, _ in blocks()} == SERVERS
    assert {title for title, _ in sections()} == {"What holds for all", *SERVERS}


@every_block
async def test_a_configuration_is_sound_and_makes_its_embedder(title: str, block: str) -> None:
    found = loaded(block)
    [generation] = found.settings.generation
    assert found.warnings == ()
    embedder = ConnectorParts(found).embedder(generation)
    await embedder.close()
    made = {"Azure OpenAI": AzureEmbedder, "local": LocalEmbedder}.get(title, OpenAIEmbedder)
    assert type(embedder) is made


@every_block
def test_where_texts_are_cut_off_silently_a_limit_keeps_them_from_being_sent(title: str, block: str) -> None:
    [generation] = loaded(block).settings.generation
    limits = generation.limits
    assert (limits.input_tokens is not None) >= (title in CUTS_OFF)
    assert limits.request_inputs <= (32 if title == "Text Embeddings Inference" else 2048)


def test_a_generation_that_cannot_be_used_is_found() -> None:
    with pytest.raises(ConfigError, match="api_key"):
        loaded('[[generation]]\nname = "v2"\nmodel = "m"\ndimensions = 3\n')


# --- addresses


def of_address(base_url: str) -> str:
    return f'[[generation]]\nname = "v2"\nmodel = "m"\ndimensions = 3\nbase_url = "{base_url}"\n'


@pytest.mark.parametrize(
    "base_url",
    [
        "https://NAME.openai.azure.com/openai/deployments/x?api-version=2024-10-21",
        "http://localhost:8000/v1",
        "http://[::1]:8000/v1",
        "https://10.0.0.7/v1",
    ],
)
def test_addresses_that_are_safe(base_url: str) -> None:
    assert loaded(of_address(base_url)).settings.generation[0].base_url == base_url


@pytest.mark.parametrize(
    ("base_url", "id"),
    [
        ("http://models.example.com/v1", "provider-in-clear"),
        ("http://10.0.0.7:11434/v1", "provider-in-clear"),
        ("http://localhost.example.com/v1", "provider-in-clear"),
        ("http://models.example.com/v1?api-version=2024-10-21", "provider-in-clear"),
        ("https://models.example.com/v1?key=sk-in-the-address", "url-invalid"),
        ("https://models.example.com/v1?api-version=1&key=sk-in-the-address", "url-invalid"),
        ("https://sk-key@models.example.com/v1", "url-invalid"),
        ("https://models.example.com/v1#there", "url-invalid"),
        ("ftp://models.example.com/v1", "url-invalid"),
    ],
)
def test_addresses_that_would_give_texts_or_keys_away(base_url: str, id: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(of_address(base_url))
    assert [problem.id for problem in caught.value.problems] == [id]
    assert "sk-" not in str(caught.value)
