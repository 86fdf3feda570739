//! An administrator removes a peer of a booted machine. The peer still has tickets from before.

use alknet_tests::{RemovedPeerFixture, TestBench};
use alknet_tls::NodeKey;
use tokio::runtime::Runtime;

use super::Machine;

/// A second administrator. The next configuration does not name it.
pub(super) struct Removed {
    key: NodeKey,
}

impl Removed {
    pub(super) fn new() -> Self {
        Self {
            key: NodeKey::generate().expect("the system has entropy"),
        }
    }

    /// The document of a machine with this administrator beside the bench's: only an administrator may follow an
    /// operation there.
    pub(super) fn document(&self, bench: &TestBench) -> String {
        let (admin, second) = (bench.admin().identity(), self.key.public());
        format!(
            "[compute]\ngpu_seconds = 600\n[node]\nname = \"alknet\"\nadmin_keys = [\"{admin}\", \"{second}\"]\n"
        )
    }

    /// The peer reads nothing more by its tickets once `removal` has applied another configuration.
    pub(super) fn reads_nothing_more(&self, web: &Machine, removal: impl FnOnce()) {
        let runtime = Runtime::new().expect("a runtime");
        let mut follower = runtime.block_on(RemovedPeerFixture::begin(&web.target(), &self.key));
        removal();
        runtime.block_on(follower.is_ended());
        let refused = web.curl(&follower.unused, &[]);
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (401, "UNAUTHENTICATED")
        );
    }
}
