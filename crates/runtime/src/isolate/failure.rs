//! From an exception of the engine to a [`Failure`].

use rquickjs::{Array, Ctx, Error, Value as JsValue};
use serde_json::Value;

use crate::error::{Code, Failure, OpError, Place};
use crate::isolate::shared::Shared;

/// Longest text of an exception that is told.
const TEXT_BYTES: usize = 8 << 10;

/// What a thrown `null` is told as.
pub(super) const NULL: &str = "null was thrown";

/// What a limit says when it ended a call.
pub(crate) fn ended(code: Code) -> Failure {
    let text = match code {
        Code::Abort => "the call was ended from outside",
        Code::Fuel => "the fuel of the call is used up",
        Code::Memory => "the memory of the session is used up",
        Code::Stack => "the stack is used up",
        Code::Timeout => "the time of the call is used up",
        _ => "the session was ended",
    };
    Failure::new(code, text)
}

/// The exception behind an error of the binding.
pub(crate) fn of_error(ctx: &Ctx<'_>, shared: &Shared, error: Error) -> Failure {
    match error {
        Error::Exception => of_value(ctx, shared, &ctx.catch()),
        Error::Allocation => ended(Code::Memory),
        other => Failure::new(Code::Exception, other.to_string()),
    }
}

/// A thrown value.
pub(crate) fn of_value<'js>(ctx: &Ctx<'js>, shared: &Shared, thrown: &JsValue<'js>) -> Failure {
    if let Some(code) = shared.gauge.stopped() {
        return ended(code);
    }
    // The engine throws null when there is no memory left for an error.
    if thrown.is_null() {
        return Failure::new(Code::Exception, NULL);
    }
    if let Some(code) = engine_limit(thrown) {
        return ended(code);
    }
    // Reading the members may run the script's getters; what they throw is not told.
    let told = describe(ctx, shared, thrown);
    if let Some(code) = shared.gauge.stopped() {
        return ended(code);
    }
    told.unwrap_or_else(|_| {
        ctx.catch();
        Failure::new(Code::Exception, "an exception that cannot be described")
    })
}

/// What the engine throws when heap or stack are used up. There may be no memory left to describe
/// it, so only its text is asked.
fn engine_limit(thrown: &JsValue<'_>) -> Option<Code> {
    let error = thrown.as_object().filter(|_| thrown.is_error())?;
    let text: String = error.get("message").ok()?;
    match text.as_str() {
        "out of memory" | "out of memory in regexp execution" => Some(Code::Memory),
        "Maximum call stack size exceeded" => Some(Code::Stack),
        _ => None,
    }
}

/// Asks our own script, which knows the classes: `[kind, name, message, stack, code, module, line]`
/// and, of an operation's error, `retryable`, `path` and `details`.
fn describe<'js>(
    ctx: &Ctx<'js>,
    shared: &Shared,
    thrown: &JsValue<'js>,
) -> rquickjs::Result<Failure> {
    let told: Array<'js> = shared.hook(ctx, "describe")?.call((thrown.clone(),))?;
    let text = |index: usize| -> Option<String> {
        let text: String = told.get::<Option<String>>(index).ok().flatten()?;
        Some(cut(text))
    };
    let mut failure = Failure::new(Code::Exception, text(2).unwrap_or_default());
    failure.name = text(1);
    failure.stack = text(3)
        .map(|stack| tidy(&stack))
        .filter(|stack| !stack.is_empty());
    match text(0).as_deref() {
        Some("runtime") => {
            let name = text(4).unwrap_or_default();
            // `E_EXCEPTION` is what the others are not; nobody can throw it.
            let raised = |code: &Code| *code != Code::Exception && code.name() == name;
            let known = Code::ALL.into_iter().find(raised);
            failure.code = known.unwrap_or(Code::Exception);
            let line = told.get::<Option<u32>>(6).ok().flatten();
            failure.place = text(5)
                .zip(line)
                .map(|(module, line)| Place { module, line });
        }
        Some("operation") => {
            let details: JsValue<'js> = told.get(9)?;
            let details = shared.read(ctx, &details).unwrap_or(Value::Null);
            failure.operation = Some(Box::new(OpError {
                code: text(4).unwrap_or_default(),
                message: failure.message.clone(),
                retryable: told.get(7).unwrap_or(false),
                details: Box::new(details),
                path: text(8).unwrap_or_default(),
            }));
        }
        _ => {}
    }
    Ok(failure)
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES {
        let end = (0..=TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
    text
}

/// The frames that a script's author can do something about: ours are left out.
fn tidy(stack: &str) -> String {
    let theirs = stack.lines().map(str::trim).filter(|line| {
        !line.is_empty() && !line.contains("(native)") && !line.contains("alknet:runtime")
    });
    theirs.collect::<Vec<_>>().join("\n")
}
