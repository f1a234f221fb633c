//! How far inside an IP address lies, and the resolver that lets nobody past a line.
//!
//! Whoever can make this node send a request (by a proxy header, a redirect, a locator from another node)
//! could otherwise make it ask services that only this machine or its network can reach. Checking a URL's
//! host name does not help: the name is resolved again when the connection is made. So the check stands in
//! the resolver that the connection itself uses, and a connection can only go to an address that passed it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Where an address lies. Ordered from the outside in; a request that somebody else named is given a
/// ceiling, and goes nowhere beyond it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Zone {
    /// Reachable for everybody.
    Public,
    /// An address of private networks: RFC 1918, RFC 6598, unique local.
    Private,
    /// This machine.
    Loopback,
    /// Link-local (cloud metadata services live there), unspecified, multicast, reserved.
    Special,
}

impl Zone {
    /// The zone of `address`. An IPv4 address that is wrapped into an IPv6 one counts as what it is.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => of_v4(v4),
            IpAddr::V6(v6) => of_v6(v6),
        }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::Special => "link-local or reserved",
        })
    }
}

/// The registers of IANA for special-purpose addresses, as far as they say "not globally reachable".
fn of_v4(address: Ipv4Addr) -> Zone {
    let [first, second, third, _] = address.octets();
    match (first, second, third) {
        (127, ..) => Zone::Loopback,
        (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) | (198, 18..=19, _) => {
            Zone::Private
        }
        (0 | 224..=255, ..)
        | (169, 254, _)
        | (192, 0, 0 | 2)
        | (192, 88, 99)
        | (198, 51, 100)
        | (203, 0, 113) => Zone::Special,
        _ => Zone::Public,
    }
}

fn of_v6(address: Ipv6Addr) -> Zone {
    if address == Ipv6Addr::LOCALHOST {
        return Zone::Loopback;
    }
    let v4 = |high: u16, low: u16| of_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        // ::ffff:a.b.c.d (mapped), ::ffff:0:a.b.c.d (translated), 64:ff9b::/96 (NAT64).
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        // 2002::/16 (6to4) carries the IPv4 address in the middle.
        [0x2002, high, low, ..] => v4(high, low).max(Zone::Private),
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Zone::Private,
        // Documentation, Teredo, benchmarking and ORCHID; nothing outside 2000::/3 is global unicast.
        [0x2001, 0xdb8 | 0..=0x1ff, ..] => Zone::Special,
        [0x2000..=0x3fff, ..] => Zone::Public,
        _ => Zone::Special,
    }
}

/// A request would have gone further inside than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} has only {zone} addresses, and this request may only go to {ceiling} ones")]
pub struct BeyondCeiling {
    /// The host that was named.
    pub host: String,
    /// Where its addresses lie.
    pub zone: Zone,
    /// The furthest inside that this request may go.
    pub ceiling: Zone,
}

/// The system's resolver, without the addresses beyond the ceiling.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CeilingResolver(pub(crate) Zone);

impl Resolve for CeilingResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let ceiling = self.0;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let allowed = below_ceiling(&host, &found, ceiling)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The addresses of `host` that lie no further inside than `ceiling`.
///
/// # Errors
/// That there is none among them.
pub fn below_ceiling(
    host: &str,
    found: &[SocketAddr],
    ceiling: Zone,
) -> Result<Vec<SocketAddr>, BeyondCeiling> {
    let allowed: Vec<SocketAddr> =
        found.iter().copied().filter(|address| Zone::of(address.ip()) <= ceiling).collect();
    match found.iter().map(|address| Zone::of(address.ip())).max() {
        Some(zone) if allowed.is_empty() => Err(BeyondCeiling { host: host.to_owned(), zone, ceiling }),
        _ => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_where_they_lie_however_they_are_wrapped() {
        for (text, zone) in [
            ("8.8.8.8", Zone::Public),
            ("172.15.0.1", Zone::Public),
            ("172.16.0.1", Zone::Private),
            ("172.32.0.1", Zone::Public),
            ("10.0.0.1", Zone::Private),
            ("192.168.1.1", Zone::Private),
            ("100.64.0.1", Zone::Private),
            ("127.0.0.1", Zone::Loopback),
            ("127.255.255.254", Zone::Loopback),
            ("0.0.0.0", Zone::Special),
            ("169.254.169.254", Zone::Special),
            ("224.0.0.1", Zone::Special),
            ("255.255.255.255", Zone::Special),
            ("240.0.0.1", Zone::Special),
            ("::1", Zone::Loopback),
            ("::", Zone::Special),
            ("::ffff:127.0.0.1", Zone::Loopback),
            ("::ffff:10.0.0.1", Zone::Private),
            ("::ffff:169.254.169.254", Zone::Special),
            ("::ffff:8.8.8.8", Zone::Public),
            ("::127.0.0.1", Zone::Special),
            ("64:ff9b::7f00:1", Zone::Loopback),
            ("64:ff9b::a9fe:a9fe", Zone::Special),
            ("2002:7f00:1::", Zone::Loopback),
            ("2002:a9fe:a9fe::", Zone::Special),
            ("fe80::1", Zone::Special),
            ("fd00:ec2::254", Zone::Private),
            ("fc00::1", Zone::Private),
            ("ff02::1", Zone::Special),
            ("2001:db8::1", Zone::Special),
            ("2001::1", Zone::Special),
            ("2606:4700::1111", Zone::Public),
        ] {
            assert_eq!(Zone::of(text.parse().unwrap()), zone, "{text}");
        }
    }

    #[test]
    fn a_name_with_inner_and_outer_addresses_is_only_asked_outside() {
        let found = ["127.0.0.1:0".parse().unwrap(), "8.8.8.8:0".parse().unwrap()];
        assert_eq!(below_ceiling("mixed.example", &found, Zone::Public).unwrap(), [found[1]]);
        let error = below_ceiling("inner.example", &found[..1], Zone::Public).unwrap_err();
        assert_eq!(error.zone, Zone::Loopback);
    }

    #[tokio::test]
    async fn the_resolver_keeps_localhost_to_itself() {
        let name = "localhost".parse().unwrap();
        let Err(error) = CeilingResolver(Zone::Public).resolve(name).await else {
            panic!("localhost was resolved for a request that may only go outside");
        };
        assert!(error.downcast_ref::<BeyondCeiling>().is_some(), "{error}");
    }
}
