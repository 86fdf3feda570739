//! The page for administrators: it shows the node's state as its operations report it.
//!
//! A viewer enters with a token, or with a link that works once; `node/page-ticket` makes such a link over an
//! authenticated connection. Both begin a session with a cookie that allows reading this page and nothing else: no
//! other path uses it. So another site gains nothing if it makes a browser send a request. An action needs a link of
//! its own, which is the proof that an administrator requested it.
//!
//! All content comes from operations that are called as the viewer. The page leaves out what the viewer may not call.

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
