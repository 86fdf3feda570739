//! How a call into a script ends when it does not end well.
//!
//! `E_*` names live in the worker protocol and in exceptions inside scripts. On the wire a caller
//! sees one of the call protocol's codes; [`RuntimeCode::on_the_wire`] is the table.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The runtime's own codes. The names never change.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[non_exhaustive]
pub enum RuntimeCode {
    /// Ended from outside.
    #[serde(rename = "E_ABORT")]
    Abort,
    /// The session's grants do not allow it.
    #[serde(rename = "E_DENIED")]
    Denied,
    /// The device that held the data is gone.
    #[serde(rename = "E_DEVICE_LOST")]
    DeviceLost,
    /// A handle was used after it was disposed of.
    #[serde(rename = "E_DISPOSED")]
    Disposed,
    /// A value that no JSON says.
    #[serde(rename = "E_ENCODE")]
    Encode,
    /// An exception that nothing caught.
    #[serde(rename = "E_EXCEPTION")]
    Exception,
    /// The fuel of the call is used up.
    #[serde(rename = "E_FUEL")]
    Fuel,
    /// A dispatch took too long.
    #[serde(rename = "E_GPU_TIMEOUT")]
    GpuTimeout,
    /// Source, graph or request outside what is accepted.
    #[serde(rename = "E_LIMIT")]
    Limit,
    /// Heap or external bytes are used up.
    #[serde(rename = "E_MEMORY")]
    Memory,
    /// No adapter for shaders.
    #[serde(rename = "E_NO_ADAPTER")]
    NoAdapter,
    /// Nothing of that name that the session may see.
    #[serde(rename = "E_NOTFOUND")]
    NotFound,
    /// The node's policy refuses to run it here.
    #[serde(rename = "E_POLICY")]
    Policy,
    /// Too many calls.
    #[serde(rename = "E_QUOTA")]
    Quota,
    /// The stack is used up.
    #[serde(rename = "E_STACK")]
    Stack,
    /// CPU or wall time is used up.
    #[serde(rename = "E_TIMEOUT")]
    Timeout,
    /// TypeScript that is more than types.
    #[serde(rename = "E_TS_UNSUPPORTED")]
    TsUnsupported,
    /// The worker process ended.
    #[serde(rename = "E_WORKER_LOST")]
    WorkerLost,
}

impl RuntimeCode {
    /// Every code, in the order of the names.
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

    /// The name as scripts and the protocol have it.
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

    /// The call protocol's code and whether trying again can help. [`Self::Encode`] is the code for
    /// a result here; for an argument it is `INVALID_INPUT`.
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

/// Bytes of the longest name of a module that is repeated from a stack, which a script can make up.
const MODULE_NAME_BYTES_MAX: usize = 256;

/// What the call protocol calls it when there is too much to do.
const OVERLOADED: &str = "OVERLOADED";

/// Code that a script gets for a value without room, taken by the script's own values or by those of others.
const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";

/// What an operation answers when it fails: a code of the call protocol, or one it declares.
#[derive(Clone, Debug, Deserialize, Error, PartialEq, Serialize)]
#[error("{code}: {message}")]
pub struct OpError {
    /// Upper case, as on the wire.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether the same call can succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// What the code's schema says.
    #[serde(default)]
    pub details: Box<Value>,
    /// The operation that answered.
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

    /// Whether it says that there was no room for the call, or for a value beside those of others. Scripts make such
    /// errors as well: only the part that refuses a call knows whether it did.
    #[must_use]
    pub fn says_no_room(&self) -> bool {
        self.code == OVERLOADED || self.code == QUOTA_EXCEEDED && self.retryable
    }
}

/// How a call into a script failed.
#[derive(Clone, Debug, Deserialize, Error, PartialEq, Serialize)]
#[error("{code}: {message}")]
pub struct ScriptFailure {
    /// What happened.
    pub code: RuntimeCode,
    /// For people.
    pub message: String,
    /// `Error`, `TypeError`, … of an exception that nothing caught.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where: one frame a line, the innermost first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// The module that could not be taken, and its line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<ModulePosition>,
    /// The error of an operation that the script let pass; declared codes go on unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Box<OpError>>,
}

/// A place in a module.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ModulePosition {
    /// Its specifier.
    pub module: String,
    /// Its line, from 1.
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
    /// A failure without more than its code and text.
    #[must_use]
    pub fn new(code: RuntimeCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            name: None,
            stack: None,
            place: None,
            operation: None,
        }
    }

    /// Nothing was run: there are as many sessions, workers or checks as may be. The same may succeed later, and
    /// it speaks against no script.
    #[must_use]
    pub fn no_room(message: impl Into<String>) -> Self {
        let mut failure = Self::new(RuntimeCode::Quota, message);
        failure.operation = Some(Box::new(OpError {
            retryable: true,
            ..OpError::new(OVERLOADED, failure.message.clone())
        }));
        failure
    }

    /// Whether it is [`Self::no_room`]. What a script throws has another code.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        let told = self.operation.as_deref();
        self.code == RuntimeCode::Quota && told.is_some_and(|error| error.code == OVERLOADED)
    }

    /// The same, at a line of a module.
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

    /// Whether the isolate that answered with this can take another call.
    #[must_use]
    pub const fn closes(&self) -> bool {
        matches!(
            self.code,
            RuntimeCode::Fuel
                | RuntimeCode::Memory
                | RuntimeCode::Stack
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
