//! Dials of the tests' own clients.

use std::time::Duration;

use alknet_endpoint::EndpointDialer;
use alknet_test_support::deadline;
use alknet_tls::NodeKey;

/// Longest time of one dial, on a machine at rest.
const DIAL_WITHIN: Duration = Duration::from_secs(30);

/// A dialer that gives each dial 30 s, and longer on a busy machine: an emulated machine that shares a processor with
/// other programs needs more for a handshake than the ten seconds of [`alknet_endpoint::DIAL_TIMEOUT`].
#[must_use]
pub fn patient_dialer(key: Option<NodeKey>) -> EndpointDialer {
    EndpointDialer::new(key).with_dial_timeout(deadline(DIAL_WITHIN))
}
