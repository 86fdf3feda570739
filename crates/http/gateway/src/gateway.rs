//! One spine for everything that comes in over HTTP: the gateway's own paths, tools of models, pages and routes of
//! applications that embed this crate.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use alknet_call::{
    CallError, CallOutput, LocalCallError, LocalCaller, LocalEvent, LocalEvents, LocalRequest,
    ResolvedOperation,
};
use alknet_core::{AuthToken, Identity};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::StatusCode;
use sha2::{Digest, Sha256};

use crate::caller::HttpCaller;
use crate::error::{ApiError, Code};
use crate::limits::{
    BATCH_CALLS_MAX, BATCH_ID_BYTES_MAX, BATCH_ITEM_BYTES, BATCH_PARALLEL, BATCH_TIMEOUT,
};
use crate::memory::MemoryLease;
use crate::rate_limit::{CallerQuota, ConcurrencyPermit, HttpRateLimiter, Quota};
use crate::wire::{
    BatchMode, BatchResult, GatewayCall, OperationDescription, SearchPage, SearchQuery,
    SearchSummary,
};

/// One for the whole node.
#[derive(Debug, Default)]
pub struct Gateway {
    room: HttpRateLimiter,
}

/// Who asks, and by what they proved it.
#[derive(Clone, Debug, Default)]
pub struct CallerIdentity {
    /// The identity that the token, or else the connection's key, proved.
    pub identity: Option<Arc<Identity>>,
    /// The token that did.
    pub token: Option<Arc<AuthToken>>,
}

/// A place among what runs; given back when dropped.
#[derive(Debug)]
pub struct GatewayPermit {
    _place: ConcurrencyPermit,
}

/// The events of an operation.
#[derive(Debug)]
pub struct GatewaySubscription {
    events: LocalEvents,
    _running: GatewayPermit,
    caller: HttpCaller,
}

impl Gateway {
    /// One that lets in as much as `quota` says.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self {
            room: HttpRateLimiter::new(quota),
        }
    }

    /// Lets in more or less from now on.
    pub fn set_quota(&self, quota: Quota) {
        self.room.set_quota(quota);
    }

    /// Calls and streams that run.
    #[must_use]
    pub fn running(&self) -> (u32, u32) {
        self.room.running()
    }

    /// The identity of a token, or without one the identity that the connection proved.
    ///
    /// It takes the same work whether there is a token or not, and whether it has the form of one: from outside, an
    /// attacker cannot tell by the time it takes what a path wants.
    ///
    /// # Errors
    /// The token belongs to no identity; 429 where too many such came from the same network. The caller counts the
    /// guess, by [`LocalCaller::guessed`], when the answer is away.
    pub fn authenticate(
        &self,
        gate: &LocalCaller,
        token: Option<&str>,
    ) -> Result<CallerIdentity, ApiError> {
        // Asked for whatever comes, as everything else that takes time.
        let penalty = gate.penalty();
        let Some(token) = token else {
            check_dummy_token(gate);
            return Ok(CallerIdentity {
                identity: gate.identity(),
                token: None,
            });
        };
        let token = AuthToken::new(token.to_owned());
        match gate.resolve_token(&token) {
            Ok(identity) => {
                gate.authenticated(&identity);
                Ok(CallerIdentity {
                    identity: Some(identity),
                    token: Some(Arc::new(token)),
                })
            }
            Err(error) => {
                if token.hash().is_err() {
                    // It was copied and refused, but neither hashed nor looked up.
                    let found = gate.is_known_token(&DUMMY_TOKEN) || DUMMY_TOKEN.hash().is_err();
                    std::hint::black_box(found);
                }
                // The identity of the connection is looked up for a request without a token; here the work is the same.
                std::hint::black_box(gate.identity());
                Err(match penalty {
                    None => wrong_token_error(error),
                    Some(refused) => too_many(refused),
                })
            }
        }
    }

    /// Counts a request against what its caller may send.
    ///
    /// # Errors
    /// Too many came lately.
    pub fn admit(&self, caller: &HttpCaller) -> Result<(), ApiError> {
        self.room.request(&self.counted(caller), caller.began)
    }

    /// Where the requests of `identity`, or of an unknown peer at `remote`, are counted. The server of a connection may
    /// look it up once for all its requests.
    #[must_use]
    pub fn account(
        &self,
        identity: Option<&Identity>,
        remote: Option<SocketAddr>,
    ) -> Arc<CallerQuota> {
        let id = identity.map(|identity| &identity.id);
        self.room.account(id, remote.map(|remote| remote.ip()))
    }

    fn counted<'a>(&self, caller: &'a HttpCaller) -> Cow<'a, Arc<CallerQuota>> {
        match &caller.account {
            Some(account) => Cow::Borrowed(account),
            None => Cow::Owned(self.account(caller.identity.as_deref(), caller.remote)),
        }
    }

    /// The operations that the caller may call.
    #[must_use]
    pub fn list(&self, caller: &HttpCaller, query: &SearchQuery) -> SearchPage {
        let (visible, _) = caller.gate.visible(caller.identity.as_deref());
        let found = visible.iter().filter(|one| query.finds(one.spec()));
        let limit = query.limit();
        let mut operations: Vec<_> = found
            .take(limit + 1)
            .map(|one| SearchSummary::from_spec(one.spec()))
            .collect();
        let more = operations.len() > limit;
        operations.truncate(limit);
        let last = operations.last().filter(|_| more);
        SearchPage {
            next: last.map(|last| last.operation.clone()),
            operations,
        }
    }

    /// One of them, whole.
    ///
    /// # Errors
    /// No operation has that name, or the caller may not know of it.
    pub fn describe(
        &self,
        caller: &HttpCaller,
        operation: &str,
    ) -> Result<OperationDescription, ApiError> {
        let found = self.find(caller, operation)?;
        Ok(OperationDescription::from_spec(found.spec()))
    }

    /// One of them, as it is registered.
    ///
    /// # Errors
    /// As [`describe`](Self::describe).
    pub fn find(
        &self,
        caller: &HttpCaller,
        operation: &str,
    ) -> Result<ResolvedOperation, ApiError> {
        let found = caller.gate.spec(caller.identity.as_deref(), operation);
        found.ok_or_else(|| {
            let name = operation.strip_prefix('/').unwrap_or(operation);
            let shown: String = name.chars().take(128).collect();
            ApiError::not_found(format!("there is no operation '/{shown}'"))
        })
    }

    /// Changes when what the caller sees of the operations may have.
    #[must_use]
    pub fn etag(&self, caller: &HttpCaller) -> String {
        let digest = caller.gate.dispatcher().registry().digest();
        let mut hash = Sha256::new();
        hash.update(digest);
        if let Some(identity) = &caller.identity {
            hash.update(identity.id.as_str());
            hash.update(format!("{:?}{:?}", identity.scopes, identity.resources));
        }
        let hash = hash.finalize();
        let short: String = hash.iter().take(12).map(|b| format!("{b:02x}")).collect();
        // Weak (RFC 9110 section 8.8.1): it stands for what may be called, and not for the bytes of an answer.
        format!("W/\"{short}\"")
    }

    /// Calls a query or mutation. Dropping the future aborts it, and what it called.
    ///
    /// # Errors
    /// As the error has it.
    pub async fn invoke(
        &self,
        caller: &HttpCaller,
        call: GatewayCall,
    ) -> Result<CallOutput, ApiError> {
        let _place = self.room.call(&self.counted(caller))?;
        let incoming = incoming(caller, &call, caller.request_id.as_str());
        let outcome = caller.gate.call(incoming).await;
        outcome.map_err(|refused| refuse(caller, refused))
    }

    /// Calls several. The results come in the order of the calls; those that could not begin in time, or
    /// not after another failed, say `NOT_RUN`. Outputs count against `answers`; one for which there is no room is
    /// an error in its place. A call for whose answer there is not the least room is not run.
    ///
    /// # Errors
    /// There are too many calls, or their ids are wrong; there is no memory for the answer's frame.
    pub async fn batch(
        &self,
        caller: &HttpCaller,
        calls: Vec<(String, Result<GatewayCall, ApiError>)>,
        mode: BatchMode,
        answers: &MemoryLease,
    ) -> Result<Vec<BatchResult>, ApiError> {
        check_ids(&calls)?;
        answers.more(calls.len() * BATCH_ITEM_BYTES)?;
        let deadline = tokio::time::Instant::from_std(Instant::now() + BATCH_TIMEOUT);
        let ids: Vec<_> = calls.iter().map(|(id, _)| id.clone()).collect();
        let mut outcomes: Vec<Option<Result<CallOutput, ApiError>>> = Vec::new();
        outcomes.resize_with(ids.len(), || None);
        let at_once = match mode {
            BatchMode::Parallel => BATCH_PARALLEL,
            BatchMode::Sequential | BatchMode::StopOnError => 1,
        };
        let runs = calls
            .into_iter()
            .enumerate()
            .map(|(n, (_, call))| async move {
                let outcome = match call {
                    Ok(call) => self.invoke_kept(caller, call, answers).await,
                    Err(error) => Err(error),
                };
                (n, outcome)
            });
        let mut runs = stream::iter(runs).buffer_unordered(at_once);
        while let Ok(Some((n, outcome))) = tokio::time::timeout_at(deadline, runs.next()).await {
            let failed = outcome.is_err();
            outcomes[n] = Some(outcome);
            if failed && mode == BatchMode::StopOnError {
                break;
            }
        }
        // Calls that still run are aborted before their place says that they did not.
        drop(runs);
        let late = tokio::time::Instant::now() >= deadline;
        let not_run = || not_run(late);
        Ok(ids
            .into_iter()
            .zip(outcomes)
            .map(|(id, outcome)| BatchResult {
                id,
                outcome: outcome.unwrap_or_else(|| Err(not_run())),
            })
            .collect())
    }

    /// Calls one whose output is kept until others have theirs.
    async fn invoke_kept(
        &self,
        caller: &HttpCaller,
        call: GatewayCall,
        answers: &MemoryLease,
    ) -> Result<CallOutput, ApiError> {
        let reserve = answers.reserve()?;
        let text = text(self.invoke(caller, call).await?);
        // It counts twice: it is also copied into the whole answer.
        reserve.answer(2 * text.len())?;
        Ok(CallOutput::Raw(text))
    }

    /// Memory for what the caller sends and is sent, of which nothing is taken yet.
    #[must_use]
    pub fn lease(&self, caller: &HttpCaller) -> MemoryLease {
        self.room.lease(&self.counted(caller))
    }

    /// The same for the caller that an account belongs to.
    #[must_use]
    pub fn lease_of(&self, account: &Arc<CallerQuota>) -> MemoryLease {
        self.room.lease(account)
    }

    /// Bytes of requests and answers that are under way.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.room.bytes()
    }

    /// Starts a subscription. Dropping it ends the work behind it.
    ///
    /// # Errors
    /// As the error has it, where it does not begin.
    pub fn subscribe(
        &self,
        caller: HttpCaller,
        call: GatewayCall,
    ) -> Result<GatewaySubscription, ApiError> {
        let place = self.room.stream(&self.counted(&caller))?;
        let incoming = incoming(&caller, &call, caller.request_id.as_str());
        let events = caller.gate.subscribe(incoming);
        let events = events.map_err(|refused| refuse(&caller, refused))?;
        Ok(GatewaySubscription {
            events,
            _running: GatewayPermit { _place: place },
            caller,
        })
    }

    /// A place among the streams of events of the caller, for what yields events of other kinds.
    ///
    /// # Errors
    /// As many are open as may.
    pub fn stream(&self, caller: &HttpCaller) -> Result<GatewayPermit, ApiError> {
        let _place = self.room.stream(&self.counted(caller))?;
        Ok(GatewayPermit { _place })
    }
}

/// A token as long as a real one, which belongs to no identity: for the work that is done where a request has none.
pub const NO_TOKEN: &str = "alk_00000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The work of a wrong token, step by step: it is copied, looked up, looked at again for its form, and its error is
/// made. Only the guess is not counted.
fn check_dummy_token(gate: &LocalCaller) {
    let token = AuthToken::new(std::hint::black_box(NO_TOKEN).to_owned());
    let found = gate.is_known_token(&token) || token.hash().is_err();
    std::hint::black_box((found, wrong_token_error(CallError::bad_token())));
}

/// What is looked up where there is nothing to look up.
static DUMMY_TOKEN: LazyLock<AuthToken> = LazyLock::new(|| AuthToken::new(NO_TOKEN.to_owned()));

/// The answer to a wrong token, with the error of the call protocol.
fn wrong_token_error(error: CallError) -> ApiError {
    let mut refused = ApiError::unauthenticated(error.message.clone());
    refused.error = Box::new(error);
    refused
}

/// The same where too many guesses came from the same network.
fn too_many(refused: CallError) -> ApiError {
    let mut answer = ApiError::overloaded(refused.message.clone(), 0);
    answer.error = Box::new(refused);
    answer
}

fn incoming<'a>(
    caller: &'a HttpCaller,
    call: &'a GatewayCall,
    request_id: &'a str,
) -> LocalRequest<'a> {
    LocalRequest {
        input: call.input.clone(),
        memory: call.memory.clone(),
        identity: caller.identity.clone(),
        token: caller.token.as_ref(),
        proved_by: caller.proved_by,
        timeout: call.timeout,
        idempotency_key: call.idempotency_key.as_deref(),
        peer: call.peer.as_deref(),
        ..LocalRequest::new(request_id, &call.operation)
    }
}

fn refuse(caller: &HttpCaller, refused: LocalCallError) -> ApiError {
    ApiError::of_call(refused, caller.identity.is_some(), &caller.request_id)
}

/// An output as the text that is sent.
fn text(output: CallOutput) -> Bytes {
    match output {
        CallOutput::Raw(text) => text,
        other => {
            let mut text = Vec::new();
            other.append_to(&mut text);
            text.into()
        }
    }
}

fn check_ids(calls: &[(String, Result<GatewayCall, ApiError>)]) -> Result<(), ApiError> {
    if calls.len() > BATCH_CALLS_MAX {
        let message = format!("a batch has at most {BATCH_CALLS_MAX} calls");
        return Err(ApiError::malformed("/calls", message));
    }
    let mut seen = std::collections::HashSet::new();
    for (n, (id, _)) in calls.iter().enumerate() {
        let at = format!("/calls/{n}/id");
        if id.is_empty() || id.len() > BATCH_ID_BYTES_MAX {
            let message = format!("an id has 1 to {BATCH_ID_BYTES_MAX} bytes");
            return Err(ApiError::malformed(&at, message));
        }
        if !seen.insert(id) {
            let message = "another call of the batch has this id";
            return Err(ApiError::malformed(&at, message));
        }
    }
    Ok(())
}

fn not_run(late: bool) -> ApiError {
    let why = if late {
        "the time of the batch was over before it could begin or end"
    } else {
        "a call before it failed"
    };
    let mut error = ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        Code::Operation("NOT_RUN".into()),
        why,
    );
    error.error.retryable = true;
    error
}

impl GatewaySubscription {
    /// The next event; an error is the last that comes.
    pub async fn next(&mut self) -> Option<Result<LocalEvent, ApiError>> {
        let event = self.events.next().await?;
        Some(event.map_err(|refused| refuse(&self.caller, refused)))
    }

    /// What the subscription is called.
    #[must_use]
    pub fn caller(&self) -> &HttpCaller {
        &self.caller
    }
}

impl Stream for GatewaySubscription {
    type Item = Result<LocalEvent, ApiError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let event = std::task::ready!(self.events.poll_next_unpin(cx));
        let event = event.map(|event| event.map_err(|refused| refuse(&self.caller, refused)));
        std::task::Poll::Ready(event)
    }
}
