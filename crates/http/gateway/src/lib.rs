//! The common part of all interfaces over HTTP: the caller, the operations that it may call, calls, and errors in one
//! form.
//!
//! A node has one [`Gateway`]. Each request has a [`HttpCaller`]: its connection, the identity that its token or the
//! connection's key proved, and its interface. Over every interface, an operation is found, checked and run as over
//! `alknet/call`, and never as a call of the node itself.

pub mod limits;

mod caller;
mod error;
mod gateway;
mod memory;
mod rate_limit;
mod request_buckets;
mod tickets;
mod wire;

pub use caller::{HttpCaller, HttpIngress, RequestId};
pub use error::{ApiError, Code};
pub use gateway::{CallerIdentity, Gateway, GatewayPermit, GatewaySubscription, NO_TOKEN};
pub use memory::{MemoryLease, RequestText, ResponseReserve};
pub use rate_limit::{CallerQuota, Quota};
pub use tickets::{StoredTicket, TicketStore};
pub use wire::{
    BatchItem, BatchMode, BatchRequest, BatchResult, CallRequest, ErrorShape, GatewayCall,
    OperationDescription, SearchPage, SearchQuery, SearchSummary,
};
