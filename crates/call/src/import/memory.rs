//! Bytes that imported servers make this node hold: their answers, and the requests to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::context::Ctx;
use crate::error::{CallError, ErrorCode};
use crate::limits::{
    BYTES_SHARE, BYTES_UNKNOWN_PEERS, IMPORT_RESERVE_PART, bytes_for_memory, leaves_capacity,
};
use crate::request_bytes::Requester;
use crate::sync::lock;

/// The account of all imports of a node. Each import has a [share](Self::share) of it. Clones are the same account.
#[derive(Clone, Debug)]
pub struct ImportMemory(Arc<ImportMemoryPool>);

#[derive(Debug)]
struct ImportMemoryPool {
    most: usize,
    taken: Mutex<ImportUsage>,
}

/// Bytes in use now.
#[derive(Debug, Default)]
struct ImportUsage {
    all: ImportTotals,
    /// The bytes of each import, in the order in which they began.
    each: Vec<ImportTotals>,
    reservations: HashMap<u64, ReservedBytes>,
    next_reservation: u64,
}

/// Bytes of all imports together, or of one.
#[derive(Debug, Default)]
struct ImportTotals {
    bytes: usize,
    /// Of these, the bytes for calls of all unknown peers.
    unknown: usize,
    requesters: HashMap<Requester, usize>,
}

/// The bytes that a reservation sets aside, and those that its claims count within them or beyond them.
#[derive(Debug)]
struct ReservedBytes {
    bytes: usize,
    used: usize,
}

impl ReservedBytes {
    fn charge(&self, used: usize) -> usize {
        self.bytes.max(used)
    }
}

impl ImportTotals {
    fn own(&self, requester: &Requester) -> usize {
        self.requesters.get(requester).copied().unwrap_or_default()
    }

    /// Counts `after` bytes instead of `before`.
    fn replace(&mut self, requester: Option<&Requester>, before: usize, after: usize) {
        self.bytes = self.bytes - before + after;
        let Some(requester) = requester else {
            return;
        };
        if !requester.is_known() {
            self.unknown = self.unknown - before + after;
        }
        let own = self.own(requester) - before + after;
        match own {
            0 => self.requesters.remove(requester),
            own => self.requesters.insert(requester.clone(), own),
        };
    }
}

impl ImportUsage {
    /// The bytes in the account before and after a claim of `held` bytes changes to `bytes`. Within a reservation, a
    /// claim changes nothing up to the reservation's size.
    fn charges(&self, reservation: Option<u64>, held: usize, bytes: usize) -> (usize, usize) {
        match reservation.and_then(|id| self.reservations.get(&id)) {
            None => (held, bytes),
            Some(it) => (it.charge(it.used), it.charge(it.used - held + bytes)),
        }
    }

    /// Counts a claim with `bytes` instead of `held`.
    fn set(&mut self, share: &ImportShare, held: usize, bytes: usize) {
        let (before, after) = self.charges(share.reservation, held, bytes);
        self.replace(share, before, after);
        let reservation = share.reservation;
        if let Some(it) = reservation.and_then(|id| self.reservations.get_mut(&id)) {
            it.used = it.used - held + bytes;
        }
    }

    fn replace(&mut self, share: &ImportShare, before: usize, after: usize) {
        let requester = share.requester.as_ref();
        self.all.replace(requester, before, after);
        self.each[share.number].replace(requester, before, after);
    }
}

impl ImportMemory {
    /// An account for a machine with so much memory: as much as running requests may have.
    #[must_use]
    pub fn for_machine(memory_bytes: u64) -> Self {
        Self(Arc::new(ImportMemoryPool {
            most: bytes_for_memory(memory_bytes),
            taken: Mutex::default(),
        }))
    }

    /// The share of one more import, for the node itself: half of all, and of the last quarter a part of the rest.
    #[must_use]
    pub fn share(&self) -> ImportShare {
        let mut taken = lock(&self.0.taken);
        taken.each.push(ImportTotals::default());
        ImportShare {
            account: Arc::clone(&self.0),
            number: taken.each.len() - 1,
            requester: None,
            reservation: None,
        }
    }

    /// Bytes in use now.
    #[must_use]
    pub fn taken(&self) -> usize {
        lock(&self.0.taken).all.bytes
    }
}

/// An account for a machine with enough memory.
impl Default for ImportMemory {
    fn default() -> Self {
        Self::for_machine(u64::MAX)
    }
}

/// What one import may use, for the node itself or for the calls of one requester. Clones are the same share.
#[derive(Clone, Debug)]
pub struct ImportShare {
    account: Arc<ImportMemoryPool>,
    number: usize,
    /// `None` for the node itself, which lists the operations of a server.
    requester: Option<Requester>,
    /// The reservation that its claims count within, while the reservation lasts.
    reservation: Option<u64>,
}

impl ImportShare {
    /// The same share for the requester of this call: its identity, else the network of its address. A requester has
    /// half of the import's bytes, and of the last quarter of those a part of the rest. All unknown peers together
    /// have a quarter. Over all imports a requester has half of all bytes.
    #[must_use]
    pub fn for_call(&self, ctx: &Ctx) -> Self {
        self.for_requester(ctx.requester())
    }

    fn for_requester(&self, requester: Requester) -> Self {
        Self {
            requester: Some(requester),
            ..self.clone()
        }
    }

    /// A claim that counts nothing yet.
    #[must_use]
    pub fn claim(&self) -> ImportClaim {
        ImportClaim {
            share: self.clone(),
            bytes: 0,
        }
    }

    /// Sets bytes aside for the answer to a call: `most`, or as much as leaves its requester seven times as much for
    /// other calls, but no less than `least`.
    ///
    /// # Errors
    /// `OVERLOADED` where there is no room for `least` bytes now.
    pub fn reserve(&self, most: usize, least: usize) -> Result<ImportReservation, CallError> {
        let mut taken = lock(&self.account.taken);
        let mut bytes = most.max(least);
        let leaves_enough = |bytes: usize| {
            let with_others = bytes.saturating_mul(IMPORT_RESERVE_PART);
            self.check_capacity(&taken, 0, with_others).is_ok()
        };
        // Halving finds a size in a few steps: the exact largest one is not needed.
        while bytes > least && !leaves_enough(bytes) {
            bytes = (bytes / 2).max(least);
        }
        self.check_capacity(&taken, 0, bytes)?;
        let id = taken.next_reservation;
        taken.next_reservation += 1;
        let reserved = ReservedBytes { bytes, used: 0 };
        taken.reservations.insert(id, reserved);
        taken.replace(self, 0, bytes);
        drop(taken);
        let share = Self {
            reservation: Some(id),
            ..self.clone()
        };
        Ok(ImportReservation { share, id })
    }

    /// The most that the share has, whatever other shares use.
    fn most(&self) -> usize {
        let import = self.account.most / BYTES_SHARE;
        match &self.requester {
            None => import,
            Some(requester) if requester.is_known() => import / BYTES_SHARE,
            Some(_) => import / BYTES_UNKNOWN_PEERS,
        }
    }

    /// Whether the account may count `after` bytes instead of `before`.
    fn check_capacity(
        &self,
        taken: &ImportUsage,
        before: usize,
        after: usize,
    ) -> Result<(), CallError> {
        let most = self.account.most;
        let import = most / BYTES_SHARE;
        let with = |counted: usize| (counted - before).saturating_add(after);
        let (here, all) = (&taken.each[self.number], &taken.all);
        let (of_import, of_all) = (with(here.bytes), with(all.bytes));
        let import_full = || {
            let what = "bytes of what one imported server sends and gets at once";
            Err(CallError::overloaded(what, import))
        };
        let mut least = of_import;
        match &self.requester {
            None if of_import > import => return import_full(),
            None => {}
            Some(requester) => {
                let own = with(here.own(requester));
                let of_requester = with(all.own(requester));
                // Peers without an identity are free to make: together they get no more than a quarter.
                let unknown_full = !requester.is_known()
                    && (with(here.unknown) > import / BYTES_UNKNOWN_PEERS
                        || with(all.unknown) > most / BYTES_UNKNOWN_PEERS);
                if own > self.most() || of_requester > most / BYTES_SHARE || unknown_full {
                    let what = "bytes of what one imported server sends and gets for one requester";
                    return Err(CallError::overloaded(what, self.most()));
                }
                if !leaves_capacity(own, of_import, import) {
                    return import_full();
                }
                // An import whose other requesters use much, or a requester whose other imports use much, has no part
                // in the last quarter.
                least = least.min(of_requester);
            }
        }
        match leaves_capacity(least, of_all, most) {
            true => Ok(()),
            false => {
                let what = "bytes of what all imported servers send and get at once";
                Err(CallError::overloaded(what, most))
            }
        }
    }
}

/// Bytes set aside for a call until this is dropped. The bytes that its claims count by then still count.
#[derive(Debug)]
pub struct ImportReservation {
    share: ImportShare,
    id: u64,
}

impl ImportReservation {
    /// Claims of this share count within the reservation first.
    #[must_use]
    pub const fn share(&self) -> &ImportShare {
        &self.share
    }
}

impl Drop for ImportReservation {
    fn drop(&mut self) {
        let mut taken = lock(&self.share.account.taken);
        if let Some(it) = taken.reservations.remove(&self.id) {
            taken.replace(&self.share, it.charge(it.used), it.used);
        }
    }
}

/// Bytes that count until this is dropped.
#[derive(Debug)]
pub struct ImportClaim {
    share: ImportShare,
    bytes: usize,
}

impl ImportClaim {
    /// Bytes that it counts.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the claim to so many bytes.
    ///
    /// # Errors
    /// `OVERLOADED` where there is no room for them now, `PAYLOAD_TOO_LARGE` where there never is. The claim then
    /// counts as before.
    pub fn becomes(&mut self, bytes: usize) -> Result<(), CallError> {
        let share = &self.share;
        let mut taken = lock(&share.account.taken);
        let (before, after) = taken.charges(share.reservation, self.bytes, bytes);
        // A claim that shrinks always has room.
        if after > before {
            let most = share.most();
            // No wait would help: the claim alone exceeds the share.
            if bytes > most {
                let message =
                    format!("one imported server may make this node keep {most} bytes for a call");
                return Err(CallError::new(ErrorCode::PayloadTooLarge, message));
            }
            share.check_capacity(&taken, before, after)?;
        }
        taken.set(share, self.bytes, bytes);
        drop(taken);
        self.bytes = bytes;
        Ok(())
    }

    /// The same bytes, which count until the last clone of them is dropped.
    #[must_use]
    pub fn hold(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(ImportHolding {
            bytes,
            _claim: self,
        })
    }
}

impl Drop for ImportClaim {
    fn drop(&mut self) {
        lock(&self.share.account.taken).set(&self.share, self.bytes, 0);
    }
}

struct ImportHolding {
    bytes: Bytes,
    _claim: ImportClaim,
}

impl AsRef<[u8]> for ImportHolding {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    const MIB: usize = 1 << 20;

    /// Claims pieces of so many bytes, until the share refuses one.
    fn fill(share: &ImportShare, bytes: usize) -> Vec<ImportClaim> {
        let next = || {
            let mut claim = share.claim();
            claim.becomes(bytes).ok().map(|()| claim)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn one_import_has_half_and_two_leave_others_room() {
        let memory = ImportMemory::for_machine(512 << 20);
        let (eve, mallory, ada) = (memory.share(), memory.share(), memory.share());
        let held = fill(&eve, MIB);
        assert_eq!(held.len(), 32);
        let refused = eve.claim().becomes(1).expect_err("half");
        assert_eq!(refused.code, ErrorCode::Overloaded);
        let more = fill(&mallory, MIB);
        assert_eq!(more.len(), 16, "the last quarter is left");
        assert!(!fill(&ada, 64 << 10).is_empty());
        assert_eq!(memory.taken(), 48 * MIB);
        let refused = ada.claim().becomes(33 * MIB).expect_err("more than a half");
        assert_eq!(refused.code, ErrorCode::PayloadTooLarge);
        drop((held, more));
        assert_eq!(memory.taken(), 0);
    }

    fn known(name: &str) -> Requester {
        Requester::Known(name.parse().expect("a peer id"))
    }

    fn unknown(network: u8) -> Requester {
        let address = Ipv4Addr::new(192, 0, network, 1);
        Requester::from_identity(None, Some(SocketAddr::from((address, 1))))
    }

    /// The answers that the requester holds, or requests at once.
    #[test]
    fn one_requester_of_an_import_has_half_and_two_leave_others_room() {
        let memory = ImportMemory::for_machine(512 << 20);
        let import = memory.share();
        let share = |name: &str| import.for_requester(known(name));
        let eve = fill(&share("eve"), MIB);
        assert_eq!(eve.len(), 16, "half of 32");
        let refused = share("eve").claim().becomes(1).expect_err("half");
        assert_eq!(refused.code, ErrorCode::Overloaded);
        let mallory = fill(&share("mallory"), MIB);
        assert_eq!(mallory.len(), 8, "the last quarter is left");
        let ada = fill(&share("ada"), 64 << 10);
        assert!(ada.len() >= 3, "{}", ada.len());
        // The node lists the operations of the server.
        assert_eq!(fill(&import, MIB).len(), 7);
        let refused = share("ada").claim().becomes(17 * MIB).expect_err("a half");
        assert_eq!(refused.code, ErrorCode::PayloadTooLarge);
        drop((eve, mallory, ada));
        let taken = lock(&memory.0.taken);
        assert_eq!(taken.all.bytes, 0);
        assert!(taken.all.requesters.is_empty() && taken.each[0].requesters.is_empty());
    }

    #[test]
    fn one_requester_of_many_imports_leaves_others_room_in_each() {
        let memory = ImportMemory::for_machine(512 << 20);
        let imports: Vec<_> = (0..8).map(|_| memory.share()).collect();
        let take = |name: &str| {
            let shares = imports.iter().map(|one| one.for_requester(known(name)));
            shares.flat_map(|one| fill(&one, MIB)).collect::<Vec<_>>()
        };
        let eve = take("eve");
        assert_eq!(eve.len(), 32, "half of all");
        for (n, import) in imports.iter().enumerate() {
            let ada = fill(&import.for_requester(known("ada")), MIB);
            assert_eq!(ada.len(), if n < 2 { 8 } else { 16 }, "{n}");
        }
        // Where one of their imports uses much, two requesters have no room in the others.
        let mallory = take("mallory");
        assert_eq!(mallory.len(), 16);
        for import in &imports {
            let ada = fill(&import.for_requester(known("ada")), 64 << 10);
            assert!(!ada.is_empty());
        }
        drop((eve, mallory));
        assert_eq!(memory.taken(), 0);
    }

    #[test]
    fn unknown_peers_leave_known_ones_three_quarters_of_an_import() {
        let memory = ImportMemory::for_machine(512 << 20);
        let import = memory.share();
        let taken = |requester: Requester| fill(&import.for_requester(requester), 256 << 10);
        let crowd: Vec<_> = (0..=u8::MAX).map(|n| taken(unknown(n))).collect();
        assert_eq!(memory.taken(), 8 * MIB);
        let nowhere = taken(Requester::Nowhere);
        assert!(nowhere.is_empty(), "it is an unknown peer's as well");
        assert_eq!(taken(known("ada")).len(), 64, "half of it");
        drop(crowd);
        assert_eq!(lock(&memory.0.taken).all.unknown, 0);
    }

    #[test]
    fn what_is_reserved_is_there_whatever_others_take() {
        let memory = ImportMemory::for_machine(512 << 20);
        let import = memory.share();
        let share = |name: &str| import.for_requester(known(name));
        let room = share("ada").reserve(4 * MIB, 64 << 10).expect("room");
        assert_eq!(memory.taken(), 2 * MIB, "an eighth of 16 MiB");
        let others: Vec<_> = (0..100)
            .map(|n| fill(&share(&format!("other-{n}")), 16 << 10))
            .collect();
        let beside = share("ada").claim().becomes(MIB);
        assert_eq!(
            beside.expect_err("all is taken").code,
            ErrorCode::Overloaded
        );
        let full = memory.taken();
        let (mut text, mut tree) = (room.share().claim(), room.share().claim());
        text.becomes(MIB).expect("it is reserved");
        tree.becomes(MIB).expect("it is reserved");
        assert_eq!(memory.taken(), full);
        tree.becomes(MIB + 1)
            .expect_err("one more than is reserved");
        drop(text);
        tree.becomes(2 * MIB).expect("what another claim gave back");
        // The bytes that outlive the reservation count alone.
        tree.becomes(10).expect("less");
        drop(room);
        assert_eq!(memory.taken(), full - 2 * MIB + 10);
        drop((tree, others));
        assert_eq!(memory.taken(), 0);
    }

    /// A requester may thus have many calls at once.
    #[test]
    fn a_reservation_is_a_part_of_what_is_left_and_never_less_than_what_is_asked_for() {
        let memory = ImportMemory::for_machine(512 << 20);
        let share = memory.share().for_requester(known("ada"));
        let next = || share.reserve(4 * MIB, 64 << 10).ok();
        let rooms: Vec<_> = std::iter::from_fn(next).collect();
        assert!(rooms.len() >= 32, "{}", rooms.len());
        let refused = share.reserve(4 * MIB, 64 << 10).expect_err("all of a half");
        assert!(refused.code == ErrorCode::Overloaded && refused.retryable);
        assert!(memory.taken() <= 16 * MIB);
        drop(rooms);
        assert_eq!(memory.taken(), 0);
    }

    #[test]
    fn bytes_count_until_their_last_clone_is_dropped() {
        let memory = ImportMemory::default();
        let mut claim = memory.share().claim();
        claim.becomes(100).expect("room");
        claim.becomes(10).expect("less");
        let held = claim.hold(Bytes::from_static(b"0123456789"));
        let part = held.slice(3..5);
        drop(held);
        assert_eq!((memory.taken(), &part[..]), (10, &b"34"[..]));
        drop(part);
        assert_eq!(memory.taken(), 0);
    }
}
