//! `alknet call`.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use alknet_call::{CallError, CallOptions, ErrorCode, OperationSummary, OperationType};
use clap::Args;
use serde_json::{Value, json};

use super::call_hint::explained;
use super::dial::CliDialer;
use super::name_hint::nearest_name;
use super::node_book::check_name;
use super::node_caller::{NodeCaller, is_unknown_operation};
use super::target::{NodeArgs, NodeNames, NodeRoute};
use super::{CommandError, CommandExit, batch, output};

/// Longest input read from a file or standard input: what a call may carry at most.
const INPUT_BYTES_MAX: u64 = 64 << 20;

/// Arguments of `alknet call`.
#[derive(Debug, Args)]
#[command(
    override_usage = "alknet call [OPTIONS] [NODE] <OPERATION> [JSON]\n       \
alknet call [OPTIONS] [NODE] --batch <FILE>"
)]
pub(crate) struct CallArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The operation, for example node/info. A word with a '/' is an operation, never a node.
    operation: Option<String>,
    /// The input of the operation as JSON; - reads standard input, @FILE reads a file.
    #[arg(value_name = "JSON")]
    input: Option<String>,
    /// Also call this node. Repeat the option for more nodes. The command prints each answer on one line, after
    /// the address of its node.
    #[arg(long, value_name = "NODE")]
    also: Vec<String>,
    /// Make the calls of a file, one JSON object a line: operation, and optionally input, timeout_ms and
    /// idempotency_key. - reads standard input. The node runs the calls at the same time, and the command prints
    /// one answer a line, in the order of the file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["operation", "input", "also"])]
    batch: Option<String>,
}

impl CallArgs {
    /// With each word in its place: a first word with a '/' is the operation, and NODE was left out.
    fn arranged(mut self) -> Result<Self, CommandError> {
        if let Some(operation) = self.node.node.take_if(|word| is_operation(word)) {
            if self.input.is_some() || self.batch.is_some() {
                let text = format!("'{operation}' is an operation, and no node");
                return Err(CommandError::usage(text));
            }
            self.input = self.operation.take();
            self.operation = Some(operation);
        }
        match &self.operation {
            Some(operation) => check_operation(&self.node, operation, "call")?,
            None if self.batch.is_none() => return Err(no_operation(&self.node)),
            None => {}
        }
        Ok(self)
    }
}

/// The error of a command that names no operation. Its only word was taken for the node.
pub(crate) fn no_operation(node: &NodeArgs) -> CommandError {
    let behind = match &node.node {
        Some(node) => format!(" behind '{node}', which was taken for the NODE"),
        None => String::new(),
    };
    CommandError::usage(format!(
        "OPERATION is missing{behind}: 'alknet ops list' lists those of a node"
    ))
}

/// Refuses what is no name of an operation, before a word that was not meant as NODE is dialled. `verb` is the verb
/// that takes the operation.
///
/// # Errors
/// The word has no '/': what it may have been meant as is said.
pub(crate) fn check_operation(
    node: &NodeArgs,
    operation: &str,
    verb: &str,
) -> Result<(), CommandError> {
    if operation.contains('/') {
        return Ok(());
    }
    let mut text =
        format!("'{operation}' is no operation: the name of one has a '/', such as node/info");
    if let Some(word) = &node.node {
        text.push_str(&format!("; '{word}' was taken for the NODE"));
        // The name of a node and a namespace may be one word.
        if check_name(word).is_ok() && !node.is_known() {
            text.push_str(&format!(
                ": did you mean 'alknet {verb} {word}/{operation}'?"
            ));
        }
    }
    Err(CommandError::usage(text))
}

/// Whether a word is an operation's name. Keys, addresses and names of nodes have no '/'.
pub(crate) fn is_operation(word: &str) -> bool {
    word.contains('/') && !word.contains('@')
}

/// `alknet call`
pub(crate) fn call(args: CallArgs, json: bool) -> Result<CommandExit, CommandError> {
    let args = args.arranged()?;
    if let Some(file) = &args.batch {
        return batch::run(&args.node, file, json);
    }
    let request = CliCallRequest {
        operation: args
            .operation
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned(),
        input: parse_input(args.input.as_deref())?,
        timeout: args.node.dial.timeout,
    };
    if args.also.is_empty() {
        return args
            .node
            .reached(async |node| request.make(node, &ResponsePrinter::alone(json)).await);
    }
    let mut routes = vec![args.node.route()?];
    let names = NodeNames::load(&args.node.dial.state);
    for also in &args.also {
        routes.push(names.route_to(also, &args.node.peer)?);
    }
    let dialer = CliDialer::new(&args.node.dial)?;
    several(&routes, &dialer, &request, json)
}

/// One request to each of several nodes at the same time. Exits as the first node did that did
/// not exit well.
fn several(
    routes: &[NodeRoute],
    dialer: &CliDialer,
    request: &CliCallRequest,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let exits = dialer.run(async |dialer| {
        let calls = routes.iter().map(|route| async move {
            let printer = ResponsePrinter::labelled(route, json);
            let result = dialer
                .reached(route, async |node| request.make(node, &printer).await)
                .await;
            result.unwrap_or_else(|failure| {
                printer.failure(&failure);
                failure.exit
            })
        });
        Ok(futures_util::future::join_all(calls).await)
    })?;
    Ok(exits
        .into_iter()
        .find(|exit| *exit != CommandExit::Ok)
        .unwrap_or(CommandExit::Ok))
}

/// What is asked of each node.
struct CliCallRequest {
    operation: String,
    input: Value,
    timeout: Duration,
}

impl CliCallRequest {
    /// Asks first what kind of operation it is. One that the caller may not see is called all the
    /// same: the answer to the call says why it is refused.
    async fn make(
        &self,
        node: &NodeCaller,
        printer: &ResponsePrinter,
    ) -> Result<CommandExit, CommandError> {
        // A hub does not describe the operations of its peers, so what kind it is shows in the answer.
        if node.is_behind_hub() {
            return self.make_at_peer(node, printer).await;
        }
        let (operation, input) = (&self.operation, &self.input);
        let answer = match node.schema(operation).await {
            Ok(spec) if spec.op_type == OperationType::Subscription => {
                return self.follow(node, printer).await;
            }
            Ok(_) => node.call_retrying(operation, input, self.options()).await,
            // The node may serve what it does not list, such as to this key alone.
            Err(error) if error.code == ErrorCode::NotFound => {
                let answer = node.call_with(operation, input, self.options()).await;
                match answer {
                    Err(error) if is_unknown_operation(&error, operation) => {
                        return Err(unknown_operation(node, operation, error).await);
                    }
                    answer => answer,
                }
            }
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => printer.answer(answer.value())?,
            Err(error) => return Err(explained(node, operation, error).await),
        }
        Ok(CommandExit::Ok)
    }

    /// The hub does not describe its peers' operations: where one turns out to be a subscription, it
    /// is subscribed to.
    async fn make_at_peer(
        &self,
        node: &NodeCaller,
        printer: &ResponsePrinter,
    ) -> Result<CommandExit, CommandError> {
        let (operation, input) = (&self.operation, &self.input);
        match node.call_with(operation, input, self.options()).await {
            Ok(answer) => {
                printer.answer(answer.value())?;
                Ok(CommandExit::Ok)
            }
            Err(error) if error.code == ErrorCode::InvalidOperationType => {
                self.follow(node, printer).await
            }
            Err(error) => Err(explained(node, operation, error).await),
        }
    }

    /// Prints each event on a line of its own, until the end or Ctrl-C.
    async fn follow(
        &self,
        node: &NodeCaller,
        printer: &ResponsePrinter,
    ) -> Result<CommandExit, CommandError> {
        let events = node.subscribe(&self.operation, &self.input, self.options());
        let mut events = events.await.map_err(call_error)?;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = tokio::signal::ctrl_c() => return Ok(CommandExit::Aborted),
            };
            match event {
                None => return Ok(CommandExit::Ok),
                Some(Ok(event)) => printer.event(&self.operation, event.output.value())?,
                Some(Err(error)) => return Err(explained(node, &self.operation, error).await),
            }
        }
    }

    fn options(&self) -> CallOptions {
        CallOptions {
            timeout: Some(self.timeout),
            ..CallOptions::default()
        }
    }
}

/// The error for an operation that the node does not have for this key, with the one that was probably meant.
pub(crate) async fn unknown_operation(
    node: &NodeCaller,
    operation: &str,
    error: CallError,
) -> CommandError {
    let mut failure = call_error(error);
    let listed = node.operations().await.unwrap_or_default();
    let meant = meant_operation(&listed, operation);
    failure.details = None;
    failure.message = format!(
        "there is no operation '{operation}'; {meant}'alknet ops list' lists those that you may call"
    );
    failure
}

/// A question with the operation that was probably meant, and a space behind it; empty if none is like it.
pub(crate) fn meant_operation(listed: &[OperationSummary], operation: &str) -> String {
    let names = listed.iter().map(|listed| listed.name.as_str());
    match nearest_name(names, operation) {
        Some(name) => format!("did you mean '{}'? ", output::one_line(name)),
        None => String::new(),
    }
}

/// Prints what a node answers, by name where there are several.
struct ResponsePrinter {
    json: bool,
    /// For people, and for programs.
    target: Option<(String, String)>,
}

impl ResponsePrinter {
    fn alone(json: bool) -> Self {
        Self { json, target: None }
    }

    fn labelled(route: &NodeRoute, json: bool) -> Self {
        let (address, target) = (route.target.address(), route.target.to_string());
        let named = |at: String| match &route.peer {
            Some(peer) => format!("{peer}@{at}"),
            None => at,
        };
        Self {
            json,
            target: Some((named(address), named(target))),
        }
    }

    fn answer(&self, value: &Value) -> Result<(), CommandError> {
        match &self.target {
            None => show(value, self.json),
            Some(_) => self.line(value, &value.to_string()),
        }
    }

    fn event(&self, operation: &str, value: &Value) -> Result<(), CommandError> {
        let text = log_line(operation, value).unwrap_or_else(|| value.to_string());
        self.line(value, &text)
    }

    fn line(&self, value: &Value, text: &str) -> Result<(), CommandError> {
        match (&self.target, self.json) {
            (None, true) => output::json_line(value),
            (None, false) => output::line(text),
            (Some((_, target)), true) => {
                output::json_line(&json!({ "target": target, "output": value }))
            }
            (Some((address, _)), false) => output::line(&format!("{address} {text}")),
        }
    }

    fn failure(&self, failure: &CommandError) {
        // A reader that went away is no failure of any node.
        if failure.exit == CommandExit::Ok {
            return;
        }
        let target = match (&self.target, self.json) {
            (Some((_, target)), true) => Some(target.as_str()),
            (Some((address, _)), false) => Some(address.as_str()),
            (None, _) => None,
        };
        output::failure_of(target, failure, self.json);
    }
}

/// Log records read better as lines.
pub(crate) fn log_line(operation: &str, value: &Value) -> Option<String> {
    if operation != "node/log" {
        return None;
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let when = match text("time") {
        Some(time) => time.to_owned(),
        None => format!("+{} ms", value.get("boot_ms")?),
    };
    Some(format!(
        "{when} {:5} {}: {}",
        text("level")?,
        text("target")?,
        text("message")?
    ))
}

/// What a call failed with, for the person at the keyboard.
pub(crate) fn call_error(error: CallError) -> CommandError {
    let mut failure = CommandError::new(
        CommandExit::of_code(&error.code),
        &output::one_line(error.code.name()),
        output::one_line(&error.message),
    );
    failure.details = error.details;
    failure
}

pub(crate) fn show(value: &Value, json: bool) -> Result<(), CommandError> {
    if json {
        return output::json_line(value);
    }
    output::json_pretty(value)
}

/// The input as written, from standard input, or from a file.
fn parse_input(text: Option<&str>) -> Result<Value, CommandError> {
    let (bytes, from) = match text {
        None => return Ok(Value::Null),
        Some("-") => (read_stdin()?, " from standard input".to_owned()),
        Some(text) => match text.strip_prefix('@') {
            Some(file) => (read_file(file)?, format!(" from {file}")),
            None => (text.as_bytes().to_vec(), String::new()),
        },
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let mut why = format!("the input{from} is no JSON: {error}");
        // The sign is easily forgotten, and the name of a file is not JSON.
        match text {
            Some(file) if Path::new(file).is_file() => {
                why.push_str(&format!("; '@{file}' reads the file"));
            }
            Some(text) if is_like_file_name(text) => {
                why.push_str("; to read a file, write '@' before its name");
            }
            _ => {}
        }
        CommandError::usage(why)
    })
}

/// Whether `text`, which is not JSON, was probably meant as the name of a file.
fn is_like_file_name(text: &str) -> bool {
    // Text that begins in this way is JSON with a mistake in it.
    let is_begun =
        text.starts_with(['{', '[', '"', '-', '@']) || text.starts_with(char::is_numeric);
    !is_begun && text.contains(['.', '/']) && !text.contains(char::is_whitespace)
}

/// All of standard input, within [`INPUT_BYTES_MAX`].
pub(crate) fn read_stdin() -> Result<Vec<u8>, CommandError> {
    read_all(std::io::stdin().lock(), "standard input")
}

/// All of a file, within [`INPUT_BYTES_MAX`].
pub(crate) fn read_file(name: &str) -> Result<Vec<u8>, CommandError> {
    let file = std::fs::File::open(name)
        .map_err(|error| CommandError::usage(format!("cannot read {name}: {error}")))?;
    read_all(file, name)
}

fn read_all(from: impl Read, name: &str) -> Result<Vec<u8>, CommandError> {
    let mut bytes = Vec::new();
    // One byte more shows that the input is longer; a device would never end.
    let read = from.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| CommandError::usage(format!("cannot read {name}: {error}")))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(CommandError::usage(format!(
            "{name} is longer than {INPUT_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CallTestCli {
        #[command(flatten)]
        args: CallArgs,
    }

    /// NODE, OPERATION, JSON.
    fn words(line: &str) -> Result<[Option<String>; 3], CommandError> {
        let words = std::iter::once("call").chain(line.split_whitespace());
        let args = CallTestCli::try_parse_from(words)
            .map_err(CommandError::usage)?
            .args;
        let args = args.arranged()?;
        Ok([args.node.node, args.operation, args.input])
    }

    #[test]
    fn a_word_with_a_slash_is_the_operation() {
        let key = "ed25519:00@192.0.2.7:443";
        let at_key = format!("{key} node/info");
        for (line, expected) in [
            ("node/info", [None, Some("node/info"), None]),
            ("/node/info {}", [None, Some("/node/info"), Some("{}")]),
            ("attic node/info", [Some("attic"), Some("node/info"), None]),
            (
                "attic node/info {\"a\":\"b/c\"}",
                [Some("attic"), Some("node/info"), Some("{\"a\":\"b/c\"}")],
            ),
            (
                "node/info @dir/input.json",
                [None, Some("node/info"), Some("@dir/input.json")],
            ),
            (
                "attic node/info -",
                [Some("attic"), Some("node/info"), Some("-")],
            ),
            (&at_key, [Some(key), Some("node/info"), None]),
            (
                "kitchen@attic node/info",
                [Some("kitchen@attic"), Some("node/info"), None],
            ),
            ("attic --batch calls", [Some("attic"), None, None]),
            ("--batch calls", [None, None, None]),
        ] {
            let expected = expected.map(|word| word.map(str::to_owned));
            assert_eq!(words(line), Ok(expected), "{line}");
        }
        for line in [
            "",
            "attic",
            "node/info {} {}",
            "node/info --batch calls",
            "a b/c {} {}",
        ] {
            let refused = words(line).expect_err(line);
            assert_eq!(refused.exit, CommandExit::Usage, "{line}: {refused}");
        }
    }

    #[test]
    fn a_program_gets_the_details_of_an_error_as_they_are() {
        let error = CallError::new(ErrorCode::Forbidden, "you may not");
        let error = error.with_details(json!({ "missing_scopes": ["admin"] }));
        let failure = call_error(error);
        assert_eq!(failure.message, "you may not");
        assert_eq!(
            failure.details,
            Some(Box::new(json!({ "missing_scopes": ["admin"] })))
        );
        // A person reads them on the same line.
        let text = failure.to_string();
        assert_eq!(
            text,
            "FORBIDDEN: you may not {\"missing_scopes\":[\"admin\"]}"
        );
    }

    #[test]
    fn a_file_that_is_given_without_its_sign_is_named_with_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("names.json").display().to_string();
        std::fs::write(&file, "{").expect("a writable directory");
        let said = |text: &str| parse_input(Some(text)).expect_err(text).message;
        let sign = format!("'@{file}' reads the file");
        assert!(said(&file).contains(&sign), "{}", said(&file));
        let read = said(&format!("@{file}"));
        let named = format!("the input from {file} is no JSON: ");
        assert!(read.starts_with(&named) && !read.contains("'@"), "{read}");
        assert!(!said("{").contains("'@"));
        let advice = "; to read a file, write '@' before its name";
        for absent in ["input.json", "./input", "inputs/one"] {
            assert!(said(absent).ends_with(advice), "{}", said(absent));
        }
        for text in ["{a.b", "[.", "\"a.b", "1.2.3", "-1.2.3", "a. b", "input"] {
            assert!(!said(text).contains("'@'"), "{}", said(text));
        }
    }

    #[test]
    fn half_a_name_of_an_operation_is_no_node() {
        let refused = |line: &str| words(line).expect_err(line).message;
        let state = tempfile::tempdir().expect("a temporary directory");
        let at = format!("--state {}", state.path().display());
        let halves = refused(&format!("node info {at}"));
        for said in [
            "'info' is no operation",
            "'node' was taken for the NODE",
            "did you mean 'alknet call node/info'?",
        ] {
            assert!(halves.contains(said), "{halves}");
        }
        let address = refused("ed25519:00@192.0.2.7:443 info");
        assert!(!address.contains("did you mean"), "{address}");
        let alone = refused("node");
        let said = "OPERATION is missing behind 'node', which was taken for the NODE";
        assert!(alone.starts_with(said), "{alone}");
    }
}
