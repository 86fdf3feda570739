//! `alknet/call`: typed operations over any connection, in both directions.
//!
//! A node collects its operations in a [`Registry`], serves them with a [`Dispatcher`], and hands a
//! [`CallHandler`] to the endpoint. The other side makes a [`CallConnection`] out of a connection
//! it dialled and calls; its own operations are reachable over the same connection.
//!
//! ```
//! use std::sync::Arc;
//! use alknet_call::*;
//! use serde_json::json;
//!
//! # async fn example(dialled: alknet_core::Connection) -> Result<(), Box<dyn std::error::Error>> {
//! let echo = OperationSpec::query("demo/echo", "Answers with its input.");
//! let registry = Registry::builder()
//!     .with(Registration::new(
//!         echo,
//!         HandlerKind::once(|input, _ctx| async move { Ok(Output::Raw(input.raw().clone())) }),
//!     ))
//!     .build()?;
//! let handler = CallHandler::new(Arc::new(Dispatcher::new(registry)));
//!
//! let connection = CallClient::without_operations().attach(dialled, None);
//! let answer = connection.call("demo/echo", &json!({"n": 1})).await?;
//! assert_eq!(answer.value()["n"], 1);
//! # drop(handler);
//! # Ok(())
//! # }
//! ```
//!
//! Framing and envelopes ([`FrameReader`], [`Envelope`]) know neither sockets nor clocks.

pub mod limits;

mod access;
mod admission;
mod batch;
mod body;
mod call_tree;
mod client;
mod compiled;
mod compose;
mod connect;
mod context;
mod credit;
mod dispatcher;
mod envelope;
mod error;
mod frame;
mod generation;
mod guest;
mod handler;
mod idempotency;
mod import;
mod inbound;
mod inline;
mod json;
mod keyed;
mod lane;
mod layers;
mod link;
mod local;
mod memory;
mod outbound;
mod outgoing;
mod outlet;
mod peers;
mod pump;
mod reconnect;
mod registry;
mod request;
mod request_bytes;
mod retry;
mod rules;
mod schema;
mod serve;
mod services;
mod session;
mod spec;
mod standing;
mod sync;
mod tape;
mod text;
mod unfinished;
mod unread;
mod watch;

pub use access::{AccessControl, OwnershipProvider, Verdict};
pub use batch::Batch;
pub use body::{Body, Item, Output, tree_bytes};
pub use client::{CallClient, CallConnection, CallOptions, Caller, Route, Subscription};
pub use compose::{
    CompositionAuthority, Env, Followed, InvokeOptions, Lookup, OnAbort, OperationEnv,
    PeerCompositeEnv, Provenance, Resolved, Session, SessionError,
};
pub use connect::{ConnectError, Credentials};
pub use context::{ConnInfo, CountedTree, Ctx};
pub use dispatcher::{Dispatcher, Stats};
pub use envelope::{Envelope, EventKind, ForwardedFor, NO_REQUEST, encode_event};
pub use error::{CallError, ErrorCode};
pub use frame::{FrameBody, FrameError, FrameReader};
pub use generation::Generation;
pub use handler::{BoxStream, HandlerKind, OnSlow, OnceHandler, StreamHandler};
pub use import::{
    AdapterError, Disclose, FromCall, FromJsonSchema, ImportClaim, ImportMemory, ImportOptions,
    ImportShare, OperationAdapter, from_call,
};
pub use json::read_object;
pub use local::{Events, Gate, Incoming, LocalEvent, ProvedBy, Refused};
pub use memory::InputMemory;
pub use outbound::Event;
pub use peers::{
    Imported, NameSet, Onward, PeerRef, PeerState, Peers, ReExport, RoutingPolicy, ScopedPeerEnv,
};
pub use reconnect::{OnConnect, Reconnecting, Resuming};
pub use registry::{Registration, Registry, RegistryBuilder};
pub use rules::RegistryError;
pub use schema::{Misfit, Schema, SchemaError};
pub use serve::{ALPN, CallHandler};
pub use services::{Listing, OperationSummary, Protocol};
pub use spec::{
    ErrorDef, Idempotence, OperationSpec, OperationType, Visibility, is_operation_name,
};
pub use unfinished::{Assembly, GuestHandle, Overfull};
pub use watch::{Announcer, Change};
