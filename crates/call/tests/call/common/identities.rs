//! Who is known, and by what.

use std::sync::Arc;

use alknet_core::{AuthToken, Identity, IdentityKind, IdentityProvider, PeerKey};
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

/// Knows the tokens `good`, which may administrate, and `guest`, which may nothing, until they are
/// revoked; and by its key the node that is dialled.
#[derive(Default)]
pub struct Tokens {
    changed: watch::Sender<u64>,
    revoked: std::sync::Mutex<Vec<String>>,
}

impl Tokens {
    pub fn revoke(&self, token: &str) {
        self.revoked
            .lock()
            .expect("no panics here")
            .push(token.to_owned());
        self.changed.send_modify(|n| *n += 1);
    }
}

impl IdentityProvider for Tokens {
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
