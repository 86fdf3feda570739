//! Our side of the comparison with tonic: a node with three operations, and clients that call them.

use std::sync::Arc;

use alknet_call::{
    ALPN, CallClient, CallConnection, CallHandler, CallOutput, Dispatcher, HandlerKind,
    OperationSpec, Registration, Registry, Subscription,
};
use alknet_core::{Carriage, HandlerRegistry};
use alknet_endpoint::{EndpointDialer, EndpointLimits, EndpointServer, ServerOptions, Target};
use bytes::Bytes;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::measure::{LoadPlan, LoadSample, failed, load};
use super::sides::{BenchKeys, HOST, SideRuntimes};
use super::{BULK_BYTES, ITEM_BYTES, spread};
use alknet_tasks::failure::{Result, TaskError};

const ECHO: &str = "bench/echo";
const ITEMS: &str = "bench/items";
const BULK: &str = "bench/bulk";

/// What small calls and events carry.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct CallMessage {
    data: String,
}

impl CallMessage {
    fn with_len(bytes: usize) -> Self {
        Self {
            data: "x".repeat(bytes),
        }
    }
}

/// A node that is up.
pub(super) struct CallBenchNode {
    _server: EndpointServer,
    target: Target,
}

impl CallBenchNode {
    pub(super) fn start(sides: &SideRuntimes, keys: &BenchKeys) -> Result<Self> {
        let dispatcher = Dispatcher::new(operations()?);
        let mut handlers = HandlerRegistry::new();
        handlers
            .register(Arc::new(CallHandler::new(Arc::new(dispatcher))))
            .map_err(failed("assembling the node"))?;
        let server = bind(sides, keys, handlers)?;
        Ok(Self {
            target: keys.target(server.port())?,
            _server: server,
        })
    }

    /// A client for each key.
    pub(super) async fn connect(
        &self,
        keys: &BenchKeys,
        carriage: Carriage,
    ) -> Result<CallClients> {
        let mut connections = Vec::new();
        for key in &keys.clients {
            let dialer = EndpointDialer::new(Some(key.clone()));
            let dialled = dialer.dial_over(carriage, &self.target, ALPN).await;
            let dialled = dialled.map_err(failed("dialling the node"))?;
            let connection = CallClient::without_operations().attach(dialled, None);
            // Hears what the node can do, so that events with binary data come as such.
            let known = connection.operations("bench/").await;
            known.map_err(failed("listing operations"))?;
            echo(&connection, &CallMessage::with_len(1)).await?;
            connections.push((connection, dialer));
        }
        Ok(CallClients(connections))
    }
}

/// Serves `handlers` on a free port, with limits that a machine calling itself does not reach.
pub(crate) fn bind(
    sides: &SideRuntimes,
    keys: &BenchKeys,
    handlers: HandlerRegistry,
) -> Result<EndpointServer> {
    let options = ServerOptions {
        addrs: vec![HOST.into()],
        port: 0,
        limits: EndpointLimits {
            connections_max: u32::MAX,
            per_address_max: u32::MAX,
            per_peer_max: u32::MAX,
            unvalidated_handshakes_max: 4096,
            unvalidated_handshakes_per_second_max: u32::MAX,
            handshake_burst: u32::MAX,
            handshakes_per_second: u32::MAX,
            ..EndpointLimits::default()
        },
        ..ServerOptions::default()
    };
    let identities = keys.identities()?;
    // What is bound here runs on the runtime of the servers.
    let _context = sides.server.enter();
    EndpointServer::bind(options, &keys.server, handlers, identities)
        .map_err(failed("binding the port"))
}

fn operations() -> Result<Registry> {
    let message = json!({
        "type": "object",
        "properties": { "data": { "type": "string" } },
        "required": ["data"],
    });
    let echo = OperationSpec::query(ECHO, "Answers with its input.")
        .with_input(message)
        .with_scope("bench:call");
    let items = OperationSpec::subscription(ITEMS, "Sends small events without end.");
    let bulk = OperationSpec::subscription(BULK, "Sends large events without end.");
    let chunk = Bytes::from(vec![b'x'; BULK_BYTES]);
    Registry::builder()
        .with(Registration::new(
            echo,
            HandlerKind::once(|input, _| async move {
                let message: CallMessage = input.parse()?;
                CallOutput::json(&message)
            }),
        ))
        .with(Registration::new(
            items.with_scope("bench:call"),
            HandlerKind::stream(|_, _| {
                let message = CallMessage::with_len(ITEM_BYTES);
                stream::repeat_with(move || CallOutput::json(&message))
            }),
        ))
        .with(Registration::new(
            bulk.with_scope("bench:call"),
            HandlerKind::stream(move |_, _| {
                // Shares its bytes: making them is no part of what is measured.
                let chunk = chunk.clone();
                let data = json!({ "data": { "$bin": [0, chunk.len()] } });
                stream::repeat_with(move || Ok(CallOutput::Mixed(data.clone(), chunk.clone())))
            }),
        ))
        .build()
        .map_err(failed("registering the operations"))
}

async fn echo(connection: &CallConnection, message: &CallMessage) -> Result<CallMessage> {
    let answer = connection.call_typed(ECHO, message).await;
    answer.map_err(failed("calling the node"))
}

/// Connections to the node, each of a peer of its own.
pub(super) struct CallClients(Vec<(CallConnection, EndpointDialer)>);

impl CallClients {
    /// Calls in a closed loop: as many as asked are under way at any time, spread over the
    /// connections.
    pub(super) async fn unary(
        &self,
        plan: LoadPlan,
        bytes: usize,
        in_flight: usize,
    ) -> Result<LoadSample> {
        let connections: Vec<_> = self.0.iter().map(|(connection, _)| connection).collect();
        let workers = spread(&connections, in_flight, |connection| {
            ((*connection).clone(), CallMessage::with_len(bytes))
        });
        load(plan, workers, |(connection, message)| async move {
            let answer = echo(&connection, &message).await?;
            debug_assert_eq!(answer.data.len(), message.data.len());
            Ok(((connection, message), 1))
        })
        .await
    }

    /// Reads small events of one subscription.
    pub(super) async fn items(&self, plan: LoadPlan) -> Result<LoadSample> {
        let events = self.subscribe(ITEMS).await?;
        load(plan, vec![events], |mut events| async move {
            let event = next(&mut events).await?;
            let message: CallMessage = event.output.parse().map_err(failed("reading an event"))?;
            drop(message);
            Ok((events, 1))
        })
        .await
    }

    /// Reads large events of one subscription; units are bytes.
    pub(super) async fn bulk(&self, plan: LoadPlan) -> Result<LoadSample> {
        let events = self.subscribe(BULK).await?;
        load(plan, vec![events], |mut events| async move {
            let event = next(&mut events).await?;
            let bytes = event.output.binary(&event.output.value()["data"]);
            let bytes = bytes.map_or(0, |bytes| bytes.len());
            Ok((events, bytes as u64))
        })
        .await
    }

    async fn subscribe(&self, operation: &str) -> Result<Subscription> {
        let events = self.0[0].0.subscribe(operation, &json!({})).await;
        events.map_err(failed("subscribing"))
    }
}

async fn next(events: &mut Subscription) -> Result<alknet_call::SubscriptionEvent> {
    let ended = || TaskError::Step {
        what: "reading events".to_owned(),
        how: "the subscription ended".to_owned(),
        log: None,
    };
    let event = events.next().await.ok_or_else(ended)?;
    event.map_err(failed("reading events"))
}
