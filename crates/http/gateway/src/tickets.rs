//! Tickets: whoever cannot send a header with a request sends the request before, and takes what it
//! yields under an address that works once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;

use crate::error::ApiError;
use crate::limits::{TICKET_BYTES_MAX, TICKETS_MAX};

/// Bytes of randomness in a ticket's name: 43 characters.
const NAME_BYTES: usize = 32;

/// Tickets that wait to be used, each once and for a while only.
#[derive(Debug)]
pub struct Tickets<T> {
    time: Duration,
    waiting: Mutex<HashMap<String, Ticket<T>>>,
}

/// A ticket as it is kept.
#[derive(Debug)]
pub struct Ticket<T> {
    /// What it stands for.
    pub value: T,
    bytes: usize,
    until: Instant,
}

impl<T> Tickets<T> {
    /// Tickets that can be used within `time`.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        Self {
            time,
            waiting: Mutex::default(),
        }
    }

    /// How long a new one can be used.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Makes one for `value`, which takes `bytes` of memory, and returns its name.
    ///
    /// # Errors
    /// Too many wait, or the system has no randomness.
    pub fn make(&self, value: T, bytes: usize) -> Result<String, ApiError> {
        let mut name = [0; NAME_BYTES];
        getrandom::fill(&mut name).map_err(|_| {
            ApiError::new(
                http::StatusCode::SERVICE_UNAVAILABLE,
                alknet_call::ErrorCode::Unavailable,
                "the system has no randomness yet",
            )
        })?;
        let name = BASE64URL_NOPAD.encode(&name);
        let now = Instant::now();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, ticket| ticket.until > now);
        let kept: usize = waiting.values().map(|ticket| ticket.bytes).sum();
        if waiting.len() >= TICKETS_MAX || kept + bytes > TICKET_BYTES_MAX {
            let message = "too many tickets wait to be used";
            return Err(ApiError::overloaded(message, self.time.as_millis() as u64));
        }
        let until = now + self.time;
        let ticket = Ticket {
            value,
            bytes,
            until,
        };
        waiting.insert(name.clone(), ticket);
        Ok(name)
    }

    /// Takes what the ticket stands for; `None` for one that was used, is too old or never was.
    ///
    /// Looked up in a table of randomly keyed hashes: how long that takes says nothing about other
    /// names.
    pub fn take(&self, name: &str) -> Option<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = waiting.remove(name)?;
        (ticket.until > Instant::now()).then_some(ticket.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_works_once() {
        let tickets = Tickets::new(Duration::from_secs(60));
        let name = tickets.make(7, 0).expect("room");
        assert_eq!(name.len(), 43);
        assert_eq!(tickets.take(&name), Some(7));
        assert_eq!(tickets.take(&name), None);
        assert_eq!(tickets.take("x"), None);
    }

    #[test]
    fn an_old_ticket_is_none() {
        let tickets = Tickets::new(Duration::ZERO);
        let name = tickets.make((), 0).expect("room");
        assert_eq!(tickets.take(&name), None);
    }

    #[test]
    fn tickets_are_bounded_by_number_and_by_bytes() {
        let tickets = Tickets::new(Duration::from_secs(60));
        assert!(tickets.make((), TICKET_BYTES_MAX).is_ok());
        assert!(tickets.make((), 1).is_err());
        let tickets = Tickets::new(Duration::from_secs(60));
        for _ in 0..TICKETS_MAX {
            assert!(tickets.make((), 0).is_ok());
        }
        assert!(tickets.make((), 0).is_err());
    }
}
