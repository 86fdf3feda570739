//! The known identities and their proofs.

use std::sync::{Arc, Mutex};

use alknet_core::{AuthToken, Identity, IdentityKind, IdentityProvider, PeerId, PeerKey};
use tokio::sync::watch;

pub fn identity(id: &str, scopes: &[&str]) -> Arc<Identity> {
    Arc::new(Identity {
        id: id.parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: Default::default(),
        generation: 0,
    })
}

/// The key of the node that [`TestDialer`] reaches.
pub const SERVER_KEY: PeerKey = PeerKey::Ed25519([7; 32]);

/// Knows the tokens `good`, which may administrate, and `guest`, which may nothing, until they are revoked. Knows the
/// dialled node by its key.
#[derive(Default)]
pub struct TokenIdentities {
    changed: watch::Sender<u64>,
    revoked: Mutex<Vec<String>>,
}

impl TokenIdentities {
    pub fn revoke(&self, token: &str) {
        self.revoked
            .lock()
            .expect("no panics here")
            .push(token.to_owned());
        self.changed.send_modify(|n| *n += 1);
    }
}

impl IdentityProvider for TokenIdentities {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        (*key == SERVER_KEY).then(|| identity("server", &["client:double"]))
    }

    fn by_token(&self, token: &AuthToken) -> Option<Arc<Identity>> {
        let token = token.expose();
        if self
            .revoked
            .lock()
            .expect("no panics here")
            .iter()
            .any(|t| t == token)
        {
            return None;
        }
        match token {
            "good" => Some(identity("token", &["node:admin"])),
            "guest" => Some(identity("guest-token", &[])),
            _ => None,
        }
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Knows `user`, by any token and any key. The rights of `user` may change without a notice to watchers: a watcher
/// that waits for a notice goes on with the old rights.
pub struct SilentIdentities {
    changed: watch::Sender<u64>,
    now: Mutex<(u64, Option<Vec<&'static str>>)>,
}

impl SilentIdentities {
    pub fn new(scopes: &[&'static str]) -> Arc<Self> {
        Arc::new(Self {
            changed: watch::Sender::new(1),
            now: Mutex::new((1, Some(scopes.to_vec()))),
        })
    }

    /// Changes the user's scopes, or forgets the user.
    pub fn set(&self, scopes: Option<&[&'static str]>) {
        let mut now = self.now.lock().expect("no panics here");
        *now = (now.0 + 1, scopes.map(<[_]>::to_vec));
    }

    pub fn who(&self) -> Option<Arc<Identity>> {
        let now = self.now.lock().expect("no panics here");
        let mut who = identity("user", now.1.as_deref()?);
        Arc::make_mut(&mut who).generation = now.0;
        Some(who)
    }
}

impl IdentityProvider for SilentIdentities {
    fn by_key(&self, _: &PeerKey) -> Option<Arc<Identity>> {
        self.who()
    }

    fn by_token(&self, _: &AuthToken) -> Option<Arc<Identity>> {
        self.who()
    }

    fn by_id(&self, id: &PeerId) -> Option<Arc<Identity>> {
        self.who().filter(|who| who.id == *id)
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn table(&self) -> Option<u64> {
        Some(self.now.lock().expect("no panics here").0)
    }
}
