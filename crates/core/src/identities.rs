//! The identities that a node knows: entries of the configuration, which win, and those of a store.

mod index;
mod sources;
mod store;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::clock::{Clock, is_expired};
use crate::entry::{ApiKey, PeerEntry, PeerPatch};
use crate::handler::BoxFuture;
use crate::identity::{Identity, IdentityProvider, PeerId, PeerKey};
use crate::store_thread::StoreThread;
use crate::token::{AuthToken, KeyId, TokenHash};

use index::{IdentityIndex, IndexedIdentity};
use sources::{IdentitySources, Plan};
pub use store::{
    IdentityPersistence, IdentityStore, IdentityStoreError, StoreChange, StoredIdentities,
};

/// Seconds of a day.
const DAY_S: u64 = 86_400;

/// Longest chain of makers of one token: a token made by a token made by a token, and so on.
const MAKERS_MAX: usize = 16;

/// All identities of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityEntries {
    /// Administrators and their keys, which may do everything.
    pub admins: Vec<(PeerId, PeerKey)>,
    /// Entries of peers.
    pub peers: Vec<PeerEntry>,
    /// Tokens of programs.
    pub api_keys: Vec<ApiKey>,
}

/// Resolves keys and tokens by a table that is rebuilt as a whole at every change. Changes are kept in memory, and on
/// disk where it has [a persistence](Self::with_store).
pub struct Identities {
    inner: Arc<IdentitiesInner>,
    /// Makes the changes, where they are kept on a disk.
    thread: Option<StoreThread>,
}

struct IdentitiesInner {
    sources: Mutex<IdentitySources>,
    /// Held from the plan of a change until it is in force: what is on disk is what is in the table.
    turn: Mutex<()>,
    persistence: Option<Arc<dyn IdentityPersistence>>,
    index: ArcSwap<IdentityIndex>,
    generation: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
}

impl Identities {
    /// The `entries` of the configuration, and a store in memory.
    #[must_use]
    pub fn new(entries: IdentityEntries, clock: Arc<dyn Clock>) -> Self {
        Self::with_sources(entries, StoredIdentities::default(), None, clock)
    }

    /// The `entries` of the configuration and the `stored` ones. A change of the store is in force once `persistence`
    /// has stored it. A thread of this value makes the changes then, and a change goes on when its future is dropped.
    #[must_use]
    pub fn with_store(
        entries: IdentityEntries,
        stored: StoredIdentities,
        persistence: Arc<dyn IdentityPersistence>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self::with_sources(entries, stored, Some(persistence), clock)
    }

    fn with_sources(
        entries: IdentityEntries,
        stored: StoredIdentities,
        persistence: Option<Arc<dyn IdentityPersistence>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut sources = IdentitySources {
            config: entries,
            ..IdentitySources::default()
        };
        sources.fill(stored);
        let generation = 1;
        let thread = persistence.is_some();
        let thread = thread.then(|| StoreThread::start("identities"));
        let inner = Arc::new(IdentitiesInner {
            index: ArcSwap::from_pointee(sources.indexed(generation)),
            sources: Mutex::new(sources),
            turn: Mutex::default(),
            persistence,
            generation: watch::Sender::new(generation),
            clock,
        });
        Self { inner, thread }
    }

    /// Replaces the entries of the configuration and notifies the watchers.
    pub fn replace_config(&self, entries: IdentityEntries) {
        let mut sources = self.inner.sources();
        sources.config = entries;
        self.inner.rebuild(&mut sources);
    }

    /// The identity that would hold `key` with these entries of the configuration.
    #[must_use]
    pub fn preview(&self, entries: &IdentityEntries, key: &PeerKey) -> Option<Arc<Identity>> {
        // The code works on a copy: entries that are only tried must not be in force for a moment.
        let mut preview = self.inner.sources().clone();
        preview.config = entries.clone();
        // No table has the generation 0: the result must not pass for an identity that is in force.
        let index = preview.index(0);
        current(&index, index.by_key(key)?, self.now_s())
    }

    /// Number of the table in force. Each identity has the number of its own table.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner.index.load().generation()
    }

    /// Every known identity, whether it may connect or not: administrators, peers, tokens of programs.
    #[must_use]
    pub fn entries(&self) -> IdentityEntries {
        let sources = self.inner.sources();
        let mut all = sources.config.clone();
        // The configuration wins where both sources have an entry.
        let known = |id: &PeerId| sources.config.holds(id);
        let peers = sources.peers.values().filter(|p| !known(&p.peer_id));
        all.peers.extend(peers.cloned());
        let keys = sources.api_keys.values().filter(|key| !known(&key.id()));
        all.api_keys.extend(keys.cloned());
        all
    }

    /// The day of a token's last use, in days since 1970.
    #[must_use]
    pub fn used_day(&self, key_id: &KeyId) -> Option<u32> {
        self.inner.sources().days.get(key_id)?.get()
    }

    /// Whether the configuration has an entry of this name. Such an entry changes in the configuration only.
    #[must_use]
    pub fn is_configured(&self, id: &PeerId) -> bool {
        self.inner.sources().config.holds(id)
    }

    /// Entries of the store that this configuration hides, in part or as a whole: the name of each, and what is
    /// hidden.
    #[must_use]
    pub fn hidden_by(&self, config: &IdentityEntries) -> Vec<(PeerId, String)> {
        self.inner.sources().hidden_by(config)
    }

    /// Entries of the store that the configuration `before` hides, in part or as a whole, and `after` does not: the name
    /// of each, and what counts again.
    #[must_use]
    pub fn uncovered_by(
        &self,
        before: &IdentityEntries,
        after: &IdentityEntries,
    ) -> Vec<(PeerId, String)> {
        self.inner.sources().uncovered_by(before, after)
    }

    /// The time, if the clock is sane.
    #[must_use]
    pub fn now_s(&self) -> Option<u64> {
        self.inner.clock.now_s()
    }

    /// Makes a planned change of the store, unless the plan or the persistence refuses.
    fn change<T: Send + 'static>(
        &self,
        plan: impl FnOnce(&IdentitySources, Option<u64>) -> Plan<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, IdentityStoreError>> {
        let Some(thread) = &self.thread else {
            return Box::pin(std::future::ready(self.inner.change(plan)));
        };
        // The change runs in a thread of its own: it waits for a disk, and has to finish also when the caller drops
        // the future. The runtime's threads for blocking work may all be in use, by the peer whose rights end.
        let inner = Arc::clone(&self.inner);
        let change = thread.run(move || inner.change(plan));
        Box::pin(async { change.await.map_err(ended)? })
    }
}

impl IdentitiesInner {
    fn rebuild(&self, sources: &mut IdentitySources) {
        self.generation.send_modify(|generation| {
            *generation += 1;
            // The store happens inside, so that the table in force is always that of the announced generation.
            self.index.store(Arc::new(sources.indexed(*generation)));
        });
    }

    fn change<T>(
        &self,
        plan: impl FnOnce(&IdentitySources, Option<u64>) -> Plan<T>,
    ) -> Result<T, IdentityStoreError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (changes, answer) = plan(&self.sources(), self.clock.now_s())?;
        if changes.is_empty() {
            return Ok(answer);
        }
        // The lock on the entries is not held here: readers must not wait for a disk.
        if let Some(persistence) = &self.persistence {
            persistence.persist(&changes)?;
        }
        // The configuration may have changed since. It wins when the table is built.
        let mut sources = self.sources();
        for change in changes {
            sources.make(change);
        }
        self.rebuild(&mut sources);
        Ok(answer)
    }

    /// Stores the days of use of tokens. No rights change, so the watchers are not notified.
    fn keep_uses(&self) -> Result<(), IdentityStoreError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.sources().used();
        if changes.is_empty() {
            return Ok(());
        }
        if let Some(persistence) = &self.persistence {
            persistence.persist(&changes)?;
        }
        let mut sources = self.sources();
        changes.into_iter().for_each(|change| sources.make(change));
        Ok(())
    }

    fn sources(&self) -> MutexGuard<'_, IdentitySources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The identity, if its holder may connect at this time.
fn current(
    index: &IdentityIndex,
    holder: &IndexedIdentity,
    now_s: Option<u64>,
) -> Option<Arc<Identity>> {
    let identity = || Arc::clone(&holder.identity);
    is_let_in(index, holder, now_s, MAKERS_MAX).then(identity)
}

/// Whether a holder may connect at this time. A token that was made while the node ran is valid as long as its maker
/// is, and as long as the maker holds all rights of the token. At most `makers` of them are checked, one after the
/// other.
fn is_let_in(
    index: &IdentityIndex,
    holder: &IndexedIdentity,
    now_s: Option<u64>,
    makers: usize,
) -> bool {
    let by_itself = holder.enabled && !is_expired(holder.expires, now_s);
    let Some(maker) = holder.maker.as_ref().filter(|_| by_itself) else {
        return by_itself;
    };
    let holds = |maker: &&IndexedIdentity| maker.identity.scopes.covers(&holder.identity.scopes);
    let maker = index.maker(maker).filter(|_| makers > 0).filter(holds);
    maker.is_some_and(|maker| is_let_in(index, maker, now_s, makers - 1))
}

fn ended(error: std::io::Error) -> IdentityStoreError {
    IdentityStoreError::Unavailable(error.to_string())
}

impl IdentityProvider for Identities {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        let index = self.inner.index.load();
        current(&index, index.by_key(key)?, self.now_s())
    }

    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>> {
        let hash = token.hash().ok()?;
        // The clock is read for every token: if it were read for known ones only, the time of the call would
        // distinguish a token that has ended from one that never was.
        let now_s = self.now_s();
        let index = self.inner.index.load();
        let (holder, day) = index.by_token(&hash)?;
        let identity = current(&index, holder, now_s)?;
        // Without a sane clock the day is unknown, and the old one stays.
        if let Some(now_s) = now_s {
            day.note(u32::try_from(now_s / DAY_S).unwrap_or(u32::MAX));
        }
        Some(identity)
    }

    fn by_token_hash(&self, token: &TokenHash) -> Option<Arc<Identity>> {
        let index = self.inner.index.load();
        let (holder, _) = index.by_token(token)?;
        current(&index, holder, self.now_s())
    }

    fn by_id(&self, id: &PeerId) -> Option<Arc<Identity>> {
        self.by_id_text(id.as_str())
    }

    fn by_id_text(&self, id: &str) -> Option<Arc<Identity>> {
        let index = self.inner.index.load();
        current(&index, index.by_id(id)?, self.now_s())
    }

    fn lasting_key(&self, id: &PeerId, shown: Option<PeerKey>) -> Option<PeerKey> {
        self.entries().lasting_key(id, shown)
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.inner.generation.subscribe()
    }

    fn table(&self) -> Option<u64> {
        Some(self.generation())
    }

    fn token_ends_in(&self, token: &AuthToken) -> Option<Duration> {
        let index = self.inner.index.load();
        let (holder, _) = index.by_token(&token.hash().ok()?)?;
        // The token ends with the first of its makers that ends.
        let makers = std::iter::successors(Some(holder), |made| index.maker(made.maker.as_ref()?));
        let ends = makers.take(MAKERS_MAX).filter_map(|holder| holder.expires);
        let end = ends.min()?;
        // Without a sane clock nothing that ends is valid.
        let left = self.inner.clock.now_s().map(|now| end.saturating_sub(now));
        Some(Duration::from_secs(left.unwrap_or_default()))
    }

    fn by_name(&self, name: &str) -> Option<PeerId> {
        self.inner.index.load().by_name(name).cloned()
    }

    fn max_connections(&self, peer: &PeerId) -> Option<u32> {
        self.inner.index.load().max_connections(peer)
    }
}

impl IdentityStore for Identities {
    fn put(&self, entry: PeerEntry) -> BoxFuture<'_, Result<(), IdentityStoreError>> {
        self.change(|sources, _| sources.put(entry))
    }

    fn patch(
        &self,
        peer: PeerId,
        patch: PeerPatch,
    ) -> BoxFuture<'_, Result<(), IdentityStoreError>> {
        self.change(|sources, _| sources.patch(peer, patch))
    }

    fn remove(&self, peer: PeerId) -> BoxFuture<'_, Result<bool, IdentityStoreError>> {
        self.change(|sources, _| sources.remove(peer))
    }

    fn rotate(
        &self,
        peer: PeerId,
        old: PeerKey,
        new: PeerKey,
    ) -> BoxFuture<'_, Result<Option<u64>, IdentityStoreError>> {
        self.change(move |sources, now_s| sources.rotate(peer, old, new, now_s))
    }

    fn put_api_key(&self, key: ApiKey) -> BoxFuture<'_, Result<(), IdentityStoreError>> {
        self.change(|sources, _| sources.put_api_key(key))
    }

    fn remove_api_key(&self, key_id: KeyId) -> BoxFuture<'_, Result<bool, IdentityStoreError>> {
        self.change(move |sources, _| sources.remove_api_key(key_id))
    }

    fn revoke_token(&self, key_id: KeyId) -> BoxFuture<'_, Result<bool, IdentityStoreError>> {
        self.change(move |sources, _| sources.revoke_token(key_id))
    }

    fn keep_uses(&self) -> BoxFuture<'_, Result<(), IdentityStoreError>> {
        let Some(thread) = &self.thread else {
            return Box::pin(std::future::ready(self.inner.keep_uses()));
        };
        let inner = Arc::clone(&self.inner);
        let keeping = thread.run(move || inner.keep_uses());
        Box::pin(async { keeping.await.map_err(ended)? })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<PeerEntry>, IdentityStoreError>> {
        let all = self.inner.sources().peers.values().cloned().collect();
        Box::pin(std::future::ready(Ok(all)))
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities")
            .field("index", &self.inner.index.load())
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl IdentityEntries {
    /// The key of the administrator of this name.
    #[must_use]
    pub fn admin_key(&self, id: &PeerId) -> Option<PeerKey> {
        let admin = self.admins.iter().find(|(admin, _)| admin == id);
        admin.map(|(_, key)| *key)
    }

    /// A key by which this administrator or peer is known again. If the peer has several, it is `shown`, which it used
    /// just now, or else the first one, and a key that another one replaced only if it has no other.
    #[must_use]
    pub fn lasting_key(&self, id: &PeerId, shown: Option<PeerKey>) -> Option<PeerKey> {
        let of_peer = || {
            let peer = self.peers.iter().find(|peer| peer.peer_id == *id)?;
            let stays = |key: &&PeerKey| !peer.key_ends.contains_key(*key);
            let shown = peer.keys.iter().find(|key| Some(**key) == shown);
            let key = shown.filter(stays).or_else(|| peer.keys.iter().find(stays));
            key.or_else(|| peer.keys.first()).copied()
        };
        self.admin_key(id).or_else(of_peer)
    }

    /// Whether one of the entries has this name.
    #[must_use]
    pub fn holds(&self, id: &PeerId) -> bool {
        self.admins.iter().any(|(admin, _)| admin == id)
            || self.peers.iter().any(|peer| peer.peer_id == *id)
            || self.api_keys.iter().any(|key| key.id() == *id)
    }
}

#[cfg(test)]
mod tests;
