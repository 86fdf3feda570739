//! The scopes of a watcher, which change while the operations stay as they are.

use std::future::pending;
use std::sync::Arc;

use alknet_core::Identity;
use tokio::sync::watch;

/// Notices when the scopes of a watcher change: then what it may call changes, and no operation does.
pub(super) struct WatcherRights {
    tables: watch::Receiver<u64>,
    /// The identity whose scopes the watcher's events are for.
    known: Option<Arc<Identity>>,
    now: Box<dyn Fn() -> Option<Arc<Identity>> + Send>,
}

impl WatcherRights {
    pub(super) fn new(
        tables: watch::Receiver<u64>,
        now: impl Fn() -> Option<Arc<Identity>> + Send + 'static,
    ) -> Self {
        Self {
            tables,
            known: now(),
            now: Box::new(now),
        }
    }

    /// Whether the scopes have changed since the last call.
    pub(super) fn take_change(&mut self) -> bool {
        // Before the lookup: the next call sees a change in between.
        self.tables.mark_unchanged();
        // The node ends the subscription of an identity that is gone.
        let Some(now) = (self.now)() else {
            return false;
        };
        let is_same = self
            .known
            .as_ref()
            .is_none_or(|known| known.scopes == now.scopes && known.resources == now.resources);
        self.known = Some(now);
        !is_same
    }

    /// Waits for another table of identities.
    pub(super) async fn changed(rights: Option<&mut Self>) {
        let changed = match rights {
            Some(rights) => rights.tables.changed().await.is_ok(),
            None => false,
        };
        if !changed {
            // No identity changes any more.
            pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use alknet_core::{IdentityKind, PeerId};

    use super::super::{Announcer, PEERS_SCOPE, RegistryChange, RegistryWatcher};
    use super::*;
    use crate::access::AccessDecision;
    use crate::registry::Registry;
    use crate::spec::OperationSpec;

    fn identity(scopes: &[&str]) -> Arc<Identity> {
        Arc::new(Identity {
            id: "watcher".parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: scopes.iter().collect(),
            resources: Default::default(),
            generation: 0,
        })
    }

    async fn event(watcher: &mut RegistryWatcher) -> RegistryChange {
        let change = watcher.next().await.expect("a change");
        change.expect("all is kept")
    }

    #[tokio::test]
    async fn a_watcher_whose_scopes_change_gets_whole_lists() {
        let announcer = Announcer::new(&Registry::empty());
        let worker: PeerId = "worker".parse().expect("a peer id");
        let query = |name: &str| OperationSpec::query(name, "");
        let closed = query("a/closed").with_scope("work");
        announcer.own("h1", [&query("a/open"), &closed]);
        announcer.peer(&worker, "p1", [&query("gpu/run").with_scope("work")]);
        let (scopes, present) = watch::channel(identity(&[PEERS_SCOPE]));
        let tables = watch::Sender::new(1);
        let of_view = present.clone();
        let mut watcher = RegistryWatcher::new(announcer, move || {
            let identity = of_view.borrow().clone();
            Box::new(move |rule| rule.check_scopes(Some(&identity)) == AccessDecision::Allowed)
        });
        let now = move || Some(present.borrow().clone());
        watcher.rights = Some(WatcherRights::new(tables.subscribe(), now));
        assert!(!event(&mut watcher).await.whole, "the first event");
        for (granted, own, of_peer) in [
            (
                &[PEERS_SCOPE, "work"][..],
                &["a/closed", "a/open"][..],
                &["gpu/run"][..],
            ),
            (&[PEERS_SCOPE], &["a/open"], &[]),
        ] {
            {
                let mut next = pin!(event(&mut watcher));
                assert!(futures_util::poll!(&mut next).is_pending());
                // Another identity changed: this one hears nothing.
                tables.send_modify(|table| *table += 1);
                assert!(futures_util::poll!(&mut next).is_pending());
                scopes.send_replace(identity(granted));
                tables.send_modify(|table| *table += 1);
                let change = next.await;
                assert_eq!((&*change.registry, change.peer), ("h1", None));
                assert_eq!((change.whole, change.added), (true, texts(own)));
            }
            let change = event(&mut watcher).await;
            assert_eq!(change.peer.as_ref(), Some(&worker));
            assert_eq!((change.whole, change.added), (true, texts(of_peer)));
        }
    }

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }
}
