//! Requests that a server sends to this node. The protocol's library starts a task for each request, keeps the task
//! until its answer is posted, and posts one answer after the other. A server that accepts no answers could fill the
//! node's memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rmcp::model::{ClientJsonRpcMessage, RequestId};
use tokio::time::Instant;

use crate::client::lock;
use crate::limits::{SERVER_REQUEST_EXPIRY, SERVER_REQUEST_NAME_BYTES_MAX, SERVER_REQUESTS_MAX};

/// The requests of a server on one connection whose answers are not posted yet. Clones share their state.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerRequests(Arc<Mutex<HashMap<RequestId, Instant>>>);

impl ServerRequests {
    /// Whether the library may have the request with this id and method, both as the server wrote them. An admitted
    /// request counts from then on.
    pub(super) fn admits(&self, id: &str, method: &str) -> bool {
        self.admits_at(Instant::now(), id, method)
    }

    fn admits_at(&self, now: Instant, id: &str, method: &str) -> bool {
        // The library repeats both texts in its answer.
        let longest = id.len().max(method.len());
        let Ok(id) = serde_json::from_str::<RequestId>(id) else {
            return false;
        };
        let mut open = lock(&self.0);
        // A request that the server cancelled itself gets no answer that could end its entry, so each entry expires.
        open.retain(|_, since| now.saturating_duration_since(*since) < SERVER_REQUEST_EXPIRY);
        // If two requests have the same id, the library answers only once.
        let is_admitted = longest <= SERVER_REQUEST_NAME_BYTES_MAX
            && open.len() < SERVER_REQUESTS_MAX
            && !open.contains_key(&id);
        if is_admitted {
            open.insert(id, now);
        }
        is_admitted
    }

    /// Returns a guard. The request that `message` answers counts until the guard is dropped.
    pub(super) fn answering(&self, message: &ClientJsonRpcMessage) -> Option<ServerAnswerGuard> {
        let id = match message {
            ClientJsonRpcMessage::Response(response) => response.id.clone(),
            ClientJsonRpcMessage::Error(error) => error.id.clone()?,
            _ => return None,
        };
        let requests = self.clone();
        Some(ServerAnswerGuard { requests, id })
    }
}

/// An answer that is being posted.
#[derive(Debug)]
pub(super) struct ServerAnswerGuard {
    requests: ServerRequests,
    id: RequestId,
}

impl Drop for ServerAnswerGuard {
    fn drop(&mut self) {
        lock(&self.requests.0).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use rmcp::ErrorData;

    use super::*;

    const PING: &str = "\"ping\"";

    #[test]
    fn an_answer_that_is_posted_makes_room_for_one_request() {
        let requests = ServerRequests::default();
        for id in 0..SERVER_REQUESTS_MAX {
            assert!(requests.admits(&id.to_string(), PING), "request {id}");
        }
        assert!(!requests.admits("\"one more\"", PING));
        let error = ErrorData::invalid_request("no", None);
        let answer = ClientJsonRpcMessage::error(error, Some(RequestId::Number(7)));
        let posting = requests.answering(&answer);
        assert!(!requests.admits("\"one more\"", PING), "it is not posted");
        drop(posting);
        assert!(requests.admits("\"one more\"", PING));
        assert!(!requests.admits("\"another\"", PING));
    }

    #[test]
    fn a_request_that_is_never_answered_counts_for_a_time() {
        let requests = ServerRequests::default();
        let begun = Instant::now();
        for id in 0..SERVER_REQUESTS_MAX {
            assert!(requests.admits_at(begun, &id.to_string(), PING));
        }
        assert!(!requests.admits_at(begun, "\"a\"", PING));
        assert!(requests.admits_at(begun + SERVER_REQUEST_EXPIRY, "\"a\"", PING));
    }

    #[test]
    fn ids_are_short_and_no_two_requests_have_one() {
        let requests = ServerRequests::default();
        let long = format!("\"{}\"", "x".repeat(SERVER_REQUEST_NAME_BYTES_MAX));
        assert!(!requests.admits(&long, PING));
        assert!(!requests.admits("1", &long));
        assert!(!requests.admits("{}", PING), "this is no id");
        assert!(requests.admits("\"a\"", PING));
        assert!(!requests.admits("\"\\u0061\"", PING), "it is the same");
    }
}
