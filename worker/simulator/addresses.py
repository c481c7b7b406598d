"""Addresses, as they are listened on and as they are called."""

import ipaddress
import socket

LOOPBACK = "127.0.0.1"


def joined(address: str, port: int) -> str:
    """`address:port`, with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach it."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def callable_from_here(address: str) -> str:
    """What a client on this machine calls: loopback for an address that means all interfaces."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if not parsed.is_unspecified:
        return address
    return LOOPBACK if parsed.version == 4 else "::1"


def bound(address: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError, which says why the address cannot be had."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise OSError(f"cannot listen on {joined(address, port)}: {reason}") from None
