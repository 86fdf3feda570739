//! From a script that works to an operation of the node: proposed by its author, tested again, reviewed by another
//! peer, promoted, and taken back when it was a mistake.
//!
//! What is proposed is a [`PromotionBundle`]: sources, specification, tests and the operations it wants to
//! call, signed by its author. The [`PromotionStore`] keeps every bundle, every version and a record of who
//! did what. [`Promotion`] is the whole of it for a node: its operations `ops/*`, and the generation
//! of promoted operations that it puts beside those of the program.
//!
//! The way through the folders: `bundle` is what is signed; `check` looks at sources without running
//! them; `trial` runs the tests; `store` keeps; `service` decides; `operations` is what the wire
//! sees; `generation` makes operations of versions, `callers` counts who calls them and `tally` how they
//! fare.

mod bundle;
mod callers;
mod check;
mod difference;
mod draft;
mod error;
mod generation;
mod grants;
pub mod limits;
mod operations;
mod schema;
mod service;
mod store;
mod tally;
mod trial;

pub use bundle::{
    Blake3Hash, BundleContent, BundleError, FuelPercentiles, OperationCode, PromotionBundle,
    canonical, read_json,
};
pub use check::Finding;
pub use draft::{DRAFT_FILE, DraftError, read_draft};
pub use error::PromotionError;
pub use generation::{InstalledService, Invoker, PromotedInvocation};
pub use grants::BundleGrant;
pub use service::{
    ActivationTime, OmittedVersion, Promotion, PromotionConfig, PromotionParts, ProposalQuery,
    ProposalRequest, ReviewTerms,
};
pub use store::{
    AuditAct, AuditEntry, AuthoritySnapshot, BundleFindings, NewProposal, OperationVersion,
    PromotionStore, PromotionStoreError, PromotionTerms, Proposal, ProposalFilter, ProposalState,
    ReviewResult, RollbackResult, TallyCounts,
};
pub use trial::{TestRunner, TrialResult, TrialRun};
