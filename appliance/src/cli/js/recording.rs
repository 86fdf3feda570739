//! A file of the calls that a script made: `calls` of a test.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use alknet_call::CallError;
use serde_json::{Map, Value};

use super::super::CommandError;

/// What the node tells beside a script's value, or in the details of its failure.
const CALLS: &str = "calls";
/// How many it does not tell.
const LEFT_OUT: &str = "calls_left_out";

/// Calls on their way to a file.
#[derive(Debug)]
pub(super) struct CallRecording {
    path: PathBuf,
    calls: Vec<Value>,
    left_out: u64,
    /// It is our file from now on.
    written: bool,
}

impl CallRecording {
    /// Calls for this file, which must not be there: a record is not lost to a slip, and the script
    /// does not run for nothing.
    pub(super) fn to(path: &Path) -> Result<Self, CommandError> {
        // Before the script runs: its calls have effects, and cannot be made again for the recording's sake.
        if path.symlink_metadata().is_ok() {
            return Err(taken(path));
        }
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) || path.file_name().is_none() {
            let text = format!("{} names no file in a folder", path.display());
            return Err(CommandError::usage(text));
        }
        Ok(Self {
            path: path.to_owned(),
            calls: Vec::new(),
            left_out: 0,
            written: false,
        })
    }

    /// Takes what an answer tells, and writes it.
    pub(super) fn take(&mut self, answer: &Value) -> Result<(), CommandError> {
        let told = answer.as_object();
        let told = told.is_some_and(|answer| self.add(answer.get(CALLS), answer.get(LEFT_OUT)));
        if !told {
            return Err(CommandError::local("the node records no calls"));
        }
        self.write()
    }

    /// Takes what a script called before it failed out of its failure, and writes it where there is
    /// any: a call that fails is worth a test, too.
    pub(super) fn take_failed(&mut self, error: &mut CallError) -> Result<(), CommandError> {
        let details = error.details.as_deref_mut().and_then(Value::as_object_mut);
        let told = details.is_some_and(|details: &mut Map<String, Value>| {
            let (calls, left_out) = (details.shift_remove(CALLS), details.shift_remove(LEFT_OUT));
            self.add(calls.as_ref(), left_out.as_ref())
        });
        match told {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// The summary for people, once the file is written.
    pub(super) fn summary(&self) -> Option<String> {
        let calls = match self.calls.len() {
            1 => "1 call".to_owned(),
            many => format!("{many} calls"),
        };
        let left_out = match self.left_out {
            0 => String::new(),
            many => format!("; {many} could not be recorded"),
        };
        let path = self.path.display();
        self.written
            .then(|| format!("{calls} recorded in {path}{left_out}"))
    }

    fn add(&mut self, calls: Option<&Value>, left_out: Option<&Value>) -> bool {
        let Some(Value::Array(calls)) = calls else {
            return false;
        };
        self.calls.extend_from_slice(calls);
        self.left_out += left_out.and_then(Value::as_u64).unwrap_or_default();
        true
    }

    fn write(&mut self) -> Result<(), CommandError> {
        let mut text = serde_json::to_vec_pretty(&self.calls).map_err(CommandError::local)?;
        text.push(b'\n');
        let mut options = OpenOptions::new();
        // The first write makes the file, so that one that was made meanwhile is kept.
        match self.written {
            true => options.write(true).truncate(true),
            false => options.write(true).create_new(true),
        };
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::AlreadyExists => taken(&self.path),
            _ => CommandError::local(format!("cannot write {}: {error}", self.path.display())),
        };
        let mut file = options.open(&self.path).map_err(failed)?;
        self.written = true;
        if let Err(error) = file.write_all(&text) {
            // Half a list of calls is useless, so that the file is removed. Where the removal fails
            // as well, the write's error says enough.
            let _ = fs::remove_file(&self.path);
            return Err(failed(error));
        }
        Ok(())
    }
}

fn taken(path: &Path) -> CommandError {
    let path = path.display();
    CommandError::usage(format!(
        "{path} is there already: remove it, or name another file"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(path: &Path) -> Value {
        let text = fs::read_to_string(path).expect("a file");
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn calls_of_several_answers_are_one_list() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("calls.json");
        let mut recording = CallRecording::to(&path).expect("room");
        let call = |n: f64| json!({ "path": "a/b", "input": n });
        let answer = json!({ "value": 1, "calls": [call(0.1 + 0.2)], "calls_left_out": 2 });
        recording.take(&answer).expect("written");
        let mut error = CallError::operation("SCRIPT_FAILED", "no ink").with_details(json!({
            "name": "OpError", "calls": [call(1.0 / 3.0)], "calls_left_out": 1,
        }));
        recording.take_failed(&mut error).expect("written");
        assert_eq!(
            error.details.as_deref(),
            Some(&json!({ "name": "OpError" }))
        );
        assert_eq!(read(&path), json!([call(0.1 + 0.2), call(1.0 / 3.0)]));
        let told = recording.summary().expect("it is written");
        assert!(told.starts_with("2 calls recorded in "), "{told}");
        assert!(told.ends_with("; 3 could not be recorded"), "{told}");
        // An answer without `calls` is an error: such a node cannot record.
        recording
            .take(&json!({ "value": 1 }))
            .expect_err("no calls");
    }

    #[test]
    fn a_file_that_is_there_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("calls.json");
        let mut late = CallRecording::to(&path).expect("room");
        fs::write(&path, "mine").expect("room");
        let answer = json!({ "calls": [], "calls_left_out": 0 });
        for failure in [
            CallRecording::to(&path).expect_err("it is there"),
            late.take(&answer).expect_err("it came meanwhile"),
            CallRecording::to(&folder.path().join("none/calls.json")).expect_err("no folder"),
            CallRecording::to(Path::new("/")).expect_err("no file"),
        ] {
            assert_eq!(failure.exit, super::super::CommandExit::Usage, "{failure}");
        }
        assert_eq!(fs::read(&path).expect("a file"), b"mine");
    }

    #[test]
    fn a_failure_without_calls_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("calls.json");
        let mut recording = CallRecording::to(&path).expect("room");
        for mut error in [
            CallError::not_found("runtime/eval"),
            CallError::operation("SCRIPT_FAILED", "").with_details(json!({ "name": "Error" })),
        ] {
            recording.take_failed(&mut error).expect("nothing to do");
            assert_eq!(recording.summary(), None);
        }
        assert!(!path.exists());
    }
}
