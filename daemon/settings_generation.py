"""The settings of a generation: the vectors to make, who makes them, and what that provider permits.

Every key but `name`, `base_url`, `api_key`, `price` and `limits` is part of the contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from daemon.core.packing import input_tokens
from daemon.settings_checks import Fault, Frozen, Name, ProviderUrl, Secret, Text, faults

OPENAI_URL = "https://api.openai.com/v1"

# pgvector: HNSW indexes up to 2 000 dimensions of vector, 4 000 of halfvec
MAX_DIMENSIONS: Mapping[str, int] = {"vector": 2000, "halfvec": 4000}


class GenerationLimits(Frozen):
    """What the provider permits one generation. Several processes share the two budgets through the target."""

    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra={"unit": "requests"},
        description="Budget of requests; where the provider's answers name a lower one, that one holds.",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra={"unit": "tokens"},
        description="Budget of tokens; where the provider's answers name a lower one, that one holds.",
    )
    request_inputs: int = Field(
        default=256,
        ge=1,
        le=2048,
        json_schema_extra={"unit": "inputs"},
        description="Most inputs of one request: OpenAI takes 2048, many servers take fewer.",
    )
    request_tokens: int = Field(
        default=50_000,
        ge=1,
        le=1_000_000,
        json_schema_extra={"unit": "tokens"},
        description="Most tokens of one request: OpenAI takes 300 000. What is in flight is lost in a crash.",
    )
    input_tokens: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra={"unit": "tokens"},
        description="Most tokens of one input: a longer one is refused here, because some servers cut it off silently. "
        "Default: 8192 for OpenAI's models, no limit for others.",
    )
    in_flight: int = Field(
        default=8,
        ge=1,
        le=256,
        json_schema_extra={"unit": "requests"},
        description="Most requests at once of one process; fewer while the provider throttles or grows slow.",
    )
    request_timeout_s: int = Field(
        default=60,
        ge=1,
        le=3600,
        json_schema_extra={"unit": "s"},
        description="Longest wait for one answer of the provider: a full request takes a few seconds.",
    )


class GenerationSettings(Frozen):
    """A set of vectors to make; repeat for another one. The last is the one to cut over to."""

    name: Name = Field(description="Name of the generation, such as v2.")
    provider: Literal["openai", "azure", "local"] = Field(
        default="openai",
        description="OpenAI's protocol (its own or a compatible server), Azure OpenAI, or the embedded model, which "
        "needs no server.",
    )
    model: Text = Field(description="The provider's name of the model; at Azure, of the deployment.")
    dimensions: int = Field(ge=1, le=4000, description="Length of a vector: up to 2000 (vector) or 4000 (halfvec).")
    base_url: ProviderUrl = Field(
        default=OPENAI_URL,
        description="Base URL of the provider; https off this machine. Needed for azure, refused for local.",
    )
    api_key: Secret | None = Field(
        default=None,
        description="API key, a reference; none is sent without it. Needed for OpenAI and azure, refused for local.",
    )
    document_prefix: str = Field(default="", description="Put before every chunk; asked for by models such as E5.")
    query_prefix: str = Field(default="", description="What readers put before a query; recorded for them.")
    chunk_tokens: int | None = Field(
        default=None,
        ge=16,
        le=32_768,
        json_schema_extra={"unit": "tokens"},
        description="Most tokens of a chunk, prefix included. Not set: a row's document is one chunk.",
    )
    chunk_overlap: int = Field(
        default=0,
        ge=0,
        le=8192,
        json_schema_extra={"unit": "tokens"},
        description="Most tokens that a chunk repeats of the one before it.",
    )
    tokenizer: Text = Field(
        default="cl100k_base",
        description="What counts tokens: `cl100k_base`, `o200k_base`, or the path of a Hugging Face tokenizer.json, "
        "relative to this file.",
    )
    vector_type: Literal["vector", "halfvec"] = Field(
        default="vector", description="Type of the vector column: float32, or float16 at half the size."
    )
    metric: Literal["cosine", "l2", "ip"] = Field(
        default="cosine", description="Distance that readers and the index use."
    )
    normalised: bool = Field(default=True, description="Whether the provider's vectors have length 1, as OpenAI's do.")
    revision: str = Field(default="", description="Revision of the model, where the provider names one.")
    price: float | None = Field(
        default=None,
        ge=0,
        strict=False,
        json_schema_extra={"unit": "per million tokens"},
        description="What the provider charges, in your currency; `revector plan` and `status` compute with it.",
    )
    limits: GenerationLimits = GenerationLimits()

    @property
    def most_input_tokens(self) -> int | None:
        """Of one text: as configured, else as the provider documents it; None where nobody says."""
        return self.limits.input_tokens or input_tokens(self.model)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        found: list[Fault] = []
        most = MAX_DIMENSIONS[self.vector_type]
        if self.dimensions > most:
            message = f"an index on {self.vector_type} takes at most {most}"
            hint = "ask the model for fewer, or use halfvec"
            found.append(Fault(("dimensions",), "too-many-dimensions", message, hint))
        if self.provider == "local":
            message, hint = "the embedded model has neither address nor key", "take it away"
            unused = [key for key in ("base_url", "api_key") if key in self.model_fields_set]
            found += [Fault((key,), "local-without-server", message, hint) for key in unused]
        needs_key = self.provider == "azure" or (self.provider == "openai" and self.base_url == OPENAI_URL)
        if needs_key and self.api_key is None:
            hint = f'add api_key = {{ env = "{self.provider.upper()}_API_KEY" }}'
            found.append(Fault((), "api-key-missing", "this provider wants an api_key", hint))
        if self.provider == "azure" and self.base_url == OPENAI_URL:
            hint = 'such as base_url = "https://NAME.openai.azure.com/openai/v1"'
            found.append(Fault(("base_url",), "base-url-missing", "Azure OpenAI has an address of its own", hint))
        if self.chunk_tokens is not None and 2 * self.chunk_overlap > self.chunk_tokens:
            message, hint = "must be at most half of chunk_tokens", "lower it; a tenth is usual"
            found.append(Fault(("chunk_overlap",), "overlap-too-large", message, hint))
        if self.chunk_tokens is None and self.chunk_overlap:
            hint = "add chunk_tokens, or take chunk_overlap away"
            found.append(Fault(("chunk_overlap",), "overlap-alone", "means nothing without chunk_tokens", hint))
        most_input = self.limits.input_tokens
        if most_input is not None and (self.chunk_tokens or 0) > most_input:
            message, hint = f"the provider takes {most_input}", "lower it, or raise limits.input_tokens"
            found.append(Fault(("chunk_tokens",), "chunk-too-long", message, hint))
        if found:
            raise faults(found)
        return self
