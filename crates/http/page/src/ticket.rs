//! Links that work once, and the operation that makes them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::limits::{TICKET_TIME, TICKETS_MAX};
use crate::session::{Proof, new_name};

/// What a link is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To begin a session.
    Enter,
    /// To do this, once.
    Act(Action),
}

/// What can be done from the page, each time by a link of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Lock,
    Poweroff,
    Reboot,
}

impl Action {
    pub(crate) const ALL: [Self; 3] = [Self::Lock, Self::Poweroff, Self::Reboot];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
        }
    }

    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::Lock => "vault/lock",
            Self::Poweroff => "node/poweroff",
            Self::Reboot => "node/reboot",
        }
    }

    /// What the page asks.
    pub(crate) fn question(self) -> &'static str {
        match self {
            Self::Lock => "Lock the vault?",
            Self::Poweroff => "Switch the machine off?",
            Self::Reboot => "Restart the machine?",
        }
    }

    /// What comes of it.
    pub(crate) fn consequence(self) -> &'static str {
        match self {
            Self::Lock => {
                "The node stops, and stays away until somebody opens the vault. Nothing is served \
                 meanwhile."
            }
            Self::Poweroff => {
                "Calls that run may finish; then the machine is off until somebody switches it on \
                 where it stands."
            }
            Self::Reboot => {
                "Calls that run may finish; then the machine is away for a short while."
            }
        }
    }

    /// The word on the button.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Lock => "Lock",
            Self::Poweroff => "Switch off",
            Self::Reboot => "Restart",
        }
    }

    /// What is said once it was accepted.
    pub(crate) fn done(self) -> &'static str {
        match self {
            Self::Lock => "The vault is being locked.",
            Self::Poweroff => "The machine is being switched off.",
            Self::Reboot => "The machine is being restarted.",
        }
    }
}

#[derive(Debug)]
struct Ticket {
    purpose: Purpose,
    proof: Proof,
    until: Instant,
}

/// Links that wait to be used.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<HashMap<String, Ticket>>);

/// Why there is no link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoTicket {
    /// Too many wait.
    Full,
    /// The system has no randomness yet.
    Randomness,
}

impl Tickets {
    /// Makes one, and returns its name.
    pub(crate) fn make(
        &self,
        purpose: Purpose,
        proof: Proof,
        now: Instant,
    ) -> Result<String, NoTicket> {
        let name = new_name().ok_or(NoTicket::Randomness)?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, ticket| ticket.until > now);
        if all.len() >= TICKETS_MAX {
            return Err(NoTicket::Full);
        }
        let until = now + TICKET_TIME;
        let ticket = Ticket {
            purpose,
            proof,
            until,
        };
        all.insert(name.clone(), ticket);
        Ok(name)
    }

    /// What one is good for, which it stays.
    pub(crate) fn look(&self, name: &str, now: Instant) -> Option<(Purpose, Proof)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = all.get(name).filter(|ticket| ticket.until > now)?;
        Some((ticket.purpose, ticket.proof.clone()))
    }

    /// Uses one. `fits` says whether it is for this; one that is not stays.
    pub(crate) fn take(
        &self,
        name: &str,
        now: Instant,
        fits: impl Fn(Purpose) -> bool,
    ) -> Option<(Purpose, Proof)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !fits(all.get(name)?.purpose) {
            return None;
        }
        let ticket = all.remove(name)?;
        (ticket.until > now).then_some((ticket.purpose, ticket.proof))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> Proof {
        Proof::name("ada".parse().expect("a peer id"))
    }

    #[test]
    fn a_link_works_once_for_a_minute_and_for_one_thing() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let make = |purpose| tickets.make(purpose, proof(), now).expect("room");
        let enters = |purpose| purpose == Purpose::Enter;
        let name = make(Purpose::Enter);
        assert!(tickets.look(&name, now).is_some());
        assert!(tickets.take(&name, now, enters).is_some());
        assert!(tickets.take(&name, now, enters).is_none());
        assert!(tickets.look(&name, now).is_none());
        let acts = make(Purpose::Act(Action::Reboot));
        assert!(tickets.take(&acts, now, enters).is_none());
        assert!(tickets.look(&acts, now).is_some(), "it was not used");
        let late = now + TICKET_TIME;
        assert!(tickets.look(&acts, late).is_none());
        assert!(tickets.take(&acts, late, |_| true).is_none());
    }

    #[test]
    fn links_are_bounded_and_old_ones_make_room() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        for _ in 0..TICKETS_MAX {
            tickets.make(Purpose::Enter, proof(), now).expect("room");
        }
        let full = tickets.make(Purpose::Enter, proof(), now);
        assert_eq!(full, Err(NoTicket::Full));
        let later = now + TICKET_TIME;
        tickets.make(Purpose::Enter, proof(), later).expect("room");
    }

    #[test]
    fn actions_are_known_by_their_names() {
        for action in Action::ALL {
            assert_eq!(Action::of(action.name()), Some(action));
        }
        assert_eq!(Action::of("format"), None);
    }
}
