//! `alknet fs rm`, `mv` and `cp`.

use clap::Args;
use serde_json::{Value, json};

use super::address::{FilesAddress, FilesArgs};
use super::failure::FilesSubject;
use crate::cli::node_caller::NodeCaller;
use crate::cli::{CommandError, CommandExit, output};

/// Arguments of `alknet fs rm`.
#[derive(Debug, Args)]
pub(crate) struct RemoveFilesArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Delete directories with everything below them.
    #[arg(long, short)]
    recursive: bool,
    /// Delete the file only if its content has this hash.
    #[arg(long, value_name = "HASH")]
    if_match: Option<String>,
}

/// Arguments of `alknet fs mv`.
#[derive(Debug, Args)]
pub(crate) struct MoveFilesArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Replace a file that is there already.
    #[arg(long)]
    force: bool,
}

/// Arguments of `alknet fs cp`.
#[derive(Debug, Args)]
pub(crate) struct CopyFilesArgs {
    #[command(flatten)]
    files: FilesArgs,
    /// Copy a directory with everything below it.
    #[arg(long, short)]
    recursive: bool,
    /// Replace a file that is there already.
    #[arg(long)]
    force: bool,
}

/// One change, which is one commit.
struct FilesChange {
    operation: &'static str,
    input: Value,
    /// What the change is about, for errors.
    shown: String,
    /// What is printed when it is made.
    done: String,
}

impl FilesChange {
    async fn make(&self, node: &NodeCaller, json: bool) -> Result<(), CommandError> {
        let answer = node.call(self.operation, &self.input).await;
        let subject = FilesSubject::new(&self.shown, json);
        let answer = answer.map_err(|error| subject.error(self.operation, error))?;
        match json {
            true => {
                // A program that reads several lines has to know which entry each is about.
                let mut said = answer.value().clone();
                if let Some(members) = said.as_object_mut() {
                    for name in ["path", "to"] {
                        let given = self.input.get(name);
                        members.extend(given.map(|given| (name.to_owned(), given.clone())));
                    }
                }
                output::json_line(&said)
            }
            false => output::line(&self.done),
        }
    }
}

/// `alknet fs rm`
pub(super) fn remove(args: RemoveFilesArgs, json: bool) -> Result<CommandExit, CommandError> {
    let RemoveFilesArgs {
        files,
        recursive,
        if_match,
    } = args;
    let (node, addresses) = files.required()?;
    if if_match.is_some() && addresses.len() > 1 {
        let text = "--if-match is the hash of one file: give one ADDRESS";
        return Err(CommandError::usage(text));
    }
    node.reached(async |node| {
        // One commit each: those before a refused one stay deleted, as their lines say.
        for address in &addresses {
            let shown = address.to_string();
            let mut input = json!({ "path": shown, "recursive": recursive });
            if let Some(hash) = &if_match {
                input["if_match"] = hash.as_str().into();
            }
            let change = FilesChange {
                operation: "fs/delete",
                input,
                done: format!("{shown} is deleted"),
                shown,
            };
            change.make(node, json).await?;
        }
        Ok(CommandExit::Ok)
    })
}

/// `alknet fs mv`
pub(super) fn rename(args: MoveFilesArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, [from, to]) = args.files.pair()?;
    let to = target_of(&from, &to)?;
    // The refusal of the node would not name the commands that do it.
    if from.branch() != to.branch() {
        let text = format!(
            "{from} and {to} are not on one branch: copy with 'alknet fs cp', and then delete with 'alknet fs rm'"
        );
        return Err(CommandError::usage(text));
    }
    let change = FilesChange {
        operation: "fs/rename",
        input: json!({ "path": from.to_string(), "to": to.to_string(), "replace": args.force }),
        shown: format!("{from} to {to}"),
        done: format!("{from} is {to} now"),
    };
    node.reached(async |node| {
        change.make(node, json).await?;
        Ok(CommandExit::Ok)
    })
}

/// `alknet fs cp`
pub(super) fn copy(args: CopyFilesArgs, json: bool) -> Result<CommandExit, CommandError> {
    let (node, [from, to]) = args.files.pair()?;
    let to = target_of(&from, &to)?;
    let change = match restored_seq(&from, &to) {
        Some(_) if !args.force => {
            return Err(CommandError::usage(format!(
                "{to} becomes its own former version: give --force"
            )));
        }
        // The node takes a copy of an entry onto itself only by this operation.
        Some(seq) => FilesChange {
            operation: "fs/restore",
            input: json!({ "path": to.to_string(), "seq": seq }),
            shown: to.to_string(),
            done: format!("{to} is what it was after commit {seq}"),
        },
        None => FilesChange {
            operation: "fs/copy",
            input: json!({
                "path": from.to_string(), "to": to.to_string(), "recursive": args.recursive,
                "replace": args.force,
            }),
            shown: format!("{from} to {to}"),
            done: format!("{from} is also {to}"),
        },
    };
    node.reached(async |node| {
        change.make(node, json).await?;
        Ok(CommandExit::Ok)
    })
}

/// The commit after which an entry was what a copy onto itself makes it again.
fn restored_seq(from: &FilesAddress, to: &FilesAddress) -> Option<u64> {
    let is_own = from.branch() == to.branch() && from.entry_path() == to.entry_path();
    from.seq().filter(|_| is_own && to.seq().is_none())
}

/// Where an entry goes: a target with a slash at its end takes it under its own name.
fn target_of(from: &FilesAddress, to: &FilesAddress) -> Result<FilesAddress, CommandError> {
    match from.name() {
        Some(name) => Ok(to.for_entry(name)),
        None if to.is_into() && to.name().is_some() => Ok(to.clone()),
        None if to.is_into() => Err(CommandError::usage(format!(
            "{from} is a whole branch and has no name: write the name of the directory that it becomes"
        ))),
        None => Ok(to.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> FilesAddress {
        FilesAddress::read(text).expect(text)
    }

    #[test]
    fn a_slash_at_the_end_keeps_the_name() {
        let target = |from: &str, to: &str| {
            target_of(&address(from), &address(to)).map(|found| found.to_string())
        };
        for (from, to, expected) in [
            ("docs:/a", "docs:/b", "docs:/b"),
            ("docs:/a", "docs:/b/", "docs:/b/a"),
            ("docs:/2026/a", "docs:/", "docs:/a"),
            ("docs:/", "copy:/docs", "copy:/docs"),
            ("docs:/", "copy:/docs/", "copy:/docs"),
        ] {
            assert_eq!(target(from, to).as_deref(), Ok(expected), "{from} {to}");
        }
        assert!(target("docs:/", "copy:/").is_err());
    }

    #[test]
    fn a_former_version_at_its_own_path_is_restored() {
        let seq = |from: &str, to: &str| restored_seq(&address(from), &address(to));
        assert_eq!(seq("docs#17:/a", "docs:/a"), Some(17));
        assert_eq!(seq("docs#17:/a", "docs@main:/a"), Some(17));
        for (from, to) in [
            ("docs#17:/a", "docs:/b"),
            ("docs#17:/a", "docs@draft:/a"),
            ("docs:/a", "docs:/a"),
            ("docs#17:/a", "docs#18:/a"),
        ] {
            assert_eq!(seq(from, to), None, "{from} {to}");
        }
    }
}
