//! A peer of a booted machine that is removed, and the tickets that it was given before.

use alknet_tests::Follower;
use alknet_tls::NodeKey;
use tokio::runtime::Runtime;

use super::Machine;

/// A peer that may follow the log, of which the next configuration knows nothing.
pub(super) struct Removed {
    key: NodeKey,
}

impl Removed {
    pub(super) fn new() -> Self {
        Self {
            key: NodeKey::generate().expect("the system has entropy"),
        }
    }

    /// Its entry in the configuration.
    pub(super) fn entry(&self) -> String {
        let key = self.key.public();
        format!("[[peers]]\npeer_id = \"second\"\nkeys = [\"{key}\"]\nscopes = [\"admin\"]\n")
    }

    /// It reads nothing more by its tickets, once `removal` has applied another configuration.
    pub(super) fn reads_nothing_more(&self, web: &Machine, removal: impl FnOnce()) {
        let runtime = Runtime::new().expect("a runtime");
        let mut follower = runtime.block_on(Follower::begin(&web.target(), &self.key));
        removal();
        runtime.block_on(follower.is_ended());
        let refused = web.curl(&follower.kept, &[]);
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (401, "UNAUTHENTICATED")
        );
    }
}
