//! What the command line says about itself: `--help`, `alknet help`, and what is wrong with a command line.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Command, CommandFactory};
use serde_json::{Value, json};

use super::name_hint::nearest_name;
use super::{AlknetCli, CommandError, CommandExit, output};

/// Verbs that deal with a vault or with recovery words, and so have the exit codes of [`OF_VAULTS`].
const VAULT_VERBS: [&str; 3] = ["provision", "sign", "vault"];
/// Exit codes that other verbs do not have.
const OF_VAULTS: [CommandExit; 4] = [
    CommandExit::Locked,
    CommandExit::WrongPassphrase,
    CommandExit::BadWords,
    CommandExit::Corrupt,
];

/// The verb that becomes another program, which has exit codes of its own: docs/driver.md lists them.
pub(crate) const GPU_VERB: &str = "gpu";
/// Exit codes of that program.
const GPU_EXIT_CODES: &str = "Exit codes: 0 it worked; 1 a computation failed, or its result is wrong; 2 the command \
line is wrong; 3 no driver is linked; 4 no adapter or no device; 70 generated code needs a function that is not linked.";

/// Arguments of `alknet help`.
#[derive(Debug, Args)]
pub(crate) struct HelpArgs {
    /// The verb, for example: token add.
    #[arg(value_name = "VERB")]
    verb: Vec<String>,
}

/// The whole command line, with the exit codes in the help of each verb.
pub(crate) fn command() -> Command {
    with_exit_codes(AlknetCli::command(), &exit_codes(false))
}

fn exit_codes(of_vaults: bool) -> String {
    let all = CommandExit::ALL.into_iter();
    let all = all.filter(|exit| of_vaults || !OF_VAULTS.contains(exit));
    let each: Vec<_> = all
        .map(|exit| format!("{} {}", exit as u8, exit.meaning()))
        .collect();
    format!("Exit codes: {}.", each.join("; "))
}

fn with_exit_codes(command: Command, codes: &str) -> Command {
    let codes = match command.get_name() {
        name if VAULT_VERBS.contains(&name) => exit_codes(true),
        GPU_VERB => GPU_EXIT_CODES.to_owned(),
        _ => codes.to_owned(),
    };
    let help = match command.get_after_help() {
        Some(help) => format!("{help}\n\n{codes}"),
        None => codes.clone(),
    };
    let command = command.after_help(help);
    command.mut_subcommands(|below| with_exit_codes(below, &codes))
}

/// Prints the help of a verb.
pub(crate) fn run(args: &HelpArgs, json: bool) -> Result<CommandExit, CommandError> {
    let text = help_of(&args.verb)?;
    match json {
        true => output::json_line(&json!({ "help": text }))?,
        false => output::text(text.trim_end())?,
    }
    Ok(CommandExit::Ok)
}

/// Prints the help of a verb of `noun`.
pub(crate) fn run_below(
    noun: &str,
    args: &HelpArgs,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let words = std::iter::once(noun.to_owned()).chain(args.verb.iter().cloned());
    let verb = words.collect();
    run(&HelpArgs { verb }, json)
}

fn help_of(verb: &[String]) -> Result<String, CommandError> {
    let mut command = command();
    // Without this the text of a verb lacks the options that every verb takes.
    command.build();
    let mut found = &command;
    for word in verb {
        let below = found.find_subcommand(word);
        found = below.ok_or_else(|| unknown_verb(found, verb, word))?;
    }
    Ok(found.clone().render_long_help().to_string())
}

/// The error for a verb that is not there. `noun` is the one below which `word` was looked for.
fn unknown_verb(noun: &Command, verb: &[String], word: &str) -> CommandError {
    let meant = nearest_verb(noun, word).map(|near| {
        let mut words: Vec<_> = verb.iter().map(String::as_str).collect();
        if let Some(wrong) = words.iter_mut().find(|it| **it == word) {
            *wrong = near;
        }
        format!("did you mean 'alknet help {}'? ", words.join(" "))
    });
    let meant = meant.unwrap_or_default();
    let text = format!(
        "there is no verb '{}'; {meant}'alknet help' lists them all",
        verb.join(" ")
    );
    CommandError::usage(text)
}

/// The verb of `noun` that is most like `word`, as help lists it: an earlier spelling stands for the present one.
fn nearest_verb<'n>(noun: &'n Command, word: &str) -> Option<&'n str> {
    let listed = noun.get_subcommands().filter(|verb| !verb.is_hide_set());
    let names =
        listed.flat_map(|verb| std::iter::once(verb.get_name()).chain(verb.get_all_aliases()));
    let near = nearest_name(names, word)?;
    let verb = noun.find_subcommand(near)?;
    let is_listed = verb.get_visible_aliases().any(|alias| alias == near);
    Some(match is_listed {
        true => near,
        false => verb.get_name(),
    })
}

/// What is wrong with a command line whose verb is not there. `None` for every other error.
fn unknown_verb_of(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string(),
        _ => String::new(),
    };
    // Only the usage has the nouns below which clap looked, behind the name of the program.
    let nouns = usage.split_whitespace().skip(2);
    let nouns: Vec<_> = nouns
        .take_while(|word| !word.starts_with(['[', '<', '-']))
        .collect();
    let root = command();
    let noun = nouns.iter().fold(&root, |noun, word| {
        noun.find_subcommand(word).unwrap_or(noun)
    });
    let path: String = nouns.iter().map(|noun| format!("{noun} ")).collect();
    let meant = nearest_verb(noun, word);
    let meant = meant.map(|near| format!("did you mean 'alknet {path}{near}'? "));
    let meant = meant.unwrap_or_default();
    let listed = match nouns.is_empty() {
        true => "'alknet help' lists them all".to_owned(),
        false => format!("'alknet help {}' lists its verbs", path.trim_end()),
    };
    Some(format!("there is no verb '{path}{word}'; {meant}{listed}"))
}

/// Ends a process whose command line was not understood, or only asks for help or the version.
pub(crate) fn refused(error: clap::Error) -> ExitCode {
    // Help and version are no errors; clap prints both kinds where they belong.
    if !error.use_stderr() {
        match asked_for(&error).filter(|_| wants_json()) {
            // The exit code is the same where standard output is gone.
            Some(answer) => output::json_line(&answer).ok(),
            None => error.print().ok(),
        };
        return ExitCode::SUCCESS;
    }
    let json = wants_json();
    let failure = match json {
        true => Some(CommandError::usage(in_one_line(&error))),
        false => for_people(&error),
    };
    match failure {
        Some(failure) => output::failure(&failure, json),
        None => {
            error.print().ok();
        }
    }
    ExitCode::from(CommandExit::Usage as u8)
}

/// What `--version` and `--help` answer to a program.
fn asked_for(error: &clap::Error) -> Option<Value> {
    match error.kind() {
        ErrorKind::DisplayVersion => Some(json!({ "version": alknet_init::image_version() })),
        ErrorKind::DisplayHelp => Some(json!({ "help": error.render().to_string() })),
        _ => None,
    }
}

/// Whether the command line asks for JSON. It was not understood, so that its words are looked at.
fn wants_json() -> bool {
    let words = std::env::args_os().skip(1);
    // What stands behind `--` belongs to the verb.
    let mut options = words.take_while(|word| word != "--");
    options.any(|word| word == "--json")
}

/// What is wrong and the usage, in the form of every other error. `None` if a verb is missing: clap lists the verbs.
fn for_people(error: &clap::Error) -> Option<CommandError> {
    if is_verb_missing(error) {
        return None;
    }
    let text = error.render().to_string();
    let usage = text.split_once("\n\nUsage:");
    let usage = usage.map(|(_, rest)| {
        let usage = rest.split("\n\n").next().unwrap_or_default();
        let words: Vec<_> = usage.split_whitespace().collect();
        format!("Usage: {}; --help says more", words.join(" "))
    });
    let lines = std::iter::once(in_one_line(error)).chain(usage);
    Some(CommandError::of_lines(CommandExit::Usage, "USAGE", lines))
}

fn is_verb_missing(error: &clap::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand
    )
}

/// What is wrong, without the usage, which is for people.
fn in_one_line(error: &clap::Error) -> String {
    if is_verb_missing(error) {
        return "a verb is missing: see --help".to_owned();
    }
    if let Some(text) = unknown_verb_of(error) {
        return text;
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let ends = ["\n\nUsage:", "\n\nFor more information"];
    let ends = ends.iter().filter_map(|end| text.find(end));
    let text = &text[..ends.min().unwrap_or(text.len())];
    let mut parts = text.split("\n  tip: ");
    let wrong = parts.next().map(one_line);
    let parts = wrong.into_iter().chain(parts.map(suggestion));
    parts.collect::<Vec<_>>().join("; ")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A tip of clap, such as "a similar value exists: 'warn'", in the words of all other errors.
fn suggestion(tip: &str) -> String {
    let tip = one_line(tip);
    let is_similar = ["a similar ", "some similar "]
        .iter()
        .any(|start| tip.starts_with(start));
    match tip.split_once(": ").filter(|_| is_similar) {
        Some((_, names)) if names.contains(", ") => format!("did you mean one of {names}?"),
        Some((_, name)) => format!("did you mean {name}?"),
        None => tip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_verb(command: &mut Command, check: &mut dyn FnMut(&str, &mut Command)) {
        let name = command.get_bin_name().unwrap_or_default().to_owned();
        check(&name, command);
        for below in command.get_subcommands_mut() {
            each_verb(below, check);
        }
    }

    #[test]
    fn every_help_has_the_exit_codes() {
        let mut all = command();
        all.build();
        let mut verbs = 0;
        each_verb(&mut all, &mut |name, verb| {
            let help = verb.render_long_help().to_string();
            let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
            let is_one = ["alknet provision", "alknet image sign"].contains(&name);
            let of_vault = name.starts_with("alknet vault") || is_one;
            for exit in CommandExit::ALL {
                let listed = help.contains(&format!(" {} {}", exit as u8, exit.meaning()));
                // The program that these verbs become has codes of its own.
                let expected = match name.starts_with("alknet gpu") {
                    true => exit == CommandExit::Ok,
                    false => of_vault || !OF_VAULTS.contains(&exit),
                };
                assert_eq!(listed, expected, "{name}: {exit:?}");
            }
            verbs += 1;
        });
        assert!(verbs > 60, "{verbs} verbs");
    }

    #[test]
    fn help_finds_a_verb_by_each_of_its_names() {
        let words = |verb: &str| {
            verb.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        for (verb, said) in [
            ("", "alknet [OPTIONS] <COMMAND>"),
            ("token add", "alknet token add"),
            ("token make", "alknet token add"),
            ("node use", "alknet node use"),
            ("gpu info", "alknet gpu info"),
            ("help", "alknet help"),
        ] {
            let help = help_of(&words(verb)).expect(verb);
            assert!(help.contains(said), "{verb}: {help}");
        }
        for (verb, meant) in [
            ("nonsense", None),
            ("token nonsense", None),
            ("gpu frob", None),
            ("status attic", None),
            ("tokn", Some("alknet help token")),
            ("tokn add", Some("alknet help token add")),
            ("token ad", Some("alknet help token add")),
            ("token mak", Some("alknet help token add")),
            ("ops aprove", Some("alknet help ops approve")),
        ] {
            let error = help_of(&words(verb)).expect_err(verb).message;
            let is_meant = meant.map(|meant| error.contains(&format!("did you mean '{meant}'?")));
            let is_silent = !error.contains("did you mean");
            assert!(is_meant.unwrap_or(is_silent), "{verb}: {error}");
        }
    }

    /// The error of a command line that is not understood, in one line.
    fn refused_as(line: &str) -> String {
        let words = std::iter::once("alknet").chain(line.split(' '));
        in_one_line(&command().try_get_matches_from(words).expect_err(line))
    }

    #[test]
    fn only_verbs_that_help_lists_are_suggested() {
        for (line, listed, hidden) in [
            ("token mak", "alknet token add", "make"),
            ("--json token mak", "alknet token add", "make"),
            ("token --json mak", "alknet token add", "make"),
            ("token revok", "alknet token remove", "revoke"),
            ("tensor lss", "alknet tensor list", "'ls'"),
            ("per", "alknet peer", "peers"),
            ("vault stat", "alknet vault status", "passwd"),
        ] {
            let text = refused_as(line);
            let meant = format!("did you mean '{listed}'?");
            assert!(text.contains(&meant), "{line}: {text}");
            assert!(!text.contains(hidden), "{line}: {text}");
        }
    }

    #[test]
    fn an_unknown_verb_and_a_misspelt_word_are_named_in_the_words_of_every_error() {
        let listed = "'alknet help token' lists its verbs";
        for (line, text) in [
            (
                "token lst",
                format!("there is no verb 'token lst'; did you mean 'alknet token list'? {listed}"),
            ),
            (
                "token nonsense",
                format!("there is no verb 'token nonsense'; {listed}"),
            ),
            // A word that is like no verb gets no suggestion.
            (
                "frob",
                "there is no verb 'frob'; 'alknet help' lists them all".to_owned(),
            ),
            (
                "status --jsn",
                "unexpected argument '--jsn' found; did you mean '--json'?".to_owned(),
            ),
            (
                "logs --level wrn",
                "invalid value 'wrn' for '--level <LEVEL>' [possible values: error, warn, info, debug]; did \
                 you mean 'warn'?"
                    .to_owned(),
            ),
        ] {
            assert_eq!(refused_as(line), text);
        }
        let names = suggestion("some similar values exist: 'a', 'b'");
        assert_eq!(names, "did you mean one of 'a', 'b'?");
        let advice = "to pass '--x' as a value, use '-- --x'";
        assert_eq!(suggestion(advice), advice);
    }

    #[test]
    fn a_program_gets_version_and_help_as_json() {
        let shown = |line: &str| {
            let shown = command().try_get_matches_from(line.split(' '));
            asked_for(&shown.expect_err(line))
        };
        let version = json!({ "version": alknet_init::image_version() });
        for line in [
            "alknet --version --json",
            "alknet --json --version",
            "alknet status --version",
        ] {
            assert_eq!(shown(line), Some(version.clone()), "{line}");
        }
        let help = shown("alknet status --help --json").unwrap_or_default();
        let text = help["help"].as_str().unwrap_or_default();
        assert!(text.contains("Usage: alknet status"), "{text}");
        assert_eq!(shown("alknet status --frobnicate"), None);
    }

    #[test]
    fn a_person_reads_the_usage_in_the_form_of_every_error() {
        let refused = |line: &str| {
            let refused = command().try_get_matches_from(line.split(' '));
            for_people(&refused.expect_err(line))
        };
        let failure = refused("alknet node add").expect("an error");
        assert_eq!(failure.code, "USAGE");
        assert!(failure.message.contains("<NAME>"), "{failure}");
        let usage = failure.further.concat();
        assert!(usage.starts_with("Usage: alknet node add"), "{usage}");
        assert!(!usage.contains('\n'), "{usage}");
        assert!(refused("alknet hub").is_none(), "clap lists the verbs");
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        for (line, said) in [
            ("alknet", "a verb is missing"),
            ("alknet hub", "a verb is missing"),
            ("alknet hub --json", "a verb is missing"),
            ("alknet gpu", "a verb is missing"),
            ("alknet gpu frob", "there is no verb 'gpu frob'"),
            ("alknet frobnicate", "there is no verb 'frobnicate'"),
            (
                "alknet status --frobnicate",
                "unexpected argument '--frobnicate' found",
            ),
            (
                "alknet node add",
                "required arguments were not provided: <NAME>",
            ),
            ("alknet status --timeout x", "'x' is no time"),
            ("alknet status a b", "unexpected argument 'b' found"),
        ] {
            let refused = command()
                .try_get_matches_from(line.split(' '))
                .expect_err(line);
            let text = in_one_line(&refused);
            assert!(text.contains(said), "{line}: {text}");
            assert!(
                !text.contains('\n') && !text.contains("Usage"),
                "{line}: {text}"
            );
        }
    }
}
