//! Join strings: what is written reads back, and nothing that is damaged does.

use alknet_core::{DialHost, PeerAddr, PeerKey};
use alknet_hub::{ADDRESSES_MAX, EnrolToken, JOIN_CHARS_MAX, JoinCode, JoinError};
use proptest::prelude::*;

fn code() -> JoinCode {
    JoinCode {
        addresses: ["hub.example.org", "192.0.2.7:4433", "[2001:db8::7]:4433"]
            .map(|at| at.parse().expect(at))
            .to_vec(),
        hub: [0x5a; 32],
        token: format!("ale_abcd2345_{}", "A".repeat(43))
            .parse()
            .expect("a token"),
        expires: 1_900_000_000,
        role: "worker".parse().expect("a role"),
    }
}

fn address() -> impl Strategy<Value = PeerAddr> {
    let name = "[a-z][a-z0-9]{0,8}(\\.[a-z]{1,6})?";
    let ip = any::<std::net::IpAddr>();
    (name, prop::option::of(ip), 1u16..).prop_map(|(name, ip, port)| PeerAddr {
        pins: Vec::new(),
        host: ip.map_or(DialHost::Name(name), DialHost::Ip),
        port,
    })
}

prop_compose! {
    fn any_code()(
        addresses in prop::collection::vec(address(), 1..=2),
        hub in any::<[u8; 32]>(),
        expires in any::<u64>(),
        role in "[a-z][a-z0-9-]{0,20}",
    ) -> JoinCode {
        JoinCode {
            addresses,
            hub,
            token: EnrolToken::generate().expect("randomness"),
            expires,
            role: role.parse().expect("a role"),
        }
    }
}

#[test]
fn a_join_string_says_where_the_hub_is_and_who() {
    let text = code().encode().expect("short enough");
    assert!(
        text.starts_with("alkjoin1_") && text.len() <= JOIN_CHARS_MAX,
        "{text}"
    );
    let read: JoinCode = text.parse().expect("its own text");
    assert_eq!(read, code());
    let targets: Vec<_> = read.targets().map(|target| target.to_string()).collect();
    let key = PeerKey::Ed25519([0x5a; 32]);
    assert_eq!(
        targets,
        [
            format!("{key}@hub.example.org:443"),
            format!("{key}@192.0.2.7:4433"),
            format!("{key}@[2001:db8::7]:4433"),
        ]
    );
    // As a terminal gives it back.
    assert_eq!(format!("  {text}\r\n").parse(), Ok(code()));
    assert!(!format!("{read:?}").contains(&"A".repeat(43)));
}

/// The form is a promise: a string made today is read by every later version.
#[test]
fn the_form_stays() {
    let text = concat!(
        "alkjoin1_Aw9odWIuZXhhbXBsZS5vcmcOMTkyLjAuMi43OjQ0MzMSWzIwMDE6ZGI4Ojo3XTo0NDMzWlp",
        "aWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlphYmNkMjM0NQAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAgOb-iQcGd29ya2VyRCJk5w",
    );
    let written = code().encode().expect("short enough");
    assert_eq!(written, text);
}

#[test]
fn what_is_none_says_what_it_is_not() {
    for (text, error) in [
        ("", JoinError::Prefix),
        ("ale_abcd0123_AAAA", JoinError::Prefix),
        ("alkjoin", JoinError::Prefix),
        ("alkjoinx_AAAA", JoinError::Prefix),
        ("alkjoin2_AAAA", JoinError::Version),
        ("alkjoin1_", JoinError::Damaged),
        ("alkjoin1_AAAA", JoinError::Damaged),
        ("alkjoin1_AAAA AAAA", JoinError::Damaged),
    ] {
        assert_eq!(text.parse::<JoinCode>(), Err(error), "{text}");
    }
    let long = format!("alkjoin1_{}", "A".repeat(JOIN_CHARS_MAX));
    assert_eq!(long.parse::<JoinCode>(), Err(JoinError::TooLong));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let mut none = code();
    none.addresses.clear();
    assert_eq!(none.encode(), Err(JoinError::Addresses));
    let mut many = code();
    many.addresses = vec!["a".parse().expect("a name"); ADDRESSES_MAX + 1];
    assert_eq!(many.encode(), Err(JoinError::Addresses));
    let mut pinned = code();
    pinned.addresses = pinned.targets().collect();
    assert_eq!(pinned.encode(), Err(JoinError::Addresses));
    let mut long = code();
    long.addresses = vec![
        format!("{}.example", "a".repeat(60))
            .parse()
            .expect("a name");
        3
    ];
    assert_eq!(long.encode(), Err(JoinError::TooLong));
}

proptest! {
    #[test]
    fn what_is_written_reads_back(code in any_code()) {
        let text = code.encode().expect("short enough");
        prop_assert_eq!(text.parse(), Ok(code));
    }

    #[test]
    fn every_truncation_is_noticed(code in any_code()) {
        let text = code.encode().expect("short enough");
        for end in 0..text.len() {
            let read = text[..end].parse::<JoinCode>();
            prop_assert!(read.is_err(), "{}", end);
            if end > "alkjoin1_".len() {
                prop_assert_eq!(read, Err(JoinError::Damaged), "{}", end);
            }
        }
    }

    #[test]
    fn every_wrong_character_is_noticed(code in any_code(), wrong in "[ -~]") {
        let text = code.encode().expect("short enough");
        for at in 0..text.len() {
            if text[at..=at] == wrong {
                continue;
            }
            let damaged = format!("{}{wrong}{}", &text[..at], &text[at + 1..]);
            prop_assert!(damaged.parse::<JoinCode>().is_err(), "{}", at);
        }
    }

    #[test]
    fn swapped_neighbours_and_doubled_characters_are_noticed(code in any_code()) {
        let text = code.encode().expect("short enough");
        for at in 9..text.len() - 1 {
            let (one, two) = (&text[at..=at], &text[at + 1..at + 2]);
            if one != two {
                let swapped = format!("{}{two}{one}{}", &text[..at], &text[at + 2..]);
                prop_assert_eq!(swapped.parse::<JoinCode>(), Err(JoinError::Damaged));
            }
            let doubled = format!("{}{one}{}", &text[..at], &text[at..]);
            prop_assert!(doubled.parse::<JoinCode>().is_err());
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "(alkjoin1_)?\\PC{0,300}", coded in "alkjoin1_[A-Za-z0-9_-]{0,291}") {
        let _ = text.parse::<JoinCode>();
        let _ = coded.parse::<JoinCode>();
    }
}
