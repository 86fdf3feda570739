//! `alknet call` and `alknet ops`.

use std::io::Read;
use std::time::Duration;

use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallOptions, ErrorCode, OperationType,
};
use alknet_core::Carriage;
use alknet_endpoint::{DialError, Dialer, Target};
use clap::Args;
use serde_json::{Value, json};

use super::{DialArgs, Exit, Failure, output};

/// Longest input read from a file or standard input: what a call may carry at most.
const INPUT_BYTES_MAX: u64 = 64 << 20;

/// Arguments of `alknet call`.
#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The node.
    target: String,
    /// The operation, for example node/info.
    operation: String,
    /// Its input as JSON; - reads standard input, @FILE a file.
    #[arg(value_name = "JSON")]
    input: Option<String>,
    #[command(flatten)]
    dial: DialArgs,
}

/// Arguments of `alknet ops`.
#[derive(Debug, Args)]
pub(crate) struct OpsArgs {
    /// The node.
    target: String,
    /// Show the full specification of this operation.
    operation: Option<String>,
    #[command(flatten)]
    dial: DialArgs,
}

/// `alknet call`
pub(crate) fn call(args: CallArgs, json: bool) -> Result<Exit, Failure> {
    let input = parse_input(args.input.as_deref())?;
    let operation = args.operation.trim_start_matches('/').to_owned();
    connected(&args.target, &args.dial, async |client| {
        if is_subscription(client, &operation).await? {
            return follow(client, &operation, &input, json).await;
        }
        let options = CallOptions {
            timeout: Some(args.dial.timeout),
            ..CallOptions::default()
        };
        let answer = client.call_with(&operation, &input, &options).await;
        show(answer.map_err(of_call)?.value(), json)?;
        Ok(Exit::Ok)
    })
}

/// Asks what kind of operation it is. One that the caller may not see is called all the same: the
/// answer to the call says why it is refused.
async fn is_subscription(client: &CallConnection, operation: &str) -> Result<bool, Failure> {
    match client.schema(operation).await {
        Ok(spec) => Ok(spec.op_type == OperationType::Subscription),
        Err(error) if error.code == ErrorCode::NotFound => Ok(false),
        Err(error) => Err(of_call(error)),
    }
}

/// Prints each event on a line of its own, until the end or Ctrl-C.
async fn follow(
    client: &CallConnection,
    operation: &str,
    input: &Value,
    json: bool,
) -> Result<Exit, Failure> {
    let mut events = client.subscribe(operation, input).await.map_err(of_call)?;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Aborted),
        };
        match event {
            None => return Ok(Exit::Ok),
            Some(event) => {
                let event = event.map_err(of_call)?;
                let value = event.output.value();
                match log_line(operation, value) {
                    Some(line) if !json => output::line(&line)?,
                    _ => output::json_line(value)?,
                }
            }
        }
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
pub(crate) fn ops(args: OpsArgs, json: bool) -> Result<Exit, Failure> {
    connected(&args.target, &args.dial, async |client| {
        if let Some(operation) = &args.operation {
            let spec = client
                .schema(operation.trim_start_matches('/'))
                .await
                .map_err(of_call)?;
            show(&json!(spec), json)?;
            return Ok(Exit::Ok);
        }
        let found = client.operations("").await.map_err(of_call)?;
        if json {
            output::json_line(&found)?;
            return Ok(Exit::Ok);
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
        Ok(Exit::Ok)
    })
}

/// Dials, runs `work`, says goodbye; all within the time the arguments allow, streams excepted.
pub(crate) fn connected(
    target: &str,
    args: &DialArgs,
    work: impl AsyncFnOnce(&CallConnection) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let target = target.strip_prefix("alknet:").unwrap_or(target);
    let target: Target = target.parse().map_err(Failure::usage)?;
    let key = if args.anonymous {
        None
    } else {
        Some(args.state.key()?)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Failure::local(format!("cannot start the runtime: {e}")))?;
    runtime.block_on(async {
        let dialer = Dialer::new(key);
        let carriage = args.carriage.map_or(Carriage::Both, Into::into);
        let connection = within(
            args.timeout,
            &target,
            dialer.dial_over(carriage, &target, ALPN),
        );
        let client = CallClient::without_operations().attach(connection.await?, None);
        let result = work(&client).await;
        client.close(alknet_core::CloseCode::Normal, "");
        drop(client);
        dialer.close().await;
        result
    })
}

async fn within<T>(
    timeout: Duration,
    target: &Target,
    dial: impl Future<Output = Result<T, DialError>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(timeout, dial).await {
        Ok(result) => result.map_err(|error| of_dial(&error)),
        Err(_) => Err(Failure::new(
            Exit::Timeout,
            "TIMEOUT",
            format!(
                "{} did not answer within {} s",
                target.address(),
                timeout.as_secs_f64()
            ),
        )),
    }
}

fn of_dial(error: &DialError) -> Failure {
    let (exit, code) = match error {
        DialError::Local(_) | DialError::TlsSetup(_) => (Exit::Failed, "LOCAL"),
        DialError::UnknownPeer { .. } => (Exit::Usage, "UNKNOWN_PEER"),
        DialError::PinMismatch(_) => (Exit::Unreachable, "PIN_MISMATCH"),
        DialError::TimedOut { .. } => (Exit::Timeout, "TIMEOUT"),
        _ => (Exit::Unreachable, "UNAVAILABLE"),
    };
    Failure::new(exit, code, error)
}

/// What a call failed with, for the person at the keyboard.
pub(crate) fn of_call(error: CallError) -> Failure {
    let mut message = error.message.clone();
    if let Some(details) = &error.details {
        message.push_str(&format!(" {details}"));
    }
    Failure::new(Exit::of_code(&error.code), error.code.name(), message)
}

fn show(value: &Value, json: bool) -> Result<(), Failure> {
    if json {
        return output::json_line(value);
    }
    output::line(&serde_json::to_string_pretty(value).map_err(Failure::local)?)
}

/// The input as written, from standard input, or from a file.
fn parse_input(text: Option<&str>) -> Result<Value, Failure> {
    let bytes = match text {
        None => return Ok(Value::Null),
        Some("-") => read_stdin()?,
        Some(text) => match text.strip_prefix('@') {
            Some(file) => std::fs::read(file)
                .map_err(|error| Failure::usage(format!("cannot read {file}: {error}")))?,
            None => text.as_bytes().to_vec(),
        },
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::usage(format!("the input is no JSON: {error}")))
}

/// All of standard input, within [`INPUT_BYTES_MAX`].
pub(crate) fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin()
        .lock()
        .take(INPUT_BYTES_MAX + 1)
        .read_to_end(&mut bytes);
    read.map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(Failure::usage(format!(
            "the input is longer than {INPUT_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}
