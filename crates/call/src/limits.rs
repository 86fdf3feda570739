//! Every bound of the protocol. Each one limits what a peer can make this node hold or do.

use std::time::Duration;

/// What many identities together leave for others, of each of these that they share.
pub use alknet_core::limits::{BYTES_LEAST, leaves_capacity};

/// Bytes of a frame from an unknown peer.
pub const FRAME_BYTES_UNAUTHENTICATED: usize = 64 << 10;
/// Bytes of a frame from a known peer, unless configured otherwise.
pub const FRAME_BYTES_DEFAULT: usize = 1 << 20;
/// Bytes of a frame that no configuration can exceed.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Bytes by which an incomplete frame grows: a length field alone never costs its announced size.
pub const FRAME_GROWTH_BYTES: usize = 64 << 10;
/// Nested arrays and objects in a frame from an unknown peer.
pub const NESTING_UNAUTHENTICATED: usize = 32;
/// Nested arrays and objects in a frame.
pub const NESTING_MAX: usize = 64;
/// Bytes of a request id.
pub const ID_BYTES_MAX: usize = 64;
/// Bytes of an operation id.
pub const OPERATION_BYTES_MAX: usize = 128;
/// Bytes of an idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 64;
/// How long the result of a keyed mutation answers repeated requests.
pub const IDEMPOTENCY_TIME: Duration = Duration::from_secs(600);
/// Keyed mutations that a node remembers for one identity.
pub const IDEMPOTENCY_ENTRIES: usize = 1024;
/// Bytes of the longest result that a node remembers.
pub const IDEMPOTENCY_RESULT_BYTES: usize = 64 << 10;
/// Bytes that an entry counts for, apart from its result.
pub const IDEMPOTENCY_ENTRY_BYTES: usize = 256;
/// Bytes of results that a node remembers for all identities together, however much memory the machine has. Beyond
/// them the identity with the most bytes loses its oldest result.
pub const IDEMPOTENCY_BYTES: usize = 64 << 20;
/// The lower bound of the same, however little memory the machine has.
pub const IDEMPOTENCY_BYTES_MIN: usize = 1 << 20;
/// The part of the machine's memory for them between these two bounds: a sixteenth.
pub const IDEMPOTENCY_MEMORY_PART: u64 = 16;
/// Bytes of the tree of a peer's error, as [`tree_bytes`](crate::tree_bytes) counts them. A node reads an error with
/// more without its details.
pub const ERROR_TREE_BYTES_MAX: usize = 256 << 10;
/// Bytes of an error's message that stay when the error loses its details.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 512;
/// Bytes of the longest error that a node always sends, however many bytes wait to be read.
pub const ERROR_BYTES_FREE: usize = 1 << 10;
/// How often a node looks up the token behind an authenticated connection again, for tokens that expire. Sessions of
/// revoked ones end at once.
pub const SESSION_RECHECK: Duration = Duration::from_secs(30);
/// How long a guest may stay unidentified and send no request.
pub const GUEST_LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a node checks a guest that is still unidentified then, and has a request running.
pub const GUEST_RECHECK: Duration = Duration::from_secs(1);
/// Validation failures that one error lists.
pub const INVALID_DETAILS_MAX: usize = 10;
/// Bytes of the longest value for which an error says where it breaks its schema: each violation that a validator
/// finds has some hundred bytes, and a value of two bytes may be one.
pub const INVALID_DETAILS_BYTES: usize = 64 << 10;
/// Compiled size of a schema's regular expression, in bytes: no schema may exhaust memory.
pub const PATTERN_BYTES_MAX: usize = 256 << 10;
/// Bytes that matching one regular expression may hold.
pub const PATTERN_CACHE_BYTES_MAX: usize = 64 << 10;
/// Regular expressions of one schema: each takes up to [`PATTERN_BYTES_MAX`].
pub const SCHEMA_PATTERNS_MAX: u64 = 64;
/// Bytes that the patterns of one schema take once they are compiled.
pub const SCHEMA_PATTERN_BYTES_MAX: usize = 4 << 20;
/// Steps of compiling one regular expression, beside those for its bytes.
pub const PATTERN_STEPS: u64 = 200;
/// Bytes of a compiled regular expression that take a step.
pub const PATTERN_BYTES_PER_STEP: usize = 16;
/// Values in one schema, counting again those that `unevaluatedProperties` and `unevaluatedItems` make the compiler
/// compile again. So many take it a tenth of a second.
pub const SCHEMA_VALUES_MAX: u64 = 20_000;
/// Like `SCHEMA_VALUES_MAX`, with the target of each reference, which the compiler compiles once more.
pub const SCHEMA_BUILT_MAX: u64 = 2 * SCHEMA_VALUES_MAX;
/// Bytes of the paths to all of these, which the compiler holds as texts, and of their own texts.
pub const SCHEMA_PATH_BYTES_MAX: u64 = 4 << 20;
/// Steps of the shortest checks of everything that one peer or imported server offers, and of compiling its patterns,
/// together. The node counts them when it imports.
pub const SCHEMAS_STEPS_MAX: u64 = 10 * SCHEMA_STEPS_MAX;
/// Schemas within schemas and references after references at one point of a check: each takes stack.
pub const SCHEMA_DEPTH_MAX: usize = 512;
/// Steps of checking one value against its schema: keywords applied, values and texts compared. The check occupies
/// its thread meanwhile, for some 50 ms where it takes so many.
pub const SCHEMA_STEPS_MAX: u64 = 1_000_000;
/// Steps up to which a failed check says where: each violation takes memory.
pub const SCHEMA_DETAIL_STEPS_MAX: u64 = 20_000;

/// Bytes of requests that run at once, however much memory the machine has. HTTP has as many for its own.
pub const BYTES_PER_NODE: usize = 256 << 20;
/// The lower bound of the same, however little memory the machine has.
pub const BYTES_PER_NODE_MIN: usize = 4 << 20;
/// The part of the machine's memory for them between these two bounds: an eighth.
pub const MEMORY_PART: u64 = 8;
/// The part of them for one identity: a half, so that one identity cannot take all.
pub const BYTES_SHARE: usize = 2;
/// The part of them for all unknown peers together: a quarter. The rest is for known identities.
pub const BYTES_UNKNOWN_PEERS: usize = 4;
/// The part of the unknown peers' bytes for one network: a quarter.
pub const BYTES_UNKNOWN_PEERS_SHARE: usize = 4;
/// The part of the unknown peers' bytes for all networks of one IPv6 site together: a half.
pub const BYTES_SITE_SHARE: usize = 2;
/// The part of them for all subscriptions together: a quarter. Subscriptions need not end, and the rest is for calls
/// with a deadline.
pub const BYTES_SUBSCRIPTIONS: usize = 4;
/// The part of the subscriptions' bytes for one requester, and for all unknown peers together: a quarter.
pub const BYTES_SUBSCRIPTIONS_SHARE: usize = 4;
/// Bytes of the longest request that a node does not count while it runs: [`PeerLimits::requests`] and
/// [`IDEMPOTENCY_ENTRIES`] bound the number of those.
pub const REQUEST_BYTES_FREE: usize = 8 << 10;
/// Like `REQUEST_BYTES_FREE`, for a known peer's incomplete frame on a connection that ends with its only stream, which
/// has one such frame at a time.
pub const FRAME_BYTES_FREE: usize = 64 << 10;
/// Bytes of answers and events that a connection may leave unread before they count for its requester: small answers
/// that the peer reads as they come cost no lookup of other requesters' bytes.
pub const UNREAD_BYTES_FREE: usize = 8 << 10;
/// Bytes by which a connection's share of the node's room for unread answers grows.
pub const UNREAD_STEP_BYTES: usize = 16 << 10;
/// Bytes of that share that the connection keeps for the next answer when it needs less.
pub const UNREAD_SLACK_BYTES: usize = 64 << 10;
/// How often a connection checks for room for its requester's unread answers.
pub const UNREAD_ROOM_EVERY: Duration = Duration::from_millis(100);

/// Calls of operations by operations, one below the other: deeper is a circle.
pub const COMPOSITION_DEPTH_MAX: usize = 16;
/// Calls of operations by operations that run at once below one request.
pub const COMPOSITION_CHILDREN_MAX: usize = 1024;
/// The part of its time that a call keeps, to answer after the call that it made has.
pub const HOP_MARGIN: Duration = Duration::from_millis(5);
/// How often nodes may pass a request on. A request that goes further is in a circle of nodes that forward to each
/// other, which no node in it can see where forwarders are not disclosed.
pub const FORWARDING_HOPS_MAX: u8 = 4;
/// A call has too little time when it has less than its operation allows by more than this part of that.
pub const HASTE_PART: u32 = 16;
/// Operations one session registers.
pub const SESSION_OPERATIONS_MAX: usize = 256;

/// Scopes in one list of an operation's rule. A peer sends the rules of its operations, and a reviewer sets those of
/// promoted ones.
pub const SCOPES_MAX: usize = 16;
/// Bytes of one of these scopes, and of the resource type and of the action in a rule.
pub const SCOPE_BYTES_MAX: usize = 200;
/// Operations imported from one peer.
pub const IMPORT_OPERATIONS_MAX: usize = 1000;
/// Bytes of listings and schemas read to import from one peer.
pub const IMPORT_BYTES_MAX: usize = 4 << 20;
/// Operations of one peer that a node lists for a caller, over all pages: four times the promoted operations that a
/// node may have, and few enough to hold at once. A peer that lists more could keep the caller reading for ever.
pub const LISTED_OPERATIONS_MAX: usize = 4096;
/// Bytes of the pages of such a list: 4 KiB for each, the longest description of a promoted operation.
pub const LISTED_BYTES_MAX: usize = 16 << 20;
/// The part of a requester's remaining room for answers of an imported server that a call sets aside for its own
/// answer: an eighth, so that the requester has room for other calls.
pub const IMPORT_RESERVE_PART: usize = 8;
/// Bytes of a peer's name for the set of its operations: a hash in hex has 64.
pub const REGISTRY_BYTES_MAX: usize = 128;
/// Bytes of past changes of operations that a node keeps for watchers, of all sources together, however often
/// operations change. The source with the most bytes loses its oldest change.
pub const WATCH_HISTORY_BYTES: usize = 4 << 20;
/// Past changes of one source that a node keeps for watchers, however short they are: a watcher reads each change
/// that it missed. A watcher that missed more gets all present operations of the source.
pub const WATCH_STEPS_MAX: usize = 64;
/// How long an import may take.
pub const IMPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Schemas that an import requests at once.
pub const IMPORT_BATCH: usize = 64;
/// Imports that run at once.
pub const IMPORTS_AT_ONCE: usize = 16;
/// How long a node collects changes of a peer's operations before it imports them again, whatever the peer does
/// meanwhile: it imports no connection's operations more often.
pub const IMPORT_DEBOUNCE: Duration = Duration::from_secs(1);
/// Peers attached at once.
pub const PEERS_MAX: usize = 1000;
/// How often a node asks a serving peer for a sign of life.
pub const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(15);
/// How long the peer may take to answer before calls no longer choose it.
pub const SIGN_OF_LIFE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long running calls on the older of two connections of one peer may take to finish.
pub const SUPERSEDED_DRAIN: Duration = Duration::from_secs(5);

/// How long a frame may stay half received.
pub const PARTIAL_FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stream may take none of this node's bytes.
pub const BLOCKED_STREAM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a guest may take none of this node's bytes while more wait for it than its limit.
pub const OVERFULL_TIMEOUT: Duration = Duration::from_secs(1);
/// Deadline of a query or mutation that names none itself.
pub const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Longest deadline of a query or mutation, unless configured otherwise.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// How long after its deadline a requester waits for the responder's word.
pub const RESPONDER_GRACE: Duration = Duration::from_secs(2);
/// How long the end of a connection waits for the peer to take the last events.
pub const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Milliseconds that a draining node asks a peer to wait before it comes back.
pub const DRAIN_RETRY_MS: u64 = 5_000;
/// Milliseconds that an overloaded node asks a peer to wait.
pub const OVERLOAD_RETRY_MS: u64 = 100;

/// Bytes that a subscription may have queued before the node polls its handler again.
pub const SUBSCRIPTION_QUEUE_BYTES: usize = 64 << 10;
/// Bytes that a stream may have queued before the node polls a subscription on it again.
pub const LANE_QUEUE_BYTES: usize = 256 << 10;
/// Bytes that a node writes to the carriage at a time, so that a slow peer differs from a blocked one.
pub const WRITE_STEP_BYTES: usize = 64 << 10;
/// Bytes that a node reads from the carriage at a time.
pub const READ_STEP_BYTES: usize = 64 << 10;
/// Bytes of binary data from which on an answer waits for all others, where the carriage has priorities.
pub const BULK_BYTES: usize = 256 << 10;
/// Bytes of binary data that a node copies into a frame; it sends longer data without a copy.
pub const COPY_BYTES_MAX: usize = 8 << 10;
/// Frames that a stream handles before its own writer gets its turn.
pub const FRAMES_PER_TURN: u32 = 64;
/// Largest request that shares a stream; beyond it a stream of its own is better.
pub const LANE_REQUEST_BYTES: usize = 8 << 10;
/// Longest deadline of a request that shares a stream.
pub const LANE_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Streams that a client opens for requests to share, on a carriage with many streams.
pub const SHARED_STREAMS: usize = 2;
/// Events a subscription on a shared stream may have in flight, unless the caller says otherwise.
pub const WINDOW_DEFAULT: u32 = 64;
/// Like `WINDOW_DEFAULT`, for a subscription that a node passes on, until the requester took its first event: each
/// event may be as long as a frame, and waits for another peer.
pub const WINDOW_FORWARDED: u32 = 2;
/// Like `WINDOW_FORWARDED`, from then on, where the events are so short that so many have no more than
/// [`STREAM_EVENTS_BYTES`]. So many arrive in the time of a round trip, however fast the peer makes them.
pub const WINDOW_FORWARDED_MAX: u32 = 1024;
/// Bytes of the longest cursor that a node passes on from a peer. The node parses it into a tree, of up to 75 times
/// its bytes.
pub const CURSOR_BYTES_MAX: usize = 4 << 10;
/// Events buffered for the reader of a subscription that has a stream of its own.
pub const STREAM_EVENTS_BUFFERED: usize = 16;
/// Bytes of such events from which on the node reads no further one: the rest waits at the peer. The same bound holds
/// for the events in flight of a subscription that the node passes on, or one event.
pub const STREAM_EVENTS_BYTES: usize = 256 << 10;

/// Retries of one call.
pub const RETRIES_MAX: u32 = 3;
/// Longest pause before the first retry; each next one is twice as long.
pub const RETRY_DELAY_FIRST: Duration = Duration::from_millis(50);
/// Longest pause before the first attempt to connect again; each next one is twice as long.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause between attempts to connect.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long a connection has to hold before the pauses start again from [`BACKOFF_FIRST`].
pub const BACKOFF_RESET: Duration = Duration::from_secs(10);
/// Operations of a peer whose kind a client remembers.
pub const KNOWN_OPERATIONS_MAX: usize = 1024;

/// Bytes that requests may use at once on a machine with so much memory.
#[must_use]
pub fn bytes_for_memory(memory_bytes: u64) -> usize {
    let part = usize::try_from(memory_bytes / MEMORY_PART).unwrap_or(usize::MAX);
    part.clamp(BYTES_PER_NODE_MIN, BYTES_PER_NODE)
}

/// Bytes that results of keyed mutations may use on a machine with so much memory.
#[must_use]
pub fn results_for_memory(memory_bytes: u64) -> usize {
    let part = usize::try_from(memory_bytes / IDEMPOTENCY_MEMORY_PART).unwrap_or(usize::MAX);
    part.clamp(IDEMPOTENCY_BYTES_MIN, IDEMPOTENCY_BYTES)
}

/// What one connection may have open at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLimits {
    /// Bytes of a received frame.
    pub frame_bytes: usize,
    /// Nested arrays and objects in a received frame.
    pub nesting: usize,
    /// Requests in flight.
    pub requests: usize,
    /// Subscriptions among them.
    pub subscriptions: usize,
    /// Bytes of answers and events waiting on all streams of the connection before this side begins further calls or
    /// events. The calls that began before may add as many again; then this side refuses their answers. Also bytes of
    /// requests that this side passes on to the peer and that wait; then it refuses the requests.
    pub queued_bytes: usize,
}

impl PeerLimits {
    /// An unknown peer.
    pub const UNAUTHENTICATED: Self = Self {
        frame_bytes: FRAME_BYTES_UNAUTHENTICATED,
        nesting: NESTING_UNAUTHENTICATED,
        requests: 8,
        subscriptions: 2,
        queued_bytes: 256 << 10,
    };
    /// A known peer.
    pub const AUTHENTICATED: Self = Self {
        frame_bytes: FRAME_BYTES_DEFAULT,
        nesting: NESTING_MAX,
        requests: 256,
        subscriptions: 64,
        queued_bytes: 4 << 20,
    };
    /// The limits that no configuration can exceed.
    pub const ABSOLUTE: Self = Self {
        frame_bytes: FRAME_BYTES_MAX,
        nesting: NESTING_MAX,
        requests: 4096,
        subscriptions: 1024,
        queued_bytes: 64 << 20,
    };

    /// These limits, none above the absolute ones.
    #[must_use]
    pub fn bounded(self) -> Self {
        let most = Self::ABSOLUTE;
        Self {
            frame_bytes: self.frame_bytes.min(most.frame_bytes),
            nesting: self.nesting.min(most.nesting),
            requests: self.requests.min(most.requests),
            subscriptions: self.subscriptions.min(most.subscriptions),
            queued_bytes: self.queued_bytes.min(most.queued_bytes),
        }
    }
}

/// How long an unknown peer may send no request.
pub const UNKNOWN_IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// How long an unknown peer may stay connected, whatever it sends: a subscription that is open to unknown peers never
/// ends by itself, and each connection takes a slot from others.
pub const UNKNOWN_CONNECTION_MAX: Duration = Duration::from_secs(600);

/// How long a peer may keep this node waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerTimeouts {
    /// For the rest of a frame that has begun.
    pub partial_frame: Duration,
    /// For a stream to take any of this node's bytes.
    pub blocked_stream: Duration,
    /// For an unknown peer's next request.
    pub unknown_idle: Duration,
    /// For an unknown peer or guest to authenticate, whatever it sends meanwhile.
    pub unknown_connection: Duration,
    /// For a guest to authenticate, or to send a request that every peer may send.
    pub guest_login: Duration,
    /// For a sign of life of a peer that serves operations here.
    pub sign_of_life: Duration,
    /// From one request for a sign of life to the next.
    pub sign_of_life_every: Duration,
    /// For the peer to take the last events, once this side ends the connection.
    pub goodbye: Duration,
}

impl Default for PeerTimeouts {
    fn default() -> Self {
        Self {
            partial_frame: PARTIAL_FRAME_TIMEOUT,
            blocked_stream: BLOCKED_STREAM_TIMEOUT,
            unknown_idle: UNKNOWN_IDLE_TIMEOUT,
            unknown_connection: UNKNOWN_CONNECTION_MAX,
            guest_login: GUEST_LOGIN_TIMEOUT,
            sign_of_life: SIGN_OF_LIFE_TIMEOUT,
            sign_of_life_every: SIGN_OF_LIFE_EVERY,
            goodbye: GOODBYE_TIMEOUT,
        }
    }
}
/// Events of a subscription over another protocol that the node makes before the client reads them.
pub const LOCAL_EVENTS_AHEAD: usize = 16;
