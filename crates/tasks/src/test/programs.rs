//! Builds the test programs, and reads cargo's messages: the programs, and the findings of the
//! lints.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use xtask::last_use::BuildSet;

use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::group::ProcessGroup;

/// Makes cargo build for every package.
pub(super) const WORKSPACE: &str = "--workspace";

/// A test program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TestProgram {
    /// Name of its package.
    pub(super) package: String,
    /// `lib` and `bin` for the tests in the source, or else the name of a folder in `tests/`.
    pub(super) target: String,
    /// The executable.
    pub(super) path: PathBuf,
    /// Folder of its package, in which it runs.
    pub(super) folder: PathBuf,
}

impl TestProgram {
    /// Its name in tables, `PACKAGE TARGET`.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.package, self.target)
    }
}

/// The result of a build.
#[derive(Debug, Default)]
pub(super) struct TestBuild {
    pub(super) programs: Vec<TestProgram>,
    /// Warnings in the compiler's form, each once.
    pub(super) warnings: Vec<String>,
}

/// Prefix of a line about a compiled unit.
const ARTIFACT: &str = "{\"reason\":\"compiler-artifact\"";

/// One line of cargo's output with `--message-format=json`.
#[derive(Debug, Deserialize)]
#[serde(tag = "reason")]
enum CargoMessage {
    #[serde(rename = "compiler-artifact")]
    Artifact(CargoArtifact),
    #[serde(rename = "compiler-message")]
    Diagnostic { message: RustcDiagnostic },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct CargoArtifact {
    package_id: String,
    manifest_path: PathBuf,
    target: CargoTarget,
    profile: CargoProfile,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct CargoTarget {
    kind: Vec<String>,
    name: String,
}

#[derive(Debug, Deserialize)]
struct CargoProfile {
    test: bool,
}

#[derive(Debug, Deserialize)]
struct RustcDiagnostic {
    level: String,
    rendered: Option<String>,
    /// `None` for summaries such as "2 warnings emitted".
    code: Option<serde_json::Value>,
    #[serde(default)]
    spans: Vec<serde_json::Value>,
}

impl TestBuild {
    /// Builds every test program that `selection`, arguments of cargo, selects.
    pub(super) fn ensure(cx: &XtaskContext, selection: &[String]) -> Result<Self> {
        let whole = *selection == [WORKSPACE];
        let set = if whole {
            BuildSet::Tests
        } else {
            BuildSet::Part
        };
        let mut cargo = cx.cargo("test");
        cargo
            .args(["--release", "--no-run"])
            .arg("--message-format=json-diagnostic-rendered-ansi")
            .args(selection)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self::from_cargo(cx, &mut cargo, set)
    }

    fn from_cargo(cx: &XtaskContext, cargo: &mut Command, set: BuildSet) -> Result<Self> {
        let mut cargo =
            ProcessGroup::start(cargo, Command::spawn).map_err(TaskError::io("run cargo"))?;
        let (stdout, stderr) = (cargo.child().stdout.take(), cargo.child().stderr.take());
        let stderr_lines = std::thread::spawn(move || {
            let lines = stderr.map(|stderr| BufReader::new(stderr).lines());
            let lines = lines
                .into_iter()
                .flatten()
                .map_while(std::result::Result::ok);
            lines.collect::<Vec<String>>()
        });
        let mut built = Self::default();
        let (mut errors, mut messages) = (String::new(), String::new());
        if let Some(stdout) = stdout {
            for line in BufReader::new(stdout)
                .lines()
                .map_while(std::result::Result::ok)
            {
                match serde_json::from_str(&line) {
                    Ok(CargoMessage::Artifact(artifact)) => {
                        cx.say(&artifact.target.name);
                        built.programs.extend(artifact.program());
                    }
                    Ok(CargoMessage::Diagnostic { message }) => {
                        let (warnings, text) = (&mut built.warnings, message.rendered);
                        match (message.level.as_str(), text) {
                            ("error", Some(text)) => errors += &text,
                            // Warnings without a position only count the others.
                            ("warning", Some(text))
                                if (message.code.is_some() || !message.spans.is_empty())
                                    && !warnings.contains(&text) =>
                            {
                                warnings.push(text);
                            }
                            _ => {}
                        }
                    }
                    // The program of this line would be missing from the tests.
                    Err(error) if line.starts_with(ARTIFACT) => {
                        return Err(TaskError::Workspace(format!(
                            "cargo's message about a compiled unit has another form than in this version of \
                             xtask: {error}: {line}"
                        )));
                    }
                    Ok(CargoMessage::Other) | Err(_) => {}
                }
                messages.push_str(&line);
                messages.push('\n');
            }
        }
        let status = cargo.reap().map_err(TaskError::io("wait for cargo"))?;
        let stderr_lines = stderr_lines.join().unwrap_or_default();
        if !status.success() {
            if errors.is_empty() {
                errors = stderr_lines.join("\n");
            }
            return Err(TaskError::Workspace(format!(
                "{errors}\nthe tests do not compile ({status}): cargo's messages are above"
            )));
        }
        cx.record(set, &messages)?;
        // Cargo's messages come in the order of compilation, which changes from build to build.
        built.programs.sort();
        Ok(built)
    }
}

impl CargoArtifact {
    /// The test program, if this is one.
    fn program(self) -> Option<TestProgram> {
        let path = self.executable.filter(|_| self.profile.test)?;
        let kind = self.target.kind.first().map_or("", String::as_str);
        let target = match kind {
            "lib" | "proc-macro" => "lib".to_owned(),
            "bin" => "bin".to_owned(),
            _ => self.target.name,
        };
        Some(TestProgram {
            package: package_name(&self.package_id),
            target,
            path,
            folder: self
                .manifest_path
                .parent()
                .map_or_else(PathBuf::new, Path::to_owned),
        })
    }
}

/// The name in `path+file:///folder#name@version`, or `…/name#version`.
fn package_name(id: &str) -> String {
    let (place, rest) = id.rsplit_once('#').unwrap_or((id, ""));
    let named = rest.split_once('@').map(|(name, _)| name);
    let name = named.unwrap_or_else(|| place.rsplit('/').next().unwrap_or(place));
    name.to_owned()
}

/// Sets what cargo sets for a test program that it runs.
pub(super) fn environment(program: &TestProgram) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("CARGO_MANIFEST_DIR", program.folder.display().to_string()),
        ("CARGO_PKG_NAME", program.package.clone()),
    ])
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;
    use crate::group;

    fn built(script: &str) -> Result<TestBuild> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        let mut cargo = Command::new("sh");
        cargo
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        TestBuild::from_cargo(&cx, &mut cargo, BuildSet::Part)
    }

    #[test]
    fn a_program_in_an_unknown_form_is_not_left_out() {
        let line = r#"{"reason":"compiler-artifact","package":"alknet-core 0.1.0","executable":"/t/core-1"}"#;
        let error = built(&format!("echo '{line}'")).expect_err("its form is new");
        assert!(error.to_string().contains("alknet-core 0.1.0"), "{error}");
        let other = r#"echo '{"reason":"new"}'; echo 'a build script says this'"#;
        assert_eq!(built(other).expect("no program").programs, []);
    }

    /// After SIGKILL, which the runner cannot handle, at least cargo itself ends. A compiler ends
    /// with its present job.
    #[test]
    fn cargo_ends_with_the_runner() {
        if group::tests::role().is_some() {
            group::end_with_this_process().expect("signals can be handled");
            let stays = "echo $$ >> \"$ALKNET_TEST_GROUP_STARTED\"; exec sleep 1000";
            let with_another = format!("sh -c '{stays}' & {stays}");
            let script = match group::tests::role().as_deref() {
                Some("SIGTERM") => &with_another,
                _ => stays,
            };
            let _ = built(script);
            return;
        }
        let name = "test::programs::tests::cargo_ends_with_the_runner";
        for (signal, count) in [(Signal::SIGTERM, 2), (Signal::SIGKILL, 1)] {
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            let copy = group::tests::copy(name, signal.as_str(), file.path());
            group::tests::ends_with_all(copy, file.path(), count, signal);
        }
    }

    #[test]
    fn a_test_program_differs_from_its_object_files() {
        let line = |kind: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/crates/core#alknet-core@0.1.0",
                "manifest_path":"/w/crates/core/Cargo.toml","target":{{"kind":["{kind}"],"name":"core"}},
                "profile":{{"test":{test}}},"executable":{executable},"filenames":[],"fresh":true}}"#
            )
        };
        let program = |line: &str| match serde_json::from_str(line).expect("cargo's form") {
            CargoMessage::Artifact(artifact) => artifact.program(),
            other => panic!("{other:?}"),
        };
        assert_eq!(program(&line("lib", false, "null")), None);
        assert_eq!(program(&line("bin", false, r#""/t/alknet""#)), None);
        let found = program(&line("lib", true, r#""/t/deps/core-1""#)).expect("a program");
        assert_eq!(found.name(), "alknet-core lib");
        assert_eq!(found.folder, Path::new("/w/crates/core"));
        let found = program(&line("test", true, r#""/t/deps/core-2""#)).expect("a program");
        assert_eq!(found.name(), "alknet-core core");
    }

    #[test]
    fn packages_have_their_names_in_either_form_of_an_id() {
        assert_eq!(
            package_name("path+file:///w/tests#alknet-tests@0.1.0"),
            "alknet-tests"
        );
        assert_eq!(package_name("path+file:///w/crates/xtask#0.1.0"), "xtask");
    }

    #[test]
    fn what_else_cargo_says_is_passed_over() {
        let line = r#"{"reason":"build-finished","success":true}"#;
        assert!(matches!(
            serde_json::from_str(line),
            Ok(CargoMessage::Other)
        ));
    }
}
