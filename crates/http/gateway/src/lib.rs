//! What every way in over HTTP shares: who asks, which operations there are for them, calls, and
//! errors in one form.
//!
//! [`Gateway`] is one for the whole node. A [`Caller`] is one request's: the connection it came over,
//! whom its token or the connection's key proved, and by which way it came. Whatever the way, an
//! operation is found, checked and run as one that came over `alknet/call`, never as one of the
//! node's own.

pub mod limits;

mod caller;
mod error;
mod gateway;
mod memory;
mod room;
mod tickets;
mod wire;

pub use caller::{Caller, RequestId, Via};
pub use error::{ApiError, Code};
pub use gateway::{Gateway, Known, NO_TOKEN, Running, Subscription};
pub use memory::{Lease, Reserve, Upload};
pub use room::{Account, Quota};
pub use tickets::{Ticket, Tickets};
pub use wire::{
    BatchItem, BatchMode, BatchRequest, BatchResult, CallRequest, Description, ErrorShape,
    Invocation, Page, Query, Summary,
};
