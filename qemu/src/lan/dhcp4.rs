//! A DHCPv4 server with one address (RFC 2131).

use std::net::Ipv4Addr;
use std::time::Duration;

use super::router::ROUTER_V4;
use super::wire::array;

/// UDP ports of server and client.
pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;

/// The values that the server gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DhcpLease {
    /// The one address. The server refuses a client that asks for another.
    pub address: Ipv4Addr,
    /// Length of the lease.
    pub lease: Duration,
    /// The default router. The network's router answers for this address too.
    pub router: Ipv4Addr,
    /// The name server.
    pub dns: Ipv4Addr,
    /// A time server, if there is one.
    pub time: Option<Ipv4Addr>,
}

/// Lease of [`DhcpLease::for_address`].
const LEASE: Duration = Duration::from_secs(3600);

impl DhcpLease {
    /// Gives `address` for an hour, with the network's router as router and name server.
    pub fn for_address(address: Ipv4Addr) -> Self {
        Self {
            address,
            lease: LEASE,
            router: ROUTER_V4,
            dns: ROUTER_V4,
            time: None,
        }
    }
}

/// A message of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DhcpQuery {
    pub(crate) kind: u8,
    /// The address that the client uses already.
    pub(crate) current: Ipv4Addr,
    /// The address that the client asks for.
    pub(crate) requested: Option<Ipv4Addr>,
    transaction: [u8; 4],
    flags: [u8; 2],
    hardware: [u8; 16],
}

pub(crate) const DISCOVER: u8 = 1;
pub(crate) const OFFER: u8 = 2;
pub(crate) const REQUEST: u8 = 3;
pub(crate) const DECLINE: u8 = 4;
pub(crate) const ACK: u8 = 5;
pub(crate) const NAK: u8 = 6;
pub(crate) const RELEASE: u8 = 7;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
const OPTIONS_AT: usize = 240;
const OPTION_REQUESTED: u8 = 50;
const OPTION_KIND: u8 = 53;

impl DhcpQuery {
    /// Parses a message. `None` for what is not a client's message.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let options = bytes.get(OPTIONS_AT..)?;
        // Operation 1 is a request, and the options begin with the magic cookie (RFC 2131, section
        // 3).
        let request = bytes.first() == Some(&1) && array(bytes, 236) == Some(COOKIE);
        let kind = *option(options, OPTION_KIND)?.first()?;
        let requested = option(options, OPTION_REQUESTED).and_then(|bytes| array::<4>(bytes, 0));
        let query = Self {
            kind,
            current: array::<4>(bytes, 12)?.into(),
            requested: requested.map(Ipv4Addr::from),
            transaction: array(bytes, 4)?,
            flags: array(bytes, 10)?,
            hardware: array(bytes, 28)?,
        };
        request.then_some(query)
    }

    /// The address that this message is about.
    pub(crate) fn wanted(&self) -> Option<Ipv4Addr> {
        self.requested
            .or_else(|| Some(self.current).filter(|address| !address.is_unspecified()))
    }
}

/// The answer to a query: its kind and bytes.
pub(crate) fn answer(query: &DhcpQuery, pool: DhcpLease) -> Option<(u8, Vec<u8>)> {
    let kind = match query.kind {
        DISCOVER => OFFER,
        // RFC 2131 §4.3.2: the server refuses a request for another address than it has.
        REQUEST if query.wanted() == Some(pool.address) => ACK,
        REQUEST => NAK,
        _ => return None,
    };
    let given = if kind == NAK {
        Ipv4Addr::UNSPECIFIED
    } else {
        pool.address
    };
    let mut message = vec![2, 1, 6, 0];
    message.extend(query.transaction);
    message.extend([0, 0]);
    message.extend(query.flags);
    message.extend(if kind == ACK {
        query.current.octets()
    } else {
        [0; 4]
    });
    message.extend(given.octets());
    message.extend([0; 8]);
    message.extend(query.hardware);
    message.resize(OPTIONS_AT - COOKIE.len(), 0);
    message.extend(COOKIE);
    message.extend([OPTION_KIND, 1, kind]);
    // Option 54 names the server, in every answer (RFC 2131, table 3).
    push(&mut message, 54, ROUTER_V4.octets());
    if kind != NAK {
        let lease = u32::try_from(pool.lease.as_secs()).unwrap_or(u32::MAX);
        // Options 51, 1, 3 and 6: lease time, subnet mask, router and name server (RFC 2132).
        push(&mut message, 51, lease.to_be_bytes());
        push(&mut message, 1, [255, 255, 255, 0]);
        push(&mut message, 3, pool.router.octets());
        push(&mut message, 6, pool.dns.octets());
        if let Some(time) = pool.time {
            // Option 42: time servers (RFC 2132, section 8.3).
            push(&mut message, 42, time.octets());
        }
    }
    // Option 255 ends the options (RFC 2132, section 3.2).
    message.push(255);
    Some((kind, message))
}

fn push(message: &mut Vec<u8>, option: u8, value: [u8; 4]) {
    message.extend([option, 4]);
    message.extend(value);
}

fn option(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        match *options {
            // A pad option has no length (RFC 2132, section 3.1).
            [0, ref rest @ ..] => options = rest,
            [code, length, ref rest @ ..] if code != 255 => {
                let (value, rest) = rest.split_at_checked(length.into())?;
                if code == wanted {
                    return Some(value);
                }
                options = rest;
            }
            _ => return None,
        }
    }
}

/// A client's message, for tests.
#[cfg(test)]
pub(crate) fn query(kind: u8, requested: Option<Ipv4Addr>) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(236, 0);
    message.extend(COOKIE);
    message.extend([0, OPTION_KIND, 1, kind]);
    if let Some(address) = requested {
        push(&mut message, OPTION_REQUESTED, address.octets());
    }
    message.push(255);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 20);

    fn pool() -> DhcpLease {
        DhcpLease {
            lease: Duration::from_secs(60),
            time: Some(ROUTER_V4),
            ..DhcpLease::for_address(GIVEN)
        }
    }

    fn ask(kind: u8, requested: Option<Ipv4Addr>) -> Option<(u8, Vec<u8>)> {
        let query = DhcpQuery::parse(&query(kind, requested)).expect("it is well-formed");
        answer(&query, pool())
    }

    #[test]
    fn the_address_is_offered_and_given() {
        let (kind, message) = ask(DISCOVER, None).expect("it is answered");
        assert_eq!(
            (kind, &message[16..20], &message[4..8]),
            (OFFER, &GIVEN.octets()[..], &[1, 2, 3, 4][..])
        );
        let (kind, message) = ask(REQUEST, Some(GIVEN)).expect("it is answered");
        let lease = option(&message[OPTIONS_AT..], 51);
        assert_eq!((kind, lease), (ACK, Some(&[0, 0, 0, 60][..])));
        for code in [3, 6, 42] {
            let server = option(&message[OPTIONS_AT..], code);
            assert_eq!(server, Some(&ROUTER_V4.octets()[..]), "option {code}");
        }
    }

    #[test]
    fn another_address_is_refused() {
        let (kind, message) = ask(REQUEST, Some(ROUTER_V4)).expect("it is answered");
        assert_eq!((kind, &message[16..20]), (NAK, &[0; 4][..]));
        assert_eq!(ask(RELEASE, None), None);
    }

    #[test]
    fn what_is_no_query_is_ignored() {
        let good = query(DISCOVER, None);
        assert_eq!(DhcpQuery::parse(&good[..OPTIONS_AT]), None, "no kind");
        assert_eq!(DhcpQuery::parse(&[]), None);
        let mut reply = good.clone();
        reply[0] = 2;
        assert_eq!(DhcpQuery::parse(&reply), None, "a server's message");
        let mut cut = good;
        cut[OPTIONS_AT + 2] = 200;
        assert_eq!(
            DhcpQuery::parse(&cut),
            None,
            "an option that is longer than the message"
        );
    }
}
