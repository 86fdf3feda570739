//! Converts failures of workers and isolates to the codes that a caller sees (`runtime.md` §6.1).

use alknet_call::{CallError, ErrorCode, ErrorDef};
use alknet_runtime::{OpError, RuntimeCode, ScriptFailure};
use alknet_worker::{WorkerError, WorkerFault, WorkerLoss};
use serde_json::{Value, json};

use crate::limits::FAULT_BYTES_MAX;
use crate::wire;

/// The code for a lack of room.
const OVERLOADED: &str = "OVERLOADED";

/// How long a caller waits before it retries if there are too many calls or sessions.
const RETRY_MS: u64 = 1000;

/// The errors that each operation of a script may end with.
#[must_use]
pub fn declared_errors() -> Vec<ErrorDef> {
    let declared = [
        ("FUEL_EXHAUSTED", "The script took more steps than it may."),
        (
            "MEMORY_LIMIT",
            "The script needed more memory than it may have.",
        ),
        ("QUOTA_EXCEEDED", "The script made more calls than it may."),
        (
            "STACK_LIMIT",
            "The script called itself deeper than it may.",
        ),
    ];
    let schema = json!({
        "type": "object",
        "properties": { "code": { "type": "string" } },
        "required": ["code"],
    });
    let declared = declared.map(|(code, description)| ErrorDef {
        code: code.to_owned(),
        description: description.to_owned(),
        schema: schema.clone(),
        http_status: Some(422),
    });
    declared.into()
}

/// The error that a caller sees for a failure. `declares` knows the operation's own codes: an error of another
/// operation that the script passed on stays unchanged if its code is among them. If the node recorded that something
/// was refused for lack of room (`hindered`), such an error stays `OVERLOADED`.
#[must_use]
pub fn to_call_error(
    failure: &ScriptFailure,
    hindered: bool,
    declares: impl Fn(&str) -> bool,
) -> CallError {
    if let Some(error) = failure
        .operation
        .as_deref()
        .filter(|error| declares(&error.code))
    {
        return CallError {
            retryable: error.retryable,
            details: (*error.details != Value::Null).then(|| error.details.clone()),
            ..CallError::operation(&error.code, error.message.clone())
        };
    }
    let lacked = failure.operation.as_deref();
    let lacked = lacked.filter(|error| hindered && error.says_no_capacity());
    let (name, retryable) = match lacked {
        Some(error) => (OVERLOADED, error.retryable),
        None => failure.code.on_the_wire(),
    };
    let mut details = json!({ "code": failure.code.name() });
    if let Some(place) = &failure.place {
        details["module"] = json!(place.module);
        details["line"] = json!(place.line);
    }
    if let Some(name) = &failure.name {
        details["name"] = json!(name);
    }
    if let Some(stack) = &failure.stack {
        details["stack"] = json!(stack);
    }
    CallError {
        retryable,
        retry_after_ms: lacked.filter(|_| retryable).map(|_| RETRY_MS),
        ..CallError::new(ErrorCode::from_name(name), failure.message.clone()).with_details(details)
    }
}

/// The error for too many of something: the caller may retry.
pub(crate) fn overloaded(what: &str) -> CallError {
    CallError::new(ErrorCode::Overloaded, what)
        .with_details(json!({ "code": RuntimeCode::Quota.name() }))
        .with_retry_after_ms(RETRY_MS)
}

/// The error for a session that could not be opened; if there are too many, a retry may succeed.
pub(crate) fn of_open(failure: &ScriptFailure) -> CallError {
    match failure.code {
        RuntimeCode::Quota => overloaded(&failure.message),
        _ => to_call_error(failure, false, |_| false),
    }
}

/// The failure in the isolate's own form, or only its code and text if the form is invalid.
pub(crate) fn of_fault(fault: &WorkerFault) -> ScriptFailure {
    let details = fault.details.as_bytes();
    // The details are weighed before they are parsed, because the worker wrote them.
    let is_small = wire::weigh(details).is_ok_and(|weight| weight <= FAULT_BYTES_MAX);
    let reported: Option<ScriptFailure> = is_small.then(|| wire::unpack(details).ok()).flatten();
    let mut reported = reported.unwrap_or_else(|| {
        let known = RuntimeCode::ALL
            .into_iter()
            .find(|code| code.name() == fault.code);
        ScriptFailure::new(
            known.unwrap_or(RuntimeCode::Exception),
            fault.message.clone(),
        )
    });
    // A worker must not claim a lack of room, because it is running.
    if reported.is_no_capacity() {
        reported.operation = None;
    }
    reported
}

/// The failure if there is no worker.
pub(crate) fn of_worker(error: &WorkerError) -> ScriptFailure {
    let code = match error {
        WorkerError::Policy { .. } => RuntimeCode::Policy,
        WorkerError::CallerShare
        | WorkerError::Overloaded
        | WorkerError::Relieved
        | WorkerError::TenantShare => {
            return ScriptFailure::no_capacity(error.to_string());
        }
        _ => RuntimeCode::WorkerLost,
    };
    ScriptFailure::new(code, error.to_string())
}

/// The failure of a call that the worker did not answer.
pub(crate) fn of_call(error: &alknet_worker::WorkerCallError) -> ScriptFailure {
    if is_relieved(error) {
        return ScriptFailure::no_capacity("memory ran short: the worker was ended for it");
    }
    let name = error.code();
    let known = RuntimeCode::ALL
        .into_iter()
        .find(|code| code.name() == name);
    let text = match error {
        alknet_worker::WorkerCallError::Lost(WorkerLoss { reason, .. }) => {
            format!("the worker was lost: {reason}")
        }
        alknet_worker::WorkerCallError::SessionClosed => "the session is over".to_owned(),
        other => other.to_string(),
    };
    let failure = ScriptFailure::new(known.unwrap_or(RuntimeCode::WorkerLost), text);
    match error {
        // Any of the calls may have ended it: one whose caller gave it up in code that no abort reaches, for example.
        alknet_worker::WorkerCallError::Lost(WorkerLoss { alone: false, .. }) => failure.excuse(),
        _ => failure,
    }
}

/// Whether the worker ended because the machine ran short of memory. That is no fault of its code: others may have
/// caused it.
pub(crate) fn is_relieved(error: &alknet_worker::WorkerCallError) -> bool {
    matches!(
        error,
        alknet_worker::WorkerCallError::Lost(WorkerLoss {
            reason: alknet_worker::WorkerEndReason::Relieved,
            ..
        })
    )
}

/// A script's form of an error of the registry.
pub(crate) fn op_error(error: &CallError, path: &str) -> OpError {
    // A script may call less than its caller, and lists it by a name of its own.
    let message = match error.message == CallError::not_found(path).message {
        true => format!(
            "there is no operation '{path}' here; ops.list() names those that this script may call"
        ),
        false => error.message.clone(),
    };
    OpError {
        code: error.code.name().to_owned(),
        message,
        retryable: error.retryable,
        details: error.details.clone().unwrap_or_default(),
        path: path.to_owned(),
    }
}

/// Like `op_error`, in the form for frames.
pub(crate) fn op_fault(error: &OpError) -> WorkerFault {
    WorkerFault {
        code: error.code.clone(),
        message: error.message.clone(),
        details: wire::body(error).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_arrives_as_the_table_says_with_its_name_in_the_details() {
        for code in RuntimeCode::ALL {
            let error = to_call_error(&ScriptFailure::new(code, "x"), true, |_| false);
            let (name, retryable) = code.on_the_wire();
            assert_eq!((error.code.name(), error.retryable), (name, retryable));
            assert_eq!(error.details.expect("details")["code"], code.name());
        }
        let own: Vec<String> = declared_errors().into_iter().map(|def| def.code).collect();
        for code in [
            RuntimeCode::Fuel,
            RuntimeCode::Memory,
            RuntimeCode::Stack,
            RuntimeCode::Quota,
        ] {
            assert!(own.contains(&code.on_the_wire().0.to_owned()));
        }
    }

    /// A relief ends calls of many sessions at once, and an identity that holds memory elsewhere can bring it about.
    #[test]
    fn a_worker_that_ended_for_the_machines_memory_speaks_against_no_script() {
        use alknet_worker::{WorkerCallError, WorkerEndReason};
        let lost = |reason, alone| {
            of_call(&WorkerCallError::Lost(WorkerLoss {
                reason,
                signal: None,
                detail: String::new(),
                alone,
            }))
        };
        let relieved = lost(WorkerEndReason::Relieved, true);
        assert!(relieved.is_no_capacity() && relieved.code == RuntimeCode::Quota);
        let others = WorkerEndReason::ALL.into_iter();
        let others = others.filter(|reason| *reason != WorkerEndReason::Relieved);
        for reason in others {
            let (alone, beside) = (lost(reason, true), lost(reason, false));
            assert!(!alone.is_no_capacity() && !alone.excused, "{reason}");
            assert!(!beside.is_no_capacity() && beside.excused, "{reason}");
        }
    }

    #[test]
    fn declared_errors_of_operations_pass_and_others_do_not() {
        let mut failure = ScriptFailure::new(RuntimeCode::Exception, "x");
        failure.operation = Some(Box::new(OpError {
            details: Box::new(json!({ "at": 3 })),
            ..OpError::new("OUT_OF_INK", "no ink")
        }));
        let passed = to_call_error(&failure, true, |code| code == "OUT_OF_INK");
        assert_eq!(passed.code.name(), "OUT_OF_INK");
        assert_eq!(passed.details.expect("details")["at"], 3);
        let hidden = to_call_error(&failure, true, |_| false);
        assert_eq!(hidden.code, ErrorCode::Internal);
    }

    /// Any script can say that there was no room: it counts where the node refused something.
    #[test]
    fn want_of_room_passes_where_the_node_knows_of_it() {
        let told = |code: &str, retryable, hindered| {
            let mut failure = ScriptFailure::new(RuntimeCode::Exception, "x");
            failure.operation = Some(Box::new(OpError {
                retryable,
                ..OpError::new(code, "full")
            }));
            let error = to_call_error(&failure, hindered, |_| false);
            (error.code, error.retryable, error.retry_after_ms.is_some())
        };
        let (full, internal) = (ErrorCode::Overloaded, ErrorCode::Internal);
        assert_eq!(told("OVERLOADED", true, true), (full.clone(), true, true));
        assert_eq!(
            told("QUOTA_EXCEEDED", true, true),
            (full.clone(), true, true)
        );
        // What has run, and had no room for its answer.
        assert_eq!(told("OVERLOADED", false, true), (full, false, false));
        for (code, retryable, hindered) in [
            ("OVERLOADED", true, false),
            ("QUOTA_EXCEEDED", false, true),
            ("UNAVAILABLE", true, true),
        ] {
            let expected = (internal.clone(), false, false);
            assert_eq!(told(code, retryable, hindered), expected, "{code}");
        }
    }
}
