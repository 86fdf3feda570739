//! The failures of calls into scripts.
//!
//! The `E_*` names occur in the worker protocol and in exceptions inside scripts. On the wire a caller sees one of
//! the call protocol's codes; [`RuntimeCode::on_the_wire`] has the table.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The runtime's own codes. Their names never change.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[non_exhaustive]
pub enum RuntimeCode {
    /// The call was ended from outside.
    #[serde(rename = "E_ABORT")]
    Abort,
    /// The session's grants do not allow it.
    #[serde(rename = "E_DENIED")]
    Denied,
    /// The device with the data was lost.
    #[serde(rename = "E_DEVICE_LOST")]
    DeviceLost,
    /// A handle was used after it was disposed of.
    #[serde(rename = "E_DISPOSED")]
    Disposed,
    /// A value has no JSON form.
    #[serde(rename = "E_ENCODE")]
    Encode,
    /// The script threw an exception and did not catch it.
    #[serde(rename = "E_EXCEPTION")]
    Exception,
    /// The call used up its fuel.
    #[serde(rename = "E_FUEL")]
    Fuel,
    /// A dispatch took too long.
    #[serde(rename = "E_GPU_TIMEOUT")]
    GpuTimeout,
    /// The source, the module graph or the request exceeds what is accepted.
    #[serde(rename = "E_LIMIT")]
    Limit,
    /// The heap or the external bytes are used up.
    #[serde(rename = "E_MEMORY")]
    Memory,
    /// There is no adapter for shaders.
    #[serde(rename = "E_NO_ADAPTER")]
    NoAdapter,
    /// The session sees nothing with this name.
    #[serde(rename = "E_NOTFOUND")]
    NotFound,
    /// The node's policy refuses to run it here.
    #[serde(rename = "E_POLICY")]
    Policy,
    /// There are too many calls.
    #[serde(rename = "E_QUOTA")]
    Quota,
    /// The stack is used up.
    #[serde(rename = "E_STACK")]
    Stack,
    /// The CPU or wall-clock time is used up.
    #[serde(rename = "E_TIMEOUT")]
    Timeout,
    /// The TypeScript uses features beyond types.
    #[serde(rename = "E_TS_UNSUPPORTED")]
    TsUnsupported,
    /// The worker process ended.
    #[serde(rename = "E_WORKER_LOST")]
    WorkerLost,
}

impl RuntimeCode {
    /// All codes, in the order of their names.
    pub const ALL: [Self; 18] = [
        Self::Abort,
        Self::Denied,
        Self::DeviceLost,
        Self::Disposed,
        Self::Encode,
        Self::Exception,
        Self::Fuel,
        Self::GpuTimeout,
        Self::Limit,
        Self::Memory,
        Self::NoAdapter,
        Self::NotFound,
        Self::Policy,
        Self::Quota,
        Self::Stack,
        Self::Timeout,
        Self::TsUnsupported,
        Self::WorkerLost,
    ];

    /// The name in scripts and in the worker protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Abort => "E_ABORT",
            Self::Denied => "E_DENIED",
            Self::DeviceLost => "E_DEVICE_LOST",
            Self::Disposed => "E_DISPOSED",
            Self::Encode => "E_ENCODE",
            Self::Exception => "E_EXCEPTION",
            Self::Fuel => "E_FUEL",
            Self::GpuTimeout => "E_GPU_TIMEOUT",
            Self::Limit => "E_LIMIT",
            Self::Memory => "E_MEMORY",
            Self::NoAdapter => "E_NO_ADAPTER",
            Self::NotFound => "E_NOTFOUND",
            Self::Policy => "E_POLICY",
            Self::Quota => "E_QUOTA",
            Self::Stack => "E_STACK",
            Self::Timeout => "E_TIMEOUT",
            Self::TsUnsupported => "E_TS_UNSUPPORTED",
            Self::WorkerLost => "E_WORKER_LOST",
        }
    }

    /// The call protocol's code, and whether a retry can help. [`Self::Encode`] has the code for a result here; for
    /// an argument it is `INVALID_INPUT`.
    #[must_use]
    pub const fn on_the_wire(self) -> (&'static str, bool) {
        match self {
            Self::NotFound => ("NOT_FOUND", false),
            Self::Denied => ("FORBIDDEN", false),
            Self::Timeout | Self::GpuTimeout => ("TIMEOUT", true),
            Self::Abort => ("ABORTED", false),
            Self::WorkerLost | Self::DeviceLost => ("UNAVAILABLE", true),
            Self::NoAdapter | Self::Policy => ("UNAVAILABLE", false),
            Self::Encode => ("INVALID_OUTPUT", false),
            Self::Limit | Self::TsUnsupported => ("INVALID_INPUT", false),
            Self::Fuel => ("FUEL_EXHAUSTED", false),
            Self::Memory => ("MEMORY_LIMIT", false),
            Self::Stack => ("STACK_LIMIT", false),
            Self::Quota => ("QUOTA_EXCEEDED", false),
            Self::Disposed | Self::Exception => ("INTERNAL", false),
        }
    }
}

impl fmt::Display for RuntimeCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Bytes of the longest module name that is repeated from a stack. A script can invent such names.
const MODULE_NAME_BYTES_MAX: usize = 256;

/// The call protocol's code for an overload.
const OVERLOADED: &str = "OVERLOADED";

/// The code that a script gets for a value without room, whether the script's own values or those of others took the
/// room.
const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";

/// The error of a failed operation: a code of the call protocol, or one that the operation declares.
#[derive(Clone, Debug, Deserialize, Error, PartialEq, Serialize)]
#[error("{code}: {message}")]
pub struct OpError {
    /// The code in upper case, as on the wire.
    pub code: String,
    /// A description for people.
    pub message: String,
    /// Whether the same call may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// Details in the form of the code's schema.
    #[serde(default)]
    pub details: Box<Value>,
    /// The operation that failed.
    #[serde(default)]
    pub path: String,
}

impl OpError {
    /// An error without details.
    #[must_use]
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            retryable: false,
            details: Box::default(),
            path: String::new(),
        }
    }

    /// Whether the error says that there was no room for the call, or for a value beside those of others. Scripts can
    /// make such errors too: only the part that refuses a call knows whether it did.
    #[must_use]
    pub fn says_no_capacity(&self) -> bool {
        self.code == OVERLOADED || self.code == QUOTA_EXCEEDED && self.retryable
    }
}

/// The failure of a call into a script.
#[derive(Clone, Debug, Deserialize, Error, PartialEq, Serialize)]
#[error("{code}: {message}")]
pub struct ScriptFailure {
    /// The kind of the failure.
    pub code: RuntimeCode,
    /// A description for people.
    pub message: String,
    /// `Error`, `TypeError`, … of an exception that the script did not catch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The stack: one frame per line, the innermost first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// The module that was refused, and its line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<ModulePosition>,
    /// The error of an operation that the script passed on; declared codes stay unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Box<OpError>>,
    /// Whether calls of others may have caused it, so that it does not count against the script. Only the host knows;
    /// no frame carries it, so that a worker cannot claim it.
    #[serde(skip)]
    pub excused: bool,
}

/// A position in a module.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ModulePosition {
    /// The specifier of the module.
    pub module: String,
    /// The line, from 1.
    pub line: u32,
}

/// The place in a line of a stack: `at NAME (MODULE:LINE:COLUMN)`. Scripts can make such lines as well.
fn position_of_frame(frame: &str) -> Option<ModulePosition> {
    let (_, place) = frame.trim_end().strip_suffix(')')?.rsplit_once('(')?;
    let (place, _column) = place.rsplit_once(':')?;
    let (module, line) = place.rsplit_once(':')?;
    (module.len() <= MODULE_NAME_BYTES_MAX).then_some(ModulePosition {
        module: module.to_owned(),
        line: line.parse().ok()?,
    })
}

impl fmt::Display for ModulePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.module, self.line)
    }
}

impl ScriptFailure {
    /// A failure with only a code and a text.
    #[must_use]
    pub fn new(code: RuntimeCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            name: None,
            stack: None,
            place: None,
            operation: None,
            excused: false,
        }
    }

    /// The same failure, [excused](Self::excused).
    #[must_use]
    pub const fn excuse(mut self) -> Self {
        self.excused = true;
        self
    }

    /// The failure if nothing was run because there are too many sessions, workers or checks. A retry may succeed
    /// later, and the failure does not count against the script.
    #[must_use]
    pub fn no_capacity(message: impl Into<String>) -> Self {
        let mut failure = Self::new(RuntimeCode::Quota, message);
        failure.operation = Some(Box::new(OpError {
            retryable: true,
            ..OpError::new(OVERLOADED, failure.message.clone())
        }));
        failure
    }

    /// Whether the failure is [`Self::no_capacity`]. An exception of a script has another code.
    #[must_use]
    pub fn is_no_capacity(&self) -> bool {
        let operation = self.operation.as_deref();
        self.code == RuntimeCode::Quota && operation.is_some_and(|error| error.code == OVERLOADED)
    }

    /// The same failure at a line of a module.
    #[must_use]
    pub fn at(mut self, module: impl Into<String>, line: u32) -> Self {
        self.place = Some(ModulePosition {
            module: module.into(),
            line,
        });
        self
    }

    /// The line of the script that failed: the one that the engine refused, else the innermost one of the stack.
    /// `None` if neither is known.
    #[must_use]
    pub fn position(&self) -> Option<ModulePosition> {
        let of_stack = || self.stack.as_deref()?.lines().find_map(position_of_frame);
        self.place.clone().or_else(of_stack)
    }

    /// The failure for the author of the script: code, text, and the line if it is known.
    #[must_use]
    pub fn for_author(&self) -> String {
        match self.position() {
            Some(place) => format!("{self} ({place})"),
            None => self.to_string(),
        }
    }

    /// Whether the isolate that returned this failure cannot take another call.
    #[must_use]
    pub const fn closes(&self) -> bool {
        matches!(
            self.code,
            RuntimeCode::Fuel
                | RuntimeCode::Memory
                | RuntimeCode::Timeout
                | RuntimeCode::WorkerLost
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stack: &str) -> ScriptFailure {
        let mut failure = ScriptFailure::new(RuntimeCode::Exception, "no");
        failure.stack = Some(stack.to_owned());
        failure
    }

    #[test]
    fn a_failure_names_the_innermost_line_of_its_stack() {
        let stack = "at run (./a b.ts:3:12)\nat <anonymous> (./main.js:9:1)";
        let told = failed(stack).for_author();
        assert_eq!(told, "E_EXCEPTION: no (./a b.ts:3)");
        let native = "at map (native)\nat <anonymous> (./main.js:9:1)";
        let place = failed(native).position().expect("a place");
        assert_eq!(place.to_string(), "./main.js:9");
        let refused = failed(stack).at("./b.ts", 7).position().expect("a place");
        assert_eq!(refused.to_string(), "./b.ts:7");
        let long = format!("at f ({}:1:1)", "m".repeat(MODULE_NAME_BYTES_MAX + 1));
        for none in ["", "at f (native)", "at f (./a.js:x:1)", "at f", &long] {
            assert_eq!(failed(none).position(), None, "{none}");
        }
    }
}
