"""Which addresses outbound connections may reach, and the resolver and socket factory that hold to it.

The check sits where the connection is made, on the addresses that are dialled: no spelling of a host and no answer of a
name server gets round it. A refusal is a :class:`~appliance.plugin.Reject`: trying again can't help.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from appliance.plugin import Reject

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
Record = tuple[int, int, int, str, tuple[Any, ...]]
"""What getaddrinfo gives: family, type, protocol, canonical name, socket address."""
Lookup = Callable[[str, int, socket.AddressFamily], Awaitable[Sequence[Record]]]

_MAX_LOOKUPS = 32
"""Name look-ups at once. Each holds a thread for as long as the system's resolver takes."""

# Written out, since ``ip_address(…).is_global`` differs between versions of Python (CPython gh-113171) and counts
# some of these as global. From the IANA special-purpose registries, and where cloud providers keep their metadata.
_REFUSED: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared (carrier NAT; Alibaba's metadata)
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent
        "169.254.0.0/16",  # link-local, cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments (Oracle's metadata)
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "::/96",  # unspecified, loopback, IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped: judged by the address inside first, and never dialled as such
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64, local
        "100::/64",  # discard
        "100:0:0:1::/64",  # dummy
        "2001::/23",  # protocol assignments, Teredo, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local (AWS's metadata)
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local
        "ff00::/8",  # multicast
    )
)
_GLOBAL_UNICAST = ip_network("2000::/3")


class Guard:
    """Which addresses and ports may be connected to."""

    def __init__(self, allowed_networks: Sequence[Network] = (), allowed_ports: Sequence[int] = (80, 443)) -> None:
        self._allowed = tuple(allowed_networks)
        self._ports = frozenset(allowed_ports)

    def check(self, host: str, port: int) -> None:
        """Raise Reject unless the literal address ``host`` may be reached at ``port``."""
        address = ip_address(host.partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        address = mapped or address
        if any(address in network for network in self._allowed):
            return
        if not is_public(address):
            raise Reject(f"{address} is not a public address (outbound.allowed_networks can allow it)")
        if port not in self._ports:
            raise Reject(f"port {port} is not one of outbound.allowed_ports")

    def socket(self, record: Record) -> socket.socket:
        """A socket for aiohttp to connect to ``record``'s address: the last look before anything is dialled."""
        family, kind, protocol, _, address = record
        self.check(address[0], address[1])
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


def is_public(address: Address) -> bool:
    """Whether ``address`` is one that anybody on the Internet could reach."""
    if any(address in network for network in _REFUSED):
        return False
    return isinstance(address, IPv4Address) or address in _GLOBAL_UNICAST


class GuardedResolver(AbstractResolver):
    """Resolves names, and refuses a name if *any* of its addresses is refused: chance decides which one is dialled.

    ``lookup`` replaces the system's in tests. Whoever asks for a name that is being looked up waits for that look-up,
    and at most ``_MAX_LOOKUPS`` run at once, given up or not: a dead name server can't use up the threads.
    """

    def __init__(self, guard: Guard, lookup: Lookup | None = None) -> None:
        self._guard = guard
        self._lookup = lookup or _getaddrinfo
        self._free = asyncio.Semaphore(_MAX_LOOKUPS)
        self._under_way: dict[tuple[str, int, int], asyncio.Task[Sequence[Record]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All records of ``host``; raises OSError when there are none, Reject when one of them is refused."""
        key = (host, port, int(family))
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._one(host, port, family))
            task.add_done_callback(lambda done: self._ended(key, done))
        results = [_result(host, port, record) for record in await asyncio.shield(task)]
        if not results:
            raise OSError(f"{host} has no address")
        for result in results:
            self._guard.check(result["host"], port)
        return results

    async def close(self) -> None:
        """Give up what is being looked up."""
        for task in list(self._under_way.values()):
            task.cancel()

    async def _one(self, host: str, port: int, family: socket.AddressFamily) -> Sequence[Record]:
        async with self._free:
            return await self._lookup(host, port, family)

    def _ended(self, key: tuple[str, int, int], task: asyncio.Task[Sequence[Record]]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # nobody may be waiting for it any more


async def _getaddrinfo(host: str, port: int, family: socket.AddressFamily) -> Sequence[Record]:
    records: Any = await asyncio.get_running_loop().getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return records  # type: ignore[no-any-return]


def _result(host: str, port: int, record: Record) -> ResolveResult:
    family, _, protocol, _, address = record
    return ResolveResult(
        hostname=host,
        host=address[0],
        port=port,
        family=family,
        proto=protocol,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )
