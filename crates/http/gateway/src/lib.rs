//! What every way in over HTTP shares: who asks, which operations there are for them, calls, and
//! errors in one form.
//!
//! [`Gateway`] is one for the whole node. A [`HttpCaller`] is one request's: the connection it came over, the identity
//! that its token or the connection's key proved, and by which way it came. Whatever the way, an operation is found,
//! checked and run as one that came over `alknet/call`, never as one of the node's own.

pub mod limits;

mod caller;
mod error;
mod gateway;
mod memory;
mod rate_limit;
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
