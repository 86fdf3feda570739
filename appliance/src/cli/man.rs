//! `alknet man`: a manual page for each verb.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Args, Command};
use clap_mangen::Man;
use serde_json::json;

use super::{CommandError, CommandExit, help, output};

/// What a usage has in the place of the options that a command can do without.
const OPTIONS: &str = "[OPTIONS]";
/// The line that begins the section which is replaced in each page.
const SYNOPSIS: &str = ".SH SYNOPSIS\n";

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
    let failed = |error: io::Error| {
        CommandError::local(format!("cannot write manual pages to {folder}: {error}"))
    };
    fs::create_dir_all(&args.folder).map_err(failed)?;
    let mut command = help::command();
    command.build();
    let source = format!("alknet {}", alknet_init::image_version());
    let pages = write_pages(&command, &args.folder, &source).map_err(failed)?;
    match json {
        true => output::json_line(&json!({ "folder": args.folder, "pages": pages }))?,
        false => output::line(&format!(
            "{pages} pages in {folder}; try: man {folder}/alknet.1"
        ))?,
    }
    Ok(CommandExit::Ok)
}

/// Writes the page of a verb, and those of the verbs below it that are shown. Returns how many pages they are.
fn write_pages(command: &Command, folder: &Path, source: &str) -> io::Result<usize> {
    let mut pages = 1;
    for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        pages += write_pages(below, folder, source)?;
    }
    // The title of a page names the program, and not the last word of the verb.
    let man = Man::new(command.clone()).source(source);
    let mut page = Vec::new();
    man.render(&mut page)?;
    let page = String::from_utf8(page).map_err(io::Error::other)?;
    let page = with_synopsis(&page, &synopsis(&mut command.clone()));
    fs::write(folder.join(man.get_filename()), page)?;
    Ok(pages)
}

/// The page with another synopsis: the one of `clap_mangen` lacks the values of options, and puts required options in
/// brackets.
fn with_synopsis(page: &str, synopsis: &str) -> String {
    let Some((before, behind)) = page.split_once(SYNOPSIS) else {
        return page.to_owned();
    };
    let rest = behind.find("\n.SH ").map_or("", |at| &behind[at + 1..]);
    format!("{before}{SYNOPSIS}{synopsis}{rest}")
}

/// The usage that help shows, as text for roff, with the options in the place of the word for all of them.
fn synopsis(command: &mut Command) -> String {
    let usage = command.render_usage().to_string();
    let usage = usage.strip_prefix("Usage:").unwrap_or(&usage).trim();
    let options = options(command, usage);
    // Of several forms the first has them all; the others would repeat them.
    let usage = usage.replacen(OPTIONS, &options, 1);
    let lines = usage.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<_> = lines.map(for_roff).collect();
    format!("{}\n", lines.join("\n.br\n"))
}

/// The options that a command can do without and that its usage does not have, each in brackets with its value.
fn options(command: &Command, usage: &str) -> String {
    let is_sign = |c: char| c.is_whitespace() || "[]<>|".contains(c);
    let has = |long: &str| {
        usage
            .split(is_sign)
            .any(|word| word.strip_prefix("--") == Some(long))
    };
    let words = command
        .get_opts()
        .chain(command.get_arguments().filter(is_flag));
    let words = words.filter(|it| !it.is_hide_set());
    let words = words.filter_map(|option| {
        let long = option.get_long().filter(|long| !has(long))?;
        Some(match value(option) {
            Some(value) => format!("[--{long} {value}]"),
            None => format!("[--{long}]"),
        })
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Whether an argument is an option without a value, but for those that every program has.
fn is_flag(argument: &&Arg) -> bool {
    !argument.is_positional()
        && !argument.get_action().takes_values()
        && !is_of_every_program(argument)
}

fn is_of_every_program(argument: &Arg) -> bool {
    matches!(
        argument.get_action(),
        ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort | ArgAction::Version
    )
}

/// The value of an option, as help writes it.
fn value(option: &Arg) -> Option<String> {
    if !option.get_action().takes_values() {
        return None;
    }
    let Some(names) = option.get_value_names() else {
        return Some(format!("<{}>", option.get_id().as_str().to_uppercase()));
    };
    let names: Vec<_> = names.iter().map(|name| format!("<{name}>")).collect();
    Some(names.join(" "))
}

/// Text that roff shows as it is. Each line begins with the name of the program, so that none is a request.
fn for_roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many verbs are shown, the program itself included.
    fn shown(command: &Command) -> usize {
        let below = command.get_subcommands().filter(|it| !it.is_hide_set());
        1 + below.map(shown).sum::<usize>()
    }

    #[test]
    fn every_verb_that_is_shown_has_a_page() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let folder = dir.path().join("man/man1");
        let args = ManArgs {
            folder: folder.clone(),
        };
        assert_eq!(run(&args, true), Ok(CommandExit::Ok));
        let written = fs::read_dir(&folder).expect("it was made").count();
        assert_eq!(written, shown(&help::command()));
        let page = |name: &str| fs::read_to_string(folder.join(name)).expect(name);
        for (name, said) in [
            ("alknet.1", "alknet\\-token(1)"),
            ("alknet-token-add.1", "\\-\\-expires"),
            ("alknet-vault-slot-add.1", "Exit codes"),
            ("alknet-gpu-run.1", "\\-\\-groups"),
            // A required option has no brackets, and every option has its value.
            (
                "alknet-token-add.1",
                " \\-\\-scope <SCOPE> [NODE]\n.br\nalknet token add \\-\\-offline\n",
            ),
            ("alknet-token-add.1", " [\\-\\-expires <TIME>] "),
            ("alknet-token-add.1", " [\\-\\-anonymous] "),
            ("alknet-status.1", "[\\-\\-timeout <TIME>]"),
            ("alknet-status.1", "[NODE]\n.SH DESCRIPTION"),
        ] {
            assert!(page(name).contains(said), "{name}: {}", page(name));
        }
        let title = format!("\"alknet {}\"", alknet_init::image_version());
        for name in ["alknet.1", "alknet-token-add.1"] {
            let first = page(name);
            let first = first.lines().find(|line| line.starts_with(".TH"));
            assert!(first.is_some_and(|line| line.contains(&title)), "{first:?}");
        }
        assert!(
            !folder.join("alknet-peers.1").exists(),
            "an earlier spelling"
        );
    }
}
