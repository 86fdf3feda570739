//! The arguments that the verbs for one row of a node's list have in common.

use std::fmt;
use std::marker::PhantomData;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::CommandError;
use super::target::NodeArgs;

/// What a verb acts on besides the node, for [`NodeRowArgs`]: one row of what `list` prints. No value of such a type
/// is made.
pub(crate) trait RowWord {
    /// The word as usages and errors write it, such as `PEER`.
    const NAME: &'static str;
    /// What `--help` says of it.
    const HELP: &'static str;
    /// Where a user finds the word, for the error of a command without it.
    const FROM: &'static str;
}

/// Arguments of a verb that acts on one row of a node's list: NODE, which may be left out, and the word that names the
/// row.
pub(crate) struct NodeRowArgs<R> {
    pub(crate) node: NodeArgs,
    /// `None`: NODE was left out, and the word stands in its place.
    pub(crate) word: Option<String>,
    row: PhantomData<R>,
}

/// The word that names a row, among the arguments of its verb.
const ROW_ID: &str = "row";

impl<R: RowWord> NodeRowArgs<R> {
    /// The node, and the word that names the row.
    ///
    /// # Errors
    /// The word is missing.
    pub(crate) fn arranged(self) -> Result<(NodeArgs, String), CommandError> {
        self.node.with_word(self.word, R::NAME, R::FROM)
    }
}

impl<R> fmt::Debug for NodeRowArgs<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeRowArgs")
            .field("node", &self.node)
            .field("word", &self.word)
            .finish()
    }
}

impl<R> FromArgMatches for NodeRowArgs<R> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            node: NodeArgs::from_arg_matches(matches)?,
            word: matches.get_one(ROW_ID).cloned(),
            row: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<R: RowWord> Args for NodeRowArgs<R> {
    fn augment_args(command: Command) -> Command {
        let word = Arg::new(ROW_ID).value_name(R::NAME).help(R::HELP);
        NodeArgs::augment_args(command).arg(word)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug)]
    enum TestRow {}

    impl RowWord for TestRow {
        const NAME: &'static str = "THING";
        const HELP: &'static str = "The thing.";
        const FROM: &'static str = "a name of 'alknet thing list'";
    }

    #[derive(Debug, Parser)]
    struct RowTestCli {
        #[command(flatten)]
        row: NodeRowArgs<TestRow>,
    }

    #[test]
    fn a_row_is_named_with_and_without_its_node() {
        let read = |line: &str| {
            let words = std::iter::once("thing").chain(line.split_whitespace());
            RowTestCli::try_parse_from(words).expect(line).row
        };
        let both = read("ed25519:00@192.0.2.7:443 lamp --peer kitchen");
        assert_eq!(both.word.as_deref(), Some("lamp"));
        assert_eq!(both.node.peer.peer.as_deref(), Some("kitchen"));
        let state = tempfile::tempdir().expect("a temporary directory");
        let alone = format!("lamp --state {}", state.path().display());
        let (node, word) = read(&alone).arranged().expect("a word");
        assert_eq!((node.node, word.as_str()), (None, "lamp"));
        let missing = read("").arranged().expect_err("no word");
        assert_eq!(
            missing.message,
            "THING is missing: a name of 'alknet thing list'"
        );
        let help = <RowTestCli as clap::CommandFactory>::command().render_help();
        assert!(help.to_string().contains("[THING]"), "{help}");
    }
}
