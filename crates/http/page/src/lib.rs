//! The page an administrator looks at: how the node is, as its operations tell it.
//!
//! One gets in by a link that works once, which `node/page-ticket` makes over a connection that proved
//! who asks, or with a token. Either begins a session behind a cookie that is good for reading this page
//! and nothing else: no other path looks at it. So there is nothing that another site could have a
//! browser do. What changes something is asked for by a link of its own, and the link is the proof.
//!
//! Everything shown comes from operations, called as the viewer; what the viewer may not call is left out.

pub mod limits;

mod answer;
mod gather;
mod history;
mod live;
mod operation;
mod page;
mod plot;
mod render;
mod session;
mod text;
mod ticket;
mod view;

pub use page::AdminPage;
pub use session::COOKIE_NAME;
