//! Converts exceptions of the engine to a [`ScriptFailure`].

use rquickjs::{Array, Ctx, Error, Value as JsValue};
use serde_json::Value;

use crate::error::{ModulePosition, OpError, RuntimeCode, ScriptFailure};
use crate::isolate::shared::IsolateState;
use crate::limits::JOBS_PER_TURN;

/// The longest text of an exception that is passed on.
const TEXT_BYTES: usize = 8 << 10;

/// The message for a thrown `null`.
pub(super) const NULL: &str = "null was thrown";

/// What a limit says when it ended a call.
pub(crate) fn ended(shared: &IsolateState, code: RuntimeCode) -> ScriptFailure {
    let limits = &shared.spec.limits;
    let text = match code {
        RuntimeCode::Abort => "the call was ended from outside".to_owned(),
        RuntimeCode::Fuel if shared.budget.is_out_of_fuel() => {
            let ticks = limits.fuel_ticks;
            format!("the fuel of the call is used up: it had {ticks} ticks")
        }
        RuntimeCode::Fuel => format!("the call ran {JOBS_PER_TURN} jobs in one turn"),
        RuntimeCode::Memory => format!(
            "the memory of the session is used up: it had {} bytes of heap and {} bytes outside it",
            limits.heap_bytes, limits.external_bytes
        ),
        RuntimeCode::Stack => {
            let bytes = limits.stack_bytes;
            format!("the stack is used up: it had {bytes} bytes")
        }
        RuntimeCode::Timeout => {
            let cpu = limits.cpu;
            format!("the time of the call is used up: it had {cpu:?} of a processor")
        }
        _ => "the session was ended".to_owned(),
    };
    ScriptFailure::new(code, text)
}

/// The exception behind an error of the binding.
pub(crate) fn of_error(ctx: &Ctx<'_>, shared: &IsolateState, error: Error) -> ScriptFailure {
    match error {
        Error::Exception => of_value(ctx, shared, &ctx.catch()),
        Error::Allocation => ended(shared, RuntimeCode::Memory),
        other => ScriptFailure::new(RuntimeCode::Exception, other.to_string()),
    }
}

/// The failure for a thrown value.
pub(crate) fn of_value<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    thrown: &JsValue<'js>,
) -> ScriptFailure {
    // An exception after a limit was reached is a consequence of it.
    if let Some(code) = shared.budget.stopped() {
        return ended(shared, code);
    }
    // The engine throws `null` if there is no memory left for an error.
    if thrown.is_null() {
        return ScriptFailure::new(RuntimeCode::Exception, NULL);
    }
    if let Some(code) = engine_limit(shared, thrown) {
        return ended(shared, code);
    }
    // Reading the members may run the script's getters, whose exceptions are not reported.
    let failure = describe(ctx, shared, thrown);
    // The getters may have used up what was left.
    if let Some(code) = shared.budget.stopped() {
        return ended(shared, code);
    }
    failure.unwrap_or_else(|_| {
        ctx.catch();
        ScriptFailure::new(
            RuntimeCode::Exception,
            "an exception that cannot be described",
        )
    })
}

/// The limit behind an exception that the engine throws when the heap or the stack is used up.
/// There may be no memory left for a description, so only the text is read. A script can throw an error with this text,
/// which a caller may have chosen: so memory counts only if some was refused, and the stack does not end the session.
fn engine_limit(shared: &IsolateState, thrown: &JsValue<'_>) -> Option<RuntimeCode> {
    let error = thrown.as_object().filter(|_| thrown.is_error())?;
    let text: String = error.get("message").ok()?;
    match text.as_str() {
        "out of memory" | "out of memory in regexp execution" => {
            shared.heap.was_refused().then_some(RuntimeCode::Memory)
        }
        "Maximum call stack size exceeded" => Some(RuntimeCode::Stack),
        _ => None,
    }
}

/// Whether a thrown object may have this code. The others say that the call was stopped, and for whose sake: the node
/// judges the script by them. They come from [`ended`] and from the host, and never from an object.
const fn is_throwable(code: RuntimeCode) -> bool {
    !matches!(
        code,
        // The code for all other exceptions.
        RuntimeCode::Exception
            | RuntimeCode::Abort
            | RuntimeCode::Fuel
            | RuntimeCode::Memory
            | RuntimeCode::Stack
            | RuntimeCode::Timeout
            | RuntimeCode::WorkerLost
    )
}

/// Calls the runtime's own script, which knows the classes. It returns `[kind, name, message,
/// stack, code, module, line]` and, for an operation's error, `retryable`, `path` and `details`.
fn describe<'js>(
    ctx: &Ctx<'js>,
    shared: &IsolateState,
    thrown: &JsValue<'js>,
) -> rquickjs::Result<ScriptFailure> {
    let description: Array<'js> = shared.hook(ctx, "describe")?.call((thrown.clone(),))?;
    let text = |index: usize| -> Option<String> {
        let text: String = description.get::<Option<String>>(index).ok().flatten()?;
        Some(cut(text))
    };
    let mut failure = ScriptFailure::new(RuntimeCode::Exception, text(2).unwrap_or_default());
    failure.name = text(1);
    failure.stack = text(3)
        .map(|stack| tidy(&stack))
        .filter(|stack| !stack.is_empty());
    match text(0).as_deref() {
        Some("runtime") => {
            let name = text(4).unwrap_or_default();
            let raised = |code: &RuntimeCode| is_throwable(*code) && code.name() == name;
            let known = RuntimeCode::ALL.into_iter().find(raised);
            failure.code = known.unwrap_or(RuntimeCode::Exception);
            let line = description.get::<Option<u32>>(6).ok().flatten();
            failure.place = text(5)
                .zip(line)
                .map(|(module, line)| ModulePosition { module, line });
        }
        Some("operation") => {
            let details: JsValue<'js> = description.get(9)?;
            // The error is passed on even if its details have no JSON form.
            let details = shared.read(ctx, &details).unwrap_or(Value::Null);
            failure.operation = Some(Box::new(OpError {
                code: text(4).unwrap_or_default(),
                message: failure.message.clone(),
                retryable: description.get(7).unwrap_or(false),
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

/// The frames that a script's author can change, without those of the runtime.
fn tidy(stack: &str) -> String {
    let theirs = stack.lines().map(str::trim).filter(|line| {
        !line.is_empty() && !line.contains("(native)") && !line.contains("alknet:runtime")
    });
    theirs.collect::<Vec<_>>().join("\n")
}
