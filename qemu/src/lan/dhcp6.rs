//! A DHCPv6 server with one address (RFC 8415).

use std::net::Ipv6Addr;

use super::wire::{Mac, array, be16};

/// UDP ports of server and client.
pub(crate) const SERVER_PORT: u16 = 547;
pub(crate) const CLIENT_PORT: u16 = 546;

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const REPLY: u8 = 7;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

const OPTION_CLIENT_ID: u16 = 1;
const OPTION_SERVER_ID: u16 = 2;
const OPTION_IA_NA: u16 = 3;
const OPTION_IA_ADDRESS: u16 = 5;
const OPTION_STATUS: u16 = 13;
const OPTION_DNS: u16 = 23;

/// Lifetimes in seconds: T1, T2, preferred, valid.
const TIMES: [u32; 4] = [1800, 2880, 3600, 7200];

/// The answer to a client's message. Without an address the server gives only information.
pub(crate) fn answer(
    query: &[u8],
    address: Option<Ipv6Addr>,
    dns: Ipv6Addr,
    server: Mac,
) -> Option<Vec<u8>> {
    let (kind, transaction) = (*query.first()?, array::<3>(query, 1)?);
    let options = query.get(4..)?;
    let (answer, gives) = match kind {
        SOLICIT => (ADVERTISE, true),
        REQUEST | RENEW | REBIND => (REPLY, true),
        CONFIRM | RELEASE | DECLINE | INFORMATION_REQUEST => (REPLY, false),
        _ => return None,
    };
    // A network without DHCPv6 addresses leaves requests for one unanswered.
    if gives && address.is_none() {
        return None;
    }
    let mut message = vec![answer];
    message.extend(transaction);
    if let Some(client) = option(options, OPTION_CLIENT_ID) {
        push(&mut message, OPTION_CLIENT_ID, client);
    }
    // A DUID made of the hardware address (type 3, Ethernet).
    push(
        &mut message,
        OPTION_SERVER_ID,
        &[&[0, 3, 0, 1], server.as_slice()].concat(),
    );
    push(&mut message, OPTION_DNS, &dns.octets());
    let requested = option(options, OPTION_IA_NA);
    if let (true, Some(address), Some(requested)) = (gives, address, requested) {
        push(
            &mut message,
            OPTION_IA_NA,
            &association(requested, address)?,
        );
    }
    // RFC 8415 §18.3.3 and §18.3.7: the server answers these with a status.
    if matches!(kind, CONFIRM | RELEASE | DECLINE) {
        push(&mut message, OPTION_STATUS, &[0, 0]);
    }
    Some(message)
}

/// The client's association with our address. Any other address that it still has ends at once.
fn association(requested: &[u8], address: Ipv6Addr) -> Option<Vec<u8>> {
    let [t1, t2, preferred, valid] = TIMES;
    let mut body = array::<4>(requested, 0)?.to_vec();
    body.extend(t1.to_be_bytes());
    body.extend(t2.to_be_bytes());
    let had =
        option(requested.get(12..)?, OPTION_IA_ADDRESS).and_then(|bytes| array::<16>(bytes, 0));
    // RFC 8415 §18.3.4: the server answers an address that it no longer gives with lifetimes of
    // zero.
    if let Some(old) = had.filter(|old| *old != address.octets()) {
        push(&mut body, OPTION_IA_ADDRESS, &lease(old, 0, 0));
    }
    push(
        &mut body,
        OPTION_IA_ADDRESS,
        &lease(address.octets(), preferred, valid),
    );
    Some(body)
}

fn lease(address: [u8; 16], preferred: u32, valid: u32) -> Vec<u8> {
    let times = [preferred.to_be_bytes(), valid.to_be_bytes()].concat();
    [address.as_slice(), &times].concat()
}

fn push(message: &mut Vec<u8>, option: u16, value: &[u8]) {
    message.extend(option.to_be_bytes());
    message.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    message.extend(value);
}

fn option(mut options: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (code, length) = (be16(options, 0)?, be16(options, 2)?);
        let value = options.get(4..4 + usize::from(length))?;
        if code == wanted {
            return Some(value);
        }
        options = &options[4 + usize::from(length)..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x77);
    const DNS: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);

    fn query(kind: u8, has: Option<Ipv6Addr>) -> Vec<u8> {
        let mut message = vec![kind, 7, 8, 9];
        push(&mut message, OPTION_CLIENT_ID, b"me");
        let mut association = vec![1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0];
        if let Some(has) = has {
            push(
                &mut association,
                OPTION_IA_ADDRESS,
                &lease(has.octets(), 1, 1),
            );
        }
        push(&mut message, OPTION_IA_NA, &association);
        message
    }

    fn ask(query: &[u8]) -> Option<Vec<u8>> {
        answer(query, Some(OURS), DNS, [2; 6])
    }

    #[test]
    fn the_address_is_advertised_with_the_clients_numbers() {
        let answer = ask(&query(SOLICIT, None)).expect("it is answered");
        assert_eq!(answer[..4], [ADVERTISE, 7, 8, 9]);
        assert_eq!(option(&answer[4..], OPTION_CLIENT_ID), Some(&b"me"[..]));
        let association = option(&answer[4..], OPTION_IA_NA).expect("it is given");
        assert_eq!(association[..4], [1, 2, 3, 4]);
        let lease = option(&association[12..], OPTION_IA_ADDRESS).expect("it is given");
        assert_eq!(lease[..16], OURS.octets());
    }

    #[test]
    fn an_older_address_ends_on_renewal() {
        let answer = ask(&query(RENEW, Some(DNS))).expect("it is answered");
        let association = option(&answer[4..], OPTION_IA_NA).expect("it is given");
        let first = option(&association[12..], OPTION_IA_ADDRESS).expect("it is given");
        assert_eq!(
            (&first[..16], &first[16..]),
            (&DNS.octets()[..], &[0; 8][..])
        );
    }

    #[test]
    fn without_an_address_only_information_is_given() {
        assert_eq!(answer(&query(SOLICIT, None), None, DNS, [2; 6]), None);
        let reply = answer(&query(INFORMATION_REQUEST, None), None, DNS, [2; 6]);
        let reply = reply.expect("it is answered");
        assert_eq!(option(&reply[4..], OPTION_DNS), Some(&DNS.octets()[..]));
        assert_eq!(option(&reply[4..], OPTION_IA_NA), None);
    }

    #[test]
    fn nonsense_is_ignored() {
        assert_eq!(ask(&[]), None);
        assert_eq!(ask(&[99, 0, 0, 0]), None);
        let mut short = query(REQUEST, None);
        let end = short.len() - 10;
        short.truncate(end);
        let reply = ask(&short).expect("the message itself is fine");
        assert_eq!(option(&reply[4..], OPTION_IA_NA), None);
    }
}
