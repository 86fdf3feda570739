//! All limits of promotion, as constants with a unit and a reason.

use std::time::Duration;

/// Bytes of a bundle's document: as many as a script may pass as JSON.
pub const BUNDLE_BYTES_MAX: usize = alknet_runtime::limits::JSON_BYTES;
/// Levels of a bundle's document.
pub const NESTING_MAX: usize = alknet_runtime::limits::JSON_DEPTH;
/// Modules of a bundle.
pub const MODULES_MAX: usize = alknet_runtime::limits::MODULES;
/// Folders below the folder of a draft.
pub const FOLDERS_MAX: usize = 256;
/// Cases of a bundle's tests, of which there must be at least one.
pub const CASES_MAX: usize = alknet_runtime::limits::TEST_CASES;
/// Operations that a bundle may want to call: a reviewer would not read more.
pub const USES_MAX: usize = 64;
/// Error codes that a bundle declares.
pub const ERRORS_MAX: usize = 64;
/// Bytes of an operation's name in a bundle.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a description.
pub const DESCRIPTION_BYTES_MAX: usize = 4 << 10;
/// Findings in one answer.
pub const FINDINGS_MAX: usize = 64;
/// How many times promoted code may import further promoted code.
pub const IMPORT_DEPTH_MAX: usize = 8;
/// Cases of one bundle that run at the same time.
pub const CASES_AT_ONCE: usize = 4;
/// The limit for all tests of a bundle together, both runs of each.
pub const TRIAL_MAX: Duration = Duration::from_secs(60);
/// Bundles in a store, including rejected and retired ones.
pub const BUNDLES_MAX: u64 = 4_096;
/// Bytes of all their documents.
pub const STORE_BYTES_MAX: u64 = 1 << 30;
/// Proposals of one author that wait for a review.
pub const WAITING_PER_AUTHOR_MAX: u64 = 32;
/// Promoted operations of a node.
pub const PATHS_MAX: u64 = 1_024;
/// Reviews that a configuration may require.
pub const REVIEWS_MAX: u32 = 16;
/// Bytes of the differences for a reviewer; the rest is cut, with a line that says so.
pub const DIFFERENCE_BYTES_MAX: usize = 256 << 10;
/// Proposals on one page of a listing.
pub const PAGE_MAX: usize = 100;
/// Entries of the record in the answer for one proposal.
pub const AUDIT_SHOWN_MAX: usize = 200;
/// Bytes of a reviewer's reason.
pub const REASON_BYTES_MAX: usize = 1 << 10;
/// Calls of a new version whose errors are counted.
pub const WATCHED_CALLS: u32 = 100;
/// How much the error rate of a new version may exceed the previous version's, in percent of the calls.
pub const WORSE_PERCENT_MAX: u32 = 20;
/// Scopes that a reviewer may require of callers.
pub const SCOPES_MAX: usize = alknet_call::limits::SCOPES_MAX;
/// Bytes of one scope.
pub const SCOPE_BYTES_MAX: usize = alknet_call::limits::SCOPE_BYTES_MAX;
/// Calls of one promoted operation that run or wait at the same time.
pub const CALLS_AT_ONCE: u32 = 128;
/// Like `CALLS_AT_ONCE`, for all promoted operations of one author: half of the sessions that the author may have, so
/// that the callers leave the author the other half.
pub const AUTHOR_CALLS_MAX: u32 = 128;
/// The share of one caller in these calls.
pub const CALLER_CALLS_MAX: u32 = 64;
/// The number of its own calls up to which a caller may use the last quarter of [`AUTHOR_CALLS_MAX`].
pub const CALLER_CALLS_SPARE: u32 = 4;
/// How long a caller waits before it retries if the most calls are running, in milliseconds.
pub const CALL_RETRY_MS: u64 = 100;
/// How long a caller waits before it retries if there was no room, in milliseconds.
pub const BUSY_RETRY_MS: u64 = 1_000;
/// Proposals whose tests run at the same time.
pub const TRIALS_AT_ONCE: u32 = 2;
/// If this many workers are lost within [`CRASHES_WITHIN`], the node sets the operation aside.
pub const CRASHES_MAX: usize = 3;
/// The period of [`CRASHES_MAX`].
pub const CRASHES_WITHIN: Duration = Duration::from_secs(60);

/// The prefix of the paths by which a script acts through a capability.
pub(crate) const ACTS: &str = "capability/";
