//! Session tickets: stateless, with keys that change every six hours.

use std::sync::{Arc, OnceLock};

use rustls::server::ProducesTickets;

/// Session tickets per connection: one to resume with, one spare.
pub(crate) const TICKETS: usize = 2;

/// Makes its keys with the first ticket, so that a start pays nothing for unused configurations. Each configuration
/// has its own, so that a ticket never moves a session to other rules.
///
/// The library replaces the keys every six hours, and still reads tickets of the keys before.
#[derive(Debug, Default)]
pub(crate) struct LazyTicketer(OnceLock<Option<Arc<dyn ProducesTickets>>>);

impl LazyTicketer {
    fn inner(&self) -> Option<&Arc<dyn ProducesTickets>> {
        let make = || {
            let made = rustls::crypto::aws_lc_rs::Ticketer::new();
            made.inspect_err(|error| tracing::warn!("TLS sessions cannot be resumed: {error}"))
                .ok()
        };
        self.0.get_or_init(make).as_ref()
    }
}

impl ProducesTickets for LazyTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.inner().map_or(0, |inner| inner.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner()?.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.inner()?.decrypt(cipher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_opens_only_where_it_was_made() {
        let (here, there) = (LazyTicketer::default(), LazyTicketer::default());
        let ticket = here.encrypt(b"session").expect("a ticket");
        assert_eq!(here.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(there.decrypt(&ticket), None);
        let mut damaged = ticket.clone();
        damaged[20] ^= 1;
        assert_eq!(here.decrypt(&damaged), None);
    }
}
