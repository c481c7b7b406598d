"""The Auth service: any key is good here, and is told so, unless the knobs `key` and `keys` say otherwise."""

from google.protobuf.empty_pb2 import Empty
from xai_sdk.proto import auth_pb2, auth_pb2_grpc

from promptq.worker.simulator.context import CallContext
from promptq.worker.simulator.credentials import fingerprint_in
from promptq.worker.simulator.refusals import TEAM_ID, expired_key, incorrect_key, no_key, send
from promptq.worker.simulator.state import State


class AuthService(auth_pb2_grpc.AuthServicer):
    """Answers `get_api_key_info`. It costs nothing and is not on the books."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def get_api_key_info(self, request: Empty, context: CallContext) -> auth_pb2.ApiKey:
        """Describes the caller's key by its fingerprint; the key itself is never shown."""
        del request
        fingerprint = fingerprint_in(context.invocation_metadata())
        if not fingerprint:
            await send(no_key(), context)
        key = self._state.knobs.state_of(fingerprint)
        if key == "expired":
            await send(expired_key(), context)
        if key == "incorrect":
            await send(incorrect_key(), context)
        return auth_pb2.ApiKey(
            redacted_api_key=f"xai-...{fingerprint[-4:]}",
            api_key_id=fingerprint,
            name="simulated key",
            user_id="simulated-user",
            team_id=TEAM_ID,
            acls=["api-key:endpoint:*", "api-key:model:*"],
            api_key_blocked=key == "blocked",
            team_blocked=key == "team_blocked",
            disabled=key == "disabled",
        )
