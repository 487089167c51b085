"""The addresses that outbound connections may reach."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.guard import Guard, GuardedResolver, Record, is_public
from appliance.plugin import Reject

REFUSED = [
    "0.0.0.1", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255",
    "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "192.168.255.255", "198.18.0.1",
    "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::10.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "100:0:0:1::1", "2001::1",
    "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1", "2620:4f:8000::1",
    "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
    "1::1", "e000::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0",
    "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "2001:4860:4860::8888",
    "2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("host", REFUSED)
def test_refuses_what_is_not_public(host: str) -> None:
    with pytest.raises(Reject, match="not a public address"):
        Guard().check(host, 443)


@pytest.mark.parametrize("host", PUBLIC)
def test_lets_public_addresses_through(host: str) -> None:
    Guard().check(host, 443)


@given(st.ip_addresses())
def test_nothing_that_python_calls_private_is_public(address: object) -> None:
    parsed = ip_address(str(address))
    if parsed.is_private or parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified:
        assert not is_public(parsed)


def test_ports_are_listed() -> None:
    guard = Guard(allowed_ports=(443,))
    guard.check("8.8.8.8", 443)
    with pytest.raises(Reject, match=r"port 25 is not one of outbound\.allowed_ports"):
        guard.check("8.8.8.8", 25)


@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1", "fd00::5"])
def test_an_allowed_network_is_open_at_any_port(host: str) -> None:
    guard = Guard([ip_network("127.0.0.0/8"), ip_network("fd00::/8")], [443])
    guard.check(host, 6379)
    with pytest.raises(Reject):
        guard.check("10.0.0.1", 443)


def test_the_socket_is_refused_before_it_is_made() -> None:
    with pytest.raises(Reject):
        Guard().socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80)))
    with Guard().socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))) as made:
        assert not made.getblocking()


def record(address: str, port: int = 443) -> Record:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return (family, socket.SOCK_STREAM, 6, "", (address, port))


async def resolve(*addresses: str) -> list[str]:
    async def lookup(host: str, port: int, family: socket.AddressFamily) -> Sequence[Record]:
        return [record(address, port) for address in addresses]

    return [found["host"] for found in await GuardedResolver(Guard(), lookup).resolve("host.example", 443)]


async def test_a_name_with_public_addresses_only_is_resolved() -> None:
    assert await resolve("8.8.8.8", "2606:4700::1111") == ["8.8.8.8", "2606:4700::1111"]


@pytest.mark.parametrize("inner", ["10.0.0.1", "::1", "::ffff:169.254.169.254", "fd00::1"])
async def test_one_refused_address_among_several_is_enough(inner: str) -> None:
    with pytest.raises(Reject):
        await resolve("8.8.8.8", inner, "1.1.1.1")


async def test_a_name_without_addresses_is_trouble_that_may_pass() -> None:
    with pytest.raises(OSError, match="no address"):
        await resolve()


async def test_a_dead_name_server_is_asked_by_a_bounded_number_of_look_ups() -> None:
    asked: list[str] = []
    never = asyncio.Event()

    async def lookup(host: str, port: int, family: socket.AddressFamily) -> Sequence[Record]:
        asked.append(host)
        await never.wait()
        return [record("8.8.8.8")]

    resolver = GuardedResolver(Guard(), lookup)
    waiting = [asyncio.create_task(resolver.resolve(f"host-{n % 50}", 443)) for n in range(200)]
    for _ in range(5):
        await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    again = asyncio.create_task(resolver.resolve("host-0", 443))
    for _ in range(5):
        await asyncio.sleep(0)

    assert len(asked) == 32, "given up, but each still holds its thread"
    never.set()
    assert [found["host"] for found in await again] == ["8.8.8.8"]


async def test_a_failed_look_up_is_not_remembered() -> None:
    answers: list[list[Record]] = [[], [record("8.8.8.8")]]

    async def lookup(host: str, port: int, family: socket.AddressFamily) -> Sequence[Record]:
        found = answers.pop(0)
        if not found:
            raise socket.gaierror(-3, "temporary failure")
        return found

    resolver = GuardedResolver(Guard(), lookup)
    with pytest.raises(OSError, match="temporary"):
        await resolver.resolve("host.example", 443)
    assert await resolver.resolve("host.example", 443)
