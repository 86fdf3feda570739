//! One spine for everything that comes in over HTTP: the gateway's own paths, tools of models, pages
//! and routes of whoever builds on this program.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use alknet_call::{CallError, Events, Gate, Incoming, LocalEvent, Output, Refused, Resolved};
use alknet_core::{AuthToken, Identity};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::StatusCode;
use sha2::{Digest, Sha256};

use crate::caller::Caller;
use crate::error::{ApiError, Code};
use crate::limits::{
    BATCH_CALLS_MAX, BATCH_ID_BYTES_MAX, BATCH_ITEM_BYTES, BATCH_PARALLEL, BATCH_TIMEOUT,
};
use crate::memory::Lease;
use crate::room::{Account, Place, Quota, Room};
use crate::wire::{BatchMode, BatchResult, Description, Invocation, Page, Query, Summary};

/// One for the whole node.
#[derive(Debug, Default)]
pub struct Gateway {
    room: Room,
}

/// Who asks, and by what they proved it.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Whom the token, or else the connection's key, proved.
    pub identity: Option<Arc<Identity>>,
    /// The token that did.
    pub token: Option<Arc<AuthToken>>,
}

/// A place among what runs; given back when dropped.
#[derive(Debug)]
pub struct Running {
    _place: Place,
}

/// The events of an operation.
#[derive(Debug)]
pub struct Subscription {
    events: Events,
    _running: Running,
    caller: Caller,
}

impl Gateway {
    /// One that lets in as much as `quota` says.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self {
            room: Room::new(quota),
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

    /// Whom a token stands for, or without one whom the connection proved to be.
    ///
    /// It takes the same work whether there is a token or not, and whether it has the form of one: from
    /// outside, nobody can tell by the time it takes what a path wants.
    ///
    /// # Errors
    /// The token stands for nobody; 429 where too many such came from the same network. It is for the caller to count the guess, by [`Gate::guessed`], when the
    /// answer is away.
    pub fn authenticate(&self, gate: &Gate, token: Option<&str>) -> Result<Known, ApiError> {
        // Asked for whatever comes, as everything else that takes time.
        let penalty = gate.penalty();
        let Some(token) = token else {
            in_vain(gate);
            return Ok(Known {
                identity: gate.identity(),
                token: None,
            });
        };
        let token = AuthToken::new(token.to_owned());
        match gate.whom(&token) {
            Ok(identity) => {
                gate.authenticated(&identity);
                Ok(Known {
                    identity: Some(identity),
                    token: Some(Arc::new(token)),
                })
            }
            Err(error) => {
                if token.hash().is_err() {
                    // It was copied and refused, but neither hashed nor looked up.
                    let found = gate.is_somebodys(&NOBODY) || NOBODY.hash().is_err();
                    std::hint::black_box(found);
                }
                // Whoever sends none is whom the connection proved.
                std::hint::black_box(gate.identity());
                Err(match penalty {
                    None => wrong(error),
                    Some(refused) => too_many(refused),
                })
            }
        }
    }

    /// Counts a request against what its caller may send.
    ///
    /// # Errors
    /// Too many came lately.
    pub fn admit(&self, caller: &Caller) -> Result<(), ApiError> {
        self.room.request(&self.counted(caller), caller.began)
    }

    /// Where the requests of `identity`, or of a stranger at `remote`, are counted. Whoever serves a
    /// connection may look it up once for all its requests.
    #[must_use]
    pub fn account(&self, identity: Option<&Identity>, remote: Option<SocketAddr>) -> Arc<Account> {
        let id = identity.map(|identity| &identity.id);
        self.room.account(id, remote.map(|remote| remote.ip()))
    }

    fn counted<'a>(&self, caller: &'a Caller) -> Cow<'a, Arc<Account>> {
        match &caller.account {
            Some(account) => Cow::Borrowed(account),
            None => Cow::Owned(self.account(caller.identity.as_deref(), caller.remote)),
        }
    }

    /// The operations that the caller may call.
    #[must_use]
    pub fn list(&self, caller: &Caller, query: &Query) -> Page {
        let (visible, _) = caller.gate.visible(caller.identity.as_deref());
        let found = visible.iter().filter(|one| query.finds(one.spec()));
        let limit = query.limit();
        let mut operations: Vec<_> = found
            .take(limit + 1)
            .map(|one| Summary::of(one.spec()))
            .collect();
        let more = operations.len() > limit;
        operations.truncate(limit);
        let last = operations.last().filter(|_| more);
        Page {
            next: last.map(|last| last.operation.clone()),
            operations,
        }
    }

    /// One of them, whole.
    ///
    /// # Errors
    /// There is none of that name, or none that the caller may know of.
    pub fn describe(&self, caller: &Caller, operation: &str) -> Result<Description, ApiError> {
        let found = self.find(caller, operation)?;
        Ok(Description::of(found.spec()))
    }

    /// One of them, as it is registered.
    ///
    /// # Errors
    /// As [`describe`](Self::describe).
    pub fn find(&self, caller: &Caller, operation: &str) -> Result<Resolved, ApiError> {
        let found = caller.gate.spec(caller.identity.as_deref(), operation);
        found.ok_or_else(|| {
            let name = operation.strip_prefix('/').unwrap_or(operation);
            let shown: String = name.chars().take(128).collect();
            ApiError::not_found(format!("there is no operation '/{shown}'"))
        })
    }

    /// Changes when what the caller sees of the operations may have.
    #[must_use]
    pub fn etag(&self, caller: &Caller) -> String {
        let digest = caller.gate.dispatcher().registry().digest();
        let mut hash = Sha256::new();
        hash.update(digest);
        if let Some(identity) = &caller.identity {
            hash.update(identity.id.as_str());
            hash.update(format!("{:?}{:?}", identity.scopes, identity.resources));
        }
        let hash = hash.finalize();
        let short: String = hash.iter().take(12).map(|b| format!("{b:02x}")).collect();
        format!("W/\"{short}\"")
    }

    /// Calls a query or mutation. Dropping the future aborts it, and what it called.
    ///
    /// # Errors
    /// As the error has it.
    pub async fn invoke(&self, caller: &Caller, call: Invocation) -> Result<Output, ApiError> {
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
        caller: &Caller,
        calls: Vec<(String, Result<Invocation, ApiError>)>,
        mode: BatchMode,
        answers: &Lease,
    ) -> Result<Vec<BatchResult>, ApiError> {
        check_ids(&calls)?;
        answers.more(calls.len() * BATCH_ITEM_BYTES)?;
        let deadline = tokio::time::Instant::from_std(Instant::now() + BATCH_TIMEOUT);
        let ids: Vec<_> = calls.iter().map(|(id, _)| id.clone()).collect();
        let mut outcomes: Vec<Option<Result<Output, ApiError>>> = Vec::new();
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
        caller: &Caller,
        call: Invocation,
        answers: &Lease,
    ) -> Result<Output, ApiError> {
        let reserve = answers.reserve()?;
        let text = text(self.invoke(caller, call).await?);
        // It counts twice: it is also copied into the whole answer.
        reserve.answer(2 * text.len())?;
        Ok(Output::Raw(text))
    }

    /// Memory for what the caller sends and is sent, of which nothing is taken yet.
    #[must_use]
    pub fn lease(&self, caller: &Caller) -> Lease {
        self.room.lease(&self.counted(caller))
    }

    /// The same for whom an account is.
    #[must_use]
    pub fn lease_of(&self, account: &Arc<Account>) -> Lease {
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
    pub fn subscribe(&self, caller: Caller, call: Invocation) -> Result<Subscription, ApiError> {
        let place = self.room.stream(&self.counted(&caller))?;
        let incoming = incoming(&caller, &call, caller.request_id.as_str());
        let events = caller.gate.subscribe(incoming);
        let events = events.map_err(|refused| refuse(&caller, refused))?;
        Ok(Subscription {
            events,
            _running: Running { _place: place },
            caller,
        })
    }

    /// A place among the streams of events of the caller, for what yields events of other kinds.
    ///
    /// # Errors
    /// As many are open as may.
    pub fn stream(&self, caller: &Caller) -> Result<Running, ApiError> {
        let _place = self.room.stream(&self.counted(caller))?;
        Ok(Running { _place })
    }
}

/// A token as long as a real one, and nobody's: for the work that is done where there is none.
pub const NO_TOKEN: &str = "alk_00000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The work of a token that stands for nobody, step by step: it is copied, looked up, looked at again for its form,
/// and it is said that it is wrong. Only that it came is not counted.
fn in_vain(gate: &Gate) {
    let token = AuthToken::new(std::hint::black_box(NO_TOKEN).to_owned());
    let found = gate.is_somebodys(&token) || token.hash().is_err();
    std::hint::black_box((found, wrong(CallError::bad_token())));
}

/// What is looked up where there is nothing to look up.
static NOBODY: LazyLock<AuthToken> = LazyLock::new(|| AuthToken::new(NO_TOKEN.to_owned()));

/// Whoever sends a wrong token is told what the call protocol says of it.
fn wrong(error: CallError) -> ApiError {
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

fn incoming<'a>(caller: &'a Caller, call: &'a Invocation, request_id: &'a str) -> Incoming<'a> {
    Incoming {
        input: call.input.clone(),
        memory: call.memory.clone(),
        identity: caller.identity.clone(),
        token: caller.token.as_ref(),
        proved_by: caller.proved_by,
        timeout: call.timeout,
        idempotency_key: call.idempotency_key.as_deref(),
        peer: call.peer.as_deref(),
        ..Incoming::new(request_id, &call.operation)
    }
}

fn refuse(caller: &Caller, refused: Refused) -> ApiError {
    ApiError::of_call(refused, caller.identity.is_some(), &caller.request_id)
}

/// An output as the text that is sent.
fn text(output: Output) -> Bytes {
    match output {
        Output::Raw(text) => text,
        other => {
            let mut text = Vec::new();
            other.append_to(&mut text);
            text.into()
        }
    }
}

fn check_ids(calls: &[(String, Result<Invocation, ApiError>)]) -> Result<(), ApiError> {
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

impl Subscription {
    /// The next event; an error is the last that comes.
    pub async fn next(&mut self) -> Option<Result<LocalEvent, ApiError>> {
        let event = self.events.next().await?;
        Some(event.map_err(|refused| refuse(&self.caller, refused)))
    }

    /// What the subscription is called.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

impl Stream for Subscription {
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
