//! `alknet call` and `alknet ops`.

use std::io::Read;
use std::time::Duration;

use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallOptions, ErrorCode, OperationType,
};
use alknet_core::{Carriage, Connection};
use alknet_endpoint::{EndpointDialError, EndpointDialer, Target};
use alknet_tls::NodeKey;
use clap::Args;
use serde_json::{Value, json};

use super::enroll::KnownHubs;
use super::promotion::{self, PromotionVerb};
use super::{CommandError, CommandExit, DialArgs, batch, output};

/// Longest input read from a file or standard input: what a call may carry at most.
const INPUT_BYTES_MAX: u64 = 64 << 20;

/// Arguments of `alknet call`.
#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The node.
    target: String,
    /// The operation, for example node/info.
    #[arg(required_unless_present = "batch")]
    operation: Option<String>,
    /// Its input as JSON; - reads standard input, @FILE a file.
    #[arg(value_name = "JSON")]
    input: Option<String>,
    /// Call this node, too; can be given several times. Each answer is one line that names its
    /// node.
    #[arg(long, value_name = "TARGET")]
    also: Vec<String>,
    /// Make the calls of a file instead: one JSON object a line, with operation, input, and if need
    /// be timeout_ms and idempotency_key; - reads standard input. They run at the same time; each
    /// answer is one line, in the order of the file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["operation", "input", "also", "peer"])]
    batch: Option<String>,
    /// Call the operation of this peer of the hub instead, by its id or its name there.
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    #[command(flatten)]
    dial: DialArgs,
}

/// Arguments of `alknet ops`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct OpsArgs {
    #[command(subcommand)]
    verb: Option<PromotionVerb>,
    /// The node.
    #[arg(required = true)]
    target: Option<String>,
    /// Show the full specification of this operation.
    operation: Option<String>,
    #[command(flatten)]
    dial: DialArgs,
}

/// `alknet call`
pub(crate) fn call(args: CallArgs, json: bool) -> Result<CommandExit, CommandError> {
    if let Some(file) = &args.batch {
        return batch::run(&args.target, &args.dial, file, json);
    }
    let request = CliCallRequest {
        operation: args
            .operation
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned(),
        input: parse_input(args.input.as_deref())?,
        timeout: args.dial.timeout,
        peer: args.peer,
    };
    if args.also.is_empty() {
        return connected(&args.target, &args.dial, async |client| {
            request.make(client, &ResponsePrinter::alone(json)).await
        });
    }
    let mut targets = vec![args.target];
    targets.extend(args.also);
    several(&targets, &args.dial, &request, json)
}

/// One request to each of several nodes at the same time. Exits as the first target did that did
/// not exit well.
fn several(
    targets: &[String],
    args: &DialArgs,
    request: &CliCallRequest,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let targets: Vec<_> = targets
        .iter()
        .map(|text| parse_target(text, args))
        .collect::<Result<_, _>>()?;
    let exits = CliDialer::new(args)?.run(async |reach| {
        let calls = targets.iter().map(|target| async move {
            let printer = ResponsePrinter::labelled(target, json);
            let result = reach
                .connected(target, async |client| request.make(client, &printer).await)
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
    peer: Option<String>,
}

impl CliCallRequest {
    /// Asks first what kind of operation it is. One that the caller may not see is called all the
    /// same: the answer to the call says why it is refused.
    async fn make(
        &self,
        client: &CallConnection,
        printer: &ResponsePrinter,
    ) -> Result<CommandExit, CommandError> {
        let options = CallOptions {
            timeout: Some(self.timeout),
            peer: self.peer.clone(),
            ..CallOptions::default()
        };
        let (operation, input) = (&self.operation, &self.input);
        if self.peer.is_some() {
            return self.make_at_peer(client, &options, printer).await;
        }
        let answer = match client.schema(operation).await {
            Ok(spec) if spec.op_type == OperationType::Subscription => {
                return self.follow(client, &options, printer).await;
            }
            Ok(_) => client.call_retrying(operation, input, &options).await,
            Err(error) if error.code == ErrorCode::NotFound => {
                client.call_with(operation, input, &options).await
            }
            Err(error) => Err(error),
        };
        printer.answer(answer.map_err(of_call)?.value())?;
        Ok(CommandExit::Ok)
    }

    /// The hub does not describe its peers' operations: where one turns out to be a subscription, it
    /// is subscribed to.
    async fn make_at_peer(
        &self,
        client: &CallConnection,
        options: &CallOptions,
        printer: &ResponsePrinter,
    ) -> Result<CommandExit, CommandError> {
        let (operation, input) = (&self.operation, &self.input);
        match client.call_with(operation, input, options).await {
            Ok(answer) => {
                printer.answer(answer.value())?;
                Ok(CommandExit::Ok)
            }
            Err(error) if error.code == ErrorCode::InvalidOperationType => {
                self.follow(client, options, printer).await
            }
            Err(error) => Err(of_call(error)),
        }
    }

    /// Prints each event on a line of its own, until the end or Ctrl-C.
    async fn follow(
        &self,
        client: &CallConnection,
        options: &CallOptions,
        printer: &ResponsePrinter,
    ) -> Result<CommandExit, CommandError> {
        let options = CallOptions {
            timeout: None,
            ..options.clone()
        };
        let events = client.subscribe_with(&self.operation, &self.input, &options);
        let events = events.await;
        let mut events = events.map_err(of_call)?;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = tokio::signal::ctrl_c() => return Ok(CommandExit::Aborted),
            };
            match event {
                None => return Ok(CommandExit::Ok),
                Some(event) => {
                    let event = event.map_err(of_call)?;
                    printer.event(&self.operation, event.output.value())?;
                }
            }
        }
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

    fn labelled(target: &Target, json: bool) -> Self {
        Self {
            json,
            target: Some((target.address(), target.to_string())),
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
fn log_line(operation: &str, value: &Value) -> Option<String> {
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

/// `alknet ops`
pub(crate) fn ops(args: OpsArgs, json: bool) -> Result<CommandExit, CommandError> {
    let target = match (args.verb, args.target) {
        (Some(verb), _) => return promotion::run(verb, json),
        (None, Some(target)) => target,
        (None, None) => return Err(CommandError::usage("name a node; see alknet ops --help")),
    };
    connected(&target, &args.dial, async |client| {
        if let Some(operation) = &args.operation {
            let spec = client
                .schema(operation.trim_start_matches('/'))
                .await
                .map_err(of_call)?;
            show(&json!(spec), json)?;
            return Ok(CommandExit::Ok);
        }
        let found = client.operations("").await.map_err(of_call)?;
        if json {
            output::json_line(&found)?;
            return Ok(CommandExit::Ok);
        }
        let width = found
            .iter()
            .map(|op| op.name.len())
            .max()
            .unwrap_or_default();
        for op in found {
            let kind = json!(op.op_type);
            let kind = kind.as_str().unwrap_or_default();
            output::line(&format!(
                "{:width$}  {kind:12}  {}",
                op.name, op.description
            ))?;
        }
        Ok(CommandExit::Ok)
    })
}

/// Dials, runs `work`, says goodbye; all within the time the arguments allow, streams excepted.
pub(crate) fn connected(
    target: &str,
    args: &DialArgs,
    work: impl AsyncFnOnce(&CallConnection) -> Result<CommandExit, CommandError>,
) -> Result<CommandExit, CommandError> {
    let target = parse_target(target, args)?;
    CliDialer::new(args)?.run(async |reach| reach.connected(&target, work).await)
}

/// A target as written, or a hub that 'alknet enroll' has given a name.
pub(crate) fn parse_target(text: &str, args: &DialArgs) -> Result<Target, CommandError> {
    let text = text.strip_prefix("alknet:").unwrap_or(text);
    if text.contains(['@', ':', '.']) {
        return text.parse().map_err(CommandError::usage);
    }
    let hubs = KnownHubs::load(&args.state.dir()?)?;
    hubs.target(text)
        .unwrap_or(text)
        .parse()
        .map_err(CommandError::usage)
}

/// What every connection of one command is made with.
pub(crate) struct CliDialer {
    dialer: EndpointDialer,
    carriage: Carriage,
    timeout: Duration,
}

impl CliDialer {
    pub(crate) fn new(args: &DialArgs) -> Result<Self, CommandError> {
        let key = if args.anonymous {
            None
        } else {
            Some(args.state.key()?)
        };
        Ok(Self::with_key(key, args))
    }

    /// With another key than the one of this computer.
    pub(crate) fn with_key(key: Option<NodeKey>, args: &DialArgs) -> Self {
        Self {
            dialer: EndpointDialer::new(key),
            carriage: args.carriage.map_or(Carriage::Both, Into::into),
            timeout: args.timeout,
        }
    }

    /// Runs `work` to its end, and sees the goodbyes off.
    pub(crate) fn run<T>(
        &self,
        work: impl AsyncFnOnce(&Self) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime =
            runtime.map_err(|e| CommandError::local(format!("cannot start the runtime: {e}")))?;
        let result = runtime.block_on(async {
            let result = work(self).await;
            self.dialer.close().await;
            result
        });
        // Where it was interrupted, a thread may still wait for a line of standard input.
        runtime.shutdown_background();
        result
    }

    /// Dials, runs `work`, says goodbye.
    pub(crate) async fn connected<T>(
        &self,
        target: &Target,
        work: impl AsyncFnOnce(&CallConnection) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let connection = self.dialled(target, ALPN, self.carriage).await?;
        let client = CallClient::without_operations().attach(connection, None);
        let result = tokio::select! {
            biased;
            result = work(&client) => result,
            // The close below lets the node know: over UDP it would notice the end by silence
            // alone, and work until then.
            _ = tokio::signal::ctrl_c() => {
                Err(CommandError::new(CommandExit::Aborted, "ABORTED", "interrupted"))
            }
        };
        client.close(alknet_core::CloseCode::Normal, "");
        result
    }

    /// Dials for another protocol, over the carriage that it is served on.
    pub(crate) async fn dialled(
        &self,
        target: &Target,
        alpn: &'static [u8],
        carriage: Carriage,
    ) -> Result<Connection, CommandError> {
        let dial = self.dialer.dial_over(carriage, target, alpn);
        let connection = within_time(self.timeout, &target.address(), dial).await?;
        connection.map_err(|error| of_dial(&error))
    }
}

/// What comes of `work`, if it comes in time.
pub(crate) async fn within_time<T>(
    timeout: Duration,
    who: &str,
    work: impl Future<Output = T>,
) -> Result<T, CommandError> {
    tokio::time::timeout(timeout, work).await.map_err(|_| {
        let text = format!("{who} did not answer within {} s", timeout.as_secs_f64());
        CommandError::new(CommandExit::Timeout, "TIMEOUT", text)
    })
}

/// As [`of_dial`], of a dial through core's trait.
pub(crate) fn of_dial_kind(error: &alknet_core::DialError) -> CommandError {
    use alknet_core::DialErrorKind as Kind;
    let (exit, code) = match error.kind {
        Kind::Local => (CommandExit::Failed, "LOCAL"),
        Kind::UnknownPeer => (CommandExit::Usage, "UNKNOWN_PEER"),
        Kind::Impostor => (CommandExit::Unreachable, "PIN_MISMATCH"),
        Kind::TimedOut => (CommandExit::Timeout, "TIMEOUT"),
        _ => (CommandExit::Unreachable, "UNAVAILABLE"),
    };
    CommandError::new(exit, code, output::one_line(&error.to_string()))
}

fn of_dial(error: &EndpointDialError) -> CommandError {
    let (exit, code) = match error {
        EndpointDialError::Local(_) | EndpointDialError::TlsSetup(_) => {
            (CommandExit::Failed, "LOCAL")
        }
        EndpointDialError::UnknownPeer { .. } => (CommandExit::Usage, "UNKNOWN_PEER"),
        EndpointDialError::OtherKey { .. } | EndpointDialError::PinMismatch(_) => {
            (CommandExit::Unreachable, "PIN_MISMATCH")
        }
        EndpointDialError::TimedOut { .. } => (CommandExit::Timeout, "TIMEOUT"),
        _ => (CommandExit::Unreachable, "UNAVAILABLE"),
    };
    // The other side may have said why.
    CommandError::new(exit, code, output::one_line(&error.to_string()))
}

/// What a call failed with, for the person at the keyboard.
pub(crate) fn of_call(error: CallError) -> CommandError {
    let mut message = output::one_line(&error.message).into_owned();
    if let Some(details) = &error.details {
        message.push_str(&format!(" {details}"));
    }
    CommandError::new(
        CommandExit::of_code(&error.code),
        error.code.name(),
        message,
    )
}

fn show(value: &Value, json: bool) -> Result<(), CommandError> {
    if json {
        return output::json_line(value);
    }
    output::json_pretty(value)
}

/// The input as written, from standard input, or from a file.
fn parse_input(text: Option<&str>) -> Result<Value, CommandError> {
    let bytes = match text {
        None => return Ok(Value::Null),
        Some("-") => read_stdin()?,
        Some(text) => match text.strip_prefix('@') {
            Some(file) => read_file(file)?,
            None => text.as_bytes().to_vec(),
        },
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| CommandError::usage(format!("the input is no JSON: {error}")))
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
    let read = from.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| CommandError::usage(format!("cannot read {name}: {error}")))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(CommandError::usage(format!(
            "{name} is longer than {INPUT_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}
