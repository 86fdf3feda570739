//! How many connections each peer has, and which goes when there are too many. No sockets, no
//! clock.

use std::collections::HashMap;

use alknet_core::{ConnId, PeerId};

/// What a peer's new connection means for those it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotDecision {
    /// There is no room, and none can be made.
    Full,
    /// It takes over: `drain` is asked to finish, `end` has to go at once.
    Supersedes { drain: ConnId, end: Option<ConnId> },
    /// There is room.
    Welcome,
}

#[derive(Debug, Default)]
pub(crate) struct ConnectionSlots(HashMap<PeerId, Vec<ConnectionSlot>>);

#[derive(Clone, Copy, Debug)]
struct ConnectionSlot {
    conn: ConnId,
    newest_wins: bool,
    /// It was asked to finish.
    leaving: bool,
}

impl ConnectionSlots {
    /// A connection of `peer`, who may have `max`. Those asked to finish do not count, and there
    /// are at most as many of them again.
    pub(crate) fn enter(
        &mut self,
        peer: &PeerId,
        conn: ConnId,
        newest_wins: bool,
        max: u32,
    ) -> SlotDecision {
        let places = self.0.entry(peer.clone()).or_default();
        let max = max.max(1) as usize;
        let staying = places.iter().filter(|place| !place.leaving).count();
        let entry = if staying < max {
            SlotDecision::Welcome
        } else {
            let mut older = places.iter_mut();
            let oldest = older.find(|p| newest_wins && p.newest_wins && !p.leaving);
            let Some(oldest) = oldest else {
                return SlotDecision::Full;
            };
            oldest.leaving = true;
            let drain = oldest.conn;
            let mut leaving = places.iter().filter(|place| place.leaving);
            let end = leaving.next().map(|place| place.conn);
            SlotDecision::Supersedes {
                drain,
                end: end.filter(|_| leaving.count() >= max),
            }
        };
        places.push(ConnectionSlot {
            conn,
            newest_wins,
            leaving: false,
        });
        entry
    }

    /// A connection of `peer` ended.
    pub(crate) fn leave(&mut self, peer: &PeerId, conn: ConnId) {
        let Some(places) = self.0.get_mut(peer) else {
            return;
        };
        places.retain(|place| place.conn != conn);
        if places.is_empty() {
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
        let mut places = ConnectionSlots::default();
        for n in 0..3 {
            assert_eq!(
                places.enter(&peer("a"), N(n), false, 3),
                SlotDecision::Welcome
            );
        }
        assert_eq!(places.enter(&peer("a"), N(3), false, 3), SlotDecision::Full);
        assert_eq!(
            places.enter(&peer("b"), N(4), false, 3),
            SlotDecision::Welcome
        );
        places.leave(&peer("a"), N(1));
        assert_eq!(
            places.enter(&peer("a"), N(5), false, 3),
            SlotDecision::Welcome
        );
    }

    #[test]
    fn where_the_newest_wins_the_oldest_of_its_kind_goes() {
        let mut places = ConnectionSlots::default();
        places.enter(&peer("a"), N(1), false, 3);
        places.enter(&peer("a"), N(2), true, 3);
        places.enter(&peer("a"), N(3), true, 3);
        let goes = |n, end: Option<u64>| SlotDecision::Supersedes {
            drain: N(n),
            end: end.map(N),
        };
        assert_eq!(places.enter(&peer("a"), N(4), true, 3), goes(2, None));
        assert_eq!(places.enter(&peer("a"), N(5), true, 3), goes(3, None));
        // A connection of another kind supersedes no other.
        assert_eq!(places.enter(&peer("a"), N(6), false, 3), SlotDecision::Full);
        assert_eq!(places.enter(&peer("a"), N(7), true, 3), goes(4, None));
        // A peer that connects faster than its old connections finish loses the oldest of those.
        assert_eq!(places.enter(&peer("a"), N(8), true, 3), goes(5, Some(2)));
        places.leave(&peer("a"), N(2));
        places.leave(&peer("a"), N(3));
        assert_eq!(places.enter(&peer("a"), N(9), true, 3), goes(7, None));
    }

    #[test]
    fn one_connection_is_always_possible() {
        let mut places = ConnectionSlots::default();
        assert_eq!(
            places.enter(&peer("a"), N(1), true, 0),
            SlotDecision::Welcome
        );
    }

    #[test]
    fn nothing_is_kept_of_who_left() {
        let mut places = ConnectionSlots::default();
        places.enter(&peer("a"), N(1), true, 1);
        places.enter(&peer("a"), N(2), true, 1);
        for n in [1, 2, 3] {
            places.leave(&peer("a"), N(n));
        }
        assert!(places.0.is_empty());
    }
}
