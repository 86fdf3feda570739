//! Tickets: a client that cannot send headers with a request sends the request first, and fetches the result at an
//! address that works once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use alknet_call::ErrorCode;
use alknet_core::PeerId;
use data_encoding::BASE64URL_NOPAD;
use http::StatusCode;

use crate::error::ApiError;
use crate::limits::{TICKET_BYTES_MAX, TICKETS_MAX, TICKETS_SHARE};

/// Bytes of randomness in a ticket's name: 43 characters.
const NAME_BYTES: usize = 32;

/// Tickets that wait for their use, each valid once and for a limited time.
#[derive(Debug)]
pub struct TicketStore<T> {
    time: Duration,
    waiting: Mutex<HashMap<String, StoredTicket<T>>>,
}

/// A stored ticket.
#[derive(Debug)]
pub struct StoredTicket<T> {
    /// The value that the ticket stands for.
    pub value: T,
    owner: PeerId,
    bytes: usize,
    until: Instant,
}

impl<T> TicketStore<T> {
    /// Tickets that are valid for `time`.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        Self {
            time,
            waiting: Mutex::default(),
        }
    }

    /// How long a new ticket is valid.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Makes a ticket of `owner` for `value`, which takes `bytes` of memory, and returns its name.
    ///
    /// # Errors
    /// 429 if too many tickets wait, of all owners or of this one; 413 if the owner can never have as many bytes; the
    /// kernel has no randomness.
    pub fn make(&self, owner: &PeerId, value: T, bytes: usize) -> Result<String, ApiError> {
        let name = new_name()?;
        let now = Instant::now();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Expired tickets must not count against the limits.
        waiting.retain(|_, ticket| ticket.until > now);
        self.check_capacity(&waiting, owner, bytes)?;
        let ticket = StoredTicket {
            value,
            owner: owner.clone(),
            bytes,
            until: now + self.time,
        };
        waiting.insert(name.clone(), ticket);
        Ok(name)
    }

    /// Checks that there is room for one more ticket of `owner`.
    fn check_capacity(
        &self,
        waiting: &HashMap<String, StoredTicket<T>>,
        owner: &PeerId,
        bytes: usize,
    ) -> Result<(), ApiError> {
        let bytes_each = TICKET_BYTES_MAX / TICKETS_SHARE;
        if bytes > bytes_each {
            let message = format!("a ticket stands for a request of {bytes_each} bytes at most");
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            return Err(ApiError::new(status, ErrorCode::PayloadTooLarge, message));
        }
        let full = |whose: &dyn Fn(&&StoredTicket<T>) -> bool, share: usize| {
            let stored = waiting.values().filter(whose);
            let (count, stored) = stored.fold((0, 0), |(n, sum), one| (n + 1, sum + one.bytes));
            count >= TICKETS_MAX / share || stored + bytes > TICKET_BYTES_MAX / share
        };
        let whose = if full(&|ticket| ticket.owner == *owner, TICKETS_SHARE) {
            "too many tickets of this identity"
        } else if full(&|_| true, 1) {
            "too many tickets"
        } else {
            return Ok(());
        };
        let message = format!("{whose} wait to be used");
        Err(ApiError::overloaded(message, self.time.as_millis() as u64))
    }

    /// Takes the value of a ticket; `None` if the ticket was used, expired or never existed.
    ///
    /// The table uses randomly keyed hashes, so the time of a lookup reveals nothing about other names.
    pub fn take(&self, name: &str) -> Option<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Removing the ticket under the lock makes it work once, even for concurrent requests.
        let ticket = waiting.remove(name)?;
        (ticket.until > Instant::now()).then_some(ticket.value)
    }
}

fn new_name() -> Result<String, ApiError> {
    let mut name = [0; NAME_BYTES];
    getrandom::fill(&mut name).map_err(|_| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Unavailable,
            "the system has no randomness yet",
        )
    })?;
    Ok(BASE64URL_NOPAD.encode(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(n: usize) -> PeerId {
        format!("token-{n}").parse().expect("an id")
    }

    #[test]
    fn a_ticket_works_once() {
        let tickets = TicketStore::new(Duration::from_secs(60));
        let name = tickets.make(&owner(0), 7, 0).expect("room");
        assert_eq!(name.len(), 43);
        assert_eq!(tickets.take(&name), Some(7));
        assert_eq!(tickets.take(&name), None);
        assert_eq!(tickets.take("x"), None);
    }

    #[test]
    fn an_old_ticket_is_none() {
        let tickets = TicketStore::new(Duration::ZERO);
        let name = tickets.make(&owner(0), (), 0).expect("room");
        assert_eq!(tickets.take(&name), None);
    }

    #[test]
    fn tickets_are_bounded_by_number_and_by_bytes() {
        let tickets = TicketStore::new(Duration::from_secs(60));
        let (count, bytes) = (
            TICKETS_MAX / TICKETS_SHARE,
            TICKET_BYTES_MAX / TICKETS_SHARE,
        );
        let made = |owner: &PeerId, bytes| tickets.make(owner, (), bytes).map(|_| ());
        let code = |refused: Result<(), ApiError>| refused.expect_err("refused").status.as_u16();
        assert_eq!(code(made(&owner(0), bytes + 1)), 413);
        for n in 0..TICKETS_SHARE {
            // What one identity has waiting takes nothing of the others' share.
            made(&owner(n), bytes).expect("room");
            assert_eq!(code(made(&owner(n), 1)), 429);
            for _ in 1..count {
                made(&owner(n), 0).expect("room");
            }
            assert_eq!(code(made(&owner(n), 0)), 429);
        }
        assert_eq!(code(made(&owner(TICKETS_SHARE), 0)), 429);
    }
}
