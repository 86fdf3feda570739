//! Retries: what the client may repeat, when, and how often. The rules know no clock and no randomness; the caller
//! passes both.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;
use tokio::time::Instant;

use crate::body::CallBody;
use crate::client::{CallOptions, Caller};
use crate::error::{CallError, ErrorCode};
use crate::keyed;
use crate::limits::{KNOWN_OPERATIONS_MAX, RETRIES_MAX, RETRY_DELAY_FIRST};
use crate::spec::{OperationSpec, OperationType};
use crate::sync::lock;

/// Random bytes of an idempotency key.
const KEY_BYTES: usize = 18;

/// The facts about an operation that matter for calling it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OperationRetryInfo {
    pub(crate) repeat: RetrySafety,
    pub(crate) resumable: bool,
}

/// Whether the client may repeat a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetrySafety {
    /// Under the same idempotency key.
    Keyed,
    No,
    Yes,
}

impl OperationRetryInfo {
    /// The facts about an operation without a known spec.
    pub(crate) const UNKNOWN: Self = Self {
        repeat: RetrySafety::No,
        resumable: false,
    };

    pub(crate) fn from_spec(spec: &OperationSpec) -> Self {
        let repeat = match spec.op_type {
            OperationType::Query => RetrySafety::Yes,
            OperationType::Mutation if keyed::is_keyed(spec) => RetrySafety::Keyed,
            OperationType::Mutation | OperationType::Subscription => RetrySafety::No,
        };
        Self {
            repeat,
            resumable: spec.resumable,
        }
    }

    /// Makes sure that every try carries the same key.
    pub(crate) fn prepare(self, options: &mut CallOptions) -> Result<(), CallError> {
        if self.repeat == RetrySafety::Keyed && options.idempotency_key.is_none() {
            options.idempotency_key = Some(new_key()?);
        }
        Ok(())
    }
}

/// What this side knows of a peer's operations, and of its limits.
#[derive(Debug, Default)]
pub(crate) struct PeerRetryInfo {
    habits: Mutex<HashMap<String, OperationRetryInfo>>,
    /// 0: the peer has not announced it.
    requests_max: AtomicUsize,
}

impl PeerRetryInfo {
    pub(crate) fn learn(&self, operation: &str, spec: &OperationSpec) {
        let mut habits = lock(&self.habits);
        if habits.len() >= KNOWN_OPERATIONS_MAX {
            // The client asks the peer again for the operations that it forgets here.
            habits.clear();
        }
        let name = operation.trim_start_matches('/').to_owned();
        habits.insert(name, OperationRetryInfo::from_spec(spec));
    }

    pub(crate) fn habits(&self, operation: &str) -> Option<OperationRetryInfo> {
        let habits = lock(&self.habits);
        habits.get(operation.trim_start_matches('/')).copied()
    }

    pub(crate) fn set_requests_max(&self, requests: Option<usize>) {
        let requests = requests.unwrap_or_default();
        self.requests_max.store(requests, Ordering::Relaxed);
    }

    pub(crate) fn requests_max(&self) -> Option<usize> {
        let requests = self.requests_max.load(Ordering::Relaxed);
        (requests > 0).then_some(requests)
    }
}

/// The retries of one call.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RetryCount(u32);

impl RetryCount {
    /// The pause before the next try; `None` for no further try: the error is final, three retries were made, or the
    /// time `left` would not suffice.
    pub(crate) fn next(
        &mut self,
        error: &CallError,
        left: Option<Duration>,
        random: u32,
    ) -> Option<Duration> {
        if !error.retryable || self.0 >= RETRIES_MAX {
            return None;
        }
        let own = jittered(RETRY_DELAY_FIRST * 2u32.pow(self.0), random);
        let requested = Duration::from_millis(error.retry_after_ms.unwrap_or_default());
        // The peer knows best when it has room again.
        let delay = own.max(requested);
        // The retry would end at its deadline before it began.
        if left.is_some_and(|left| left <= delay) {
            return None;
        }
        self.0 += 1;
        Some(delay)
    }
}

/// Half of `delay` and a random part of the other half, so that callers that failed together do not come back
/// together.
fn jittered(delay: Duration, random: u32) -> Duration {
    let half = delay / 2;
    half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// A random number; where the system has none, the middle.
pub(crate) fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// A new random idempotency key.
pub(crate) fn new_key() -> Result<String, CallError> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| CallError::internal(format!("no random numbers: {error}")))?;
    Ok(BASE64URL_NOPAD.encode(&bytes))
}

/// The time until `deadline`.
pub(crate) fn left(deadline: Option<Instant>) -> Option<Duration> {
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

impl Caller {
    /// Like [`call_with`](Self::call_with), with up to three retries where that is safe and may help: the error says
    /// `retryable`, the time allows it, and the operation is a query or a mutation that takes an idempotency key. The
    /// client makes the key when `options` has none. It asks the peer once per connection what the operation is.
    ///
    /// # Errors
    /// The last error.
    pub async fn call_retrying(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &CallOptions,
    ) -> Result<CallBody, CallError> {
        let deadline = options.deadline();
        let habits = self
            .habits(operation)
            .await
            .unwrap_or(OperationRetryInfo::UNKNOWN);
        let mut options = options.clone();
        habits.prepare(&mut options)?;
        let mut retries = RetryCount::default();
        loop {
            options.timeout = left(deadline);
            let outcome = self.call_with(operation, input, &options).await;
            let error = match outcome {
                Err(error) if habits.repeat != RetrySafety::No && self.takes_calls() => error,
                outcome => return outcome,
            };
            match retries.next(&error, left(deadline), random()) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            }
        }
    }

    /// Whether another call over this connection could end otherwise than the last.
    fn takes_calls(&self) -> bool {
        !self.is_closed() && !self.is_draining()
    }

    /// The facts about `operation` that matter for calling it again. The client calls an operation once that the peer
    /// does not show.
    pub(crate) async fn habits(&self, operation: &str) -> Result<OperationRetryInfo, CallError> {
        if let Some(habits) = self.state.known.habits(operation) {
            return Ok(habits);
        }
        match self.schema(operation.trim_start_matches('/')).await {
            Ok(spec) => Ok(OperationRetryInfo::from_spec(&spec)),
            // An operation that the peer does not list may still be callable: it is called once.
            Err(error) if error.code == ErrorCode::NotFound => Ok(OperationRetryInfo::UNKNOWN),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Idempotence;

    #[test]
    fn only_what_is_safe_is_repeated() {
        let mutation = |idempotent| OperationSpec {
            idempotent,
            ..OperationSpec::mutation("a/b", "")
        };
        for (spec, repeat) in [
            (OperationSpec::query("a/b", ""), RetrySafety::Yes),
            (mutation(Idempotence::Keyed), RetrySafety::Keyed),
            (mutation(Idempotence::No), RetrySafety::No),
            (OperationSpec::subscription("a/b", ""), RetrySafety::No),
        ] {
            assert_eq!(OperationRetryInfo::from_spec(&spec).repeat, repeat);
        }
        let mut options = CallOptions::default();
        let keyed = OperationRetryInfo::from_spec(&mutation(Idempotence::Keyed));
        keyed.prepare(&mut options).expect("random numbers");
        let key = options.idempotency_key.clone();
        assert!(key.as_ref().is_some_and(|key| key.len() <= 64));
        keyed.prepare(&mut options).expect("random numbers");
        assert_eq!(options.idempotency_key, key);
    }

    #[test]
    fn tries_are_counted_and_end_with_the_time() {
        let error = CallError::unavailable("gone");
        let ms = Duration::from_millis;
        let mut retries = RetryCount::default();
        let delays: Vec<_> = (0..4)
            .map(|_| retries.next(&error, None, u32::MAX))
            .collect();
        assert_eq!(delays, [Some(ms(50)), Some(ms(100)), Some(ms(200)), None]);
        let first =
            |error: &CallError, left, random| RetryCount::default().next(error, left, random);
        assert_eq!(first(&error, None, 0), Some(ms(25)));
        assert_eq!(first(&error, Some(ms(25)), 0), None);
        assert_eq!(first(&error, Some(ms(26)), 0), Some(ms(25)));
        let requested = error.clone().with_retry_after_ms(400);
        assert_eq!(first(&requested, None, 0), Some(ms(400)));
        assert_eq!(first(&requested, Some(ms(300)), 0), None);
        assert_eq!(first(&CallError::internal("no"), None, 0), None);
    }
}
