//! `alknet/call`: typed operations over any connection, in both directions.
//!
//! A node collects its operations in a [`Registry`], serves them with a [`Dispatcher`], and hands a
//! [`CallHandler`] to the endpoint. The other side makes a [`CallConnection`] out of a connection
//! it dialled and calls; its own operations are reachable over the same connection.
//!
//! ```
//! use std::sync::Arc;
//!
//! use alknet_call::{
//!     ALPN, CallBody, CallClient, CallHandler, CallOutput, Dispatcher, HandlerKind, OperationSpec,
//!     Registration, Registry,
//! };
//! use alknet_core::{AuthContext, ProtocolHandler, memory_pair};
//! use serde::Deserialize;
//! use serde_json::json;
//!
//! #[derive(Deserialize)]
//! struct Terms {
//!     a: i32,
//!     b: i32,
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let number = json!({ "type": "integer", "minimum": -1_000_000, "maximum": 1_000_000 });
//!     let spec = OperationSpec::query("demo/add", "Adds two numbers.").with_input(json!({
//!         "type": "object",
//!         "properties": { "a": number, "b": number },
//!         "required": ["a", "b"],
//!     }));
//!     let add = HandlerKind::once(|input: CallBody, _ctx| async move {
//!         let Terms { a, b } = input.parse()?;
//!         CallOutput::json(&json!({ "sum": a + b }))
//!     });
//!     let registry = Registry::builder()
//!         .with(Registration::new(spec, add))
//!         .build()?;
//!     let handler = Arc::new(CallHandler::new(Arc::new(Dispatcher::new(registry))));
//!
//!     // Both ends in this process; a node's endpoint does this for each connection that it accepts.
//!     let (dialled, accepted) = memory_pair(ALPN);
//!     let auth = AuthContext {
//!         identity: None,
//!         key: None,
//!         alpn: ALPN.into(),
//!         sni: None,
//!         remote_addr: None,
//!         carriage: accepted.carriage(),
//!         early_data: false,
//!     };
//!     tokio::spawn(handler.handle(accepted, auth));
//!
//!     let connection = CallClient::without_operations().attach(dialled, None);
//!     let answer = connection.call("demo/add", &json!({ "a": 40, "b": 2 })).await?;
//!     assert_eq!(answer.value()["sum"], 42);
//!
//!     // The schema refuses what the handler never sees.
//!     let refused = connection.call("demo/add", &json!({ "a": 40 })).await;
//!     assert!(refused.is_err());
//!     Ok(())
//! }
//! ```
//!
//! Framing and envelopes ([`FrameReader`], [`Envelope`]) know neither sockets nor clocks.

pub mod limits;

mod access;
mod admission;
mod backpressure;
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
mod server_imports;
mod services;
mod session;
mod spec;
mod sync;
mod tape;
mod text;
mod unfinished;
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
    ErrorDef, IMPORTED_TAG, Idempotence, OperationSpec, OperationType, Visibility, import_scope,
    is_operation_name,
};
pub use unfinished::{AssemblyLimitError, GuestHandle, UnfinishedMessage};
pub use upstream::{BAD_GATEWAY, CAUSE_TARGET, bad_gateway_def};
pub use watch::{Announcer, RegistryChange};
