"""Which connections the network policies of a rendering let through, as the API reference has it.

A pod that no policy of a direction selects is free in it; one that some select may do what at least
one of them allows; a connection needs the sender's leave and the receiver's.
"""

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from tests.deploy.manifests import Manifest, labels, of_kind, port_number, selects, workload


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a workload of the rendering, a pod elsewhere, or an address."""

    workload: str | None = None
    namespace: str | None = None
    address: str | None = None


def allowed(name: str, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    return _leaves(name, source, target, port, protocol) and _enters(
        name, source, target, port, protocol
    )


def _leaves(name: str, source: Peer, target: Peer, port: int, protocol: str) -> bool:
    return _passes(name, source, target, "Egress", port, protocol, target)


def _enters(name: str, source: Peer, target: Peer, port: int, protocol: str) -> bool:
    return _passes(name, target, source, "Ingress", port, protocol, target)


def _passes(
    name: str, own: Peer, other: Peer, direction: str, port: int, protocol: str, server: Peer
) -> bool:
    if own.workload is None:
        return True
    mine = labels(workload(name, own.workload))
    rules = [
        rule
        for policy in of_kind(name, "NetworkPolicy")
        if direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], mine)
        for rule in policy["spec"].get(direction.lower(), [])
    ]
    ends = "to" if direction == "Egress" else "from"
    return any(
        _has_port(name, rule, port, protocol, server)
        and (ends not in rule or any(_is(name, peer, other) for peer in rule[ends]))
        for rule in rules
    )


def _has_port(name: str, rule: Manifest, port: int, protocol: str, server: Peer) -> bool:
    if "ports" not in rule:
        return True
    for allowed_port in rule["ports"]:
        number = allowed_port["port"]
        if isinstance(number, str):
            if server.workload is None:
                continue
            try:
                number = port_number(workload(name, server.workload), number)
            except AssertionError:
                continue
        if (number, allowed_port["protocol"]) == (port, protocol):
            return True
    return False


def _is(name: str, rule: Manifest, peer: Peer) -> bool:
    if "ipBlock" in rule:
        return peer.address is not None and _within(rule["ipBlock"], peer.address)
    if "namespaceSelector" in rule:
        wanted = rule["namespaceSelector"].get("matchLabels", {})
        return wanted == {"kubernetes.io/metadata.name": peer.namespace}
    return peer.workload is not None and selects(
        rule["podSelector"], labels(workload(name, peer.workload))
    )


def _within(block: Manifest, address: str) -> bool:
    inside = ip_address(address) in ip_network(block["cidr"])
    return inside and not any(
        ip_address(address) in ip_network(hole) for hole in block.get("except", [])
    )
