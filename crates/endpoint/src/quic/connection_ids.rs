//! The connection IDs that the node gives its clients over QUIC.
//!
//! Quinn (quinn-proto 0.11.19) looks up the destination of a client's Initial among the IDs of all connections, and only
//! then among those of handshakes. A Retry packet asks the client to use an ID that quinn compares with no other. If a
//! connection has the same ID, that connection gets the client's Initials and drops them, and the client has no answer
//! until it gives up. The IDs of quinn's own generator have 24 random bits: with 4,000 IDs in use, which 500
//! connections have, this met one in 4,000 clients that had to prove their address. These IDs have 40.

use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use quinn::{ConnectionId, ConnectionIdGenerator};
use quinn_proto::InvalidCid;

/// Random bytes of an ID.
const RANDOM_BYTES: usize = 5;
/// Bytes of the code behind them.
const CODE_BYTES: usize = 3;
/// Each packet of a client has as many bytes for the ID.
const ID_BYTES: usize = RANDOM_BYTES + CODE_BYTES;

/// Makes IDs that end with a code, by which the node and its successor know them. A packet with another ID gets no
/// stateless reset (RFC 9000 section 10.3): of these the node sends a limited number, and clients of its predecessor
/// need them. A client that keeps an ID of its own can still use that number up.
pub(crate) struct ConnectionIdIssuer(hmac::Key);

impl ConnectionIdIssuer {
    /// The code is made with `key`, of any length.
    pub(crate) fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    fn code(&self, random: &[u8]) -> [u8; CODE_BYTES] {
        let tag = hmac::sign(&self.0, random);
        let code = tag.as_ref().first_chunk();
        *code.expect("a SHA-256 has more bytes")
    }
}

impl ConnectionIdGenerator for ConnectionIdIssuer {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        let (random, code) = id.split_at_mut(RANDOM_BYTES);
        // Without it there would be no handshake either.
        rand::fill(random).expect("the system has entropy");
        code.copy_from_slice(&self.code(random));
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_at_checked(RANDOM_BYTES) {
            Some((random, code)) if self.code(random) == code => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_node_knows_its_ids_and_no_others() {
        let mut issuer = ConnectionIdIssuer::new(b"one");
        let id = issuer.generate_cid();
        assert_eq!(id.len(), issuer.cid_len());
        // A successor has the same key.
        ConnectionIdIssuer::new(b"one")
            .validate(&id)
            .expect("its own");
        ConnectionIdIssuer::new(b"two")
            .validate(&id)
            .expect_err("another node's");
        for at in 0..id.len() {
            let mut other = id.to_vec();
            other[at] ^= 1;
            let other = ConnectionId::new(&other);
            issuer.validate(&other).expect_err("changed");
        }
        for cut in [0, 1, RANDOM_BYTES, ID_BYTES - 1] {
            let short = ConnectionId::new(&id[..cut]);
            issuer.validate(&short).expect_err("short");
        }
    }

    /// Of as many IDs with 24 random bits some 300 would be there twice.
    #[test]
    fn hardly_any_id_comes_twice() {
        let mut issuer = ConnectionIdIssuer::new(b"one");
        let ids: HashSet<_> = (0..100_000)
            .map(|_| issuer.generate_cid().to_vec())
            .collect();
        assert!(ids.len() >= 99_990, "{}", ids.len());
    }
}
