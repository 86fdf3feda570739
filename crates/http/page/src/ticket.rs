//! Links that work once, and the actions that they may request.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::limits::{TICKET_TIME, TICKETS_MAX};
use crate::session::{ViewerProof, new_name};

/// What a link allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkPurpose {
    /// To begin a session.
    Enter,
    /// To perform this action once.
    Act(PageAction),
}

/// The actions that the page offers, each through a link of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageAction {
    Lock,
    Poweroff,
    Reboot,
}

impl PageAction {
    pub(crate) const ALL: [Self; 3] = [Self::Lock, Self::Poweroff, Self::Reboot];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::Lock => "vault/lock",
            Self::Poweroff => "node/poweroff",
            Self::Reboot => "node/reboot",
        }
    }

    /// The question that the page shows.
    pub(crate) fn question(self) -> &'static str {
        match self {
            Self::Lock => "Lock the vault?",
            Self::Poweroff => "Switch the machine off?",
            Self::Reboot => "Restart the machine?",
        }
    }

    /// The effect of the action.
    pub(crate) fn consequence(self) -> &'static str {
        match self {
            Self::Lock => "The node stops. It serves nothing until a person unlocks the vault.",
            Self::Poweroff => {
                "Running calls may finish. Then the machine is off until a person switches it on \
                 by its power button."
            }
            Self::Reboot => {
                "Running calls may finish. Then the machine restarts, and does not answer meanwhile."
            }
        }
    }

    /// The text of the button.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Lock => "Lock",
            Self::Poweroff => "Switch off",
            Self::Reboot => "Restart",
        }
    }

    /// The text after the action was accepted.
    pub(crate) fn done(self) -> &'static str {
        match self {
            Self::Lock => "The vault is being locked.",
            Self::Poweroff => "The machine is being switched off.",
            Self::Reboot => "The machine is being restarted.",
        }
    }
}

#[derive(Debug)]
struct PageLink {
    purpose: LinkPurpose,
    proof: ViewerProof,
    until: Instant,
}

/// The links that are not used yet.
#[derive(Debug, Default)]
pub(crate) struct PageLinkStore(Mutex<HashMap<String, PageLink>>);

/// The reason why no link was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageLinkError {
    /// Too many links wait to be used.
    Full,
    /// The system has no randomness yet.
    Randomness,
}

impl PageLinkStore {
    /// Makes a link and returns its name.
    pub(crate) fn make(
        &self,
        purpose: LinkPurpose,
        proof: ViewerProof,
        now: Instant,
    ) -> Result<String, PageLinkError> {
        let name = new_name().ok_or(PageLinkError::Randomness)?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, ticket| ticket.until > now);
        // The limit refuses new links instead of removing old ones, so a flood of requests does not
        // end the links of others.
        if all.len() >= TICKETS_MAX {
            return Err(PageLinkError::Full);
        }
        let until = now + TICKET_TIME;
        let ticket = PageLink {
            purpose,
            proof,
            until,
        };
        all.insert(name.clone(), ticket);
        Ok(name)
    }

    /// What the link allows; the link stays valid.
    pub(crate) fn find(&self, name: &str, now: Instant) -> Option<(LinkPurpose, ViewerProof)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = all.get(name).filter(|ticket| ticket.until > now)?;
        Some((ticket.purpose, ticket.proof.clone()))
    }

    /// Uses a link. `is_for` decides whether its purpose matches; a link with another purpose stays
    /// valid.
    pub(crate) fn take(
        &self,
        name: &str,
        now: Instant,
        is_for: impl Fn(LinkPurpose) -> bool,
    ) -> Option<(LinkPurpose, ViewerProof)> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_for(all.get(name)?.purpose) {
            return None;
        }
        // The link is removed even if it has expired.
        let ticket = all.remove(name)?;
        (ticket.until > now).then_some((ticket.purpose, ticket.proof))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> ViewerProof {
        ViewerProof::name("ada".parse().expect("a peer id"))
    }

    #[test]
    fn a_link_works_once_for_a_minute_and_for_one_thing() {
        let (tickets, now) = (PageLinkStore::default(), Instant::now());
        let make = |purpose| tickets.make(purpose, proof(), now).expect("room");
        let enters = |purpose| purpose == LinkPurpose::Enter;
        let name = make(LinkPurpose::Enter);
        assert!(tickets.find(&name, now).is_some());
        assert!(tickets.take(&name, now, enters).is_some());
        assert!(tickets.take(&name, now, enters).is_none());
        assert!(tickets.find(&name, now).is_none());
        let acts = make(LinkPurpose::Act(PageAction::Reboot));
        assert!(tickets.take(&acts, now, enters).is_none());
        assert!(tickets.find(&acts, now).is_some(), "it was not used");
        let late = now + TICKET_TIME;
        assert!(tickets.find(&acts, late).is_none());
        assert!(tickets.take(&acts, late, |_| true).is_none());
    }

    #[test]
    fn links_are_bounded_and_old_ones_make_room() {
        let (tickets, now) = (PageLinkStore::default(), Instant::now());
        for _ in 0..TICKETS_MAX {
            tickets
                .make(LinkPurpose::Enter, proof(), now)
                .expect("room");
        }
        let full = tickets.make(LinkPurpose::Enter, proof(), now);
        assert_eq!(full, Err(PageLinkError::Full));
        let later = now + TICKET_TIME;
        tickets
            .make(LinkPurpose::Enter, proof(), later)
            .expect("room");
    }

    #[test]
    fn actions_are_known_by_their_names() {
        for action in PageAction::ALL {
            assert_eq!(PageAction::parse(action.name()), Some(action));
        }
        assert_eq!(PageAction::parse("format"), None);
    }
}
