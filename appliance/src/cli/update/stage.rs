//! Brings a bundle to a node, and returns the node's plan.

use std::io::{self, IsTerminal};
use std::time::Duration;

use alknet_call::{CallError, ErrorCode};
use alknet_tensor_cli::ByteProgress;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::bounds::{BundleDeadline, PIECE_TIMEOUT, UploadOffset, UploadPatience};
use super::source::{BundlePieces, BundleSource, PIECE_BYTES, PIECE_BYTES_LEAST, PIECE_BYTES_MAX};
use super::{NodeTurn, STATUS, options_within};
use crate::cli::call::call_error;
use crate::cli::node_caller::{NodeCaller, is_lost, is_peer_away};
use crate::cli::query::text;
use crate::cli::{CommandError, CommandExit, output};
use crate::node::may_lie_in_delta;

/// The pause before an upload is taken up again, and between two questions about a session.
const PAUSE: Duration = Duration::from_secs(2);

/// The plan of the node for what the source has.
pub(super) async fn staged(
    turn: &NodeTurn<'_>,
    source: &BundleSource,
) -> Result<Value, CommandError> {
    match source {
        BundleSource::Channel(channel) => {
            let mut source = String::new();
            // A node of an earlier version refuses a member that it does not know.
            let mut input = json!({});
            if let Some(channel) = channel {
                input["channel"] = channel.clone().into();
            }
            match download(turn, input.clone(), &mut source).await {
                // Another refusal, such as a version below the floor, would be that of the whole program as well.
                Err(error) if is_delta_file(&source) && is_about_delta(&error) => {
                    if !turn.json {
                        // The reason is a text of the node, which must not make a line of its own.
                        let note = format!("{}; it takes the whole program", error.message);
                        output::note(&output::one_line(&note));
                    }
                    input["whole"] = true.into();
                    download(turn, input, &mut source).await
                }
                staged => staged,
            }
        }
        BundleSource::Url(url) => download(turn, json!({ "url": url }), &mut String::new()).await,
        BundleSource::File(file) => upload(turn, &BundlePieces::File(file)).await,
        BundleSource::Hub(hub) => {
            turn.dialer
                .reached(hub, async |hub| {
                    let pieces = BundlePieces::of_hub(hub).await?;
                    upload(turn, &pieces).await
                })
                .await
        }
    }
}

/// Whether the address is that of a file with a delta, and not of the whole program.
fn is_delta_file(address: &str) -> bool {
    let file = address.rsplit('/').next().unwrap_or_default();
    file.starts_with("from-")
}

/// Whether the error may lie in the delta alone.
fn is_about_delta(error: &CommandError) -> bool {
    let code = error.message.split_once(": ").map(|(code, _)| code);
    code.is_some_and(may_lie_in_delta)
}

fn progress(turn: &NodeTurn<'_>) -> ByteProgress {
    ByteProgress::new("update", None, !turn.json && io::stderr().is_terminal())
}

/// The input with what the command line adds to it.
fn with_options(turn: &NodeTurn<'_>, mut input: Value) -> Value {
    if let Some(version) = &turn.options.downgrade {
        input["downgrade"] = version.clone().into();
    }
    if turn.options.dry_run {
        input["dry_run"] = true.into();
    }
    if turn.options.take_over {
        input["take_over"] = true.into();
    }
    input
}

/// Lets the node download a bundle, waits for the end, and notes in `source` the address that the node took.
async fn download(
    turn: &NodeTurn<'_>,
    input: Value,
    source: &mut String,
) -> Result<Value, CommandError> {
    let input = with_options(turn, input);
    let progress = progress(turn);
    turn.dialer
        .reached(turn.route, async |node| {
            let begun = node.call_with("update/stage", &input, options_within(PIECE_TIMEOUT));
            let begun = begun.await.map_err(call_error)?;
            let session = text(&begun.value()["session"]);
            let waits = wait_for_end(session, &progress, source, async || {
                let status = node.call(STATUS, &Value::Null).await.map_err(call_error)?;
                Ok(status.value().clone())
            });
            BundleDeadline::begin().finish(waits).await
        })
        .await
}

/// Asks for the status until the session has ended, and notes in `source` the address that the node took.
async fn wait_for_end(
    session: &str,
    progress: &ByteProgress,
    source: &mut String,
    ask: impl AsyncFn() -> Result<Value, CommandError>,
) -> Result<Value, CommandError> {
    loop {
        let status = ask().await?;
        if let Some(plan) = ended(&status, session) {
            text(&status["ended"]["source"]).clone_into(source);
            return plan;
        }
        let number = |name: &str| status["session"][name].as_u64().unwrap_or_default();
        progress.set(number("offset"), number("bytes"));
        sleep(PAUSE).await;
    }
}

/// How the session ended, if it did.
fn ended(status: &Value, session: &str) -> Option<Result<Value, CommandError>> {
    let ended = &status["ended"];
    if ended["session"] != session {
        // The node restarted, or another session began meanwhile.
        let is_running = status["session"]["session"] == session;
        let gone = "the node forgot the bundle: it restarted, or another one began";
        return (!is_running)
            .then(|| Err(CommandError::new(CommandExit::Failed, "CONFLICT", gone)));
    }
    if ended["plan"].is_object() {
        return Some(Ok(ended["plan"].clone()));
    }
    let (code, why) = (text(&ended["error"]["code"]), text(&ended["error"]["text"]));
    let why = format!("{code}: {why}");
    Some(Err(CommandError::new(CommandExit::Failed, "CONFLICT", why)))
}

/// Sends a bundle piece by piece, over another connection where one is lost.
async fn upload(turn: &NodeTurn<'_>, pieces: &BundlePieces<'_>) -> Result<Value, CommandError> {
    // A node may take each piece just in time, or say for ever that it has not ended.
    BundleDeadline::begin()
        .finish(upload_over(turn, pieces))
        .await
}

async fn upload_over(
    turn: &NodeTurn<'_>,
    pieces: &BundlePieces<'_>,
) -> Result<Value, CommandError> {
    let input = with_options(turn, json!({ "bytes": pieces.bytes() }));
    let progress = progress(turn);
    let mut sending = UploadState::begin(pieces.bytes());
    let mut patience = UploadPatience::default();
    let is_away =
        |error: &CommandError| turn.route.peer.is_some() && is_peer_away(error.details.as_deref());
    loop {
        let before = sending.offset.progress_offset();
        let sent = turn
            .dialer
            .reached(turn.route, async |node| {
                match &sending.session {
                    None => {
                        let begun = begin(node, &input).await?;
                        sending.take_session(&begun);
                    }
                    Some(_) => {
                        if let Some(end) = sending.resume(node).await? {
                            return Ok(end);
                        }
                    }
                }
                sending.send(node, pieces, &progress).await
            })
            .await;
        // Each piece that arrived shows that the node is there, so the attempts count from it. If single bytes counted
        // as well, a node that breaks each connection after one of them would let this command dial for ever.
        if sending.offset.progress_offset() > before {
            patience = UploadPatience::default();
        }
        let error = match sent {
            Ok(UploadStep::Done(plan)) => return Ok(plan),
            Ok(UploadStep::Late(error)) => return Err(error),
            Ok(UploadStep::Lost(error)) => call_error(error),
            // The node may be away for the dial as well, and a worker from its hub. Before the upload began nothing is
            // lost by an error.
            Err(error)
                if sending.session.is_some() && (is_unreachable(&error) || is_away(&error)) =>
            {
                error
            }
            Err(error) => return Err(error),
        };
        if patience.is_spent(is_away(&error)) {
            return Err(sending.given_up(error, patience.failures()));
        }
        sleep(PAUSE).await;
    }
}

fn is_unreachable(error: &CommandError) -> bool {
    error.exit == CommandExit::Unreachable || error.exit == CommandExit::Timeout
}

/// Begins a session, and returns the node's answer. One that an earlier command of the same caller left is given up.
async fn begin(node: &NodeCaller, input: &Value) -> Result<Value, CommandError> {
    let refused = match node.call("update/stage", input).await {
        Ok(answer) => return Ok(answer.value().clone()),
        Err(error) => error,
    };
    let is_busy = refused
        .details
        .as_ref()
        .is_some_and(|it| it["code"] == "busy");
    if is_busy {
        let status = node.call(STATUS, &Value::Null).await.map_err(call_error)?;
        let own = &status.value()["session"];
        // The node shows the name of a session to its owner alone.
        if own["source"] == "upload" && own["session"].is_string() {
            let abort = json!({ "session": own["session"], "abort": true });
            node.call("update/write", &abort)
                .await
                .map_err(call_error)?;
            let answer = node.call("update/stage", input).await;
            return answer.map(|it| it.value().clone()).map_err(call_error);
        }
    }
    Err(call_error(refused))
}

/// How one connection ended.
enum UploadStep {
    /// The node has the bundle, and this plan.
    Done(Value),
    /// The node has the bundle, and does not say in time what it made of it.
    Late(CommandError),
    Lost(CallError),
}

/// How far an upload is.
struct UploadState {
    session: Option<String>,
    /// How much the node has.
    offset: UploadOffset,
    /// How many bytes the node wants in the next piece.
    piece_bytes: usize,
    /// How many bytes a piece has if the node wants no other length.
    piece_bytes_max: usize,
}

impl UploadState {
    const fn begin(bytes: u64) -> Self {
        Self {
            session: None,
            offset: UploadOffset::begin("node", bytes),
            piece_bytes: PIECE_BYTES,
            piece_bytes_max: PIECE_BYTES,
        }
    }

    /// Takes the session, and the longest piece, from the node's answer to `update/stage`.
    fn take_session(&mut self, answer: &Value) {
        self.session = Some(text(&answer["session"]).to_owned());
        self.piece_bytes_max = piece_length(&answer["piece_bytes_max"]).unwrap_or(PIECE_BYTES);
        // Until the node has taken a piece, it may be one that other callers keep busy.
        self.piece_bytes = PIECE_BYTES.min(self.piece_bytes_max);
    }

    /// The error of the last of so many failures in a row, with how far the upload was. `error` alone would name a lost
    /// connection only.
    fn given_up(&self, mut error: CommandError, failures: u32) -> CommandError {
        error.message = format!(
            "the upload was given up at {} of {} bytes, after {failures} failures in a row: {}",
            self.offset.value(),
            self.offset.bytes(),
            error.message
        );
        error
    }

    /// Asks a node how much it has, and waits while it has all and verifies it. Returns how the upload ended, if it
    /// did.
    async fn resume(&mut self, node: &NodeCaller) -> Result<Option<UploadStep>, CommandError> {
        let until = Instant::now() + PIECE_TIMEOUT;
        loop {
            let status = node.call(STATUS, &Value::Null).await.map_err(call_error)?;
            let status = status.value();
            let session = self.session.as_deref().unwrap_or_default();
            if let Some(end) = ended(status, session) {
                return end.map(|plan| Some(UploadStep::Done(plan)));
            }
            let offset = status["session"]["offset"].as_u64().unwrap_or_default();
            self.offset.go_on_at(offset)?;
            if !self.offset.is_end() {
                return Ok(None);
            }
            if Instant::now() >= until {
                let seconds = PIECE_TIMEOUT.as_secs();
                let text =
                    format!("the node has the bundle, and did not verify it within {seconds} s");
                let late = CommandError::new(CommandExit::Timeout, "TIMEOUT", text);
                return Ok(Some(UploadStep::Late(late)));
            }
            sleep(PAUSE).await;
        }
    }

    async fn send(
        &mut self,
        node: &NodeCaller,
        pieces: &BundlePieces<'_>,
        progress: &ByteProgress,
    ) -> Result<UploadStep, CommandError> {
        loop {
            // No piece is left to send. Only a node that answered with a plan is done.
            if self.offset.is_end()
                && let Some(end) = self.resume(node).await?
            {
                return Ok(end);
            }
            let offset = self.offset.value();
            let data = pieces.at(offset, self.piece_bytes).await?;
            let input = json!({ "session": self.session, "offset": offset });
            let (data, options) = (("data", &data[..]), options_within(PIECE_TIMEOUT));
            let called = node.call_with_data("update/write", input, data, options);
            let answer = match called.await {
                Ok(answer) => answer,
                Err(error) if is_lost(&error) => return Ok(UploadStep::Lost(error)),
                Err(error) => match right_offset(&error, offset) {
                    Some(right) if self.offset.take_correction(right)? => continue,
                    _ => return Err(call_error(error)),
                },
            };
            let answer = answer.value();
            if answer["plan"].is_object() {
                return Ok(UploadStep::Done(answer["plan"].clone()));
            }
            self.offset.take_answer(answer)?;
            // A node of an earlier version names no length here, and takes the longest pieces.
            self.piece_bytes = piece_length(&answer["piece_bytes"]).unwrap_or(self.piece_bytes_max);
            progress.set(self.offset.value(), pieces.bytes());
        }
    }
}

/// A length that the node names, within the bounds of this command.
fn piece_length(value: &Value) -> Option<usize> {
    let bytes = usize::try_from(value.as_u64()?).unwrap_or(PIECE_BYTES_MAX);
    Some(bytes.clamp(PIECE_BYTES_LEAST, PIECE_BYTES_MAX))
}

/// The offset that the node names, if it is another one.
fn right_offset(error: &CallError, sent: u64) -> Option<u64> {
    let is_offset = error.code == ErrorCode::Conflict;
    let right = error.details.as_ref().filter(|_| is_offset)?["offset"].as_u64();
    right.filter(|right| *right != sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_of_a_delta_are_about_one() {
        let status = |code: &str| json!({ "ended": { "session": "s", "error": { "code": code, "text": "why" } } });
        for (code, expected) in [
            ("delta", true),
            ("other-base", true),
            ("other-library", true),
            ("other-machine", false),
            ("hash", true),
            ("rollback", true),
            ("left", false),
            ("full", false),
        ] {
            let end = ended(&status(code), "s").expect("it ended");
            let error = end.expect_err("refused");
            assert_eq!(is_about_delta(&error), expected, "{code}");
        }
        let folder = "https://example.org/stable";
        assert!(is_delta_file(&format!("{folder}/from-ab12.tar")));
        assert!(!is_delta_file(&format!("{folder}/bundle.tar")));
        assert!(!is_delta_file("https://example.org/from-us/bundle.tar"));
    }

    /// The attack: a node that downloads says without an end that the session is the one that was begun.
    #[tokio::test(start_paused = true)]
    async fn a_download_that_a_node_never_ends_is_left() {
        let progress = ByteProgress::new("update", None, false);
        let mut source = String::new();
        let waits = wait_for_end("s1", &progress, &mut source, async || {
            Ok(json!({ "session": { "session": "s1", "offset": 1, "bytes": 9 }, "ended": null }))
        });
        let began = Instant::now();
        let left = BundleDeadline::begin().finish(waits).await;
        let left = left.expect_err("it never ends");
        assert_eq!(left.exit, CommandExit::Timeout, "{left}");
        let hours = began.elapsed().as_secs() / 3600;
        assert_eq!(hours, 3, "the node gives its own session up before");
    }
}
