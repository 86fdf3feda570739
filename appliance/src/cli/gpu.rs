//! `alknet gpu`: this computer's GPU, or its processor as one, without a node.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use alknet_embedded_exe::EmbeddedExeError;
use clap::{Args, Subcommand};

use super::help::{self, HelpArgs};
use super::{CommandError, CommandExit};

/// What the program calls itself in its help.
const NAME: &str = "alknet gpu";

/// Behind this word no word is an option.
const END_OF_OPTIONS: &str = "--";

/// The verbs below `alknet gpu`: those of the program that this executable carries (`compute/gpu/src/main.rs`). The
/// program knows the limits of each number, and refuses a number beyond them.
#[derive(Debug, Subcommand)]
pub(crate) enum GpuCliVerb {
    /// Measure kinds of matrix multiplication, by shaders and by the processor, and how fast memory is. Print one line
    /// of JSON for each kind.
    #[command(
        after_help = "Examples:\n  alknet gpu bench\n  alknet gpu bench --side 256 --kernels worker,host"
    )]
    Bench(GpuCliBenchArgs),
    /// As 'alknet help gpu'.
    #[command(hide = true)]
    Help(HelpArgs),
    /// Show the drivers of this program, and the adapters that they find on this computer.
    #[command(after_help = "Examples:\n  alknet gpu info\n  alknet gpu info --json")]
    Info,
    /// Show whether code that a driver generates may call a function.
    #[command(
        hide = true,
        after_help = "Example:\n  alknet gpu resolve sinf\n\nExit code 70: the function is not linked."
    )]
    Resolve {
        /// The name of the function.
        name: OsString,
    },
    /// Run shaders from files, one after the other. Print one line of JSON for each file.
    #[command(
        after_help = "Examples:\n  alknet gpu run double.wgsl\n  alknet gpu run double.wgsl --words 1024 --groups 16"
    )]
    Run(GpuCliRunArgs),
    /// Compare the results of known shaders with those of the processor.
    #[command(after_help = "Examples:\n  alknet gpu selftest\n  alknet gpu selftest --json")]
    Selftest,
    /// Compute for the node that started this process.
    #[command(
        hide = true,
        after_help = "Example:\n  alknet gpu worker --role gpu\n\nThe verb is for nodes, and of no use to people."
    )]
    Worker {
        /// The kind of worker.
        #[arg(long, value_name = "ROLE")]
        role: Option<OsString>,
    },
}

/// Arguments of `alknet gpu bench`.
#[derive(Debug, Args)]
pub(crate) struct GpuCliBenchArgs {
    /// Side of the matrices, a multiple of 64 up to 4096 [default: 512]
    #[arg(long, value_name = "N")]
    side: Option<u32>,
    /// Repetitions, 1 to 1000; the fastest counts [default: 5]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Threads of the processor's own kernel, 1 to 64 [default: 1]
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// Measure only these, separated by commas: naive, tile, rows, block, worker-block, worker, worker-end, host, memory
    #[arg(long, value_name = "NAMES")]
    kernels: Option<OsString>,
}

/// Arguments of `alknet gpu run`.
#[derive(Debug, Args)]
pub(crate) struct GpuCliRunArgs {
    /// Files of WGSL. Each has an entry point 'main' and one binding, a storage buffer of 32-bit words.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Groups to dispatch, 1 to 65,535 [default: 1]
    #[arg(long, value_name = "N")]
    groups: Option<u32>,
    /// Words in the buffer, 1 to 16,777,216; each holds its index at first [default: 64]
    #[arg(long, value_name = "N")]
    words: Option<u32>,
    /// Compile, run and drop each shader this many times, 1 to 1,000,000. An override 'round: u32' of the shader counts
    /// along, so that each repetition is another shader to the driver. [default: 1]
    #[arg(long, value_name = "N")]
    repeat: Option<u32>,
}

/// Becomes the program that this executable carries; its exit codes are its own.
pub(crate) fn run(verb: GpuCliVerb, json: bool) -> Result<CommandExit, CommandError> {
    if let GpuCliVerb::Help(args) = &verb {
        return help::run_below(help::GPU_VERB, args, json);
    }
    let program = crate::gpu::program().map_err(|error| match error {
        EmbeddedExeError::None => CommandError::usage(error),
        error => CommandError::local(error),
    })?;
    let arguments = texts(program_words(verb, json))?;
    let environment = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let environment = texts(environment)?;
    // From the open file: it has no name in a file system.
    let become_it: Result<Infallible, _> = nix::unistd::fexecve(&program, &arguments, &environment);
    match become_it {
        Ok(never) => match never {},
        Err(errno) => Err(CommandError::local(format!(
            "the program for GPUs could not be started: {errno}"
        ))),
    }
}

/// The command line of the program, its name included.
fn program_words(verb: GpuCliVerb, json: bool) -> Vec<OsString> {
    let mut words = vec![OsString::from(NAME)];
    words.extend(json.then(|| OsString::from("--json")));
    match verb {
        GpuCliVerb::Bench(args) => {
            words.push("bench".into());
            words.extend(number("--side", args.side));
            words.extend(number("--rounds", args.rounds));
            words.extend(number("--threads", args.threads));
            words.extend(option("--kernels", args.kernels));
        }
        GpuCliVerb::Help(_) => words.push("help".into()),
        GpuCliVerb::Info => words.push("info".into()),
        GpuCliVerb::Resolve { name } => {
            words.extend(["resolve", END_OF_OPTIONS].map(OsString::from));
            words.push(name);
        }
        GpuCliVerb::Run(args) => {
            words.push("run".into());
            words.extend(number("--groups", args.groups));
            words.extend(number("--words", args.words));
            words.extend(number("--repeat", args.repeat));
            // The name of a file may begin as an option does.
            words.push(END_OF_OPTIONS.into());
            words.extend(args.files.into_iter().map(PathBuf::into_os_string));
        }
        GpuCliVerb::Selftest => words.push("selftest".into()),
        GpuCliVerb::Worker { role } => {
            words.push("worker".into());
            words.extend(option("--role", role));
        }
    }
    words
}

/// An option and its number, where the command line has it.
fn number(name: &str, value: Option<u32>) -> Option<OsString> {
    option(name, value.map(|value| value.to_string().into()))
}

/// An option and its value, where the command line has it. One word, so that no value is taken for an option.
fn option(name: &str, value: Option<OsString>) -> Option<OsString> {
    let mut word = OsString::from(format!("{name}="));
    word.push(value?);
    Some(word)
}

fn texts(texts: impl IntoIterator<Item = OsString>) -> Result<Vec<CString>, CommandError> {
    let text = |text: OsString| {
        let shown = String::from_utf8_lossy(text.as_bytes()).into_owned();
        CString::new(text.into_vec())
            .map_err(|_| CommandError::usage(format!("'{shown}' holds a null character")))
    };
    texts.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use clap::Parser;

    use super::*;
    use crate::cli::{AlknetCli, AlknetCommand};

    /// What the program gets of a command line, as one text.
    fn passed_on(line: &str) -> String {
        let cli = AlknetCli::try_parse_from(line.split(' ')).expect(line);
        let AlknetCommand::Gpu(verb) = cli.verb else {
            panic!("{line} is no verb of the program");
        };
        let words = program_words(verb, cli.json).join(OsStr::new(" "));
        words.into_string().expect("the words are ASCII")
    }

    #[test]
    fn the_program_gets_each_verb_with_its_options() {
        for (line, expected) in [
            ("alknet gpu info", "alknet gpu info"),
            ("alknet gpu selftest --json", "alknet gpu --json selftest"),
            (
                "alknet gpu bench --side 64 --rounds 2 --json --threads 3 --kernels host,memory",
                "alknet gpu --json bench --side=64 --rounds=2 --threads=3 --kernels=host,memory",
            ),
            (
                "alknet gpu run a.wgsl --words 8 --groups 2 --repeat 3 -- -b.wgsl",
                "alknet gpu run --groups=2 --words=8 --repeat=3 -- a.wgsl -b.wgsl",
            ),
            ("alknet gpu resolve sinf", "alknet gpu resolve -- sinf"),
            ("alknet gpu worker", "alknet gpu worker"),
            (
                "alknet gpu worker --role gpu",
                "alknet gpu worker --role=gpu",
            ),
        ] {
            assert_eq!(passed_on(line), expected, "{line}");
        }
    }
}
