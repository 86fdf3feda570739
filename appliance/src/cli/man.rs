//! `alknet man`: a manual page for each verb.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Command};
use serde_json::json;

use super::{CommandError, CommandExit, help, output};

/// Arguments of `alknet man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder for the pages. The command makes the folder if it is missing, and replaces existing pages.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes `alknet.1`, and a page such as `alknet-token-add.1` for each verb.
pub(crate) fn run(args: &ManArgs, json: bool) -> Result<CommandExit, CommandError> {
    let folder = args.folder.display();
    let failed = |error: std::io::Error| {
        CommandError::local(format!("cannot write manual pages to {folder}: {error}"))
    };
    fs::create_dir_all(&args.folder).map_err(failed)?;
    clap_mangen::generate_to(help::command(), &args.folder).map_err(failed)?;
    let pages = pages(&help::command());
    match json {
        true => output::json_line(&json!({ "folder": args.folder, "pages": pages }))?,
        false => output::line(&format!(
            "{pages} pages in {folder}; try: man {folder}/alknet.1"
        ))?,
    }
    Ok(CommandExit::Ok)
}

/// How many verbs have a page: all that are shown.
fn pages(command: &Command) -> usize {
    let below = command
        .get_subcommands()
        .filter(|below| !below.is_hide_set());
    1 + below.map(pages).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_that_is_shown_has_a_page() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let folder = dir.path().join("man/man1");
        let args = ManArgs {
            folder: folder.clone(),
        };
        assert_eq!(run(&args, true), Ok(CommandExit::Ok));
        let written = fs::read_dir(&folder).expect("it was made").count();
        assert_eq!(written, pages(&help::command()));
        let page = |name: &str| fs::read_to_string(folder.join(name)).expect(name);
        for (name, said) in [
            ("alknet.1", "alknet\\-token(1)"),
            ("alknet-token-add.1", "\\-\\-expires"),
            ("alknet-vault-slot-add.1", "Exit codes"),
            ("alknet-gpu-run.1", "\\-\\-groups"),
        ] {
            assert!(page(name).contains(said), "{name}: {}", page(name));
        }
        assert!(
            !folder.join("alknet-peers.1").exists(),
            "an earlier spelling"
        );
    }
}
