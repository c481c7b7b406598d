"""`openai` answers with OpenAI's client over REST: one `chat.completions.create()` at xAI, or at any server like it.

Loads openai (`promptq[openai]`): import it only where a worker is built.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any, Final, Self
from urllib.request import getproxies

from openai import APIConnectionError, AsyncOpenAI, DefaultAsyncHttpxClient, Timeout
from pydantic import SecretStr

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.worker.providers.accounts import Account, Accounts, place_of
from promptq.worker.providers.api_key import OF_OPENAI, KeyFile, checked_key, read_key
from promptq.worker.providers.base import (
    OF_THE_ACCOUNT,
    PROBE_TIMEOUT,
    Answer,
    Delta,
    Hear,
    ProviderError,
    longest_call,
)
from promptq.worker.providers.conversation import conversation_headers
from promptq.worker.providers.openai_answer import Completion, answer_of, completion_of
from promptq.worker.providers.openai_errors import error_of
from promptq.worker.providers.openai_request import body_of
from promptq.worker.providers.openai_stream import completion_in
from promptq.worker.providers.wording import presentable, quotable_texts, without_quotes
from promptq.worker.settings import Settings

CONNECT_TIMEOUT: Final = 10.0
"""Seconds."""

_KEEPALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 30, "TCP_KEEPCNT": 4}
"""A model may think for longer than a firewall remembers a silent connection. By name: some systems lack some."""

_http: Final = sys.modules[DefaultAsyncHttpxClient.__bases__[0].__module__]
"""Httpx, or httpx2 since version 3 of the client, which takes objects of its own alone."""


class OpenAIProvider:
    """Calls one server over as many connections as there are calls at once.

    Args:
        api_key: Surrounding white space does not count. A server without keys takes any.
        base_url: Up to `/v1`.
        max_jobs: Calls at once that there are connections for.
        job_timeout: Seconds; the client's own limit is longer than this, and than any job's.
        key_file: Where the key is looked for again. Calls under way keep the one that they began with.

    Raises:
        ApiKeyError: The key is missing, or is not one.
    """

    name = "openai"

    def __init__(
        self,
        *,
        api_key: str | None,
        base_url: str = "https://api.x.ai/v1",
        max_jobs: int = 100,
        job_timeout: float = 3600.0,
        key_file: KeyFile | None = None,
    ) -> None:
        self._base_url = base_url
        self._max_jobs = max_jobs
        self._call_timeout = longest_call(job_timeout)
        key = checked_key(api_key, OF_OPENAI)
        self._accounts = Accounts("openai", key, self._open, key_file, place=place_of(base_url))
        vendors_log = logging.getLogger("openai")
        vendors_log.setLevel(max(vendors_log.level, logging.INFO))  # at DEBUG it writes down the prompts

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The provider that these settings describe.

        Raises:
            ApiKeyError: As the constructor; also if the key's file cannot be read.
        """
        return cls(
            api_key=read_key(settings),
            base_url=settings.openai_base_url,
            max_jobs=settings.max_jobs,
            job_timeout=settings.job_timeout,
            key_file=KeyFile.named_by(settings),
        )

    @property
    def account(self) -> str:
        """As `Provider.account`: `openai:` and eight hex digits of a digest of host and key.

        With the host: servers of different makers may well be given the same key, such as `none`.
        """
        return self._accounts.present().name

    async def sample(self, job: PromptJob, timeout: float, hear: Hear | None = None) -> Answer:
        """As `Provider.sample`. The client's exceptions are not chained: their text may hold the prompt."""
        del timeout  # the caller's; the client's own is longer than any
        body, headers = body_of(job), conversation_headers(job)
        account = self._accounts.present()
        try:
            with account.lend() as connections:
                ask = connections.ask(body, headers) if hear is None else connections.hear(body, headers, hear)
                completion = await ask
        except ProviderError:
            raise
        except (TypeError, ValueError) as error:  # text that is no Unicode: the body could not be written
            said = self._without_secrets(f"{type(error).__name__}: {error}", job)
            raise ProviderError(ErrorCode.INVALID_REQUEST, presentable(said)) from None
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the job must learn of it
            raise self._failure(error, account, job) from None
        return answer_of(completion, job)

    async def probe(self) -> None:
        """As `Provider.probe`: asks for the list of models. Reads the key's file anew; credit is not told here."""
        account = self._accounts.reread()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                with account.lend() as connections:
                    await connections.list_models()
        except TimeoutError:
            raise ProviderError(ErrorCode.TIMEOUT, f"no answer within {PROBE_TIMEOUT:g} s") from None
        except Exception as error:  # noqa: BLE001 - as above
            failure = self._failure(error, account)
            if failure.code is not ErrorCode.MODEL_NOT_FOUND:  # a server without such a list refuses nobody
                raise failure from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._accounts.aclose()

    def _open(self, key: SecretStr) -> "Connections":
        return Connections(key, self._base_url, self._max_jobs, self._call_timeout)

    def _failure(
        self, error: Exception, account: "Account[Connections]", job: PromptJob | None = None
    ) -> ProviderError:
        """What a call of this account meant that ended so."""
        failure = error_of(error, partial(self._without_secrets, job=job))
        failure.is_stale = failure.code in OF_THE_ACCOUNT and self._accounts.is_replaced(account)
        return failure

    def _without_secrets(self, text: str, job: PromptJob | None) -> str:
        """Also so that no prompt, quoted in an error, can pass for what the server says of the account."""
        return without_quotes(text, chain(self._accounts.keys(), quotable_texts(job) if job else ()))


class Connections:
    """One client with one key. They open with the first calls.

    Args:
        key: What the calls carry.
        base_url: Up to `/v1`.
        size: Connections at most; a call more than these waits.
        timeout: Seconds for a call.
    """

    def __init__(self, key: SecretStr, base_url: str, size: int, timeout: float) -> None:
        limits = _http.Limits(max_connections=size + 1, max_keepalive_connections=size + 1)  # one for the probe
        self._client = AsyncOpenAI(
            api_key=key.get_secret_value(),
            base_url=base_url,
            # One retry here is a second generation, paid and recorded by nobody. The queue owns every retry.
            max_retries=0,
            timeout=Timeout(timeout, connect=CONNECT_TIMEOUT, pool=CONNECT_TIMEOUT),
            http_client=DefaultAsyncHttpxClient(limits=limits, transport=_transport(limits)),
        )

    async def ask(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Completion:
        """A chat completion, whole. Raises what the client does, or ProviderError; a cancel ends the request."""
        answer = await self._client.chat.completions.with_raw_response.create(**body, extra_headers=headers)
        return completion_of(answer.content)

    async def hear(self, body: Mapping[str, Any], headers: Mapping[str, str], hear: Hear) -> Completion:
        """The same, heard as it comes. Raises also ErrorEvent."""
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}, "extra_headers": headers}
        async with self._client.chat.completions.with_streaming_response.create(**asked) as response:
            try:
                if _is_stream(response):
                    return await completion_in(response.iter_bytes(), hear)
                completion = completion_of(await response.read())  # paid for, whatever was asked
            except _http.RequestError as error:  # the client names only those that come before the answer begins
                raise APIConnectionError(request=response.http_request) from error
        for choice in completion.choices:
            hear(Delta(choice.content, choice.message.reasoning_content, choice.message.calls, choice.index))
        return completion

    async def list_models(self) -> None:
        """Ask for what there is, at no cost. Raises what the client does."""
        await self._client.models.with_raw_response.list()

    async def aclose(self) -> None:
        """Close them all."""
        await self._client.close()


def _is_stream(response: Any) -> bool:
    return bool(response.headers.get("content-type", "").startswith("text/event-stream"))


def _transport(limits: Any) -> Any:
    """With TCP's keepalive; None, for one that goes through them, where the environment has proxies."""
    if getproxies():
        return None
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, seconds in _KEEPALIVE.items():
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), seconds))
    return _http.AsyncHTTPTransport(limits=limits, socket_options=options)
