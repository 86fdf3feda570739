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
//!         HandlerKind::once(|input, _ctx| async move { Ok(CallOutput::Raw(input.raw().clone())) }),
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
mod call_stream;
mod call_tree;
mod client;
mod compiled;
mod compose;
mod connect;
mod connection;
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
mod layers;
mod local_caller;
mod memory;
mod outbound;
mod outgoing;
mod peers;
mod pump;
mod reconnect;
mod refusal;
mod registry;
mod request;
mod request_bytes;
mod request_grant;
mod retry;
mod rules;
mod schema;
mod send_queue;
mod serve;
mod services;
mod session;
mod spec;
mod sync;
mod tape;
mod text;
mod unfinished;
mod unread;
mod upstream;
mod watch;

pub use access::{AccessControl, AccessDecision, OwnershipProvider};
pub use batch::CallBatch;
pub use body::{CallBody, CallOutput, SubscriptionItem, tree_bytes};
pub use client::{CallClient, CallConnection, CallOptions, CallRoute, Caller, Subscription};
pub use compose::{
    CompositionAuthority, Env, Followed, InvokeOptions, OnAbort, OperationEnv, OperationLookup,
    PeerCompositeEnv, Provenance, ResolvedOperation, SandboxSession, SessionError,
};
pub use connect::{ConnectError, DialCredentials};
pub use context::{ConnInfo, CountedTree, Ctx};
pub use dispatcher::{Dispatcher, DispatcherStats};
pub use envelope::{Envelope, EventKind, ForwardedFor, NO_REQUEST, encode_event};
pub use error::{CallError, ErrorCode};
pub use frame::{CallFrameError, FrameBody, FrameReader};
pub use generation::Generation;
pub use handler::{BoxStream, HandlerKind, OnSlow, OnceHandler, StreamHandler};
pub use import::{
    AdapterError, CallerDisclosure, FromCall, FromJsonSchema, ImportCallPermit, ImportCallPermits,
    ImportClaim, ImportMemory, ImportOptions, ImportReservation, ImportShare, OperationAdapter,
    from_call,
};
pub use json::read_object;
pub use local_caller::{
    CallerProof, LocalCallError, LocalCaller, LocalEvent, LocalEvents, LocalRequest,
};
pub use memory::InputMemory;
pub use outbound::SubscriptionEvent;
pub use peers::{
    CallForwarder, ImportSummary, NameSet, PeerRef, PeerState, PeerTable, ReExport, RoutingPolicy,
    ScopedPeerEnv,
};
pub use reconnect::{OnConnect, ReconnectingClient, ResumingSubscription};
pub use registry::{Registration, Registry, RegistryBuilder};
pub use rules::{RegistryError, is_reserved_namespace};
pub use schema::{SchemaCheckError, SchemaError, ValueSchema};
pub use serve::{ALPN, CallHandler};
pub use services::{OperationListing, OperationSummary, Protocol};
pub use spec::{
    ErrorDef, Idempotence, OperationSpec, OperationType, Visibility, is_operation_name,
};
pub use unfinished::{Assembly, AssemblyLimitError, GuestHandle};
pub use upstream::{BAD_GATEWAY, bad_gateway_def};
pub use watch::{Announcer, RegistryChange};
