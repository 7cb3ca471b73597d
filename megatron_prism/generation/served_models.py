"""Asks an OpenAI-compatible server which models it has, so that the name of the only one need not be typed."""

from __future__ import annotations

from megatron_prism.errors import ConfigError, ServerError
from megatron_prism.generation.json_post import JsonEndpoint, RequestRefused
from megatron_prism.generation.openai_engine import api_key

NAME_IT = "name the model with --option model=NAME"
# A server that is starting gets a second chance; the seconds that it may take to answer.
RETRIES, TIMEOUT = 1, 30.0
SHOWN = 5


def only_model(base_url: str, api_key_variable: str | None = None) -> str:
    """The name of a server's model, from `/models`.

    Args:
        base_url: the address up to and including `/v1`.
        api_key_variable: the environment variable that holds the key.

    Raises:
        ConfigError: if it has several, or does not say.
        ServerError: if it does not answer.
    """
    endpoint = JsonEndpoint(
        f"{base_url.rstrip('/')}/models", api_key(api_key_variable), timeout=TIMEOUT, retries=RETRIES
    )
    try:
        answer = endpoint.get()
    except RequestRefused as refusal:
        raise ConfigError(
            f"{refusal}; the address of an OpenAI-compatible server ends with /v1; if this one has no list of models, "
            f"{NAME_IT}"
        ) from None
    except ServerError as problem:
        reason, _, _ = str(problem).partition(";")
        raise ServerError(
            f"{reason}; check the address, and that the server runs; if it cannot list its models, {NAME_IT}"
        ) from None
    listed = answer.get("data") if isinstance(answer, dict) else None
    names = [str(each["id"]) for each in listed or () if isinstance(each, dict) and "id" in each]
    if len(names) == 1:
        return names[0]
    if not names:
        raise ConfigError(f"{endpoint.url}: the server lists no models; {NAME_IT}")
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise ConfigError(
        f"{endpoint.url}: the server lists {len(names)} models ({', '.join(names[:SHOWN])}{more}); {NAME_IT}"
    )
