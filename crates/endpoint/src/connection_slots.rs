//! Counts the connections of each peer, and chooses the one that ends when there are too many. No sockets, no clock.

use std::collections::HashMap;

use alknet_core::{ConnId, PeerId};

/// What the node does with a new connection of a peer and with those that the peer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotDecision {
    /// Refuse it: the peer has too many, and none of them may end for it.
    Full,
    /// Serve it: the node asks `drain` to finish, and ends `end` at once.
    Supersedes { drain: ConnId, end: Option<ConnId> },
    /// Serve it: the peer has fewer than its limit.
    Welcome,
}

#[derive(Debug, Default)]
pub(crate) struct ConnectionSlots(HashMap<PeerId, Vec<ConnectionSlot>>);

#[derive(Clone, Copy, Debug)]
struct ConnectionSlot {
    conn: ConnId,
    newest_wins: bool,
    /// Whether the node asked it to finish.
    leaving: bool,
    /// Whether the peer may have no other.
    only: bool,
}

impl ConnectionSlots {
    /// Adds a connection of `peer`, which may have `max`. Connections that the node asked to finish do not count
    /// towards that, and there are at most `max` of them.
    pub(crate) fn enter(
        &mut self,
        peer: &PeerId,
        conn: ConnId,
        newest_wins: bool,
        max: u32,
    ) -> SlotDecision {
        let slots = self.0.entry(peer.clone()).or_default();
        // A limit of zero in an entry would lock its peer out, which disabling the entry does on purpose.
        let max = max.max(1) as usize;
        let staying = slots.iter().filter(|slot| !slot.leaving).count();
        let entry = if staying < max {
            SlotDecision::Welcome
        } else {
            let mut older = slots.iter_mut();
            let oldest = older.find(|p| newest_wins && p.newest_wins && !p.leaving);
            let Some(oldest) = oldest else {
                return SlotDecision::Full;
            };
            oldest.leaving = true;
            let drain = oldest.conn;
            let mut leaving = slots.iter().filter(|slot| slot.leaving);
            let end = leaving.next().map(|slot| slot.conn);
            SlotDecision::Supersedes {
                drain,
                end: end.filter(|_| leaving.count() >= max),
            }
        };
        slots.push(ConnectionSlot {
            conn,
            newest_wins,
            leaving: false,
            only: max == 1,
        });
        entry
    }

    /// Whether `peer`, which may have `max`, may have one more beside those that it has.
    pub(crate) fn has_capacity(&self, peer: &PeerId, max: u32) -> bool {
        let slots = self.0.get(peer).map_or(&[][..], Vec::as_slice);
        let staying = slots.iter().filter(|slot| !slot.leaving).count();
        staying < max.max(1) as usize
    }

    /// The connections of `peer` that may end for a newer one of it, the oldest first.
    pub(crate) fn replaceable(&self, peer: &PeerId) -> Vec<ConnId> {
        let slots = self.0.get(peer).map_or(&[][..], Vec::as_slice);
        let replaceable = slots.iter().filter(|slot| slot.newest_wins);
        replaceable.map(|slot| slot.conn).collect()
    }

    /// Whether `peer` has a connection.
    pub(crate) fn has(&self, peer: &PeerId) -> bool {
        self.0.contains_key(peer)
    }

    /// Whether a peer has a second connection, which may end for another peer's, or one connection that may end for a
    /// newer one of the same peer.
    pub(crate) fn may_give(&self) -> bool {
        self.0.values().any(|slots| {
            let is_replaceable = |slot: &ConnectionSlot| slot.only && slot.newest_wins;
            slots.len() > 1 || slots.iter().any(is_replaceable)
        })
    }

    /// Removes a connection of `peer` that ended.
    pub(crate) fn leave(&mut self, peer: &PeerId, conn: ConnId) {
        let Some(slots) = self.0.get_mut(peer) else {
            return;
        };
        slots.retain(|slot| slot.conn != conn);
        if slots.is_empty() {
            self.0.remove(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: fn(u64) -> ConnId = ConnId;

    fn peer(name: &str) -> PeerId {
        name.parse().expect("a peer id")
    }

    #[test]
    fn there_is_room_up_to_the_limit_for_each_peer() {
        let mut slots = ConnectionSlots::default();
        for n in 0..3 {
            assert_eq!(
                slots.enter(&peer("a"), N(n), false, 3),
                SlotDecision::Welcome
            );
        }
        assert_eq!(slots.enter(&peer("a"), N(3), false, 3), SlotDecision::Full);
        assert_eq!(
            slots.enter(&peer("b"), N(4), false, 3),
            SlotDecision::Welcome
        );
        slots.leave(&peer("a"), N(1));
        assert_eq!(
            slots.enter(&peer("a"), N(5), false, 3),
            SlotDecision::Welcome
        );
    }

    #[test]
    fn where_the_newest_wins_the_oldest_of_its_kind_goes() {
        let mut slots = ConnectionSlots::default();
        slots.enter(&peer("a"), N(1), false, 3);
        slots.enter(&peer("a"), N(2), true, 3);
        slots.enter(&peer("a"), N(3), true, 3);
        let goes = |n, end: Option<u64>| SlotDecision::Supersedes {
            drain: N(n),
            end: end.map(N),
        };
        assert_eq!(slots.enter(&peer("a"), N(4), true, 3), goes(2, None));
        assert_eq!(slots.enter(&peer("a"), N(5), true, 3), goes(3, None));
        // A connection of another kind supersedes no other.
        assert_eq!(slots.enter(&peer("a"), N(6), false, 3), SlotDecision::Full);
        assert_eq!(slots.enter(&peer("a"), N(7), true, 3), goes(4, None));
        // A peer that connects faster than its old connections finish loses the oldest of those.
        assert_eq!(slots.enter(&peer("a"), N(8), true, 3), goes(5, Some(2)));
        slots.leave(&peer("a"), N(2));
        slots.leave(&peer("a"), N(3));
        assert_eq!(slots.enter(&peer("a"), N(9), true, 3), goes(7, None));
    }

    #[test]
    fn a_slot_is_given_by_a_peer_with_two_or_to_a_newer_connection_of_its_own() {
        let mut slots = ConnectionSlots::default();
        slots.enter(&peer("a"), N(1), true, 2);
        slots.enter(&peer("b"), N(2), false, 1);
        assert!(!slots.may_give());
        slots.enter(&peer("c"), N(3), true, 1);
        assert!(slots.may_give());
        slots.leave(&peer("c"), N(3));
        assert!(!slots.may_give());
        slots.enter(&peer("a"), N(4), true, 2);
        assert!(slots.may_give());
        // The oldest first, and those only that a newer one replaces.
        assert_eq!(slots.replaceable(&peer("a")), [N(1), N(4)]);
        assert!(slots.replaceable(&peer("b")).is_empty());
        assert!(slots.has(&peer("a")) && !slots.has(&peer("c")));
    }

    #[test]
    fn one_connection_is_always_possible() {
        let mut slots = ConnectionSlots::default();
        assert_eq!(
            slots.enter(&peer("a"), N(1), true, 0),
            SlotDecision::Welcome
        );
    }

    #[test]
    fn the_table_forgets_a_peer_with_its_last_connection() {
        let mut slots = ConnectionSlots::default();
        slots.enter(&peer("a"), N(1), true, 1);
        slots.enter(&peer("a"), N(2), true, 1);
        for n in [1, 2, 3] {
            slots.leave(&peer("a"), N(n));
        }
        assert!(slots.0.is_empty());
    }
}
