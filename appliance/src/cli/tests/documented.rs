//! Every `alknet …` of README.md, of docs/*.md, of the help's own examples and of the texts that programs print is read
//! by the definition of the command line that the binary has. `docs/adding-tests.md`, "Commands on pages", says what a
//! page may leave out of a command.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{ArgMatches, Command, FromArgMatches};

use crate::cli::{AlknetCli, help};

mod shell;
mod texts;

use shell::{ShellCommand, commands};

/// How each command of this program begins.
const PROGRAM: &str = "alknet";

/// Blocks whose every line is for a shell.
const SHELL: [&str; 2] = ["bash", "sh"];

/// Blocks where a line for a shell begins with [`PROMPT`], and the other lines are what it printed.
const SESSION: &str = "console";

/// What stands before a command that a person types.
const PROMPT: &str = "$ ";

/// Blocks of another language, or of what a program prints: `alknet` is no command there.
const OTHER_LANGUAGES: [&str; 10] = [
    "html", "js", "json", "python", "rust", "text", "toml", "ts", "tsx", "xml",
];

/// Placeholders of words that have a form of their own, each with a word that they may stand for. Every other option takes
/// a text, and so takes the placeholder itself.
const PLACEHOLDERS: [(&str, &str); 4] = [
    ("AUTHOR", "ada"),
    ("N", "1"),
    ("SECONDS", "60"),
    ("TIME", "1h"),
];

/// These stand for each verb: there is nothing to look up.
const ANY_VERB: [&str; 3] = ["NOUN", "VERB", "…"];

/// Texts that only look like commands, each with the reason.
const LOOKS_LIKE_COMMAND: [(&str, &str); 6] = [
    (
        "alknet bundle 1",
        "the first line of what a bundle's hash is made of",
    ),
    (
        "alknet helper",
        "PID 1 starts the helper of an escrow so, before the parser runs",
    ),
    (
        "alknet node",
        "PID 1 starts the node so, before the parser runs",
    ),
    ("alknet proxy", "a verb that the part SSH and SFTP brings"),
    (
        "alknet successor 1",
        "the first line of a vault's successor",
    ),
    (
        "alknet worker",
        "the node starts a worker so, before the parser runs",
    ),
];

/// Names of nodes on the pages. Where a verb may be left out, another bare word is a verb that does not exist.
const NODES: [&str; 4] = ["NODE", "attic", "edge-1", "kitchen"];

/// A command of a page, and where it stands.
#[derive(Debug)]
struct PageCommand {
    /// From the root of the repository.
    page: String,
    /// Counted from 1.
    line: usize,
    words: Vec<String>,
    /// Within a sentence, where it may leave out what the sentence is not about.
    is_mention: bool,
}

impl PageCommand {
    /// Why the program would refuse it.
    fn refusal(&self) -> Option<String> {
        if self.stands_for_something_else() {
            return None;
        }
        let words = self.words.iter().map(|word| meant(word));
        let parsed = help::command().try_get_matches_from(words);
        let read = parsed.and_then(|matches| {
            AlknetCli::from_arg_matches(&matches)?;
            Ok(matches)
        });
        match read {
            Ok(matches) => missing_verb(&help::command(), &matches),
            Err(error) if self.may_leave_out(error.kind()) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    fn stands_for_something_else(&self) -> bool {
        let said = self.words.join(" ");
        let verb = self.words.get(1).map_or("", String::as_str);
        let is_none = |text: &str| said == text || said.starts_with(&format!("{text} --"));
        ANY_VERB.contains(&verb) || LOOKS_LIKE_COMMAND.iter().any(|(text, _)| is_none(text))
    }

    /// Help and the version are no errors. A sentence about a verb, or about one of its options, need not say what the
    /// verb cannot do without.
    fn may_leave_out(&self, kind: ErrorKind) -> bool {
        let is_lack = matches!(
            kind,
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                | ErrorKind::MissingRequiredArgument
                | ErrorKind::MissingSubcommand
        );
        let is_answer = matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        is_answer || (is_lack && self.is_mention)
    }

    fn place(&self) -> String {
        format!("{}:{}: {}", self.page, self.line, self.words.join(" "))
    }
}

/// The word that the program is to read in place of a placeholder.
fn meant(word: &str) -> &str {
    let placeholder = PLACEHOLDERS.iter().find(|(name, _)| *name == word);
    placeholder.map_or(word, |(_, example)| example)
}

/// A noun that works without a verb takes a misspelt verb for a node.
fn missing_verb(command: &Command, matches: &ArgMatches) -> Option<String> {
    if let Some((name, below)) = matches.subcommand() {
        return missing_verb(command.find_subcommand(name)?, below);
    }
    command.get_subcommands().next()?;
    let node = first_word(matches, "node").or_else(|| first_word(matches, "what"))?;
    let is_bare = !node.contains(['@', '.', ':', '/', '…']) && !NODES.contains(&node.as_str());
    is_bare.then(|| format!("'{node}' is neither a verb nor one of the pages' nodes {NODES:?}"))
}

/// The first value of an argument, if the command has the argument.
fn first_word<'a>(matches: &'a ArgMatches, argument: &str) -> Option<&'a String> {
    let mut words = matches.try_get_many::<String>(argument).ok()??;
    words.next()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README.md and each page of docs/, by its path and its text.
fn pages() -> Vec<(String, String)> {
    let mut paths = vec!["README.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs")).expect("the docs") {
        let name = entry.expect("a readable entry").file_name();
        let name = name.to_string_lossy().into_owned();
        if name.ends_with(".md") {
            paths.push(format!("docs/{name}"));
        }
    }
    paths.sort_unstable();
    let read = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).expect("a readable page");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The commands of this program on a page.
fn commands_of_page(page: &str, text: &str) -> Vec<PageCommand> {
    let mut found = Vec::new();
    let mut add = |line: usize, script: &str, is_mention: bool| {
        for ShellCommand { line: below, words } in commands(script) {
            if words.first().is_some_and(|word| word == PROGRAM) {
                found.push(PageCommand {
                    page: page.to_owned(),
                    line: line + below,
                    words,
                    is_mention,
                });
            }
        }
    };
    for (line, part) in parts(text) {
        match part {
            PagePart::Block { language, code } => add(line, &script(language, &code), false),
            PagePart::Prose(prose) => {
                let mut at = line;
                for (index, piece) in prose.split('`').enumerate() {
                    let is_code = index % 2 == 1 && piece.starts_with("alknet ");
                    if is_code {
                        add(at, &piece.replace('\n', " "), true);
                    }
                    at += piece.matches('\n').count();
                }
            }
        }
    }
    found
}

/// A page in turns: text between blocks of code, by paragraphs, and those blocks.
enum PagePart<'a> {
    Block { language: &'a str, code: String },
    Prose(String),
}

/// Each part with the number of its first line. A mark that is not closed ends with its paragraph.
fn parts(text: &str) -> Vec<(usize, PagePart<'_>)> {
    let mut parts = Vec::new();
    let (mut first, mut lines) = (1, Vec::new());
    let mut language = None;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let fence = line.trim_start().strip_prefix("```");
        let ends = match language {
            Some(_) => fence.is_some(),
            None => fence.is_some() || line.trim().is_empty(),
        };
        if !ends {
            lines.push(line);
            continue;
        }
        let part = lines.join("\n");
        lines.clear();
        parts.push(match language.take() {
            Some(language) => (
                first,
                PagePart::Block {
                    language,
                    code: part,
                },
            ),
            None => {
                language = fence;
                (first, PagePart::Prose(part))
            }
        });
        first = number + 1;
    }
    parts.push((first, PagePart::Prose(lines.join("\n"))));
    parts
}

/// What of a block a shell would read, line by line: of other blocks than those for a shell what looks as a command.
fn script(language: &str, code: &str) -> String {
    // ```js gpu
    let language = language.split_whitespace().next().unwrap_or_default();
    if SHELL.contains(&language) {
        return code.to_owned();
    }
    if OTHER_LANGUAGES.contains(&language) {
        return String::new();
    }
    let typed = |line: &str| {
        let line = match language {
            SESSION => line.strip_prefix(PROMPT).unwrap_or_default(),
            _ => line.strip_prefix(PROMPT).unwrap_or(line),
        };
        let is_command = language == SESSION || line.starts_with("alknet ");
        if is_command {
            line.to_owned()
        } else {
            String::new()
        }
    };
    code.lines().map(typed).collect::<Vec<_>>().join("\n")
}

fn refused(commands: &[PageCommand]) -> Vec<String> {
    let refusals = commands.iter().filter_map(|it| Some((it, it.refusal()?)));
    refusals
        .map(|(it, why)| format!("{}: {why}", it.place()))
        .collect()
}

#[test]
fn each_command_of_a_page_is_one_of_this_program() {
    let pages = pages();
    let all = pages
        .iter()
        .flat_map(|(page, text)| commands_of_page(page, text));
    let all: Vec<_> = all.collect();
    let mentions = all.iter().filter(|it| it.is_mention).count();
    let (lines, pages) = (all.len() - mentions, pages.len());
    assert!(
        pages > 40 && lines > 120 && mentions > 120,
        "{pages} {lines} {mentions}"
    );
    let refused = refused(&all);
    assert!(
        refused.is_empty(),
        "{} commands of pages are refused:\n{}",
        refused.len(),
        refused.join("\n")
    );
}

#[test]
fn each_example_of_the_help_is_a_command_of_this_program() {
    fn examples(command: &Command, found: &mut Vec<PageCommand>) {
        let help = command.get_after_help().map(ToString::to_string);
        // An example that is longer than a line goes on in the next one, as in a shell.
        let help = help.unwrap_or_default().replace("\\\n", " ");
        let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
        let page = format!("the help of {}", command.get_name());
        found
            .extend(lines.flat_map(|line| commands_of_page(&page, &format!("```sh\n{line}\n```"))));
        command
            .get_subcommands()
            .for_each(|below| examples(below, found));
    }
    let mut found = Vec::new();
    examples(&help::command(), &mut found);
    assert!(found.len() > 60, "{} examples", found.len());
    let refused = refused(&found);
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn a_verb_or_an_option_that_does_not_exist_is_found_wherever_it_stands() {
    for text in [
        "```sh\nalknet frobnicate\n```",
        "```\nalknet token add NODE --scopes a:b\n```",
        "```sh\nx=$(alknet token ad NODE)\n```",
        "```sh\nalknet serve --admin \"$(alknet idenity)\"\n```",
        "```sh\nwhile read -r a; do alknet statsu \"$a\"; done\n```",
        "```console\n$ alknet ops promoted NODE 3f09\n```",
        "```sh\nalknet token add NODE\n```",
        "Run `alknet stauts`.",
        "Run `alknet gpu selftets --json`.",
        "Run `alknet token\nadd --skope a:b`.",
        "`alknet ops liszt`",
        "Run `alknet update apply`.",
    ] {
        let found = commands_of_page("p.md", &format!("\n{text}"));
        let refused = refused(&found);
        let at = format!(
            "p.md:{}",
            if text.starts_with('`') && text.contains("```") {
                3
            } else {
                2
            }
        );
        assert_eq!(refused.len(), 1, "{text}: {found:?}");
        assert!(refused[0].starts_with(&at), "{refused:?}");
    }
}

#[test]
fn what_is_no_command_or_leaves_out_what_a_sentence_is_not_about_is_let_pass() {
    let text = "`alknet VERB` and `alknet NOUN VERB`, `alknet token add`, `alknet hub`, `alknet node`\n\
        and `alknet worker --role ROLE`; `alknet escrow approve NODE kitchen --for TIME`, `alknet --help`.\n\n\
        ```text\nalknet: ready edge-1\nlaptop ── alknet frobnicate\n```\n\
        ```console\n$ alknet status\nalknet frobnicate is what it printed\n```\n\
        ```rust\nlet alknet = 1;\n```\n";
    let found = commands_of_page("p.md", text);
    assert!(refused(&found).is_empty(), "{:?}", refused(&found));
    assert_eq!(found.len(), 9, "{found:?}");
}
