//! `alknet js`: scripts on a node, from files and line by line.

mod bundle;
mod recording;

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use alknet_call::{CallError, CallOptions};
use alknet_runtime::limits::CPU_MAX;
use alknet_runtime::{EnvOperation, declarations};
use alknet_sessions::limits::{FUEL_MAX, WALL_MAX_ONE_SHOT};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::call::call_error;
use super::node_caller::NodeCaller;
use super::target::NodeArgs;
use super::{CommandError, CommandExit, DialArgs, duration, output};
use bundle::JsBundle;
use recording::CallRecording;

/// The operation behind all of this.
const EVAL: &str = "runtime/eval";
/// What the node calls a script's own exception.
const SCRIPT_FAILED: &str = "SCRIPT_FAILED";
/// Longest text that one REPL input gathers before it is sent as it is.
const INPUT_BYTES_MAX: usize = 1 << 20;

/// `alknet js …`
#[derive(Debug, Subcommand)]
pub(crate) enum JsVerb {
    /// Run JavaScript line by line on a node, in one session.
    #[command(after_help = "Examples:\n  alknet js repl attic\n  \
echo '6 * 7' | alknet js repl attic\n  \
alknet js repl attic --record calls.json")]
    Repl(ReplArgs),
    /// Run a JavaScript or TypeScript file with the files it imports, and print its default export.
    #[command(
        override_usage = "alknet js run [OPTIONS] [NODE] <FILE>",
        after_help = "Examples:\n  alknet js run attic report.ts\n  \
alknet js run attic - < report.js\n  \
alknet js run attic report.ts --uses 'node/*' --uses services/list\n  \
alknet js run attic report.ts --timeout 10m --cpu 2m\n  \
alknet js run attic report.ts --record calls.json"
    )]
    Run(RunArgs),
    /// Print alknet.d.ts, the TypeScript declarations of what a script on the node can use.
    #[command(after_help = "Example:\n  alknet js types attic > alknet.d.ts")]
    Types(TypesArgs),
}

/// Arguments of `alknet js repl`.
#[derive(Debug, Args)]
pub(crate) struct ReplArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Write the calls that the lines make, with their answers and without secrets, to this new file.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// Arguments of `alknet js run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The script; - reads standard input.
    file: Option<String>,
    /// Let the script call this operation, or with /* all operations below. Repeat the option for more
    /// [default: all that a script may call]
    #[arg(long, value_name = "OPERATION")]
    uses: Vec<String>,
    /// Let the script compute for this time, 5m at most; --timeout also counts its waiting [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = cpu_time)]
    cpu: Option<Duration>,
    /// Write the calls that the script makes, with their answers and without secrets, to this new file. A test of
    /// an operation can replay them.
    #[arg(long, value_name = "OUT")]
    record: Option<PathBuf>,
}

/// Arguments of `alknet js types`.
#[derive(Debug, Args)]
pub(crate) struct TypesArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// `alknet js`
pub(crate) fn run(verb: JsVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        JsVerb::Repl(args) => repl(&args, json),
        JsVerb::Run(args) => file(args, json),
        JsVerb::Types(args) => types(&args, json),
    }
}

fn file(args: RunArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, file) = args.node.with_word(args.file, "FILE", "the script")?;
    let bundle = JsBundle::read(&file)?;
    let mut input = json!({ "modules": bundle.modules, "main": bundle.main });
    if !args.uses.is_empty() {
        input["uses"] = json!(args.uses);
    }
    input["limits"] = limits(node.dial.timeout, args.cpu)?;
    let mut recording = args.record.as_deref().map(CallRecording::to).transpose()?;
    if recording.is_some() {
        input["record"] = json!(true);
    }
    node.reached(async |caller| {
        let answer = match eval(caller, &node.dial, &input).await {
            Ok(answer) => answer,
            Err(error) => return Err(failed(error, recording.as_mut(), json)),
        };
        if let Some(recording) = &mut recording {
            recording.take(&answer)?;
        }
        if json {
            output::json_line(&answer)?;
            return Ok(CommandExit::Ok);
        }
        console(&answer["console"]);
        match &answer["value"] {
            Value::Null => {}
            value => output::json_pretty(value)?,
        }
        tell(recording.as_ref());
        Ok(CommandExit::Ok)
    })
}

/// The failure of a script; what it called before is kept all the same.
fn failed(mut error: CallError, recording: Option<&mut CallRecording>, json: bool) -> CommandError {
    if let Some(recording) = recording {
        match recording.take_failed(&mut error) {
            Ok(()) if json => {}
            Ok(()) => tell(Some(recording)),
            Err(failure) => output::failure(&failure, json),
        }
    }
    ended(error, json)
}

/// Where calls were recorded: for people, and not among a script's results.
fn tell(recording: Option<&CallRecording>) {
    if let Some(summary) = recording.and_then(CallRecording::summary) {
        output::note(&summary);
    }
}

fn types(args: &TypesArgs, json: bool) -> Result<CommandExit, CommandError> {
    let input = json!({ "source": "export default ops.list()" });
    let dial = &args.node.dial;
    args.node.reached(async |node| {
        let answer = eval(node, dial, &input).await.map_err(call_error)?;
        let operations: Vec<EnvOperation> = serde_json::from_value(answer["value"].clone())
            .map_err(|error| {
                CommandError::local(format!("the node lists no operations: {error}"))
            })?;
        let text = declarations(&operations);
        match json {
            true => output::json_line(&json!({ "declarations": text }))?,
            false => output::text(text.trim_end())?,
        }
        Ok(CommandExit::Ok)
    })
}

fn repl(args: &ReplArgs, json: bool) -> Result<CommandExit, CommandError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(CommandError::local)?;
    let name = format!("cli-{}", data_encoding::HEXLOWER.encode(&random));
    let typed = std::io::stdin().is_terminal() && !json;
    let mut recording = args.record.as_deref().map(CallRecording::to).transpose()?;
    let dial = &args.node.dial;
    args.node.reached(async |node| {
        let mut exit = CommandExit::Ok;
        // Reading blocks: nothing else is to be done meanwhile but to keep the connection.
        while let Some(source) = tokio::task::spawn_blocking(move || read_input(typed))
            .await
            .map_err(CommandError::local)??
        {
            let mut input = json!({ "repl": name, "source": source });
            if recording.is_some() {
                input["record"] = json!(true);
            }
            let answer = eval(node, dial, &input).await;
            if let (Ok(answer), Some(recording)) = (&answer, &mut recording) {
                recording.take(answer)?;
            }
            match answer {
                Ok(answer) if json => output::json_line(&answer)?,
                Ok(answer) => {
                    console(&answer["console"]);
                    let shown = answer["shown"].as_str().unwrap_or_default();
                    output::text(shown)?;
                }
                Err(mut error) if is_scripts(&error) => {
                    // The session goes on: with lines from a file the last exit tells that one of them failed.
                    exit = CommandExit::Failed;
                    if let Some(recording) = &mut recording {
                        recording.take_failed(&mut error)?;
                    }
                    output::failure(&ended(error, json), json);
                }
                Err(error) => return Err(call_error(error)),
            }
        }
        // A REPL that was never opened needs no end.
        let _ = eval(node, dial, &json!({ "repl": name, "end": true })).await;
        if !json {
            tell(recording.as_ref());
        }
        // A person at a terminal sees each failure and ends the REPL, so that its exit code is
        // success.
        Ok(if typed { CommandExit::Ok } else { exit })
    })
}

/// Whether the script failed, and not the call of it.
fn is_scripts(error: &CallError) -> bool {
    let own = error
        .details
        .as_ref()
        .and_then(|details| details["code"].as_str());
    error.code.name() == SCRIPT_FAILED || own.is_some_and(|code| code.starts_with("E_"))
}

/// Lines until every bracket is closed; `None` at the end.
fn read_input(typed: bool) -> Result<Option<String>, CommandError> {
    let mut text = String::new();
    loop {
        if typed {
            output::prompt(if text.is_empty() { "> " } else { "… " });
        }
        let read = std::io::stdin().lock().read_line(&mut text);
        let read =
            read.map_err(|error| CommandError::usage(format!("cannot read the input: {error}")))?;
        if read == 0 {
            return Ok((!text.trim().is_empty()).then_some(text));
        }
        if text.trim().is_empty() {
            text.clear();
        // Too long for the node in any case; what it answers says so.
        } else if text.len() > INPUT_BYTES_MAX || is_whole(&text) {
            return Ok(Some(text));
        }
    }
}

/// Whether nothing is open that a further line has to close. Patterns are not looked into: a bracket
/// in one waits for an empty line.
fn is_whole(text: &str) -> bool {
    // A blank line sends what stands there, where the brackets were counted wrong.
    if text.ends_with("\n\n") {
        return true;
    }
    let mut open = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('/', Some('/')) => while chars.next_if(|c| *c != '\n').is_some() {},
            ('/', Some('*')) => {
                chars.next();
                let mut last = ' ';
                loop {
                    match chars.next() {
                        None => return false,
                        Some('/') if last == '*' => break,
                        Some(c) => last = c,
                    }
                }
            }
            ('"' | '\'' | '`', _) => loop {
                match chars.next() {
                    // A quote that is not closed is a mistake, which the node reports, but a template goes on.
                    None => return c != '`',
                    // Only templates go over lines.
                    Some('\n') if c != '`' => break,
                    Some('\\') => drop(chars.next()),
                    Some(end) if end == c => break,
                    Some(_) => {}
                }
            },
            ('(' | '[' | '{', _) => open.push(c),
            (')' | ']' | '}', _) => drop(open.pop()),
            _ => {}
        }
    }
    open.is_empty()
}

async fn eval(node: &NodeCaller, args: &DialArgs, input: &Value) -> Result<Value, CallError> {
    let options = CallOptions {
        timeout: Some(args.timeout),
        ..CallOptions::default()
    };
    let answer = node.call_with(EVAL, input, options).await?;
    Ok(answer.value().clone())
}

/// How long a script may compute.
///
/// # Errors
/// The text is no time, or longer than a node lets a script compute.
fn cpu_time(text: &str) -> Result<Duration, String> {
    duration::up_to(text, CPU_MAX)
}

/// The limits of a script. With them the node reports an end by its own limit.
///
/// # Errors
/// The command waits longer than a node lets a script run.
fn limits(timeout: Duration, cpu: Option<Duration>) -> Result<Value, CommandError> {
    if timeout > WALL_MAX_ONE_SHOT {
        let max = duration::shown(WALL_MAX_ONE_SHOT.as_secs());
        let text = format!("a script runs for {max} at most: write --timeout {max}, or less");
        return Err(CommandError::usage(text));
    }
    let mut limits = json!({ "wall_ms": millis(timeout) });
    if let Some(cpu) = cpu {
        limits["cpu_ms"] = json!(millis(cpu));
        // The usual fuel would end before a longer time does.
        limits["fuel_ticks"] = json!(FUEL_MAX);
    }
    Ok(limits)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// What the script wrote goes where what is not its result goes.
fn console(lines: &Value) {
    for line in lines.as_array().into_iter().flatten() {
        let text = line["text"].as_str().unwrap_or_default();
        output::note(text);
    }
}

/// A script's failure: its text, and where.
fn ended(error: CallError, json: bool) -> CommandError {
    if json {
        return call_error(error);
    }
    let exit = CommandExit::of_code(&error.code);
    let details = error.details.unwrap_or_default();
    console(&details["console"]);
    let mut message = output::one_line(&error.message).into_owned();
    if let Some(name) = details["name"].as_str() {
        message = format!("{name}: {message}");
    }
    if let (Some(module), Some(line)) = (details["module"].as_str(), details["line"].as_u64()) {
        message.push_str(&format!(" ({module}:{line})"));
    }
    let stack = details["stack"].as_str().unwrap_or_default().lines();
    let stack = stack.map(|line| format!("    {line}"));
    let code = details["code"]
        .as_str()
        .unwrap_or_else(|| error.code.name());
    CommandError::of_lines(exit, code, std::iter::once(message).chain(stack))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_ends_when_its_brackets_do() {
        for whole in [
            "1\n",
            "f(1)\n",
            "'(' + \"[\"\n",
            "// (\n",
            "/* ( */ 1\n",
            "`${1}`\n",
            "{ a: [1] }\n",
            "'\\'('\n",
            "'(\n",
            "}\n",
            "(\n\n",
        ] {
            assert!(is_whole(whole), "{whole}");
        }
        for open in ["f(\n", "{ a: [\n", "`a\n", "/* a\n", "f(')'\n"] {
            assert!(!is_whole(open), "{open}");
        }
    }

    #[test]
    fn a_script_has_the_times_that_its_caller_gives() {
        let wall = Duration::from_secs(600);
        let usual = limits(wall, None).expect("in range");
        assert_eq!(usual, json!({ "wall_ms": 600_000 }));
        let more = limits(wall, Some(Duration::from_secs(120))).expect("in range");
        let expected = json!({ "wall_ms": 600_000, "cpu_ms": 120_000, "fuel_ticks": FUEL_MAX });
        assert_eq!(more, expected);
        assert!(limits(WALL_MAX_ONE_SHOT, None).is_ok());
        let refused = limits(WALL_MAX_ONE_SHOT * 2, None).expect_err("two hours");
        assert_eq!(refused.exit, CommandExit::Usage);
        assert!(
            refused.message.contains("1h at most"),
            "{}",
            refused.message
        );
    }

    #[test]
    fn the_time_to_compute_is_bounded() {
        for (text, seconds) in [("5m", 300), ("300", 300), ("90s", 90)] {
            assert_eq!(cpu_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        let longer = cpu_time("10m").expect_err("it is longer");
        assert_eq!(longer, "'10m' is too long: 5m at most");
        duration::samples::refuses_what_is_no_time("", cpu_time);
    }

    #[test]
    fn a_script_s_failure_names_its_line_and_column() {
        let error = CallError::operation(SCRIPT_FAILED, "no ink").with_details(json!({
            "code": "E_EXCEPTION", "name": "TypeError", "stack": "at f (./a.ts:3)",
        }));
        assert!(is_scripts(&error));
        let failure = ended(error, false);
        assert_eq!(
            (failure.exit, failure.code.as_str()),
            (CommandExit::Failed, "E_EXCEPTION")
        );
        assert_eq!(failure.message, "TypeError: no ink");
        assert_eq!(failure.further, ["    at f (./a.ts:3)"]);
        assert!(!is_scripts(&CallError::not_found("runtime/eval")));
    }
}
