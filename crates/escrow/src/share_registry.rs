//! Who gets what: the list of shares, and every decision about one. Times and addresses come in, so
//! that nothing here asks a clock or a socket.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_core::{AddressRange, PeerId, PeerKey};
use zeroize::Zeroizing;

use crate::entry::{KeyShare, ShareEntry, ShareId, ShareRelease, ShareRevocation};
use crate::error::EscrowError;
use crate::index::{IndexError, ShareIndex};
use crate::rate::{MinuteCounter, RELEASE_INTERVAL, RELEASES_PER_MINUTE, RELEASES_PER_MINUTE_ALL};
use crate::vault::{EscrowVault, EscrowVaultError};

/// Shares that one node keeps, revoked ones included; the oldest of those make room.
pub const SHARES_MAX: usize = 1024;
/// What a sealed share begins with.
const SEALED_FORMAT: u8 = 1;
/// Bytes of it: the format, the key that it belongs to, the share.
const SEALED_BYTES: usize = 1 + 32 + 32;

/// One peer's request, as the connection and the clock describe it.
#[derive(Clone, Debug)]
pub struct ShareRequest {
    /// The key that was proven.
    pub key: PeerKey,
    /// Which peer it is.
    pub peer: PeerId,
    /// Where the connection comes from.
    pub address: Option<IpAddr>,
    /// Seconds since 1970, where they are known.
    pub now_s: Option<u64>,
    /// The same moment, for what lasts.
    pub now: Instant,
}

/// What is deposited.
#[derive(Clone, Debug)]
pub struct ShareDeposit {
    /// The share.
    pub share: KeyShare,
    /// The id of the vault that it is for.
    pub vault: String,
    /// From where it may be asked for.
    pub from: Vec<AddressRange>,
    /// Each release waits for an approval.
    pub approve: bool,
}

/// What an administrator changes of a share: what is absent stays.
#[derive(Clone, Debug, Default)]
pub struct ShareChange {
    /// From where it may be asked for from now on.
    pub from: Option<Vec<AddressRange>>,
    /// Whether each release waits for an approval.
    pub approve: Option<bool>,
}

/// The list and the decisions. What is approved, and who waits, is forgotten at a restart.
pub struct ShareRegistry {
    safe: Arc<dyn EscrowVault>,
    index: ShareIndex,
    state: Mutex<ShareRegistryState>,
}

#[derive(Default)]
struct ShareRegistryState {
    shares: BTreeMap<ShareId, ShareEntry>,
    /// What is wrong with the file; nothing is done while it is.
    broken: Option<String>,
    live: HashMap<ShareId, ShareActivity>,
    all: MinuteCounter,
}

/// What is known of a share since the start.
#[derive(Default)]
struct ShareActivity {
    releases: MinuteCounter,
    released: Option<Instant>,
    approval: Option<ShareApproval>,
    /// Each address that waits, the one that asked last at the end.
    waiting: Vec<WaitingRequest>,
    refusals: u64,
    logged_at: Option<Instant>,
}

/// An approval of one release.
#[derive(Clone, Copy)]
struct ShareApproval {
    until: Instant,
    /// Where the share may go; to each address that may ask, if the share had no request that waited.
    address: Option<IpAddr>,
}

impl ShareApproval {
    fn covers(&self, request: &ShareRequest) -> bool {
        request.now < self.until && (self.address.is_none() || self.address == request.address)
    }
}

/// An address from which requests for a share wait for an approval.
#[derive(Clone, Copy)]
struct WaitingRequest {
    address: Option<IpAddr>,
    since: Instant,
    last: Instant,
}

impl ShareActivity {
    /// Notes that a request waits.
    fn wait(&mut self, request: &ShareRequest) {
        self.waiting
            .retain(|one| request.now.duration_since(one.last) < WAITING);
        let at = |one: &WaitingRequest| one.address == request.address;
        let known = self.waiting.iter().position(at);
        let since = known.map(|at| self.waiting.remove(at).since);
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.remove(0);
        }
        self.waiting.push(WaitingRequest {
            address: request.address,
            since: since.unwrap_or(request.now),
            last: request.now,
        });
    }

    /// How long the next release still needs room among those of all shares; `None` if it needs none.
    fn counts_for(&self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.released?);
        let left = RELEASE_INTERVAL.saturating_sub(since);
        (!left.is_zero()).then_some(left)
    }

    /// The requests that still wait.
    fn waiting(&self, now: Instant) -> impl Iterator<Item = &WaitingRequest> {
        let still = move |one: &&WaitingRequest| now.duration_since(one.last) < WAITING;
        self.waiting.iter().filter(still)
    }
}

/// How long a request counts as one that waits. A machine asks again after a few seconds.
const WAITING: Duration = Duration::from_secs(300);
/// Addresses that wait for one share; the one that did not ask for longest makes room.
const WAITING_MAX: usize = 8;

/// How often a refusal of one share is worth a line of the log.
const LOG_EVERY: Duration = Duration::from_secs(60);

impl ShareRegistry {
    /// With the list in `dir`. One that cannot be read is said by every answer, and nothing is released.
    #[must_use]
    pub fn open(dir: &Path, safe: Arc<dyn EscrowVault>) -> Self {
        let index = ShareIndex::at(dir);
        let mut state = ShareRegistryState::default();
        match index.load() {
            Ok(entries) => {
                for entry in entries {
                    // What a power cut left of one that was taken back.
                    if entry.revoked.is_some()
                        && let Err(error) = safe.remove(&entry.id)
                    {
                        tracing::error!(share = %entry.id, %error, "escrow.not-destroyed");
                    }
                    state.shares.insert(entry.id.clone(), entry);
                }
            }
            Err(error) => {
                tracing::error!(%error, "escrow.unusable");
                state.broken = Some(error.to_string());
            }
        }
        Self {
            safe,
            index,
            state: Mutex::new(state),
        }
    }

    /// What is wrong with the list of shares, if anything.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        self.state().broken.clone()
    }

    /// Takes a share in, for the key that asks. The same share again is the same deposit.
    pub fn deposit(
        &self,
        request: &ShareRequest,
        deposit: &ShareDeposit,
    ) -> Result<ShareId, EscrowError> {
        // The sealed form has 32 bytes for the key.
        let PeerKey::Ed25519(key) = request.key else {
            return Err(EscrowError::Unknown);
        };
        let id = ShareId::from_key(&request.key);
        let mut state = self.usable()?;
        if let Some(entry) = state.shares.get(&id) {
            return match entry.revoked {
                Some(_) => Err(EscrowError::Revoked),
                // The ids of two keys may agree: an id has 60 bits of the hash.
                None if entry.key != request.key => Err(EscrowError::Conflict),
                None => match self.sealed(&id, &key)? == deposit.share {
                    true => Ok(id),
                    false => Err(EscrowError::Conflict),
                },
            };
        }
        let entry = ShareEntry {
            id: id.clone(),
            key: request.key,
            peer: request.peer.clone(),
            vault: deposit.vault.clone(),
            made: request.now_s,
            from: deposit.from.clone(),
            approve: deposit.approve,
            released: None,
            revoked: None,
        };
        // On a copy, which `replace_shares` takes over once it is on the disk: a failed write changes
        // nothing.
        let mut shares = state.shares.clone();
        evict_revoked(&mut shares)?;
        shares.insert(id.clone(), entry);
        let mut sealed = Zeroizing::new([0; SEALED_BYTES]);
        sealed[0] = SEALED_FORMAT;
        sealed[1..33].copy_from_slice(&key);
        sealed[33..].copy_from_slice(deposit.share.expose());
        // The share before the list: a peer whose share is listed and absent could never deposit it
        // again.
        self.safe.put(&id, &*sealed)?;
        if let Err(error) = self.replace_shares(&mut state, shares) {
            // The list does not name it: the peer's next attempt puts the same there.
            let _ = self.safe.remove(&id);
            return Err(error.into());
        }
        tracing::info!(share = %id, peer = %request.peer, key8 = request.key.short(),
            addr = request.address.map(tracing::field::display), vault = deposit.vault, "escrow.deposited");
        Ok(id)
    }

    /// Whether a share of this key is kept, which no other key gets.
    #[must_use]
    pub fn keeps(&self, key: &PeerKey) -> bool {
        let state = self.state();
        let entry = state.shares.get(&ShareId::from_key(key));
        entry.is_some_and(|entry| entry.key == *key && entry.revoked.is_none())
    }

    /// Whether the peer that asks has a share under another key that it still `holds`.
    pub fn keeps_for_other_key(
        &self,
        request: &ShareRequest,
        holds: impl Fn(&PeerKey) -> bool,
    ) -> Result<bool, EscrowError> {
        let state = self.usable()?;
        let is_other = |entry: &ShareEntry| {
            entry.peer == request.peer && entry.key != request.key && entry.revoked.is_none()
        };
        let mut others = state.shares.values().filter(|entry| is_other(entry));
        Ok(others.any(|entry| holds(&entry.key)))
    }

    /// The share of the key that asks.
    pub fn release(&self, request: &ShareRequest, id: &ShareId) -> Result<KeyShare, EscrowError> {
        let mut state = self.usable()?;
        let decided = self.decide(&mut state, request, id);
        let outcome = decided.and_then(|()| self.hand_out(&mut state, request, id));
        if let Err(error) = &outcome {
            let live = state.live.entry(id.clone()).or_default();
            live.refusals += 1;
            let quiet = live
                .logged_at
                .is_some_and(|at| request.now.duration_since(at) < LOG_EVERY);
            if !quiet {
                live.logged_at = Some(request.now);
                tracing::warn!(share = %id, peer = %request.peer, key8 = request.key.short(),
                    addr = request.address.map(tracing::field::display), %error, "escrow.refused");
            }
        }
        // Requests for unknown ids leave nothing behind.
        if !state.shares.contains_key(id) {
            state.live.remove(id);
        }
        outcome
    }

    fn decide(
        &self,
        state: &mut ShareRegistryState,
        request: &ShareRequest,
        id: &ShareId,
    ) -> Result<(), EscrowError> {
        let entry = state
            .shares
            .get(id)
            .filter(|entry| entry.key == request.key);
        let entry = entry.ok_or(EscrowError::Unknown)?;
        if entry.revoked.is_some() {
            return Err(EscrowError::Revoked);
        }
        // Before the approval: a request from elsewhere must not appear to an administrator as one
        // that waits.
        let inside = |address| entry.from.iter().any(|range| range.contains(address));
        if !entry.from.is_empty() && !request.address.is_some_and(inside) {
            return Err(EscrowError::Address);
        }
        let live = state.live.entry(id.clone()).or_default();
        let approved = live
            .approval
            .is_some_and(|approval| approval.covers(request));
        if entry.approve && !approved {
            live.wait(request);
            return Err(EscrowError::Pending(id.to_string()));
        }
        let own = live.releases.wait(RELEASES_PER_MINUTE, request.now);
        // The last quarter is for machines that had nothing in this minute, and start again within the interval.
        let most = match live.releases.is_empty() {
            true => RELEASES_PER_MINUTE_ALL,
            false => RELEASES_PER_MINUTE_ALL / 4 * 3,
        };
        let all = live.counts_for(request.now).and_then(|left| {
            let wait = state.all.wait(most, request.now)?;
            Some(wait.min(left))
        });
        own.or(all)
            .map_or(Ok(()), |wait| Err(EscrowError::Rate(wait)))
    }

    /// Writes the release down first: an administrator can read of every share that was released.
    fn hand_out(
        &self,
        state: &mut ShareRegistryState,
        request: &ShareRequest,
        id: &ShareId,
    ) -> Result<KeyShare, EscrowError> {
        let PeerKey::Ed25519(key) = request.key else {
            return Err(EscrowError::Unknown);
        };
        // Read before the release is written down: a vault that is locked releases nothing.
        let share = self.sealed(id, &key)?;
        let mut shares = state.shares.clone();
        if let Some(entry) = shares.get_mut(id) {
            let count = entry.released.as_ref().map_or(0, |last| last.count);
            entry.released = Some(ShareRelease {
                count: count.saturating_add(1),
                time: request.now_s,
                address: request.address,
            });
        }
        self.replace_shares(state, shares)?;
        let live = state.live.entry(id.clone()).or_default();
        if live.counts_for(request.now).is_some() {
            state.all.note(request.now);
        }
        live.releases.note(request.now);
        live.released = Some(request.now);
        live.waiting.clear();
        // One approval is for one start: a copy of the machine's disk asks as the machine does.
        live.approval = None;
        tracing::info!(share = %id, peer = %request.peer, key8 = request.key.short(),
            addr = request.address.map(tracing::field::display), "escrow.released");
        Ok(share)
    }

    /// What the safe has for an id, if it is of that key: neither the list nor the safe alone decides.
    fn sealed(&self, id: &ShareId, key: &[u8; 32]) -> Result<KeyShare, EscrowError> {
        let bytes = self.safe.get(id)?;
        let damaged = || EscrowVaultError::Failed("it is of another key or form".to_owned());
        let (head, share) = bytes.split_at_checked(33).ok_or_else(damaged)?;
        let fits = head[0] == SEALED_FORMAT && head[1..] == key[..];
        let share: [u8; 32] = share.try_into().map_err(|_| damaged())?;
        fits.then(|| KeyShare::new(share))
            .ok_or_else(|| damaged().into())
    }

    /// Every share, with how long its owner waits for an approval, from where, and how often it was
    /// refused since the start.
    pub fn list(&self, now: Instant) -> Result<Vec<ShareListing>, EscrowError> {
        let state = self.usable()?;
        let listed = |entry: &ShareEntry| {
            let live = state.live.get(&entry.id);
            let until = live.and_then(|live| live.approval).map(|it| it.until);
            let waiting = live.map_or_else(Vec::new, |live| {
                let each = live.waiting(now);
                each.map(|one| (now.duration_since(one.since), one.address))
                    .collect()
            });
            ShareListing {
                entry: entry.clone(),
                waiting,
                approved: until.and_then(|until| until.checked_duration_since(now)),
                refusals: live.map_or(0, |live| live.refusals),
            }
        };
        Ok(state.shares.values().map(listed).collect())
    }

    /// Allows one release of a share within a time: to this address, or to the one that waits.
    pub fn approve(
        &self,
        id: &ShareId,
        address: Option<IpAddr>,
        lasts: Duration,
        by: &str,
        now: Instant,
    ) -> Result<ShareEntry, EscrowError> {
        let mut state = self.usable()?;
        let entry = state.shares.get(id).cloned().ok_or(EscrowError::Unknown)?;
        if entry.revoked.is_some() {
            return Err(EscrowError::Revoked);
        }
        let live = state.live.entry(id.clone()).or_default();
        let waiting: Vec<_> = live.waiting(now).map(|one| one.address).collect();
        let address = match (address, &waiting[..]) {
            (Some(address), _) => Some(address),
            (None, [] | [None]) => None,
            (None, [Some(one)]) => Some(*one),
            // Any of them may be a copy of the machine's disk: the administrator has to say which one starts.
            (None, several) => return Err(EscrowError::several(several)),
        };
        let until = now.checked_add(lasts);
        live.approval = until.map(|until| ShareApproval { until, address });
        tracing::info!(share = %id, by, seconds = lasts.as_secs(),
            addr = address.map(tracing::field::display), "escrow.approved");
        Ok(entry)
    }

    /// Binds a share otherwise. What was approved before is not any more.
    pub fn change(
        &self,
        id: &ShareId,
        change: ShareChange,
        by: &str,
    ) -> Result<ShareEntry, EscrowError> {
        let mut state = self.usable()?;
        let mut shares = state.shares.clone();
        let entry = shares.get_mut(id).ok_or(EscrowError::Unknown)?;
        if entry.revoked.is_some() {
            return Err(EscrowError::Revoked);
        }
        if let Some(from) = change.from {
            entry.from = from;
        }
        if let Some(approve) = change.approve {
            entry.approve = approve;
        }
        let entry = entry.clone();
        self.replace_shares(&mut state, shares)?;
        state.live.entry(id.clone()).or_default().approval = None;
        tracing::info!(share = %id, by, approve = entry.approve, "escrow.changed");
        Ok(entry)
    }

    /// Takes a share back for ever: it is destroyed. Taking it back twice is taking it back once.
    pub fn revoke(
        &self,
        id: &ShareId,
        by: &str,
        now_s: Option<u64>,
    ) -> Result<ShareEntry, EscrowError> {
        let mut state = self.usable()?;
        let mut shares = state.shares.clone();
        let entry = shares.get_mut(id).ok_or(EscrowError::Unknown)?;
        // The first revocation keeps its time and name; a repetition destroys what a failed removal
        // left.
        if entry.revoked.is_none() {
            entry.revoked = Some(ShareRevocation {
                time: now_s,
                by: by.to_owned(),
            });
        }
        let entry = entry.clone();
        // Refused from here on, whatever becomes of the file with the share.
        self.replace_shares(&mut state, shares)?;
        state.live.remove(id);
        tracing::warn!(share = %id, by, "escrow.revoked");
        self.safe.remove(id)?;
        Ok(entry)
    }

    /// The share that a person means: by its id, else by the name of its peer as `name` knows it.
    pub fn find_id(
        &self,
        text: &str,
        name: impl Fn(&ShareEntry) -> Option<String>,
    ) -> Result<ShareId, EscrowError> {
        let state = self.usable()?;
        if let Some(entry) = text
            .parse()
            .ok()
            .and_then(|id: ShareId| state.shares.get(&id))
        {
            return Ok(entry.id.clone());
        }
        let called = |entry: &&ShareEntry| {
            entry.peer.as_str() == text || name(entry).is_some_and(|name| name == text)
        };
        // One that was taken back is not in the way of its successor.
        let mut found = state.shares.values().filter(called).collect::<Vec<_>>();
        if found.iter().any(|entry| entry.revoked.is_none()) {
            found.retain(|entry| entry.revoked.is_none());
        }
        match found[..] {
            [] => Err(EscrowError::Unknown),
            [entry] => Ok(entry.id.clone()),
            _ => Err(EscrowError::Ambiguous),
        }
    }

    fn replace_shares(
        &self,
        state: &mut ShareRegistryState,
        shares: BTreeMap<ShareId, ShareEntry>,
    ) -> Result<(), IndexError> {
        self.index.store(shares.values().cloned().collect())?;
        state.live.retain(|id, _| shares.contains_key(id));
        state.shares = shares;
        Ok(())
    }

    fn usable(&self) -> Result<MutexGuard<'_, ShareRegistryState>, EscrowError> {
        let state = self.state();
        match &state.broken {
            Some(why) => Err(EscrowVaultError::Failed(why.clone()).into()),
            None => Ok(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, ShareRegistryState> {
        // Changed as a whole after the file was: right after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A share as it is shown.
#[derive(Clone, Debug)]
pub struct ShareListing {
    /// What is known of it.
    pub entry: ShareEntry,
    /// How long requests wait for an approval, and where; the one that asked last at the end.
    pub waiting: Vec<(Duration, Option<IpAddr>)>,
    /// How long a release is still approved.
    pub approved: Option<Duration>,
    /// How often it was refused since the start.
    pub refusals: u64,
}

/// Of those that were taken back the oldest makes room.
fn evict_revoked(shares: &mut BTreeMap<ShareId, ShareEntry>) -> Result<(), EscrowError> {
    while shares.len() >= SHARES_MAX {
        let gone = shares.values().filter_map(|entry| {
            let revoked = entry.revoked.as_ref()?;
            Some((revoked.time, entry.id.clone()))
        });
        // A revocation without a time was made while the clock was not set, and counts as the
        // oldest.
        let (_, oldest) = gone.min().ok_or(EscrowError::Full)?;
        shares.remove(&oldest);
    }
    Ok(())
}

impl fmt::Debug for ShareRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShareRegistry")
            .field("shares", &self.state().shares.len())
            .finish_non_exhaustive()
    }
}
