"""`xai` answers with xAI's own SDK over gRPC: `chat.create(...)`, then one `chat.sample()`, or `chat.stream()`.

Loads grpc and xai_sdk: import it only where a worker is built.
"""

import asyncio
import os
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Self

import grpc.aio
from google.protobuf.json_format import ParseError
from pydantic import SecretStr
from xai_sdk import AsyncClient
from xai_sdk.aio.chat import Chat
from xai_sdk.proto import chat_pb2

from promptq.producer.errors import ErrorCode
from promptq.producer.models import PromptJob
from promptq.worker.providers.accounts import Account, Accounts
from promptq.worker.providers.api_key import KeyFile, checked_key, read_key
from promptq.worker.providers.base import OF_THE_ACCOUNT, PROBE_TIMEOUT, Answer, Hear, ProviderError, longest_call
from promptq.worker.providers.conversation import conversation_headers
from promptq.worker.providers.wording import presentable, quotable_texts, without_quotes
from promptq.worker.providers.xai_answer import answer_of
from promptq.worker.providers.xai_call import chunks_of, in_hand
from promptq.worker.providers.xai_errors import error_of
from promptq.worker.providers.xai_pool import ClientPool, connections_for
from promptq.worker.providers.xai_request import create_arguments
from promptq.worker.providers.xai_stream import Gathering
from promptq.worker.settings import Settings

_NO_PROMPTS_IN_TRACES = "XAI_SDK_DISABLE_SENSITIVE_TELEMETRY_ATTRIBUTES"

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Otherwise gRPC gives all clients of a process the same connection.
    ("grpc.use_local_subchannel_pool", 1),
    # One retry here is a second generation, paid and recorded by nobody. The queue owns every retry.
    ("grpc.enable_retries", 0),
    # By default a channel looks again for a server that was away only every two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_PLAIN_OPTIONS: tuple[tuple[str, int], ...] = (("grpc.enable_http_proxy", 0),)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What xAI says about a key; nothing of the key itself. `acls`: such as `api-key:model:grok-4`."""

    name: str
    is_blocked: bool
    is_team_blocked: bool
    is_disabled: bool
    acls: tuple[str, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """Why no call with it is answered; empty if it may be used."""
        states = {"blocked": self.is_blocked, "disabled": self.is_disabled, "of a blocked team": self.is_team_blocked}
        return tuple(state for state, is_so in states.items() if is_so)


class XaiProvider:
    """Calls xAI over a few connections, which open with the first calls.

    Args:
        api_key: Surrounding white space does not count.
        host: `name` or `name:port`.
        insecure: Plain text instead of TLS, past any proxy: for the simulator.
        max_jobs: Calls at once that there are connections for.
        job_timeout: Seconds; the RPC's own limit is longer than this, and than any job's.
        key_file: Where the key is looked for again. Calls under way keep the one that they began with.

    Raises:
        ApiKeyError: The key is missing, or is not one.
    """

    name = "xai"

    def __init__(
        self,
        *,
        api_key: str | None,
        host: str,
        insecure: bool = False,
        max_jobs: int = 100,
        job_timeout: float = 3600.0,
        key_file: KeyFile | None = None,
    ) -> None:
        self._host = host
        self._insecure = insecure
        self._connections = connections_for(max_jobs)
        self._rpc_timeout = longest_call(job_timeout)
        self._accounts = Accounts("xai", checked_key(api_key), self._open_pool, key_file)
        os.environ.setdefault(_NO_PROMPTS_IN_TRACES, "1")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The provider that these settings describe.

        Raises:
            ApiKeyError: As the constructor; also if the key's file cannot be read.
        """
        return cls(
            api_key=read_key(settings),
            host=settings.xai_host,
            insecure=settings.xai_insecure,
            max_jobs=settings.max_jobs,
            job_timeout=settings.job_timeout,
            key_file=KeyFile.named_by(settings),
        )

    @property
    def account(self) -> str:
        """As `Provider.account`: `xai:` and eight hex digits of a digest of the key.

        Without the host: one account pays, by whichever endpoint it is called.
        """
        return self._accounts.present().name

    async def sample(self, job: PromptJob, timeout: float, hear: Hear | None = None) -> Answer:
        """As `Provider.sample`. A call that xAI cancels is a ProviderError, never a CancelledError.

        The SDK's exceptions are not chained: their text may hold the key or the prompt.
        """
        del timeout  # the caller's; the RPC's own is longer than any
        account = self._accounts.present()
        try:
            with (
                account.lend() as pool,
                pool.lend() as client,
                in_hand(self._chat(client, job), conversation_headers(job)) as chat,
            ):
                count = job.n or 1
                response = await (_streamed(chat, count, hear) if hear else _sampled(chat, count))
            return answer_of(response, job)
        except ProviderError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises, the job must learn of it
            raise self._failure(error, account, job) from None

    async def key_info(self) -> KeyInfo:
        """What xAI knows of the key; costs no tokens. Raises ProviderError, also for a key that is none."""
        return await self._key_info(self._accounts.present())

    async def probe(self) -> None:
        """As `Provider.probe`. Reads the key's file anew; whether there is credit is not told here."""
        account = self._accounts.reread()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                info = await self._key_info(account)
        except TimeoutError:
            raise ProviderError(ErrorCode.TIMEOUT, f"no answer within {PROBE_TIMEOUT:g} s") from None
        if info.faults:
            said = f"the key is {' and '.join(info.faults)}"
            raise ProviderError(ErrorCode.BAD_KEY, said, is_stale=self._accounts.is_replaced(account))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._accounts.aclose()

    def _open_pool(self, key: SecretStr) -> ClientPool:
        return ClientPool(partial(self._open_client, key), self._connections)

    def _open_client(self, key: SecretStr) -> AsyncClient:
        return AsyncClient(
            api_key=key.get_secret_value(),
            api_host=self._host,
            timeout=self._rpc_timeout,
            channel_options=[*_CHANNEL_OPTIONS, *(_PLAIN_OPTIONS if self._insecure else ())],
            use_insecure_channel=self._insecure,
        )

    def _chat(self, client: AsyncClient, job: PromptJob) -> Chat:
        """The request. What is None is left out of it."""
        if job.model is None:
            raise ProviderError(ErrorCode.INVALID_REQUEST, "the job names no model")
        try:
            return client.chat.create(job.model, **create_arguments(job))
        except (TypeError, ValueError, ParseError) as error:
            said = self._without_secrets(_named(error), job)
            raise ProviderError(ErrorCode.INVALID_REQUEST, presentable(said)) from None

    async def _key_info(self, account: Account[ClientPool]) -> KeyInfo:
        try:
            with account.lend() as pool, pool.lend() as client:
                info = await client.auth.get_api_key_info()
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises, the caller must learn of it
            raise self._failure(error, account) from None
        return KeyInfo(info.name, info.api_key_blocked, info.team_blocked, info.disabled, tuple(info.acls))

    def _failure(self, error: Exception, account: Account[ClientPool], job: PromptJob | None = None) -> ProviderError:
        """What a call of this account meant that ended so."""
        if not isinstance(error, grpc.aio.AioRpcError):
            return ProviderError(ErrorCode.PROVIDER_ERROR, presentable(self._without_secrets(_named(error), job)))
        details = self._without_secrets(error.details() or "", job)
        failure = error_of(error.code(), details, error.trailing_metadata())
        failure.is_stale = failure.code in OF_THE_ACCOUNT and self._accounts.is_replaced(account)
        return failure

    def _without_secrets(self, text: str, job: PromptJob | None) -> str:
        """Also so that no prompt, quoted in an error, can pass for what xAI says of the account."""
        return without_quotes(text, chain(self._accounts.keys(), quotable_texts(job) if job else ()))


async def _sampled(chat: Chat, count: int) -> chat_pb2.GetChatCompletionResponse:
    """One message, which has all of the answers."""
    response = await chat.sample() if count == 1 else (await chat.sample_batch(count))[0]
    return response.proto


async def _streamed(chat: Chat, count: int, hear: Hear) -> chat_pb2.GetChatCompletionResponse:
    """The same, heard as it comes."""
    gathering = Gathering()
    async with aclosing(chunks_of(chat, count)) as chunks:
        async for chunk in chunks:
            for delta in gathering.add(chunk):
                hear(delta)
    return gathering.response()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
