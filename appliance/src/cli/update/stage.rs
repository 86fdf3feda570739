//! Brings a bundle to a node, and returns the node's plan.

use std::io::{self, IsTerminal};
use std::time::Duration;

use alknet_call::{CallError, ErrorCode};
use alknet_tensor_cli::ByteProgress;
use serde_json::{Value, json};

use super::source::{BundlePieces, BundleSource, PIECE_BYTES, PIECE_BYTES_LEAST, PIECE_BYTES_MAX};
use super::{NodeTurn, STATUS, options_within};
use crate::cli::call::call_error;
use crate::cli::node_caller::{NodeCaller, is_lost};
use crate::cli::query::text;
use crate::cli::{CommandError, CommandExit, output};
use crate::node::may_lie_in_delta;

/// How long a node may take for the last piece: it writes, reads back and verifies the program meanwhile.
const PIECE_TIMEOUT: Duration = Duration::from_secs(900);
/// How often an upload is taken up again after its connection was lost, without a whole piece in between.
const TRIES_MAX: u32 = 5;
/// The pause before that, and between two questions about a download.
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
                        output::note(&format!("{}; it takes the whole program", error.message));
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
            let session = text(&begun.value()["session"]).to_owned();
            loop {
                let status = node.call(STATUS, &Value::Null).await.map_err(call_error)?;
                let status = status.value();
                if let Some(plan) = ended(status, &session) {
                    text(&status["ended"]["source"]).clone_into(source);
                    return plan;
                }
                let number = |name: &str| status["session"][name].as_u64().unwrap_or_default();
                progress.set(number("offset"), number("bytes"));
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await
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
    let input = with_options(turn, json!({ "bytes": pieces.bytes() }));
    let progress = progress(turn);
    let mut sending = UploadState::begin();
    let mut tries = 0;
    loop {
        let before = sending.progress_offset;
        let sent = turn
            .dialer
            .reached(turn.route, async |node| {
                match &sending.session {
                    None => {
                        let begun = begin(node, &input).await?;
                        sending.take_session(&begun);
                    }
                    Some(_) => {
                        if let Some(plan) = sending.resume(node).await? {
                            return Ok(UploadStep::Done(plan));
                        }
                    }
                }
                sending.send(node, pieces, &progress).await
            })
            .await;
        // Each piece that arrived shows that the node is there, so the attempts count from it. If single bytes counted
        // as well, a node that breaks each connection after one of them would let this command dial for ever.
        if sending.progress_offset > before {
            tries = 0;
        }
        tries += 1;
        let error = match sent {
            Ok(UploadStep::Done(plan)) => return Ok(plan),
            Ok(UploadStep::Lost(error)) => call_error(error),
            // The node may be away for the dial as well. Before the upload began nothing is lost by an error.
            Err(error) if sending.session.is_some() && is_unreachable(&error) => error,
            Err(error) => return Err(error),
        };
        if tries > TRIES_MAX {
            return Err(sending.given_up(error, pieces.bytes(), tries));
        }
        tokio::time::sleep(PAUSE).await;
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

/// Answers in a row after which the node has no further piece: they name another offset, or one that is hardly higher.
const STALLED_MAX: u32 = 8;

/// How one connection ended.
enum UploadStep {
    Done(Value),
    Lost(CallError),
}

/// How far an upload is.
struct UploadState {
    session: Option<String>,
    offset: u64,
    /// How many bytes the node wants in the next piece.
    piece_bytes: usize,
    /// How many bytes a piece has if the node wants no other length.
    piece_bytes_max: usize,
    /// The highest offset that counts as progress: a whole piece beyond the one before.
    progress_offset: u64,
}

impl UploadState {
    const fn begin() -> Self {
        Self {
            session: None,
            offset: 0,
            piece_bytes: PIECE_BYTES,
            piece_bytes_max: PIECE_BYTES,
            progress_offset: 0,
        }
    }

    /// Takes the session, and the longest piece, from the node's answer to `update/stage`.
    fn take_session(&mut self, answer: &Value) {
        self.session = Some(text(&answer["session"]).to_owned());
        self.piece_bytes_max = piece_length(&answer["piece_bytes_max"]).unwrap_or(PIECE_BYTES);
        // Until the node has taken a piece, it may be one that other callers keep busy.
        self.piece_bytes = PIECE_BYTES.min(self.piece_bytes_max);
    }

    /// Goes on at the offset that the node names.
    fn go_on_at(&mut self, offset: u64) {
        self.offset = offset;
        // Only the last piece may be shorter, and its answer ends the upload. An offset that falls and rises again is
        // no progress either.
        if offset.saturating_sub(self.progress_offset) >= PIECE_BYTES_LEAST as u64 {
            self.progress_offset = offset;
        }
    }

    /// The error of the last of so many failures in a row, with how far the upload was. `error` alone would name a lost
    /// connection only.
    fn given_up(&self, mut error: CommandError, bytes: u64, failures: u32) -> CommandError {
        error.message = format!(
            "the upload was given up at {} of {bytes} bytes, after {failures} failures in a row: {}",
            self.offset, error.message
        );
        error
    }

    /// Asks a node that was away how much it has. The plan, if it has all.
    async fn resume(&mut self, node: &NodeCaller) -> Result<Option<Value>, CommandError> {
        let status = node.call(STATUS, &Value::Null).await.map_err(call_error)?;
        let status = status.value();
        let session = self.session.as_deref().unwrap_or_default();
        match ended(status, session) {
            Some(end) => end.map(Some),
            None => {
                self.go_on_at(status["session"]["offset"].as_u64().unwrap_or_default());
                Ok(None)
            }
        }
    }

    async fn send(
        &mut self,
        node: &NodeCaller,
        pieces: &BundlePieces<'_>,
        progress: &ByteProgress,
    ) -> Result<UploadStep, CommandError> {
        // A node that names other offsets in turn, or hardly higher ones, would let this command send for ever.
        let mut stalled = 0;
        loop {
            let data = pieces.at(self.offset, self.piece_bytes).await?;
            let input = json!({ "session": self.session, "offset": self.offset });
            let (data, options) = (("data", &data[..]), options_within(PIECE_TIMEOUT));
            let called = node.call_with_data("update/write", input, data, options);
            let answer = match called.await {
                Ok(answer) => answer,
                Err(error) if is_lost(&error) => return Ok(UploadStep::Lost(error)),
                Err(error) => match right_offset(&error, self.offset) {
                    Some(offset) if stalled < STALLED_MAX => {
                        self.go_on_at(offset);
                        stalled += 1;
                        continue;
                    }
                    _ => return Err(call_error(error)),
                },
            };
            let answer = answer.value();
            if answer["plan"].is_object() {
                return Ok(UploadStep::Done(answer["plan"].clone()));
            }
            let next = answer["offset"].as_u64().filter(|next| *next > self.offset);
            let before = self.progress_offset;
            self.go_on_at(next.ok_or_else(takes_no_more)?);
            stalled = match self.progress_offset > before {
                true => 0,
                false => stalled + 1,
            };
            if stalled > STALLED_MAX {
                return Err(takes_no_more());
            }
            // A node of an earlier version names no length here, and takes the longest pieces.
            self.piece_bytes = piece_length(&answer["piece_bytes"]).unwrap_or(self.piece_bytes_max);
            progress.set(self.offset, pieces.bytes());
        }
    }
}

/// A length that the node names, within the bounds of this command.
fn piece_length(value: &Value) -> Option<usize> {
    let bytes = usize::try_from(value.as_u64()?).unwrap_or(PIECE_BYTES_MAX);
    Some(bytes.clamp(PIECE_BYTES_LEAST, PIECE_BYTES_MAX))
}

/// The error of a node whose answers bring the upload no further.
fn takes_no_more() -> CommandError {
    CommandError::new(
        CommandExit::Failed,
        "PROTOCOL",
        "the node takes no more of the bundle",
    )
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

    /// A node whose offset grows by less than a piece, or falls and rises again, brings the upload no further.
    #[test]
    fn only_a_piece_beyond_the_highest_offset_is_progress() {
        let piece = PIECE_BYTES_LEAST as u64;
        let mut sending = UploadState::begin();
        for (offset, counted) in [
            (1, 0),
            (piece - 1, 0),
            (piece, piece),
            (0, piece),
            (2 * piece - 1, piece),
            (2 * piece, 2 * piece),
            (u64::MAX, u64::MAX),
            (0, u64::MAX),
        ] {
            sending.go_on_at(offset);
            assert_eq!((sending.offset, sending.progress_offset), (offset, counted));
        }
    }
}
