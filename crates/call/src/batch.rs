//! Many calls in one write.

use std::fmt;
use std::time::Duration;

use futures_util::future;
use serde::Serialize;

use crate::body::CallBody;
use crate::client::{CallOptions, Caller};
use crate::error::CallError;
use crate::outgoing::{self, EncodedRequest};

/// Calls that are sent together, in one flush of one stream. They run at the same time and end in any order: a batch
/// is no transaction. The peer refuses calls beyond the number that it takes at once ([`Caller::requests_max`]) with
/// `OVERLOADED`.
pub struct CallBatch {
    caller: Caller,
    calls: Vec<BatchedCall>,
}

struct BatchedCall {
    request: Result<EncodedRequest, CallError>,
    timeout: Option<Duration>,
}

impl Caller {
    /// A batch without calls.
    #[must_use]
    pub fn batch(&self) -> CallBatch {
        CallBatch {
            caller: self.clone(),
            calls: Vec::new(),
        }
    }
}

impl CallBatch {
    /// Adds a call of a query or mutation.
    pub fn add(&mut self, operation: &str, input: &(impl Serialize + ?Sized)) -> &mut Self {
        self.add_with(operation, input, &CallOptions::default())
    }

    /// Like [`add`](Self::add), with options; all but `route`, which the batch decides.
    pub fn add_with(
        &mut self,
        operation: &str,
        input: &(impl Serialize + ?Sized),
        options: &CallOptions,
    ) -> &mut Self {
        self.calls.push(BatchedCall {
            request: EncodedRequest::new(&self.caller.state, operation, input, options, None),
            timeout: options.timeout,
        });
        self
    }

    /// Number of calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether the batch has no calls.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Sends the calls. Returns the outcome of each, in the order in which they were added. Dropping the future
    /// aborts the calls that have not ended.
    pub async fn send(self) -> Vec<Result<CallBody, CallError>> {
        let stream = match self.caller.shared_stream().await {
            Ok(stream) => stream,
            Err(error) => return self.calls.iter().map(|_| Err(error.clone())).collect(),
        };
        let state = &self.caller.state;
        let mut frames = Vec::new();
        let mut pending = Vec::with_capacity(self.calls.len());
        for call in self.calls {
            let request = call.request;
            pending.push(request.and_then(|request| {
                request.expect_answer(state, &stream, call.timeout, &mut frames)
            }));
        }
        if let Err(error) = outgoing::send(state, &stream, frames) {
            let failed = pending
                .into_iter()
                .map(|pending| Err(pending.err().unwrap_or_else(|| error.clone())));
            return failed.collect();
        }
        let outcomes = pending.into_iter().map(|pending| async move {
            match pending {
                Ok(pending) => pending.outcome().await,
                Err(error) => Err(error),
            }
        });
        future::join_all(outcomes).await
    }
}

impl fmt::Debug for CallBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The frames may hold tokens.
        write!(f, "CallBatch({})", self.calls.len())
    }
}
