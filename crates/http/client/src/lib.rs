//! Requests of this node to other servers, over the node's dialler.
//!
//! [`HttpClient`] speaks HTTP/1.1 and HTTP/2 over whatever [`Dialer`](alknet_core::Dialer) connects to, which
//! verifies the server as every dialler of the node does. [`ClientOptions`] has the hosts and addresses that the
//! client may contact, and those of them that need no TLS. [`HttpRequestOptions`] has the settings of one request.
//! Everything has a limit, and the client takes no proxy, cookie or certificate from its environment.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # async fn example(dialer: Arc<dyn alknet_core::Dialer>) -> Result<(), Box<dyn std::error::Error>> {
//! use alknet_http_client::{ClientOptions, HttpClient};
//!
//! let client = HttpClient::new(dialer, ClientOptions::default());
//! let request = http::Request::get("https://api.example.org/version").body(Default::default())?;
//! let answer = client.send(request).await?;
//! let body = answer.into_body().collect_bounded(64 << 10).await?;
//! # Ok(())
//! # }
//! ```

mod body;
mod client;
mod connection;
mod error;
mod host;
pub mod limits;
mod options;
mod origin;
mod pool;
mod retry;

pub use body::ResponseBody;
pub use client::HttpClient;
pub use error::HttpError;
pub use host::{HostRule, HostRuleError};
pub use options::{ClientOptions, HttpRequestOptions, Redirects};
