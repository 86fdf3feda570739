//! Turns a working script into an operation of the node: its author proposes it, the node tests it again, another
//! peer reviews it, the node promotes it, and a rollback undoes a mistake.
//!
//! A proposal is a [`PromotionBundle`]: sources, specification, tests and the operations that it wants to call,
//! signed by its author. The [`PromotionStore`] keeps all bundles, all versions and a record of all decisions.
//! [`Promotion`] combines this for a node: its operations `ops/*`, and the generation of promoted operations beside
//! those of the program.
//!
//! The modules: `bundle` is the signed document, `check` scans sources without running them, `trial` runs the tests,
//! `store` keeps the data, `service` decides, `operations` is the wire interface, `generation` makes operations of
//! versions, `callers` counts their calls, and `tally` counts their failures.

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
pub use generation::{InstalledService, Invoker, PromotedCallCharge, PromotedInvocation};
pub use grants::BundleGrant;
pub use service::{
    ActivationTime, OmittedVersion, Promotion, PromotionConfig, PromotionParts, ProposalQuery,
    ProposalRequest, RECHECK_PERIOD, ReviewTerms,
};
pub use store::{
    AuditAct, AuditEntry, AuthoritySnapshot, BundleFindings, NewProposal, OperationVersion,
    PromotionStore, PromotionStoreError, PromotionTerms, Proposal, ProposalFilter, ProposalState,
    ReviewResult, ReviewVote, RollbackResult, TallyCounts,
};
pub use trial::{TestRunner, TrialResult, TrialRun};
