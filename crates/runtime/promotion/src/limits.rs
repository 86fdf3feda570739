//! Every limit of promotion, as a constant with its unit and its reason.

use std::time::Duration;

/// Bytes of a bundle's document: what a script may hand over as JSON.
pub const BUNDLE_BYTES_MAX: usize = alknet_runtime::limits::JSON_BYTES;
/// Levels of a bundle's document.
pub const NESTING_MAX: usize = alknet_runtime::limits::JSON_DEPTH;
/// Modules of a bundle.
pub const MODULES_MAX: usize = alknet_runtime::limits::MODULES;
/// Folders below that of a draft.
pub const FOLDERS_MAX: usize = 256;
/// Cases of a bundle's tests. There is at least one.
pub const CASES_MAX: usize = alknet_runtime::limits::TEST_CASES;
/// Operations that a bundle may want to call: more, no reviewer reads.
pub const USES_MAX: usize = 64;
/// Error codes that a bundle declares.
pub const ERRORS_MAX: usize = 64;
/// Bytes of an operation's name in a bundle.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a description.
pub const DESCRIPTION_BYTES_MAX: usize = 4 << 10;
/// Findings in one answer.
pub const FINDINGS_MAX: usize = 64;
/// How far code of promoted operations may import code of promoted operations.
pub const IMPORT_DEPTH_MAX: usize = 8;
/// Cases of one bundle that run at the same time.
pub const CASES_AT_ONCE: usize = 4;
/// All of a bundle's tests together, both runs of each.
pub const TRIAL_MAX: Duration = Duration::from_secs(60);
/// Bundles that a store keeps, rejected and retired ones included.
pub const BUNDLES_MAX: u64 = 4_096;
/// Bytes of all their documents.
pub const STORE_BYTES_MAX: u64 = 1 << 30;
/// Proposals of one author that wait for a review.
pub const WAITING_PER_AUTHOR_MAX: u64 = 32;
/// Promoted operations of a node.
pub const PATHS_MAX: u64 = 1_024;
/// Reviews that a configuration may ask for.
pub const REVIEWS_MAX: u32 = 16;
/// Bytes of the differences that a reviewer is shown; the rest is cut, and it is said.
pub const DIFFERENCE_BYTES_MAX: usize = 256 << 10;
/// Proposals on one page of a listing.
pub const PAGE_MAX: usize = 100;
/// Entries of the record that are shown of one proposal.
pub const AUDIT_SHOWN_MAX: usize = 200;
/// Bytes of a reviewer's word.
pub const REASON_BYTES_MAX: usize = 1 << 10;
/// Calls of a new version that are watched for errors.
pub const WATCHED_CALLS: u32 = 100;
/// By how much of a hundred the errors of a new version may exceed those of the one before.
pub const WORSE_PERCENT_MAX: u32 = 20;
/// Scopes that a reviewer may ask of callers.
pub const SCOPES_MAX: usize = alknet_call::limits::SCOPES_MAX;
/// Bytes of one of them.
pub const SCOPE_BYTES_MAX: usize = alknet_call::limits::SCOPE_BYTES_MAX;
/// Calls of one promoted operation that run or wait at the same time.
pub const CALLS_AT_ONCE: u32 = 128;
/// The same of all promoted operations of one author: half of the sessions that the author may have, so that their
/// callers leave the author the other half.
pub const AUTHOR_CALLS_MAX: u32 = 128;
/// Of these, the calls of one caller.
pub const CALLER_CALLS_MAX: u32 = 64;
/// Calls up to which a caller gets some of the last quarter of [`AUTHOR_CALLS_MAX`].
pub const CALLER_CALLS_SPARE: u32 = 4;
/// How long a caller waits who finds as many calls as may be, in milliseconds.
pub const CALL_RETRY_MS: u64 = 100;
/// How long who finds no room waits before asking again, in milliseconds.
pub const BUSY_RETRY_MS: u64 = 1_000;
/// Proposals whose tests run at the same time.
pub const TRIALS_AT_ONCE: u32 = 2;
/// So many workers lost within [`CRASHES_WITHIN`] set an operation aside.
pub const CRASHES_MAX: usize = 3;
/// See [`CRASHES_MAX`].
pub const CRASHES_WITHIN: Duration = Duration::from_secs(60);

/// What the calls begin with by which a script acts through a capability.
pub(crate) const ACTS: &str = "capability/";
