//! Events of the vault that are not in the log yet. The node alone writes the log, by a key of the
//! vault. PID 1 keeps events from before there is a node, from while the vault is locked, and those
//! that a node got and did not write before it ended, and hands them to the next node.

use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_vault::audit::{AuditEvent, AuditRecord, BootId};

/// Most events that PID 1 keeps. If there are more, the oldest stay, because they show how it
/// began.
const EVENTS_MAX: usize = 1_000;
/// Events in one message.
const BATCH: usize = 100;

/// Events that are not known to be in the log.
#[derive(Debug)]
pub(crate) struct UnloggedEvents {
    boot: BootId,
    list: Mutex<UnloggedList>,
}

#[derive(Debug, Default)]
struct UnloggedList {
    /// In the form that the node reads, oldest first.
    records: Vec<String>,
    /// How many of them the running node got.
    handed: usize,
    /// How many were not kept since the last event that says so.
    dropped: u64,
}

impl Default for UnloggedEvents {
    fn default() -> Self {
        Self {
            boot: boot_id(),
            list: Mutex::default(),
        }
    }
}

impl UnloggedEvents {
    pub(crate) fn add(&self, event: AuditEvent) {
        let mut list = self.list();
        self.tell_dropped(&mut list);
        self.push(&mut list, event);
    }

    /// The oldest that the node has not got yet, in the form that it reads.
    pub(crate) fn fresh(&self) -> Vec<String> {
        let list = self.list();
        let fresh = list.records.iter().skip(list.handed).take(BATCH);
        fresh.cloned().collect()
    }

    /// The node got `count` more.
    pub(crate) fn handed(&self, count: usize) {
        let mut list = self.list();
        list.handed = list.records.len().min(list.handed + count);
    }

    /// The log has `count` of those that the node got, so PID 1 forgets them.
    pub(crate) fn written(&self, count: u64) {
        let mut list = self.list();
        // A node cannot have written more than it got. Events that it did not get stay.
        let count = usize::try_from(count).map_or(list.handed, |count| count.min(list.handed));
        list.records.drain(..count);
        list.handed -= count;
        self.tell_dropped(&mut list);
    }

    /// Another node runs, which got nothing yet.
    pub(crate) fn hand_over_again(&self) {
        self.list().handed = 0;
    }

    /// Adds an event about dropped events, once there is room.
    fn tell_dropped(&self, list: &mut UnloggedList) {
        if list.dropped > 0 && list.records.len() < EVENTS_MAX {
            let count = std::mem::take(&mut list.dropped);
            self.push(list, AuditEvent::Dropped { count });
        }
    }

    /// Keeps an event, or counts it as dropped.
    fn push(&self, list: &mut UnloggedList, event: AuditEvent) {
        let record = AuditRecord::new(now_ms(), self.boot.clone(), event);
        match record.to_json() {
            Ok(text) if list.records.len() < EVENTS_MAX => list.records.push(text),
            _ => list.dropped += 1,
        }
    }

    fn list(&self) -> MutexGuard<'_, UnloggedList> {
        // The lock guards plain values, which are whole after any panic.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// The kernel's name of this boot.
fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let known = text.unwrap_or_default().trim().parse();
    let known = known.or_else(|_| "unknown".parse());
    known.unwrap_or_else(|_| unreachable!("a plain name is one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands events over as the machine does, and returns them.
    fn hand_over(events: &UnloggedEvents) -> Vec<String> {
        let fresh = events.fresh();
        events.handed(fresh.len());
        fresh
    }

    #[test]
    fn what_no_node_has_written_is_handed_to_the_next() {
        let events = UnloggedEvents::default();
        events.add(AuditEvent::Created);
        events.add(AuditEvent::Locked { hard: true });
        let first = hand_over(&events);
        assert_eq!(first.len(), 2);
        assert!(first[1].contains(r#""detail":{"hard":true},"ev":"locked""#));
        assert!(events.fresh().is_empty(), "it has them");
        events.written(1);
        events.hand_over_again();
        assert_eq!(hand_over(&events), first[1..]);
        // A node cannot have written what it did not get.
        events.add(AuditEvent::Rekeyed);
        events.written(u64::MAX);
        assert_eq!(events.fresh().len(), 1);
        assert!(events.fresh()[0].contains("rekeyed"));
    }

    #[test]
    fn what_is_not_kept_is_counted() {
        let events = UnloggedEvents::default();
        for _ in 0..EVENTS_MAX + 7 {
            events.add(AuditEvent::Imported);
        }
        let mut handed = Vec::new();
        while handed.len() < EVENTS_MAX {
            let batch = hand_over(&events);
            assert_eq!(batch.len(), BATCH);
            handed.extend(batch);
        }
        assert!(events.fresh().is_empty());
        events.written(3);
        events.add(AuditEvent::Rekeyed);
        let rest = hand_over(&events);
        assert_eq!(rest.len(), 2);
        assert!(rest[0].contains(r#""detail":{"count":7},"ev":"dropped""#));
        assert!(rest[1].contains("rekeyed"));
    }
}
