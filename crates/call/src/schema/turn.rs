//! Work that occupies a processor for long, beside the threads that serve.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::thread;

use alknet_core::{Identity, PeerId};

use crate::sync::lock;

/// The limit of waiting checks: each holds a thread.
pub(super) const WAITING_MAX: usize = 64;
/// The limit of running and waiting checks of one identity: with a limit for all alone, one identity with many
/// requests would have the checks of all others refused. Unknown peers have one share together.
const SHARE_MAX: usize = 8;

/// The share of the turns that a check counts in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PermitShare<'a> {
    /// No share: checks by the node for itself, one after the other.
    Node,
    /// The share of a peer; `None` for all unauthenticated ones.
    Peer(Option<&'a PeerId>),
}

impl<'a> PermitShare<'a> {
    pub(crate) fn for_identity(identity: Option<&'a Arc<Identity>>) -> Self {
        Self::Peer(identity.map(|peer| &peer.id))
    }

    /// The share of the schema's owner; without an owner, the node's own.
    pub(super) fn of_owner(owner: Option<&'a PermitOwner>) -> Self {
        owner.map_or(Self::Node, |owner| Self::Peer(owner.0.as_ref()))
    }

    fn owner(self) -> Option<PermitOwner> {
        match self {
            Self::Node => None,
            Self::Peer(peer) => Some(PermitOwner(peer.cloned())),
        }
    }
}

/// The owner of a share.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct PermitOwner(Option<PeerId>);

impl PermitOwner {
    /// A peer; `None` for all unauthenticated ones.
    pub(super) fn for_peer(peer: Option<&PeerId>) -> Self {
        Self(peer.cloned())
    }
}

static TURNS: LazyLock<ValidationPermits> = LazyLock::new(|| {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    ValidationPermits {
        state: Mutex::default(),
        // Half of the processors are left to all other work.
        most: (processors / 2).max(1),
        ended: Condvar::new(),
    }
});

/// Does `work` while tasks of the runtime go on: another thread replaces this one.
#[cfg(not(target_family = "wasm"))]
pub(super) fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    use tokio::task::block_in_place;

    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    match flavor {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // A runtime of one thread has no other, and outside of one no task waits.
        _ => work(),
    }
}

/// Does `work`: WebAssembly has one thread, and no other could replace it.
#[cfg(target_family = "wasm")]
pub(super) fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    work()
}

struct ValidationPermits {
    state: Mutex<PermitState>,
    most: usize,
    ended: Condvar,
}

#[derive(Default)]
struct PermitState {
    running: usize,
    waiting: usize,
    /// The running and waiting checks of each peer that has any.
    shares: HashMap<PermitOwner, usize>,
}

impl PermitState {
    /// Takes a permit from a peer's share, unless the share is used up.
    fn enter(&mut self, owner: &PermitOwner) -> bool {
        let taken = self.shares.entry(owner.clone()).or_default();
        let enters = *taken < SHARE_MAX;
        *taken += usize::from(enters);
        enters
    }

    fn leave(&mut self, owner: &PermitOwner) {
        if let Some(taken) = self.shares.get_mut(owner) {
            *taken -= 1;
            if *taken == 0 {
                self.shares.remove(owner);
            }
        }
    }
}

/// The right to occupy a processor, until this is dropped.
pub(super) struct ValidationPermit {
    turns: &'static ValidationPermits,
    owner: Option<PermitOwner>,
}

impl ValidationPermit {
    /// Waits for a turn; `None` where `most` wait already, or the share is used up.
    pub(super) fn wait(most: usize, share: PermitShare<'_>) -> Option<Self> {
        let turns = &*TURNS;
        let owner = share.owner();
        let mut state = lock(&turns.state);
        if state.running >= turns.most && state.waiting >= most {
            return None;
        }
        // One peer must not hold every waiting slot.
        if owner.as_ref().is_some_and(|owner| !state.enter(owner)) {
            return None;
        }
        state.waiting += 1;
        // A condition variable may wake without a notice.
        while state.running >= turns.most {
            let woken = turns.ended.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        state.running += 1;
        Some(Self { turns, owner })
    }
}

impl Drop for ValidationPermit {
    fn drop(&mut self) {
        let mut state = lock(&self.turns.state);
        state.running -= 1;
        if let Some(owner) = &self.owner {
            state.leave(owner);
        }
        // Before the notice: the thread that wakes takes the lock.
        drop(state);
        self.turns.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{SchemaCheckError, SchemaError, ValueSchema};

    /// Two tests that took all turns one by one would wait for each other.
    static ALL_TURNS: Mutex<()> = Mutex::new(());

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn others_are_served_meanwhile() {
        let (release, released) = std::sync::mpsc::channel();
        let (done, ended) = tokio::sync::oneshot::channel();
        let works = tokio::spawn(async move {
            run_blocking(|| {
                let _turn = ValidationPermit::wait(usize::MAX, PermitShare::Node);
                // Ends only once another task of this one thread has run.
                released.recv()
            })
        });
        tokio::spawn(async move {
            let _ = release.send(());
            let _ = done.send(());
        });
        ended.await.expect("the other task ran");
        works.await.expect("no panic").expect("it was asked");
    }

    /// Other tests of this program take turns as well.
    #[test]
    fn no_more_wait_than_may_and_no_peer_takes_all() {
        let _alone = lock(&ALL_TURNS);
        let node = || ValidationPermit::wait(usize::MAX, PermitShare::Node);
        let all: Vec<_> = (0..TURNS.most).map(|_| node()).collect();
        assert!(ValidationPermit::wait(0, PermitShare::Node).is_none());
        let peer = |name: &str| name.parse::<PeerId>().expect("a peer id");
        let (greedy, other) = (peer("greedy"), peer("other"));
        let waits = |peer: &PeerId| {
            let peer = peer.clone();
            thread::spawn(move || {
                ValidationPermit::wait(WAITING_MAX, PermitShare::Peer(Some(&peer))).is_some()
            })
        };
        let waiting: Vec<_> = (0..SHARE_MAX).map(|_| waits(&greedy)).collect();
        let owner = PermitOwner(Some(greedy.clone()));
        let entered = || lock(&TURNS.state).shares.get(&owner).copied();
        while entered() != Some(SHARE_MAX) {
            thread::yield_now();
        }
        // A hundred more checks of this peer are refused, and one of another peer waits.
        let more = || ValidationPermit::wait(WAITING_MAX, PermitShare::Peer(Some(&greedy)));
        assert!((0..100).all(|_| more().is_none()));
        let others = waits(&other);
        drop(all);
        assert!(others.join().expect("no panic"));
        assert!(waiting.into_iter().all(|one| one.join().expect("no panic")));
        assert_eq!(entered(), None);
        assert!(node().is_some());
    }

    /// A caller sends schemas of its own while every turn is taken, and large values for one of them.
    #[test]
    fn schemas_that_a_peer_brought_wait_within_its_share() {
        let _alone = lock(&ALL_TURNS);
        let peer = |name: &str| name.parse::<PeerId>().expect("a peer id");
        let (greedy, other) = (peer("brings-many"), peer("brings-one"));
        let integers = json!({ "items": { "type": "integer" } });
        let schema = ValueSchema::of_peer(&integers, Some(&greedy)).expect("a schema");
        let large = json!(vec![7; 300_000]);
        let node = || ValidationPermit::wait(usize::MAX, PermitShare::Node);
        let all: Vec<_> = (0..TURNS.most).map(|_| node()).collect();
        let brings = |peer: &PeerId| {
            let (peer, schema) = (peer.clone(), integers.clone());
            thread::spawn(move || ValueSchema::of_peer(&schema, Some(&peer)).is_ok())
        };
        let waiting: Vec<_> = (0..SHARE_MAX).map(|_| brings(&greedy)).collect();
        let owner = PermitOwner(Some(greedy.clone()));
        let entered = || lock(&TURNS.state).shares.get(&owner).copied();
        while entered() != Some(SHARE_MAX) {
            thread::yield_now();
        }
        // A hundred more schemas hold no thread, and neither does a check.
        let more = || ValueSchema::of_peer(&integers, Some(&greedy)).map(drop);
        assert!((0..100).all(|_| more() == Err(SchemaError::Busy)));
        assert_eq!(schema.validate(&large), Err(SchemaCheckError::Busy));
        let others = brings(&other);
        drop(all);
        assert!(others.join().expect("no panic"));
        assert!(waiting.into_iter().all(|one| one.join().expect("no panic")));
        assert_eq!(schema.validate(&large), Ok(()));
        assert_eq!(entered(), None);
    }
}
