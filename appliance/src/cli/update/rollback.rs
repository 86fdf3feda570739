//! `alknet rollback`: back to the version before, or a new version taken back.

use std::time::Duration;

use alknet_init::control::NO_PREVIOUS;
use clap::Args;
use serde_json::{Value, json};

use super::{PREPARE_TIMEOUT, STATUS, WAIT, limit, options_within, trial};
use crate::cli::call::call_error;
use crate::cli::dial::CliDialer;
use crate::cli::query::text;
use crate::cli::target::NodeArgs;
use crate::cli::{CommandError, CommandExit, confirmation, output};

/// Arguments of `alknet rollback`.
#[derive(Debug, Args)]
pub(crate) struct NodeRollbackArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Do not ask for confirmation.
    #[arg(long, short)]
    yes: bool,
    /// Give up after this time if the node is not back: 90s, 30m or 12h.
    #[arg(long, value_name = "TIME", default_value = WAIT, value_parser = limit)]
    limit: Duration,
}

pub(super) fn run(args: &NodeRollbackArgs, json: bool) -> Result<CommandExit, CommandError> {
    let route = args.node.route()?;
    if !args.yes && !confirmation::is_person(json) {
        return Err(CommandError::usage(
            "with --json or without a terminal the command cannot ask: give --yes",
        ));
    }
    CliDialer::new(&args.node.dial)?.run(async |dialer| {
        let name = route.as_argument();
        let before = dialer
            .reached(&route, async |node| {
                node.call(STATUS, &Value::Null).await.map_err(call_error)
            })
            .await?;
        let before = before.value();
        let plan = NodeRollback::from_status(before)?;
        let question = output::one_line(&plan.question(&name)).into_owned();
        confirmation::ask_beside_work(args.yes, question, json).await?;
        dialer
            .reached(&route, async |node| {
                let options = options_within(PREPARE_TIMEOUT);
                let called = node.call_with("update/rollback", &Value::Null, options);
                called.await.map_err(call_error)
            })
            .await?;
        if plan.kind == RollbackKind::Restart {
            let wanted = match &plan.version {
                Some(version) => trial::ReturnTo::Version(version),
                None => trial::ReturnTo::OtherThan(text(&before["version"])),
            };
            trial::returned(dialer, &route, wanted, args.limit, json).await?;
        }
        let (outcome, said) = plan.done(&name);
        match json {
            true => output::json_line(
                &json!({ "node": name, "outcome": outcome, "version": plan.version }),
            )?,
            false => output::line(&said)?,
        }
        Ok(CommandExit::Ok)
    })
}

/// What a rollback does in a state of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RollbackKind {
    /// The version that waits counts as gone.
    Staged,
    /// The restart that is under way starts the version before, and the other one waits again.
    Pending,
    /// The machine restarts with the version before.
    Restart,
}

/// A rollback of a node, from its status before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NodeRollback {
    kind: RollbackKind,
    /// The version that is taken back, or that the machine returns to. `None` if the node cannot read it.
    version: Option<String>,
}

impl NodeRollback {
    /// Reads a status of the node.
    ///
    /// # Errors
    /// The node has no version to return to.
    fn from_status(status: &Value) -> Result<Self, CommandError> {
        let state = text(&status["state"]);
        let kind = match state {
            // The other slot is empty, or has a version that failed or was taken back: PID 1 starts none of these.
            "idle" | "failed" => {
                let mut error = CommandError::new(CommandExit::Failed, "CONFLICT", NO_PREVIOUS);
                let details = json!({ "code": "no-previous", "text": NO_PREVIOUS });
                error.details = Some(Box::new(details));
                return Err(error);
            }
            "staged" => RollbackKind::Staged,
            "pending" => RollbackKind::Pending,
            _ => RollbackKind::Restart,
        };
        // A loader that cannot count a try starts the good slot, and the other one has the version on trial then.
        let runs_good = status["slot"].is_string() && status["slot"] == status["good"];
        let version = match state == "trial" && runs_good {
            true => &status["version"],
            false => &status["other_version"],
        };
        let version = version.as_str().filter(|version| !version.is_empty());
        Ok(Self {
            kind,
            version: version.map(str::to_owned),
        })
    }

    /// The version, or words for it.
    fn shown(&self) -> &str {
        let unknown = match self.kind {
            RollbackKind::Staged | RollbackKind::Pending => "the other version",
            RollbackKind::Restart => "the version before",
        };
        self.version.as_deref().unwrap_or(unknown)
    }

    fn question(&self, node: &str) -> String {
        let version = self.shown();
        match self.kind {
            RollbackKind::Staged => format!("Take back {version}, which waits on {node}? [y/N] "),
            RollbackKind::Pending => {
                format!("Take back {version}, which {node} starts now? [y/N] ")
            }
            RollbackKind::Restart => {
                format!("Return {node} to {version}? The machine restarts. [y/N] ")
            }
        }
    }

    /// How it ended: the word of the JSON, and a line.
    fn done(&self, node: &str) -> (&'static str, String) {
        let version = self.shown();
        match self.kind {
            RollbackKind::Staged => (
                "taken-back",
                format!("{version} does not wait on {node} any more"),
            ),
            RollbackKind::Pending => (
                "staged-again",
                format!("{version} waits on {node} again, and does not start with this restart"),
            ),
            RollbackKind::Restart => ("returned", format!("{node} runs {version} again")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str, other: Value) -> Value {
        json!({ "state": state, "version": "1.1.0", "slot": "b", "good": "b", "other_version": other })
    }

    fn question(status: &Value) -> String {
        let plan = NodeRollback::from_status(status).expect("there is a version");
        plan.question("edge-1")
    }

    #[test]
    fn a_rollback_without_a_version_before_is_refused_before_the_question() {
        // A version that failed, or was taken back, still lies in the other slot.
        for (state, other) in [
            ("idle", Value::Null),
            ("idle", json!("1.2.0")),
            ("failed", json!("1.2.0")),
        ] {
            let refused = NodeRollback::from_status(&status(state, other)).expect_err(state);
            assert_eq!(
                (refused.exit, &*refused.code),
                (CommandExit::Failed, "CONFLICT")
            );
            assert_eq!(
                refused.message,
                "there is no earlier version to return to; stage an older version, which an administrator has to name"
            );
            assert_eq!(refused.details.expect("details")["code"], "no-previous");
        }
    }

    #[test]
    fn the_question_names_the_version_before() {
        let good = status("good", json!("1.0.0"));
        let expected = "Return edge-1 to 1.0.0? The machine restarts. [y/N] ";
        assert_eq!(question(&good), expected);
        // On trial the good slot has the version before, whichever slot runs.
        let mut trial = status("trial", json!("1.0.0"));
        trial["good"] = json!("a");
        assert_eq!(question(&trial), expected);
        let uncounted = json!({ "state": "trial", "version": "1.0.0", "slot": "a", "good": "a", "other_version": "1.1.0" });
        assert_eq!(question(&uncounted), expected);
        for unknown in [Value::Null, json!("")] {
            let plan =
                NodeRollback::from_status(&status("good", unknown)).expect("the node decides");
            assert_eq!(plan.version, None);
            assert_eq!(
                plan.question("edge-1"),
                "Return edge-1 to the version before? The machine restarts. [y/N] "
            );
            assert_eq!(
                plan.done("edge-1").1,
                "edge-1 runs the version before again"
            );
        }
    }

    #[test]
    fn a_version_that_has_not_started_is_taken_back() {
        assert_eq!(
            question(&status("staged", json!("1.2.0"))),
            "Take back 1.2.0, which waits on edge-1? [y/N] "
        );
        assert_eq!(
            question(&status("pending", json!("1.2.0"))),
            "Take back 1.2.0, which edge-1 starts now? [y/N] "
        );
    }
}
