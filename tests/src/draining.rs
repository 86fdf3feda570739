//! Clients that change a node until it shuts down: the node has to keep what it confirmed, and nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use alknet_call::{CallConnection, CallError, CallOptions, ErrorCode};
use alknet_test_support::deadline;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Callers of each connection.
const AT_ONCE: usize = 8;
/// Answers on each connection before the test goes on.
const ANSWERS: usize = 2 * AT_ONCE;
/// Tokens of each caller. A node stores at most 1,024; beyond its share a caller only reads.
const TOKENS_MAX: usize = 30;
/// Pause of a caller between an answer and its next call, so that its tokens last until the node shuts down.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for these answers, and for the end of all callers.
const WITHIN: Duration = Duration::from_secs(60);

/// Clients that make tokens, several at once over each connection, until a call fails. Each token has a note of its
/// own, and a node keeps its tokens over a restart.
#[derive(Debug, Default)]
pub struct TokenCallers {
    callers: Vec<JoinHandle<CallerEnd>>,
    answered: Vec<watch::Receiver<usize>>,
}

/// What a caller has when a call fails.
#[derive(Debug)]
struct CallerEnd {
    /// Notes of the tokens that the node has confirmed.
    notes: Vec<String>,
    error: CallError,
    /// Whether the caller has reached the node through another one.
    through_peer: bool,
}

impl CallerEnd {
    /// Whether the node refused the call because it shuts down. If another node passes calls on, the node may also be
    /// gone already.
    fn is_refusal(&self) -> bool {
        let reason = self
            .error
            .details
            .as_ref()
            .map(|details| &details["reason"]);
        let is_gone = reason.is_some_and(|reason| reason == "peer_not_attached");
        self.error.code == ErrorCode::Unavailable || (self.through_peer && is_gone)
    }
}

impl TokenCallers {
    /// Starts callers over this connection of an administrator. `name` distinguishes their notes from those of other
    /// connections. With `peer` they call that peer of the connected node, and only read: a worker lets its hub make no
    /// tokens.
    pub fn start(&mut self, client: &CallConnection, name: &str, peer: Option<&str>) {
        let (sent, answered) = watch::channel(0);
        let through_peer = peer.is_some();
        for caller in 0..AT_ONCE {
            let (client, sent) = (client.clone(), sent.clone());
            let name = format!("{name}-{caller}");
            let options = CallOptions {
                peer: peer.map(str::to_owned),
                ..CallOptions::default()
            };
            self.callers.push(tokio::spawn(async move {
                let mut notes = Vec::new();
                loop {
                    let note = format!("{name}-{}", notes.len());
                    let is_change = !through_peer && notes.len() < TOKENS_MAX;
                    let (operation, input) = match is_change {
                        true => (
                            "token/make",
                            json!({ "scopes": ["node:read"], "note": note }),
                        ),
                        false => ("node/info", Value::Null),
                    };
                    if let Err(error) = client.call_with(operation, &input, &options).await {
                        return CallerEnd {
                            notes,
                            error,
                            through_peer,
                        };
                    }
                    if is_change {
                        notes.push(note);
                    }
                    sent.send_modify(|count| *count += 1);
                    tokio::time::sleep(PAUSE).await;
                }
            }));
        }
        self.answered.push(answered);
    }

    /// Waits until the callers of each connection have had some answers.
    ///
    /// # Panics
    /// They do not get them in time, or a caller has ended.
    pub async fn are_answered(&mut self) {
        for answered in &mut self.answered {
            let enough = answered.wait_for(|count| *count >= ANSWERS);
            let enough = tokio::time::timeout(deadline(WITHIN), enough).await;
            let enough = enough.expect("the node makes tokens");
            enough.expect("some callers go on");
        }
    }

    /// Waits until each caller was refused because the node shuts down. Returns the notes of the tokens that the node
    /// has confirmed.
    ///
    /// # Panics
    /// A caller got another error, or none in time.
    pub async fn refused(self) -> BTreeSet<String> {
        let mut confirmed = BTreeSet::new();
        for caller in self.callers {
            let ended = tokio::time::timeout(deadline(WITHIN), caller).await;
            let end = ended.expect("the node ends").expect("no panic");
            assert!(end.is_refusal(), "{end:?}");
            confirmed.extend(end.notes);
        }
        confirmed
    }
}

/// The notes of the tokens in an answer of `token/list`.
///
/// # Panics
/// It is no such answer.
#[must_use]
pub fn notes_of_tokens(listed: &Value) -> BTreeSet<String> {
    let tokens = listed["tokens"].as_array().expect("a list");
    let notes = tokens.iter().filter_map(|token| token["note"].as_str());
    notes.map(str::to_owned).collect()
}
